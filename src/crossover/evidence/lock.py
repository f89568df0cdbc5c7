"""One writer per run folder, even when two are started by mistake."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

from crossover.errors import RunError


def take_lock(folder: Path) -> IO[bytes]:
    """Lock a folder for this process; the kernel lets it go when the process ends, however it ends.

    Args:
        folder: An existing folder.

    Returns:
        The open lock file; closing it lets go.

    Raises:
        RunError: Another process holds it.
    """
    import fcntl

    # "a+b" so that the holder's number survives our look at the file.
    file = open(folder / ".lock", "a+b")  # noqa: SIM115 (held until it is closed by the caller)
    for attempt in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # `is_locked` of another process may hold it for an instant.
            if attempt < 9:
                time.sleep(0.05)
        else:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            return file
    file.seek(0)
    holder = file.read().decode("ascii", "replace").strip() or "unknown"
    file.close()
    raise RunError(f"{folder}: process {holder} is writing here; wait until it ends, stop it, or name another folder")


def is_locked(folder: Path) -> bool:
    """Say whether a process is writing in a folder."""
    import fcntl

    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
