"""Text files opened for reading: regular ones alone, uncompressed on the way, and within bounds."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from crossover.errors import DataError

CHUNK_BYTES = 1 << 20
# No document of a corpus comes near it, and a line is held in memory whole.
MOST_LINE_BYTES = 1 << 26
# Text shrinks to a third or a tenth, logs to a fiftieth. What grows further, and to more than a machine holds easily,
# was made to fill one.
MOST_TIMES = 200
FREE_BYTES = 1 << 26
# Four stored bytes of zstandard may stand for 128 KiB: so few are expanded at a time that what comes out is bounded.
_ZSTANDARD_BYTES = 1 << 12


def facts_of(path: Path) -> os.stat_result:
    """Look at a file that text is to be read from.

    Args:
        path: The file, or a link to one.

    Returns:
        Its size, time and kind.

    Raises:
        DataError: It is missing, a link that leads nowhere, or a pipe or device, which could go on for ever.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path}: is no regular file (a pipe or a device?); take it out of the folder")
    return facts


def open_bytes(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, uncompressed by its suffix (.gz, .zst).

    Args:
        path: The file.

    Returns:
        Its bytes; reading raises `DataError` where it expands to far more than text does.

    Raises:
        DataError: It is no regular file, or needs a package that is not installed.
    """
    stored_bytes = facts_of(path).st_size
    name = path.name.lower()
    if not name.endswith((".gz", ".zst")):
        return open(path, "rb")
    if not stored_bytes:
        raise DataError(f"{path}: is empty, so it is no compressed file (a truncated download?); fetch it again")
    inner = gzip.open(path, "rb") if name.endswith(".gz") else _ZstandardStream(path)  # noqa: SIM115 (closed by close)
    return io.BufferedReader(_Expanding(inner, path, stored_bytes), CHUNK_BYTES)


def lines_of(stream: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    """Read line by line.

    Args:
        stream: The bytes.
        path: Where they come from, for errors.

    Yields:
        Lines with their ends.

    Raises:
        DataError: A line is too long to be held.
    """
    number = 0
    while line := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise DataError(f"{path}, line {number}: is longer than {MOST_LINE_BYTES:,} bytes; write a record a line")
        yield line


class _Expanding(io.RawIOBase):
    """Bytes that were compressed; a file that was made to fill a disk or a memory is refused on the way."""

    def __init__(self, inner: Any, path: Path, stored_bytes: int) -> None:
        self._inner, self._path, self._stored, self._given = inner, path, stored_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._inner.readinto(buffer)
        self._given += count
        if self._given > FREE_BYTES and self._given > MOST_TIMES * self._stored:
            raise DataError(
                f"{self._path}: expands to more than {MOST_TIMES} times its {self._stored:,} bytes, as no text does; "
                "if it is meant, uncompress it first"
            )
        return count

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class _ZstandardStream(io.RawIOBase):
    """Zstandard frames, one after another; the library's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        self._path, self._library = path, optional("zstandard", path)
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            left = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = left or self._file.read(_ZSTANDARD_BYTES)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._library.ZstdError as error:
                if "too much memory" in str(error):
                    raise DataError(
                        f"{self._path}: was compressed with --long and needs more than 128 MiB to be read; "
                        "uncompress it, or compress it without --long"
                    ) from None
                raise zlib.error(str(error)) from None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def optional(module: str, path: Path) -> Any:
    """Import what only some files need.

    Args:
        module: The module.
        path: The file that needs it.

    Returns:
        The module.

    Raises:
        DataError: Its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise DataError(f"{path}: needs {package}; pip install 'crossover-lm[data]'") from None
