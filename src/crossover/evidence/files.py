"""Small files that are never half-written, and JSON lines that survive a torn tail."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossover.errors import RunError
from crossover.parsing import LARGEST_JSON_BYTES, LARGEST_LOG_BYTES, parse_json, read_bounded

_PLAIN = (str, int, float, bool, type(None))


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to free.

    Args:
        path: What is being written.

    Raises:
        RunError: The disk, or the quota, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"{path}: the disk is full. Nothing recorded before this moment is lost. Free space (old runs: their "
            f"checkpoints/ folders are the largest part; `training.keep_checkpoints` keeps fewer) and give the "
            f"same command again: the run goes on from its last checkpoint"
        ) from None


def plain(value: Any) -> Any:
    """Make a value fit for strict JSON: numpy becomes plain, numbers that are not finite become null."""
    # Nearly all of a log row is of these types, and asking whether something is a Mapping takes longer than the rest.
    if type(value) in _PLAIN:
        return value if type(value) is not float or math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Write strict JSON; keys keep their order."""
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file in one instant: readers see the old one or the new one.

    Args:
        path: The file.
        text: Its new content.
        durable: Whether it must survive a power cut (fsync).

    Raises:
        RunError: The disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room_on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: The file is missing or is no JSON object.
    """
    try:
        value = parse_json(read_bounded(path, LARGEST_JSON_BYTES))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        # Beside broken text: brackets without end, and whole numbers of thousands of digits.
        raise RunError(f"{path}: is not JSON ({error}); restore it or run again in another folder") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, not a {type(value).__name__}")
    return value


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Read one JSON line, or return None where it is torn."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) else None


def sound_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Read JSON lines up to a torn tail.

    Args:
        path: The file; a missing one has no lines.

    Returns:
        Each sound line and what it says.

    Raises:
        RunError: A line is broken although sound lines follow it, or the file cannot be read.
    """
    try:
        lines = read_bounded(path, LARGEST_LOG_BYTES).splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    rows = [parse_row(line) for line in lines]
    while rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise RunError(
            f"{path}, line {rows.index(None) + 1}: is not a JSON object although sound lines follow it; "
            f"the file was changed by something else: restore it, or run again in another folder"
        )
    return [(line, row) for line, row in zip(lines, rows, strict=False) if row is not None]


def read_rows(path: Path) -> tuple[dict[str, Any], ...]:
    """Read the rows of a JSON-lines file; a torn last line is left out, as it would be at resume."""
    return tuple(row for _, row in sound_lines(path))


def cut_rows(path: Path, step: int) -> None:
    """Keep the rows of a JSON-lines file up to a step, and drop a torn tail.

    Args:
        path: The file; nothing happens when it does not exist.
        step: The last step that is kept.

    Raises:
        RunError: A row that would be kept is broken.
    """
    if not path.exists():
        return
    kept = [line for line, row in sound_lines(path) if isinstance(row.get("step"), int) and row["step"] <= step]
    write_text(path, b"".join(kept).decode("utf-8"))


def drop_torn_line(path: Path) -> None:
    """Cut an unfinished last line off, so that the next row does not continue it."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
