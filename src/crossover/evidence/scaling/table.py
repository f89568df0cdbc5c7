"""Points of a scaling law from plain CSV.

Columns: parameters, unique_tokens, tokens, loss_nats, family; optionally seed and group, the name of the run that a row
belongs to. Without it every row is a run of its own. Other columns are not read.
"""

from __future__ import annotations

from pathlib import Path

from crossover.errors import RunError
from crossover.evidence.published import rows_of
from crossover.evidence.scaling.laws import Point

NUMBERS = ("parameters", "unique_tokens", "tokens", "loss_nats")
NEEDED = (*NUMBERS, "family")
OPTIONAL = ("seed", "group")


def read_point_table(path: str | Path) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """Read the points of a CSV file.

    Args:
        path: The file.

    Returns:
        The points, and what a reader should know of them, in sentences.

    Raises:
        RunError: The file is damaged; the message names the file, the line, and what was expected.
    """
    path = Path(path)
    header, rows = rows_of(path, NEEDED)
    points = []
    for line, row in rows:
        numbers = {name: _number(path, line, name, row[name]) for name in NUMBERS}
        group = _text(path, line, "group", row["group"]) if "group" in header else f"{path.name}:{line}"
        family = _text(path, line, "family", row["family"])
        try:
            points.append(Point(**numbers, family=family, seed=_seed(path, line, row.get("seed", "0")), group=group))
        except RunError as error:
            raise RunError(f"{path}: line {line}: {error}") from None
    notes = [f"{path.name}: losses of a table are taken to be of one tokenizer and one held-out text"]
    if "group" not in header:
        notes.append(f"{path.name}: no column `group`, so every row counts as a run of its own")
    if ignored := [name for name in header if name not in (*NEEDED, *OPTIONAL)]:
        notes.append(f"{path.name}: columns that are not read: {', '.join(ignored)}")
    return tuple(points), tuple(notes)


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise RunError(f"{path}: line {line}: {name} is {cell[:60]!r}, expected a number above 0") from None


def _seed(path: Path, line: int, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise RunError(f"{path}: line {line}: seed is {cell[:60]!r}, expected a whole number") from None


def _text(path: Path, line: int, name: str, cell: str) -> str:
    if not cell or not cell.isprintable():
        raise RunError(f"{path}: line {line}: {name} is {cell[:60]!r}, expected a name of printable characters")
    return cell
