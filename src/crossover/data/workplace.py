"""Where a preparation is under way: one process at a time, and what is done is found again by the next."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from crossover.data.files import as_json, write_durably
from crossover.trees import differences

# How much text is worked on between two marks; an interruption costs no more than that.
MARK_BYTES = 1 << 26
_PROGRESS = "progress.json"
_ENDING = ".work"
# What a file system says that knows no locks.
_LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Workplace:
    """A folder beside the place where prepared text will stand.

    Args:
        folder: The folder, which this process holds.
        facts: Everything that decides what is prepared here.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        found = _progress(folder)
        # The folder is named after the facts; only a damaged file can say anything else.
        self.done: dict[str, Any] = found["done"] if found is not None and found["facts"] == facts else {}

    @property
    def text(self) -> Path:
        """The folder that becomes the prepared text."""
        return self.folder / "text"

    def note(self, stage: str, facts: dict[str, Any]) -> None:
        """Write down durably how far a stage is; what it tells of must be durable already."""
        self.done[stage] = facts
        write_durably(self.folder / _PROGRESS, as_json({"facts": self.facts, "done": self.done}))

    def forget(self) -> None:
        """Begin anew."""
        self.done = {}
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()

    def remove(self) -> None:
        """Throw the folder away."""
        # The lock goes last, or a process that begins now would hold another one while its files are removed.
        with suppress(OSError):
            self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def held(final: Path, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Hold the folder in which a prepared text is made, and wait for another process that holds it.

    Args:
        final: Where the prepared text will stand.
        say: Called with a sentence if there is something to wait for.

    Yields:
        The folder, beside `final`; None if the text is there by now, and nothing is left to do.

    Raises:
        OSError: It cannot be made.
    """
    folder = _folder_of(final)
    while True:
        if final.exists() and not folder.exists():
            yield None
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, say)
        if lock is not None:
            break
    try:
        if final.exists():
            # Another process was killed after it had put the text in its place.
            shutil.rmtree(folder, ignore_errors=True)
        yield None if final.exists() else folder
    finally:
        lock.close()


def _locked(folder: Path, say: Callable[[str], None]) -> IO[bytes] | None:
    """Take the folder's lock; None if the folder was moved away or removed meanwhile."""
    try:
        lock = open(folder / ".lock", "ab")  # noqa: SIM115 (held until it is closed by the caller)
    except FileNotFoundError:
        return None
    try:
        _lock(lock, say)
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock")):
            return lock
    except FileNotFoundError:
        pass
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None


def _lock(lock: IO[bytes], say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process prepares this text; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise
        say("this file system has no locks: see to it that one process alone prepares this text")


def give_up_stale(final: Path, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Remove what interrupted preparations of the same source left behind, if source or recipe is another one now.

    Args:
        final: Where the prepared text will stand.
        facts: Everything that decides what will be prepared.
        say: Called with a sentence for each.
    """
    for folder in sorted(final.parent.glob(f".text-*{_ENDING}")):
        found = _progress(folder)
        if folder == _folder_of(final) or found is None:
            continue
        before = found["facts"]
        if before.get("data", {}).get("source") != facts["data"]["source"]:
            continue
        if not _remove_unheld(folder):
            continue
        changed = differences(before, facts)
        text_changed = any(key.startswith("source.signature") for key in changed)
        keys = "the text" if text_changed else ", ".join(changed)
        say(f"{keys} changed since preparation was interrupted: it starts anew")


def clear_up_after(final: Path) -> None:
    """Remove what a process left that was killed after it had put the text in its place.

    Args:
        final: Where the prepared text stands.
    """
    if _folder_of(final).exists():
        _remove_unheld(_folder_of(final))


def _remove_unheld(folder: Path) -> bool:
    """Remove a folder unless a process is at work in it, or nobody can tell; return whether nobody was."""
    try:
        with open(folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock")):
                Workplace(folder, {}).remove()
    except OSError:
        return False
    return True


def _folder_of(final: Path) -> Path:
    return final.with_name(f".{final.name}{_ENDING}")


def _progress(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _PROGRESS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("facts"), dict) and isinstance(found.get("done"), dict)
    return found if whole else None
