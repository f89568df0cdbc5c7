"""Curves from plain CSV, so that what others have published can be analysed too.

Columns: step, tokens, flops, loss (nats per token); optionally arm, seed, epochs, bits_per_byte and standard_error
(of the loss, in its unit). Blank lines and lines that begin with # are skipped; other columns are not read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError, nearest
from crossover.evidence.checked import LARGEST
from crossover.evidence.curves import Curve
from crossover.streams import stream

# Shape suffixes: E evaluations, D stand-in documents, A arms.
NEEDED = ("step", "tokens", "flops", "loss")
NUMBERS = ("epochs", "bits_per_byte", "standard_error")
OPTIONAL = ("arm", "seed", *NUMBERS)
# Enough for a sum over resampled stand-ins to be close to normal.
STAND_INS = 200
Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class PublishedCurve:
    """One curve of a table.

    Args:
        arm: Name of the arm: the column `arm`, else the file's name without its ending.
        seed: The column `seed`, 0 without one.
        path: The file.
        columns: Numbers by column, E evaluations each, steps ascending.
        ignored: Columns of the file that were not read.
    """

    arm: str
    seed: int
    path: Path
    columns: Mapping[str, NDArray[np.float64]]
    ignored: tuple[str, ...]

    def levels(self, in_bits: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the losses that are compared and their standard errors.

        Args:
            in_bits: Bits per byte, else nats per token.

        Returns:
            Losses and standard errors (0 where none is stated), each of shape (E,).
        """
        loss_E = self.columns["loss"]
        error_E = self.columns.get("standard_error", np.zeros(len(loss_E)))
        if not in_bits:
            return loss_E, error_E
        # Bytes per token are one constant of a text and its tokenizer, so an error scales as its loss does.
        bits_E = self.columns["bits_per_byte"]
        return bits_E, error_E * bits_E / loss_E


def read_table(path: str | Path) -> tuple[PublishedCurve, ...]:
    """Read the curves of a CSV file.

    Args:
        path: The file.

    Returns:
        One curve for each arm and seed, in the order of their first rows.

    Raises:
        RunError: The file is damaged; the message names the file, the line, and what was expected.
    """
    path = Path(path)
    header, rows = rows_of(path)
    groups: dict[tuple[str, int], list[tuple[int, dict[str, float]]]] = {}
    names = [name for name in (*NEEDED, *NUMBERS) if name in header]
    for line, row in rows:
        arm = row["arm"] if "arm" in header else path.stem
        if not arm or not arm.isprintable():
            raise _damage(path, line, f"arm is {arm[:60]!r}, expected a name of printable characters")
        numbers = {name: _number(path, line, name, row[name]) for name in names}
        groups.setdefault((arm, _seed(path, line, row.get("seed", "0"))), []).append((line, numbers))
    ignored = tuple(name for name in header if name not in (*NEEDED, *OPTIONAL))
    curves = []
    for (arm, seed), members in groups.items():
        _check_order(path, arm, seed, members)
        columns = {name: np.array([row[name] for _, row in members]) for name in names}
        curves.append(PublishedCurve(arm, seed, path, columns, ignored))
    return tuple(curves)


def _damage(path: Path, line: int, what: str) -> RunError:
    return RunError(f"{path}: line {line}: {what}")


def rows_of(path: Path, needed: Sequence[str] = NEEDED) -> tuple[list[str], list[Row]]:
    """Read a CSV file into a header and rows, each with its line in the file.

    Args:
        path: The file.
        needed: Columns that it must have.

    Returns:
        The names of its columns, and at least one row, cells by column.

    Raises:
        RunError: It is no such file; the message names the file, the line, and what was expected.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise RunError(f"{path}: is no text in UTF-8; expected a CSV file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); expected a CSV file") from None
    header: list[str] = []
    rows: list[Row] = []
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip() or source.lstrip().startswith("#"):
            continue
        # One line is one row: a quoted line break would hide where a damage is.
        try:
            cells = [cell.strip() for cell in next(csv.reader([source], strict=True))]
        except csv.Error as error:
            raise _damage(path, line, f"is no CSV ({error})") from None
        if not header:
            header = _header(path, line, cells, needed)
        elif len(cells) != len(header):
            raise _damage(path, line, f"has {len(cells)} cells, expected {len(header)} ({', '.join(header)[:500]})")
        else:
            rows.append((line, dict(zip(header, cells, strict=True))))
    if not rows:
        raise RunError(f"{path}: holds no measurement; expected a header with {', '.join(needed)}, and rows below it")
    return header, rows


def _header(path: Path, line: int, cells: Sequence[str], needed: Sequence[str]) -> list[str]:
    # A name is shown to a person: what is not printable could hide or colour the rest of the message.
    header = ["".join(filter(str.isprintable, cell)).lower() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise _damage(path, line, f"has the column '{twice[0]}' twice")
    lacking = [name for name in needed if name not in header]
    if lacking:
        hint = f"{lacking[0]}: {nearest(lacking[0], header)}"
        raise _damage(path, line, f"lacks the column(s) {', '.join(lacking)}; {hint}; cells are parted by commas")
    return header


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise _damage(path, line, f"{name} is {cell[:60]!r}, expected a number") from None
    if not math.isfinite(value) or value > LARGEST:
        raise _damage(path, line, f"{name} is {cell[:60]!r}, expected a finite number; leave the row out")
    if value < 0 or (value == 0 and name in ("loss", "bits_per_byte")):
        least = "a number above 0" if name in ("loss", "bits_per_byte") else "a number from 0 on"
        raise _damage(path, line, f"{name} is {cell}, expected {least}")
    return value


def _seed(path: Path, line: int, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise _damage(path, line, f"seed is {cell[:60]!r}, expected a whole number") from None


def _check_order(path: Path, arm: str, seed: int, members: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    whose = f"of arm '{arm}', seed {seed}"
    if len(members) < 2:
        raise _damage(path, members[0][0], f"is the only row {whose}; a curve needs two or more")
    seen: dict[float, int] = {}
    for line, row in members:
        if row["step"] in seen:
            raise _damage(path, line, f"step {row['step']:g} {whose} is in line {seen[row['step']]} already; keep one")
        seen[row["step"]] = line
    for (before, old), (line, new) in pairwise(members):
        if new["step"] < old["step"]:
            message = f"step {new['step']:g} {whose} comes after step {old['step']:g} (line {before}); sort the rows"
            raise _damage(path, line, message)
        for name in ("tokens", "flops", "epochs"):
            if new.get(name, 0.0) < old.get(name, 0.0):
                raise _damage(path, line, f"{name} {whose} falls from {old[name]:g} (line {before}) to {new[name]:g}")


def level_curve(
    like: Curve, levels_E: NDArray[np.float64], errors_E: NDArray[np.float64], pattern_D: NDArray[np.float64]
) -> Curve:
    """Give a curve that has a loss and a standard error in place of documents.

    Stand-in documents carry the standard error: resampled, they shift the whole curve by one normal number of
    standard errors, for all evaluations of a curve are made on one held-out text.

    Args:
        like: Its arm, seed, mode and amounts of compute.
        levels_E: Losses.
        errors_E: Their standard errors.
        pattern_D: The arm's pattern of `patterns`.

    Returns:
        The curve; its `bits_E` are the levels, whatever their unit.
    """
    documents = len(pattern_D)
    nats_ED = math.log(2) * (levels_E[:, None] + errors_E[:, None] * pattern_D)
    return Curve(
        like.arm, like.seed, like.procedure, like.exact, like.flops_E, like.flops_6nd_E, like.epochs_E,
        nats_ED, np.ones(documents),
    )  # fmt: skip


def patterns(arms: int) -> NDArray[np.float64]:
    """Give each arm its pattern over stand-in documents, so that the shifts of two arms are independent.

    Args:
        arms: Number of arms, A.

    Returns:
        Patterns of shape (A, D): each sums to 0, has a bootstrap standard error of 1, and is orthogonal to the others.
    """
    documents = max(STAND_INS, arms + 2)
    columns = stream(0, "stand-ins").standard_normal((documents, arms + 1))
    columns[:, 0] = 1.0
    orthonormal = np.linalg.qr(columns)[0][:, 1:]
    return documents * orthonormal.T


def plain_curve(published: PublishedCurve, by_epoch: bool) -> Curve:
    """Give a table's curve without its losses: what `level_curve` is told of it.

    Args:
        published: The table's curve.
        by_epoch: Take its epochs, else its tokens, which match where the arms repeat one text.

    Returns:
        A curve with arm, seed, FLOPs and epochs (or tokens), and no document.
    """
    columns = published.columns
    flops_E = columns["flops"]
    epochs_E = columns["epochs" if by_epoch else "tokens"]
    none_ED = np.zeros((len(flops_E), 0))
    nowhere_E = np.full(len(flops_E), np.nan)
    return Curve(published.arm, published.seed, "table", True, flops_E, nowhere_E, epochs_E, none_ED, np.zeros(0))
