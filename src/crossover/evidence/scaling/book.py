"""Laws on disk, as plain JSON with their bootstrap's draws, so that a prediction from a file has the same interval.

Shape suffixes: K draws, P constants, I points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from crossover.errors import RunError
from crossover.evidence.files import dumps, read_json, write_text
from crossover.evidence.scaling.fit import DataRange, FittedLaw
from crossover.evidence.scaling.laws import (
    EXPONENT_BOX,
    LARGEST_LOG,
    NAMES,
    OVERFIT,
    Constants,
    Floats,
    Form,
    plain_box,
)

FORMAT = "crossover scaling laws"
VERSION = 1
# The logarithm of a term that is absent; JSON has no such number, so a draw writes null for it.
ABSENT = -math.inf
# Fewer draws give no interval; counts beyond this are no counts of runs.
FEWEST_DRAWS, MOST_RUNS = 20, 10**12
# What a bound of the box may be passed by in rounding.
ROUNDING = 1e-9


def save_laws(laws: Mapping[str, FittedLaw], path: str | Path) -> None:
    """Write laws to a JSON file.

    Args:
        laws: Laws by name, such as the family's.
        path: The file; it is replaced in one instant.

    Raises:
        RunError: There is no law to write, or the disk is full.
    """
    if not laws:
        raise RunError(f"{path}: there is no law to write; fit one first")
    rows = ",\n".join(f"{dumps(name)}: {_lines(law)}" for name, law in laws.items())
    write_text(Path(path), f'{{"format": {dumps(FORMAT)}, "version": {VERSION}, "laws": {{\n{rows}\n}}}}\n')


def load_laws(path: str | Path) -> dict[str, FittedLaw]:
    """Read laws from a JSON file that `save_laws` wrote.

    Args:
        path: The file.

    Returns:
        Laws by name; they predict what the saved ones did, to the last bit.

    Raises:
        RunError: The file is missing, broken, of another kind or of a newer version; the message names the key.
    """
    path = Path(path)
    book = _Entry(path, "", read_json(path))
    if book.value.get("format") != FORMAT:
        found = book.value.get("format", "missing")
        raise book.wrong("format", found, f"'{FORMAT}'; name a file that `crossover scaling --out` wrote")
    if book.value.get("version") != VERSION:
        found = book.value.get("version", "missing")
        raise book.wrong("version", found, f"{VERSION}; fit the laws again, or use the release that wrote the file")
    laws = book.entry("laws")
    if not laws.value:
        raise book.wrong("laws", {}, "one law or more")
    return {name: _law(laws.entry(name)) for name in laws.value}


def published_laws() -> dict[str, FittedLaw]:
    """Give the laws whose constants are published, with a spread that their source's own runs bear out.

    Only "autoregressive" (Muennighoff et al., arXiv 2305.16264) is: see `published.muennighoff_law` for its intervals.
    Of a law of masked training the reuse constants alone are published (`published.REUSE`), not E, A, B and the
    exponents, so there is none here.

    Returns:
        Laws by family.
    """
    with as_file(files("crossover.evidence.scaling") / "published.json") as path:
        return load_laws(path)


def _lines(law: FittedLaw) -> str:
    """Write a law as JSON, one field on a line, so that a person finds its constants."""
    plain = {each.name: getattr(law, each.name) for each in fields(law)}
    plain |= {"form": asdict(law.form), "constants": asdict(law.constants), "data": asdict(law.data)}
    plain["draws"], plain["residuals"] = plain.pop("draws_KP"), plain.pop("residuals_I")
    rows = [f"{dumps(name)}: {dumps(value)}" for name, value in plain.items()]
    return "{\n " + ",\n ".join(rows) + "}"


class _Entry:
    """A JSON object of the file, which knows its own key."""

    def __init__(self, path: Path, key: str, value: Mapping[str, Any]) -> None:
        self.path, self.key, self.value = path, key, value

    def wrong(self, name: str, found: Any, expected: str) -> RunError:
        """Give the error of one value."""
        shown = repr(found) if len(repr(found)) < 60 else f"{repr(found)[:60]}..."
        place = f"{self.key}.{name}" if self.key else name
        return RunError(f"{self.path}: {place} is {shown}, expected {expected}")

    def _get(self, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if name not in self.value:
            place = f"{self.key}.{name}" if self.key else name
            raise RunError(f"{self.path}: {place} is missing, expected {expected}; fit the laws again")
        if not fits(self.value[name]):
            raise self.wrong(name, self.value[name], expected)
        return self.value[name]

    def entry(self, name: str) -> _Entry:
        """Go one level down."""
        value = self._get(name, lambda value: isinstance(value, dict), "a JSON object")
        return _Entry(self.path, f"{self.key}.{name}" if self.key else name, value)

    def number(self, name: str, least: float = -math.inf) -> float:
        """Read a finite number."""
        expected = "a number" if least == -math.inf else f"a number from {least:g} on"
        return float(self._get(name, lambda value: _is_number(value) and value >= least, expected))

    def count(self, name: str) -> int:
        """Read a whole number above 0."""
        expected = f"a whole number above 0, at most {MOST_RUNS:g}"
        return int(self._get(name, lambda value: type(value) is int and 0 < value <= MOST_RUNS, expected))

    def truth(self, name: str) -> bool:
        """Read true or false."""
        return bool(self._get(name, lambda value: isinstance(value, bool), "true or false"))

    def text(self, name: str) -> str:
        """Read printable text."""
        return str(self._get(name, _is_text, "printable text"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of printable texts."""
        return tuple(self._get(name, lambda value: _is_list(value, _is_text), "a list of printable texts"))

    def ends(self, name: str) -> tuple[float, float]:
        """Read two rising numbers above 0."""
        low, high = self.interval(name)
        if low <= 0:
            raise self.wrong(name, [low, high], "two numbers above 0")
        return low, high

    def interval(self, name: str) -> tuple[float, float]:
        """Read two rising numbers."""
        low, high = self._get(
            name,
            lambda value: _is_list(value, _is_number) and len(value) == 2 and value[0] <= value[1],
            "two numbers, the lower first",
        )
        return float(low), float(high)

    def numbers(self, name: str) -> list[float]:
        """Read one number or more that are no larger than `LARGEST_LOG`."""

        def fits(value: Any) -> bool:
            return _is_number(value) and abs(value) <= LARGEST_LOG

        return self._get(name, lambda value: _is_list(value, fits) and value, "a list of numbers, 100 at most")

    def rows(self, name: str, columns: int) -> list[list[float]]:
        """Read rows of so many numbers, null standing for the logarithm of nothing."""

        def fits(row: Any) -> bool:
            return _is_list(row, lambda cell: cell is None or _is_number(cell)) and len(row) == columns

        rows = self._get(name, lambda value: _is_list(value, fits) and value, f"a list of rows of {columns} numbers")
        if len(rows) < FEWEST_DRAWS:
            raise self.wrong(name, f"{len(rows)} row(s)", f"{FEWEST_DRAWS} or more")
        return [[ABSENT if cell is None else float(cell) for cell in row] for row in rows]

    def names(self, name: str, needed: tuple[str, ...] = ()) -> _Entry:
        """Go down to an object whose keys are constants of a law, those that are needed and no others, if any is."""
        found = self.entry(name)
        if foreign := [key for key in found.value if key not in NAMES]:
            raise self.wrong(name, foreign[0], f"names of constants ({', '.join(NAMES)})")
        if needed and set(found.value) != set(needed):
            raise self.wrong(name, ", ".join(found.value), f"the constants that were fitted: {', '.join(needed)}")
        return found


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        # A whole number that is too large for a float.
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(of(item) for item in value)


def _law(entry: _Entry) -> FittedLaw:
    form = _form(entry.entry("form"))
    intervals, identified = entry.names("intervals", form.estimated), entry.names("identified", form.estimated)
    data = entry.entry("data")
    return FittedLaw(
        family=entry.text("family"),
        form=form,
        constants=_constants(entry.entry("constants"), form),
        intervals={name: intervals.interval(name) for name in intervals.value},
        identified={name: identified.truth(name) for name in identified.value},
        notes=entry.texts("notes"),
        rms_log_residual=entry.number("rms_log_residual", 0.0),
        median_log_residual=entry.number("median_log_residual", 0.0),
        r_squared=entry.number("r_squared"),
        runs=entry.count("runs"),
        points=entry.count("points"),
        data=DataRange(**{each.name: data.ends(each.name) for each in fields(DataRange)}),
        draws_KP=_draws(entry, form),
        residuals_I=np.array(entry.numbers("residuals"), float),
        # Files of earlier releases do not say; their laws are taken as exact.
        mode=entry.text("mode") if "mode" in entry.value else "",
        is_bound=entry.truth("is_bound") if "is_bound" in entry.value else False,
    )


def _form(entry: _Entry) -> Form:
    held = entry.names("held")
    try:
        return Form(
            tied_exponents=entry.truth("tied_exponents"),
            overfitting=entry.truth("overfitting"),
            held={name: held.number(name) for name in held.value},
        )
    except RunError as error:
        told = str(error)
        raise RunError(told if told.startswith(str(entry.path)) else f"{entry.path}: {entry.key}: {told}") from None


def _constants(entry: _Entry, form: Form) -> Constants:
    values = {name: entry.number(name, 0.0) for name in NAMES}
    # Without its term they have no effect, and keep their defaults.
    idle = () if form.overfitting else OVERFIT
    for name, value in values.items():
        if name in idle:
            continue
        if value == 0 and name != "overfit_size_exponent":
            raise entry.wrong(name, value, "a number above 0")
        low, high = plain_box(name)
        if not low * (1 - ROUNDING) <= value <= high * (1 + ROUNDING):
            raise entry.wrong(name, value, f"a number from {low:.3g} to {high:.3g}")
    return Constants(**{name: value for name, value in values.items() if name not in idle})


def _draws(entry: _Entry, form: Form) -> Floats:
    """Read the draws, exponents as they are and all else as its logarithm, each within what a law can use."""
    draws_KP = np.array(entry.rows("draws", len(NAMES)))
    for column_K, name in zip(draws_KP.T, NAMES, strict=True):
        if name in OVERFIT and not form.overfitting:
            continue
        low, high = EXPONENT_BOX.get(name, (-LARGEST_LOG, LARGEST_LOG))
        outside = column_K[(column_K < low - ROUNDING) | (column_K > high + ROUNDING)]
        if len(outside):
            expected = f"a number from {low:g} to {high:g}"
            raise entry.wrong(f"draws, {name}", float(outside[0]), expected)
    if not form.overfitting:
        # Without the term its columns say nothing, whatever they hold.
        draws_KP[:, [NAMES.index(name) for name in OVERFIT]] = (ABSENT, 0.0, 0.0)
    return draws_KP
