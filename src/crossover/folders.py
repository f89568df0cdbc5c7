"""Folders that appear whole or not at all, and the sums by which a damaged one is known."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded

# Where a folder keeps the sha256 of each of its files.
SUMS = "checksums.json"
# A checkpoint's folder is called by its optimizer step, so that names sort as steps do.
STEP = "step-"


@contextmanager
def appearing(final: Path, *, owned: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it stands at its place, and what stood there is gone.

    Nothing is lost before: a folder of the same name steps aside, and comes back if the new one does not arrive, here
    or when the next process tidies up.

    Args:
        final: The place.
        owned: Whether all of the folder around it is this program's, so that what dead processes left there goes too.

    Yields:
        The folder to fill, beside the place.

    Raises:
        OSError: It cannot be written.
    """
    temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        tidy(final.parent, None if owned else final.name)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            synchronise(path)
        _move(temporary, final)
    finally:
        # Also when it was interrupted; after a rename there is nothing left to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, final: Path) -> None:
    aside = final.parent / f".{final.name}.{os.getpid()}.old"
    replaced = final.exists()
    if replaced:
        # Rename cannot replace a folder that holds files; the old one steps aside first.
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if replaced:
            aside.rename(final)
        raise
    synchronise(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def tidy(parent: Path, name: str | None = None) -> None:
    """Clear up after processes that died in the middle of a write: what stepped aside for nothing comes back.

    Args:
        parent: Where they wrote.
        name: The one folder that they wrote; None for any.
    """
    for path in list(parent.glob(".*.*")):
        found = re.fullmatch(r"\.(.+)\.(\d+)\.(tmp|old)", path.name)
        if found is None or name not in (None, found[1]) or _is_another_at_work(int(found[2])):
            continue
        if found[3] == "old" and not (parent / found[1]).exists():
            path.rename(parent / found[1])
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_another_at_work(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # of another user
    except (OSError, OverflowError):
        return False
    return True


def synchronise(path: Path) -> None:
    """Make a file or a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hash a file, in 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write down the sums of all files of a folder, by their paths inside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    (folder / SUMS).write_text(json.dumps(sums, indent=1), "utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Read the sums that were written.

    Args:
        folder: The folder.

    Returns:
        sha256 by file.

    Raises:
        OSError: There are none.
        ValueError: They are not what is written.
    """
    sums = parse_json(read_bounded(folder / SUMS, LARGEST_JSON_BYTES))
    if not isinstance(sums, dict):
        raise ValueError(f"{SUMS} is no JSON object")
    return sums


def damaged(folder: Path, names: Sequence[str]) -> list[str]:
    """List the files of a folder that are not what was written.

    Args:
        folder: The folder.
        names: Files to look at.

    Returns:
        Those that differ from their sums, or have none.

    Raises:
        OSError: A file or the sums are missing.
        ValueError: The sums are not what is written.
    """
    sums = read_sums(folder)
    return [name for name in names if sha256_of(folder / name) != sums.get(name)]


def step_folder(parent: Path, step: int) -> Path:
    """Say where the checkpoint of an optimizer step lies."""
    return parent / f"{STEP}{step:09d}"


def steps_in(parent: Path) -> dict[int, Path]:
    """List checkpoints by their optimizer steps, oldest first.

    Args:
        parent: Where they lie; it need not exist.

    Returns:
        Folders by step. What a person has laid beside them, under a name of their own, is none.
    """
    found = ((path.name.removeprefix(STEP), path) for path in sorted(parent.glob(f"{STEP}*")) if path.is_dir())
    return {int(step): path for step, path in found if step.isdecimal()}


def is_locked(folder: Path) -> bool:
    """Say whether a process is writing in a folder; where there are no locks nobody can know, and the answer is yes."""
    import fcntl

    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
