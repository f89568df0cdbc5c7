"""Two models' scores at downstream tasks side by side, item by item.

Suffix: I items of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError, nearest
from crossover.evidence.checked import are_scores, is_number
from crossover.evidence.conditions import Differences, settle
from crossover.evidence.files import read_json
from crossover.trees import flatten

Floats = NDArray[np.float64]
_NEEDED = ("task", "procedure", "measures", "card", "answers")
# These say which model it is, or follow from its tokenizer and its window.
_OF_MODEL = ("weights_sha256", "modes", "requests", "contexts_cut", "continuations_split", "borders_crossed")
_NORMAL = 1.96


@dataclass(frozen=True)
class TaskDifference:
    """Second minus first of one measure of one task.

    Args:
        task: The task.
        procedures: Procedures of the first and the second.
        measure: "acc", "acc_norm", "acc_bytes", "bits_per_byte" and so on.
        values: The two numbers.
        difference: Second minus first.
        interval: Its 95% interval over items, by the normal law; items are paired.
        items: Number of items.
        allowed: Fields of the cards that differ and were allowed to, with both values.
    """

    task: str
    procedures: tuple[str, str]
    measure: str
    values: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    items: int
    allowed: Mapping[str, tuple[Any, Any]]

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare_tasks(
    first: Path | str, second: Path | str, tasks: Sequence[str] = (), *, allow: Sequence[str] = ()
) -> tuple[TaskDifference, ...]:
    """Compare two models' task scores, if their cards say that they may be compared.

    Args:
        first: A run folder, a folder of task scores, or one file of them.
        second: Likewise.
        tasks: Names of tasks; empty for all that both have.
        allow: Fields that may differ, such as "precision".

    Returns:
        A difference per task, procedure and measure. Where "procedure" may differ, scores of one task under two
        procedures are compared if a side has one.

    Raises:
        RunError: There are no scores, one is broken, or fields differ that may not: each is named with both values.
    """
    pairs = _pairs(_read(first, tasks), _read(second, tasks), "procedure" in allow)
    if not pairs:
        raise RunError(f"{first} and {second}: have no task under the same procedure in common; --allow procedure")
    _refuse_other_items(first, second, pairs)
    conditions = [(str(one["task"]), conditions_of(one), conditions_of(two)) for one, two in pairs]
    allowed = settle(conditions, allow, first, second)
    return tuple(item for pair, fields in zip(pairs, allowed, strict=True) for item in _differences(*pair, fields))


def _read(path: Path | str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    path = Path(path)
    if path.is_file():
        places = [path]
    else:
        folders = [folder for folder in (path / "scores" / "tasks", path) if folder.is_dir()]
        places = sorted(folders[0].glob("[!.]*.json")) if folders else []
    rows = [_checked(place, row) for place in places if all(key in (row := read_json(place)) for key in _NEEDED)]
    if not rows:
        raise RunError(f"{path}: holds no scores of tasks; `crossover eval {path} tasks=...` leaves them")
    names = {str(row["task"]) for row in rows}
    for task in tasks:
        if task not in names:
            raise RunError(f"{path}: has no score of the task '{task}'; {nearest(task, names)}")
    return [row for row in rows if not tasks or row["task"] in tasks]


def _checked(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Refuse a score whose answers cannot be reckoned with."""
    tables = {name: row[name] for name in ("measures", "card", "answers")}
    wrong = next((name for name, value in tables.items() if not isinstance(value, Mapping)), None)
    wrong = next((name for name in ("task", "procedure") if not isinstance(row[name], str)), wrong)
    if wrong is None:
        measured = all(
            isinstance(value, Mapping) and "value" in value and (value["value"] is None or is_number(value["value"]))
            for value in row["measures"].values()
        )
        answered = all(isinstance(part, Mapping) and _fit(part) for part in row["answers"].values())
        wrong = "measures" if not measured else "answers" if not answered or not row["answers"] else None
    if wrong is not None:
        raise RunError(f"{path}: {wrong} is of another kind than `crossover eval` writes; score again")
    return row


def _fit(part: Mapping[str, Any]) -> bool:
    """Say whether the lists of a part are of the same items."""
    sizes = {len(values) if are_scores(values) else 0 for values in part.values()}
    known = part.get("gold_bytes")
    return len(sizes) == 1 and 0 not in sizes and (known is None or None in known or sum(known) > 0)


def _pairs(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], any_procedure: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair scores of the same task, procedure and number of items; or those of a task that has one on a side."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["task"], row["procedure"], row["card"].get("limit")

    pairs = [(one, two) for one in first for two in second if key(one) == key(two)]
    if not pairs and any_procedure:
        pairs = [(one, two) for one in first for two in second if one["task"] == two["task"]]
    return pairs


def conditions_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Say how a task's score came about, without what is of the model.

    Args:
        row: The score as `eval` keeps it.

    Returns:
        The procedure and the card's fields, by dotted name.
    """
    stated = flatten({"procedure": row["procedure"], **row["card"]})
    return {key: value for key, value in stated.items() if key not in _OF_MODEL}


def _differences(one: Mapping[str, Any], two: Mapping[str, Any], allowed: Differences) -> list[TaskDifference]:
    parts = [(_lists(one, name), _lists(two, name)) for name in one["answers"] if name in two["answers"]]
    names = [name for name in one["measures"] if name in two["measures"]]
    found = []
    for name in names:
        keys = ("gold_nats", "gold_bytes") if name == "bits_per_byte" else (name,)
        if all(key in side for pair in parts for side in pair for key in keys):
            found.append(_difference(one, two, name, parts, allowed))
    return found


def _refuse_other_items(
    first: Path | str, second: Path | str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    for one, two in pairs:
        shared = [(part, two["answers"][name]) for name, part in one["answers"].items() if name in two["answers"]]
        if not shared or any(
            len(left[key]) != len(right[key]) for left, right in shared for key in left if key in right
        ):
            what = f"{one['task']}: the two were not asked the same items"
            raise RunError(f"{first} and {second}: {what}; score both with the same limit")


def _lists(row: Mapping[str, Any], task: str) -> dict[str, Floats]:
    return {key: np.array(values, float) for key, values in row["answers"][task].items()}


def _difference(
    one: Mapping[str, Any],
    two: Mapping[str, Any],
    name: str,
    parts: Sequence[tuple[Mapping[str, Floats], Mapping[str, Floats]]],
    allowed: Differences,
) -> TaskDifference:
    values = (float(one["measures"][name]["value"]), float(two["measures"][name]["value"]))
    if name == "bits_per_byte":
        # Linearised: what each item adds to the error of its side's ratio (Cochran 1977, section 6.5).
        added_I = _added([right for _, right in parts]) - _added([left for left, _ in parts])
        error = math.sqrt(len(added_I) * float(added_I.var(ddof=1)))
    else:
        gaps = [right[name] - left[name] for left, right in parts]
        strata = gaps if all(len(gap_I) > 1 for gap_I in gaps) else [np.concatenate(gaps)]
        total = sum(len(gap_I) for gap_I in gaps)
        error = math.sqrt(sum(len(gap_I) * float(gap_I.var(ddof=1)) for gap_I in strata)) / total
    gap = values[1] - values[0]
    return TaskDifference(
        task=str(one["task"]),
        procedures=(str(one["procedure"]), str(two["procedure"])),
        measure=name,
        values=values,
        difference=gap,
        interval=(gap - _NORMAL * error, gap + _NORMAL * error),
        items=sum(len(next(iter(left.values()))) for left, _ in parts),
        allowed=allowed,
    )


def _added(sides: Sequence[Mapping[str, Floats]]) -> Floats:
    """Give what each item adds to the error of bits per byte."""
    bits_I = np.concatenate([side["gold_nats"] for side in sides]) / math.log(2)
    bytes_I = np.concatenate([side["gold_bytes"] for side in sides])
    return (bits_I - bits_I.sum() / bytes_I.sum() * bytes_I) / bytes_I.sum()


def lines_of(found: Sequence[TaskDifference], first: str, second: str) -> list[str]:
    """Write differences for people.

    Args:
        found: What `compare_tasks` found.
        first: Name of the first model.
        second: Name of the second model.

    Returns:
        A line for each, and what was allowed to differ.
    """
    lines = [f"{second} - {first}, 95% over items, paired; other seeds of the training are not in it"]
    for item in found:
        kind = item.procedures[0] if item.procedures[0] == item.procedures[1] else " against ".join(item.procedures)
        low, high = item.interval
        apart = "" if item.apart else "; they cannot be told apart"
        lines.append(
            f"{item.task}, {kind}, {item.measure}: {item.values[0]:.4f} and {item.values[1]:.4f}, "
            f"{item.difference:+.4f} [{low:+.4f}, {high:+.4f}] ({item.items:,} items){apart}"
        )
    allowed = {field: values for item in found for field, values in item.allowed.items()}
    return lines + [f"  allowed to differ: {field}: {left} and {right}" for field, (left, right) in allowed.items()]
