"""Files that only grow, whose beginning up to a mark can be relied on after an interruption at any instant."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

_CHUNK_BYTES = 1 << 22


class Damaged(Exception):
    """Work in progress is not what its marks say; it is thrown away and done again."""


class Appended:
    """A file that only grows. What a mark covers is on the disk for good; what came after it is cut off again.

    Args:
        path: The file.
        mark: What `mark` gave, to go on from there; None begins the file anew.
        summed: Whether marks carry the sha256 of what they cover. Without it only the size is compared.

    Raises:
        Damaged: The file does not hold what the mark covers.
    """

    def __init__(self, path: Path, mark: dict[str, Any] | None = None, *, summed: bool = True) -> None:
        self.path = path
        self.size = 0
        self._sum: Any = hashlib.sha256() if summed else None
        try:
            self._file: IO[bytes] = open(path, "w+b" if mark is None else "r+b")  # noqa: SIM115 (closed by close)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        if mark is not None:
            try:
                self._take_up(mark)
            except BaseException:
                self.close()
                raise

    def _take_up(self, mark: dict[str, Any]) -> None:
        self.size = mark["bytes"]
        if os.fstat(self._file.fileno()).st_size < self.size:
            raise Damaged(f"{self.path} is shorter than it was")
        if self._sum is not None:
            left = self.size
            while left:
                chunk = self._file.read(min(left, _CHUNK_BYTES))
                self._sum.update(chunk)
                left -= len(chunk)
            if self._sum.hexdigest() != mark["sha256"]:
                raise Damaged(f"{self.path} is not what was written")
        self._file.seek(self.size)
        self._file.truncate()

    def append(self, content: bytes) -> None:
        """Add to the end."""
        self._file.write(content)
        self.size += len(content)
        if self._sum is not None:
            self._sum.update(content)

    def mark(self) -> dict[str, Any]:
        """Make what there is durable, and say what it is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self.size} | ({"sha256": self._sum.hexdigest()} if self._sum is not None else {})

    def read(self, start: int, size: int) -> bytes:
        """Read some of it back, once it has been marked.

        Raises:
            Damaged: The file is shorter than that.
        """
        content = os.pread(self._file.fileno(), size, start)
        if len(content) != size:
            raise Damaged(f"{self.path} is shorter than it was")
        return content

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
