"""What strangers send runs no code and takes no more memory than its bound: recipes, models, tokenizers, corpora."""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from crossover.data.corpus import Files
from crossover.data.opening import MOST_LINE_BYTES
from crossover.errors import RecipeError
from crossover.evidence.definition import read_study
from crossover.evidence.record import read_run
from crossover.evidence.view import read_view
from crossover.parsing import DEEPEST, parse_json, parse_yaml, read_bounded
from crossover.recipe import load
from evidence.synthetic import write_run, write_study
from traps import TRAP, refused

SOURCE = Path(__file__).resolve().parents[1] / "src"
# Calls that run what a file says, or read a format that can.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "cloudpickle.load", "yaml.load",
    "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen", "numpy.load", "np.load",
    "torch.hub.load", "runpy.run_path", "code.interact",
}  # fmt: skip
MODULES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "cPickle"}


def calls_of(path: Path) -> list[tuple[int, str, ast.Call]]:
    """List the calls of a file: line, dotted name, node."""
    calls = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))
    return [(call.lineno, ast.unparse(call.func), call) for call in calls]


def imports_of(path: Path) -> set[str]:
    """List the top-level packages that a file imports."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_nothing_in_the_source_can_run_what_a_file_says():
    found = []
    for path in SOURCE.rglob("*.py"):
        found += [f"{path.name}: import {name}" for name in imports_of(path) & MODULES]
        for line, name, call in calls_of(path):
            options = {item.arg: item.value for item in call.keywords}
            unsafe = [key for key in ("allow_pickle", "trust_remote_code", "shell") if is_true(options.get(key))]
            # `re.compile` and `model.eval()` are other things than the built-ins.
            if name in FORBIDDEN or unsafe:
                found.append(f"{path.name}:{line}: {name} {unsafe}")
    assert found == []


def test_modules_are_imported_by_name_only_where_the_name_is_ours_or_trusted():
    found = {
        f"{path.relative_to(SOURCE).as_posix()}: {ast.unparse(call)}"
        for path in SOURCE.rglob("*.py")
        for _, name, call in calls_of(path)
        if name.endswith("import_module") and not isinstance(call.args[0], ast.Constant)
    }
    assert {line for line in found if "registry.py" not in line} <= {
        "crossover/data/opening.py: importlib.import_module(module)",
        "crossover/evidence/sinks/view.py: importlib.import_module(top)",
        "crossover/evidence/sinks/view.py: importlib.import_module(package)",
    }, "an import by name must not take its name from a file"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


YAML_TRAPS = (
    f'name: !!python/object/apply:builtins.exec ["{TRAP}"]',
    f"!!python/object/new:os.system [\"python -c '{TRAP}'\"]",
    "name: !!python/module:evil",
    "name: !!python/name:os.system",
)


@pytest.mark.parametrize("text", YAML_TRAPS)
def test_yaml_that_makes_objects_is_refused(here, text):
    (here / "recipe.yaml").write_text(text)
    refused(lambda: load("recipe.yaml"), "recipe.yaml, line 1", "is not YAML")
    refused(lambda: load(valid(here), [f"name={text.removeprefix('name: ')}"]), "is not a YAML value")


def valid(here: Path) -> Path:
    path = here / "valid.yaml"
    path.write_text("data: {context: 32}\ntraining: {batch_tokens: 64}\n")
    return path


def test_imports_run_only_when_they_are_trusted(here):
    (here / "evil_module_of_test.py").write_text(TRAP)
    (here / "recipe.yaml").write_text("imports: [evil_module_of_test]\n")
    refused(lambda: load("recipe.yaml"), "imports: runs code from evil_module_of_test; add --trust")
    refused(lambda: load(valid(here), ["imports=[evil_module_of_test]"]), "add --trust")
    (here / "base.yaml").write_text("imports: [evil_module_of_test]\n")
    (here / "study.yaml").write_text("recipe: base.yaml\narms: {a: {controller: watch}}\nbudget: {tokens: 1e6}\n")
    refused(lambda: read_study("study.yaml"), "add --trust")
    load("recipe.yaml", trust=True)
    assert Path("trapped").exists()


def test_a_name_in_a_file_does_not_steer_the_terminal(here, monkeypatch, capsys):
    (here / "recipe.yaml").write_text('"\\e[2J\\e]0;owned\\a": 1\n')
    assert tiny_runs.command(monkeypatch, "train", "recipe.yaml") == 2
    said = capsys.readouterr().err
    assert "owned" in said and "\x1b" not in said and "\\x1b[2J" in said


@pytest.mark.parametrize("call", ["__import__('os').system('true')", "exec(1)", "constant.__class__", "(lambda: 0)()"])
def test_a_component_that_is_written_as_a_call_is_no_code(here, call):
    (here / "recipe.yaml").write_text(f"controller: {json.dumps(call)}\n")
    refused(lambda: load("recipe.yaml"), "recipe.yaml, line 1: controller")


def test_aliases_that_stand_for_billions_of_values_are_refused(here):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (here / "recipe.yaml").write_text("\n".join(lines))
    refused(lambda: load("recipe.yaml"), "recipe.yaml, line", "aliases stand for more than")
    (here / "maps.yaml").write_text("\n".join(line.replace("[", "{k: [").replace("]", "]}") for line in lines))
    refused(lambda: load("maps.yaml"), "maps.yaml")
    # A few are what they are for.
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: 2}")["d"] == {"b": 1, "e": 2}


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 3000, "- " * 3000, "a: &a [*a]", "a: " + "x" * 2_000_000])
def test_yaml_that_is_too_deep_or_too_long_is_refused_at_once(here, text):
    (here / "recipe.yaml").write_text(text)
    refused(lambda: load("recipe.yaml"), "recipe.yaml")


def test_json_is_bounded_in_depth_and_strict_in_numbers():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    for text in ("[" * 200 + "]" * 200, "[" * 10**6, '{"a":' * 100 + "1" + "}" * 100, "NaN", "[Infinity]", "1" * 9999):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json("[NaN]", strict=False)[0] != 0


def test_what_is_no_regular_file_is_not_waited_for(here):
    os.mkfifo("recipe.yaml")
    refused(lambda: load("recipe.yaml"), "recipe.yaml: cannot be read: is no regular file")
    run = write_run(here / "run")
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")
    refused(lambda: read_run(run), "manifest.json: cannot be read: is no regular file")
    with pytest.raises(OSError, match="larger"):
        read_bounded(valid(here), 3)


def corpus(here: Path) -> Path:
    folder = here / "text"
    folder.mkdir()
    (folder / "good.txt").write_text("some text that is good")
    return folder


def test_pipes_devices_and_links_in_a_corpus_are_refused(here):
    folder = corpus(here)

    def read() -> object:
        files = Files(str(folder))
        return files.signature(), list(files.documents(1000))

    for name, make in {
        "pipe.txt": os.mkfifo,
        "zero.txt": lambda path: os.symlink("/dev/zero", path),
        "loop.txt": lambda path: os.symlink(path, path),
        "nowhere.jsonl": lambda path: os.symlink("/nowhere/at/all", path),
    }.items():
        make(folder / name)
        refused(read, name)
        (folder / name).unlink()
    # A folder that links to the folder around it is not walked into.
    os.symlink(folder, folder / "again")
    assert [document.name for document in Files(str(folder)).documents(1000)] == ["good.txt"]


BOMBS = """
import resource, sys, time
from pathlib import Path
from crossover.data.corpus import Files
from crossover.errors import DataError
import pyarrow.parquet, zstandard
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[1:]:
    try:
        for document in Files(name).documents(1_000_000):
            pass
    except DataError as error:
        print(name, "refused:", error)
"""


def bombs(here: Path, copies: int) -> list[str]:
    """Write files of a thousandth of the size that they stand for, or less."""
    import zstandard

    zeros = b"0" * (1 << 24)
    (here / "zeros.txt.gz").write_bytes(gzip.compress(zeros, 9) * copies)
    (here / "line.jsonl.gz").write_bytes(gzip.compress(zeros, 9) * copies)
    compressor = zstandard.ZstdCompressor()
    (here / "line.jsonl.zst").write_bytes(compressor.compress(zeros) * copies)
    lines = (b'{"text": "' + b"0" * 1000 + b'"}\n') * (1 << 14)
    (here / "lines.jsonl.zst").write_bytes(compressor.compress(lines) * copies)
    return ["zeros.txt.gz", "line.jsonl.gz", "line.jsonl.zst", "lines.jsonl.zst"]


@pytest.mark.parametrize("copies", [64, pytest.param(640, marks=pytest.mark.slow, id="10 MB for 10 GB")])
def test_files_that_expand_to_fill_a_machine_are_refused_in_bounded_memory(here, copies):
    pytest.importorskip("zstandard")
    names = bombs(here, copies)
    assert all((here / name).stat().st_size < 11e6 for name in names)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, *names], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" refused: ") for line in done.stdout.splitlines())
    assert list(said) == names, done.stdout
    assert "expands to more than 200 times" in said["zeros.txt.gz"] and "zeros.txt.gz" in said["zeros.txt.gz"]
    assert "line 1: is longer than" in said["line.jsonl.gz"]
    assert "expands to more than 200 times" in said["line.jsonl.zst"]
    assert "expands to more than 200 times" in said["lines.jsonl.zst"]


def test_lines_are_bounded_and_nesting_is_refused_with_its_line(here):
    folder = corpus(here)
    for content in (
        b"[" * 500_000,
        b'{"text": ' + b"[" * 99_000 + b"]" * 99_000 + b"}",
        b'{"text": ' + b"1" * 10_000 + b"}",
    ):
        (folder / "deep.jsonl").write_bytes(b'{"text": "fine"}\n' + content + b"\n")
        refused(lambda: list(Files(str(folder)).documents(1000)), "deep.jsonl, line 2")
    assert MOST_LINE_BYTES == 1 << 26


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/../../b", "..", ".hidden", "a\\nb", "con\x00"])
def test_names_do_not_lead_out_of_a_folder(here, name):
    (here / "recipe.yaml").write_text(json.dumps({"name": name}))
    refused(lambda: load("recipe.yaml"), "recipe.yaml", "name")
    (here / "base.yaml").write_text("seed: 0\n")
    study = {"recipe": "base.yaml", "arms": {name: {"controller": "watch"}}, "budget": {"tokens": 1e6}}
    (here / "study.yaml").write_text(json.dumps(study))
    refused(lambda: read_study("study.yaml"), "study.yaml", "arms")


def test_a_study_folder_whose_arms_lead_out_of_it_is_not_followed(here):
    folder = write_study(here / "pair", {"ar": {}}, seeds=(0,))
    text = (folder / "study.yaml").read_text("utf-8")
    (folder / "study.yaml").write_text(text.replace("  ar:", "  ../../elsewhere:"), "utf-8")
    refused(lambda: read_view(folder), "study.yaml", "no arm's name")


def test_prepared_text_whose_files_lead_out_of_it_is_not_followed(here):
    from crossover.data.shards import PreparedText

    manifest: dict[str, Any] = {"format": 1, "data_hash": "", "dtype": "<u2", "unique_tokens": 1, "control_offset": 0}
    manifest |= {"control_tokens": 0, "inexact_documents": 0, "data": {"attend_across_documents": True}}
    for name in ("../secret.bin", "/etc/passwd", "tokenizer/../../secret.bin"):
        manifest["files"] = {name: {"bytes": 1, "sha256": ""}}
        (here / "manifest.json").write_text(json.dumps(manifest))
        refused(lambda: PreparedText.open(here), "manifest.json: files")


@pytest.mark.parametrize("change", ["data.tokenizer=bpe(1000000000000)", "training.threads=100000000"])
def test_settings_that_no_machine_holds_are_refused_while_they_are_read(here, change):
    with pytest.raises(RecipeError, match=change.split("=")[0].replace(".", r"\.")):
        load(valid(here), [change])
