"""One writer per run folder, even when two are started by mistake."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import IO

from crossover.errors import RunError

# What a file system says that knows no locks; NFS says the first one also while its lock server is away.
LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def take_lock(folder: Path) -> IO[bytes]:
    """Lock a folder for this process; the kernel lets it go when the process ends, however it ends.

    Args:
        folder: An existing folder.

    Returns:
        The open lock file; closing it lets go.

    Raises:
        RunError: Another process holds it, or the disk has no locks.
    """
    import fcntl

    # "a+b" so that the holder's number survives our look at the file.
    file = open(folder / ".lock", "a+b")  # noqa: SIM115 (held until it is closed by the caller)
    refused: OSError | None = None
    for attempt in range(10):
        # `is_locked` of another process may hold it for an instant.
        time.sleep(0.05 if attempt else 0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refused = error
        else:
            file.truncate(0)
            file.write(f"{os.getpid()} {socket.gethostname()}".encode())
            file.flush()
            return file
    file.seek(0)
    holder = _told(file.read().decode("ascii", "replace"))
    file.close()
    if refused is not None and refused.errno in LOCKLESS:
        raise RunError(
            f"{folder}: its disk gives no locks ({refused.strerror}), so two processes could write here at once; "
            f"have it mounted with locks (Lustre: `flock`, NFS: not `nolock`), or name a folder on another disk"
        )
    raise RunError(f"{folder}: process {holder} is writing here; wait until it ends, stop it, or name another folder")


def _told(holder: str) -> str:
    """Name the process that holds a lock, with its machine where that is another one."""
    number, _, machine = holder.strip().partition(" ")
    return f"{number or 'unknown'} on {machine}" if machine not in ("", socket.gethostname()) else number or "unknown"
