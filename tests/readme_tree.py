"""The tree in the README, made from the first sentence of each module; run this file to write it anew."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree -->\n", "<!-- end of tree -->"
ROOMS = ("data", "model", "objectives", "control", "hub", "sampling", "scoring", "training", "evidence", "cli")
WORDS = ("errors", "parsing", "folders", "records", "streams", "registry", "trees", "sections", "recipe", "stopping")
# A longer sentence is cut at its colon.
WIDTH = 90
FOLDERS = {
    "recipes/": "Single runs.",
    "studies/": "Comparisons of matched runs.",
    "examples/": "Small programs that use the library.",
    "benchmarks/": "What is fast, and how fast.",
    "docs/": "What this page leaves out.",
    "tests/": "What must hold; they mirror `src`.",
}


def first_sentence(path: Path) -> str:
    """Read the first sentence of a module's docstring."""
    line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]
    sentence = re.split(r"(?<=\.)\s|;\s", line)[0].rstrip(".")
    return (sentence.split(": ")[0] if len(sentence) > WIDTH else sentence) + "."


def modules(folder: Path) -> list[str]:
    """List a room's files, one line each."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            inner = modules(path)
            # A room within a room that is still empty is not worth a line.
            if inner:
                lines += [f"{path.name + '/':<20}{first_sentence(path / '__init__.py')}", *indented(inner)]
        elif path.suffix == ".py" and path.name != "__init__.py":
            lines.append(f"{path.name:<20}{first_sentence(path)}")
    return lines


def indented(lines: list[str]) -> list[str]:
    """Move lines one level in."""
    return ["  " + line for line in lines]


def tree() -> str:
    """Write the whole tree."""
    source = ROOT / "src" / "crossover"
    inside = [f"{word + '.py':<20}{first_sentence(source / f'{word}.py')}" for word in WORDS]
    for room in ROOMS:
        inside += [
            f"{room + '/':<20}{first_sentence(source / room / '__init__.py')}",
            *indented(modules(source / room)),
        ]
    others = [f"{name:<24}{said}" for name, said in FOLDERS.items() if any((ROOT / name).glob("[!.]*"))]
    return "\n".join(["src/crossover/", *indented(inside), *others])


def readme_with(text: str) -> str:
    """Put a tree into the README's text."""
    readme = (ROOT / "README.md").read_text("utf-8")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}```text\n{text}\n```\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme_with(tree()), "utf-8")
