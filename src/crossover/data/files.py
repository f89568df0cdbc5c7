"""Text files in the formats people have, read as a stream of documents; and files written whole or not at all."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.errors import DataError

PLAIN = (".txt", ".txt.gz", ".py", ".md", ".train")
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET = (".parquet",)
SUFFIXES = PLAIN + JSON_LINES + PARQUET
_CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Args:
        name: Where it came from, relative to the corpus: a file, and the line, row or piece in it.
        text: The text, exactly as it stands there.
    """

    name: str
    text: str


def list_files(path: Path) -> list[tuple[str, Path]]:
    """List the text files at a path, in an order that does not depend on the file system.

    Args:
        path: A file, or a folder whose readable files (hidden ones left out) are taken, however deep.

    Returns:
        Pairs of a name relative to `path` (with `/`) and the file.

    Raises:
        DataError: There is nothing at the path, or nothing of a known format.
    """
    known = " ".join(SUFFIXES)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{path}: is of no known text format; expected one of: {known}")
        return [(path.name, path)]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; data.source takes a corpus's name or a path to text")
    found = []
    for root, folders, names in os.walk(path):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                file = Path(root, name)
                found.append((file.relative_to(path).as_posix(), file))
    if not found:
        raise DataError(f"{path}: holds no text files; expected files that end in one of: {known}")
    return sorted(found)


def read_documents(path: Path, name: str, document_bytes: int) -> Iterator[Document]:
    """Read the documents of one file; nothing but the current one is held in memory.

    Args:
        path: The file; its suffix tells the format.
        name: What the documents' names begin with.
        document_bytes: Plain text longer than this is cut at blank lines, or else at line ends.

    Yields:
        Documents that are not blank, in the order of the file.

    Raises:
        DataError: The file cannot be read, is truncated, is not UTF-8, or has a record without text.
    """
    with _explained(path):
        if path.name.lower().endswith(PARQUET):
            found = _parquet(path, name)
        elif path.name.lower().endswith(JSON_LINES):
            found = _json_lines(path, name)
        else:
            found = _plain(path, name, document_bytes)
        yield from (document for document in found if document.text.strip())


def cut(text: bytes, document_bytes: int) -> int:
    """Find where to cut text that is longer than a document may be.

    Args:
        text: UTF-8 bytes, more than `document_bytes` of them.
        document_bytes: The longest piece.

    Returns:
        Bytes of the first piece: up to the last blank line, else line end, else space, else whole character.
    """
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        place = text.rfind(mark, 0, document_bytes)
        if place > 0:
            return place + len(mark)
    place = document_bytes
    while place > 1 and text[place] & 0xC0 == 0x80:
        place -= 1
    # A piece cannot be shorter than one character, however small document_bytes is.
    while text[place : place + 1] and text[place] & 0xC0 == 0x80:
        place += 1
    return place


def pieces(stream: io.BufferedIOBase, document_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Cut a stream of UTF-8 bytes into documents; the pieces together are the stream, byte for byte.

    Yields:
        Pairs of the piece's offset in bytes and its bytes.
    """
    held, offset, ended = b"", 0, False
    while held or not ended:
        while not ended and len(held) <= document_bytes + 4:
            more = stream.read(max(_CHUNK_BYTES, document_bytes))
            held, ended = held + more, not more
        size = cut(held, document_bytes) if len(held) > document_bytes else len(held)
        if size:
            yield offset, held[:size]
        held, offset = held[size:], offset + size


def _plain(path: Path, name: str, document_bytes: int) -> Iterator[Document]:
    with open_bytes(path) as stream:
        for number, (offset, piece) in enumerate(pieces(stream, document_bytes)):
            try:
                text = piece.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, byte {offset + error.start}: is not UTF-8 text; convert it first") from None
            # A byte-order mark belongs to the file, not to its text.
            text = text.removeprefix("\ufeff") if offset == 0 else text
            yield Document(f"{name}#{number}" if number else name, text)


def _json_lines(path: Path, name: str) -> Iterator[Document]:
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield Document(f"{name}:{number}", _text_of_line(line, f"{path}, line {number}"))


def _text_of_line(line: bytes, where: str) -> str:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, byte {error.start}: is not UTF-8 text; convert it first") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.colno}: is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON that can be read: {error}") from None
    if not isinstance(record, dict) or "text" not in record:
        held = f"fields {', '.join(map(str, record)) or 'none'}" if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{where}: expected an object with a 'text' field, found {held}")
    return _checked_text(record["text"], where)


def _checked_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{where}: 'text' must be a string, not {'null' if text is None else type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: 'text' has half a surrogate pair at character {error.start}") from None
    return text


def _parquet(path: Path, name: str) -> Iterator[Document]:
    parquet = _optional("pyarrow.parquet", path)
    arrow = _optional("pyarrow", path)
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise DataError(f"{path}: expected a column 'text', found {', '.join(columns) or 'none'}")
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield Document(f"{name}:{row}", _checked_text(text, f"{path}, row {row}"))
    except arrow.ArrowException as error:
        raise DataError(f"{path}: is not a parquet file that can be read: {error}") from None


def open_bytes(path: Path) -> io.BufferedIOBase | gzip.GzipFile:
    """Open a file for reading, uncompressed by its suffix (.gz, .zst)."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.lower().endswith(".zst"):
        return io.BufferedReader(_ZstandardStream(path), _CHUNK_BYTES)
    return open(path, "rb")


class _ZstandardStream(io.RawIOBase):
    """Zstandard frames, one after another; the library's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        self._library = _optional("zstandard", path)
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            left = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = left or self._file.read(_CHUNK_BYTES)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(data)
            except self._library.ZstdError as error:
                raise zlib.error(str(error)) from None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _optional(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise DataError(f"{path}: needs {package}; pip install crossover-lm[data]") from None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a sentence about it."""
    try:
        yield
    except EOFError:
        raise DataError(f"{path}: ends too early (a truncated download?); fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is damaged or not compressed as its name says: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside the target, synchronised, then renamed.

    Args:
        path: The file.
        content: Its bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(tree: Any) -> bytes:
    """Write a plain tree as indented JSON with a final line end."""
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
