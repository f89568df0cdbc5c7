"""The house rules, as far as a program can check them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import readme_tree
from crossover import cli
from crossover.evidence.definition import read_study
from crossover.recipe import load

ROOT = Path(__file__).resolve().parents[1]
LINES_OF_A_FILE = 350
LINES_OF_A_FUNCTION = 40
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def tracked() -> list[Path]:
    """List the files that belong to the repository (all that git does not ignore, or all of a source archive)."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    here = [path for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in here if not any(part[0] == "." for part in path.relative_to(ROOT).parts)]


FILES = tracked()
CODE = [path for path in FILES if path.suffix == ".py"]
SOURCE = [path for path in CODE if path.is_relative_to(ROOT / "src")]
MODULES = sorted(".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCE)


def text_of(path: Path) -> str:
    """Read a file that may be an image."""
    return path.read_bytes().decode("utf-8", "replace")


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without its docstring."""
    body = function.body
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = (body[0].end_lineno or 0) - body[0].lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def undocumented(tree: ast.Module) -> list[str]:
    """List public functions, classes and methods without a docstring."""
    found: list[str] = []
    pending: list[Definition] = [node for node in tree.body if isinstance(node, Definition)]
    while pending:
        node = pending.pop()
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            found.append(node.name)
        if isinstance(node, ast.ClassDef):
            pending += [inner for inner in node.body if isinstance(inner, Definition)]
    return found


def test_there_is_something_to_check():
    assert len(SOURCE) > 20
    assert ROOT / "Makefile" in FILES


def test_files_are_short():
    long = {str(path.relative_to(ROOT)): len(text_of(path).splitlines()) for path in CODE}
    assert {name: lines for name, lines in long.items() if lines > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    long = {}
    for path in CODE:
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > LINES_OF_A_FUNCTION:
                long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = body_lines(node)
    assert long == {}


def test_what_is_public_is_documented():
    missing = {str(path.relative_to(ROOT)): undocumented(ast.parse(text_of(path))) for path in SOURCE}
    assert {name: found for name, found in missing.items() if found} == {}


def test_no_file_names_a_folder_of_one_machine():
    # Spelt in halves, or this file would name them.
    names = "|".join(["wo" + "rk", "ro" + "ot", "op" + "t", "ho" + "me"])
    folders = re.compile(rf"(?<![\w.~$}}}}*/-])/(?:{names})/")
    named = {str(path.relative_to(ROOT)): folders.findall(text_of(path)) for path in FILES}
    assert {name: found for name, found in named.items() if found} == {}


def test_modules_keep_to_the_names_of_the_house():
    assert [path for path in SOURCE if path.stem in ("utils", "helpers", "common", "misc")] == []
    classes = [
        node.name for path in SOURCE for node in ast.walk(ast.parse(text_of(path))) if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if name.startswith("Base") or name.endswith("Manager")] == []


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter that has imported nothing yet."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)


HEAVY = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = sorted({"torch", "transformers"} & set(sys.modules))
    assert not heavy, f"{name} imports {heavy}"
"""


def test_words_control_and_evidence_import_no_torch():
    rooms = ("control", "evidence", "errors", "records", "registry", "trees", "recipe", "streams", "cli")
    light = [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in rooms]
    assert len(light) > len(rooms)
    finished = run_python(HEAVY, *(name.removesuffix(".__init__") for name in light))
    assert finished.returncode == 0, finished.stderr


def test_help_imports_no_torch():
    code = """
import sys
from crossover.cli import main
sys.argv = ["crossover", "--help"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
assert not {"torch", "transformers"} & set(sys.modules)
"""
    finished = run_python(code)
    assert finished.returncode == 0, finished.stderr
    assert "train" in finished.stdout


def sub_commands() -> set[str]:
    """List the sub-commands of `crossover`."""
    command = typer.main.get_command(cli.app)
    return set(getattr(command, "commands", {}))


def written_commands() -> list[tuple[str, str]]:
    """List the commands in the shell blocks of the README and the documentation, with the file they stand in."""
    found = []
    for path in FILES:
        if path.suffix == ".md":
            for block in re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", text_of(path), re.S):
                lines = block.replace("\\\n", " ").splitlines()
                found += [(str(path.relative_to(ROOT)), line.strip().removeprefix("$ ")) for line in lines]
    return [(name, line.split(" #")[0].strip()) for name, line in found if line and not line.startswith("#")]


@pytest.mark.parametrize(("name", "line"), written_commands())
def test_commands_in_the_documentation_exist(name, line):
    words = line.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words and words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.M))
        assert {word for word in words[1:] if "=" not in word} <= targets
    if words and words[0].removeprefix(".venv/bin/") == "crossover":
        assert words[1].startswith("-") or words[1] in sub_commands()
    for word in words:
        if re.fullmatch(r"(recipes|studies|examples|benchmarks|tests|docs)/\S+", word):
            assert (ROOT / word).exists(), f"{name} names {word}"


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/howto/add-an-objective.md"])
def test_recipes_in_the_documentation_resolve(name, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", text_of(ROOT / name), re.S)
    assert blocks
    for block in blocks:
        path = tmp_path / "written.yaml"
        path.write_text(re.sub(r"^imports: .*$", "", block, flags=re.M).replace("backwards", "masked"), "utf-8")
        assert load(path).controller


def test_the_readme_names_the_two_commands():
    written = [line for name, line in written_commands() if name == "README.md"]
    assert any(line.startswith("make quickstart") for line in written)
    assert any(line.startswith("make test") for line in written)


def test_the_tree_in_the_readme_is_the_tree():
    fresh = readme_tree.readme_with(readme_tree.tree())
    assert text_of(ROOT / "README.md") == fresh, "write it anew: python tests/readme_tree.py"


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    assert [link for link in LINK.findall(text_of(path)) if not (path.parent / link).exists()] == []


TUTORIAL = """
import sys
import numpy as np
from crossover.records import Vocabulary
from crossover.registry import component_of, parse_mix

exec(compile(sys.argv[1], "tutorial", "exec"))
made = component_of("objective", "backwards")
assert parse_mix({"autoregressive": 0.5, "backwards": 0.5}).share("backwards") == 0.5
tokens = np.arange(12).reshape(2, 6)
example = made.corrupt(tokens, np.random.default_rng(0), Vocabulary(16, 12, 12, 13, 15))
assert example.targets_R.tolist() == tokens[:, ::-1].ravel().tolist()
assert example.inputs_BN[0].tolist() == [12, 5, 4, 3, 2, 1]
assert example.positions_BN[0].tolist() == [0, 6, 5, 4, 3, 2]
assert made.workload(6).inputs == 6
"""


def test_the_tutorial_objective_works():
    block = re.findall(r"```python\n(.*?)```", text_of(ROOT / "docs" / "howto" / "add-an-objective.md"), re.S)[0]
    finished = run_python(TUTORIAL, block)
    assert finished.returncode == 0, finished.stderr


RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
STUDIES = sorted((ROOT / "studies").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_resolves(path):
    assert load(path).name


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_resolves(path):
    assert len(read_study(path).arms) > 1


def test_everything_that_ci_runs_is_what_a_person_runs():
    script = text_of(ROOT / ".ci" / "run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert script.rstrip().endswith("\nmake test")
    assert not (ROOT / ".github").exists()
