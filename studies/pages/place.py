"""Places in the pages of docs/results: a table stands between two marks, and what is between them is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parents[2] / "docs" / "results"


def fill(page: str, name: str, text: str) -> None:
    """Replace what stands at a place of a page."""
    path = PAGES / page
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = path.read_text("utf-8").partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{path}: has no place called {name}")
    path.write_text(f"{before}{begin}{text.strip()}\n{end}{rest.partition(end)[2]}", "utf-8")


def keep(name: str, tree: Any) -> None:
    """Write numbers, to six digits."""
    (PAGES / name).write_text(json.dumps(_short(tree), separators=(",", ":")) + "\n", "utf-8")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def written(value: float, interval: Sequence[float], *, signed: bool = False) -> str:
    """Write a number with its interval, such as `2.412 [2.380, 2.447]`."""
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
