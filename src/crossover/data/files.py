"""Text files in the formats people have, read as a stream of documents; and files written whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.data.opening import CHUNK_BYTES, facts_of, lines_of, open_bytes, optional
from crossover.errors import DataError

PLAIN = (".txt", ".txt.gz", ".py", ".md", ".train")
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET = (".parquet",)
SUFFIXES = PLAIN + JSON_LINES + PARQUET
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


class Unreachable(DataError):
    """Text lies where it cannot be reached at present; what was read of it is kept."""


def list_files(path: Path) -> list[str]:
    """List the text files at a path, in an order that does not depend on the file system.

    Args:
        path: A file, or a folder whose readable files (hidden ones left out) are taken, however deep.

    Returns:
        Names relative to `path` (with `/`), see `file_at`.

    Raises:
        DataError: There is nothing at the path, or nothing of a known format.
    """
    known = " ".join(SUFFIXES)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{path}: is of no known text format; expected one of: {known}")
        return [path.name]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; data.source takes a corpus's name or a path to text")

    def refuse(error: OSError) -> None:
        # Left out in silence, it would be missing from the text and nobody would know.
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}; make it readable, or take it away")

    found = []
    for root, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                # A name takes a fifth of a path's memory, and there may be millions.
                found.append(Path(root, name).relative_to(path).as_posix())
    if not found:
        raise DataError(f"{path}: holds no text files; expected files that end in one of: {known}")
    return sorted(found)


def file_at(path: Path, name: str) -> Path:
    """Find a file that `list_files` named."""
    return path if path.is_file() else path / name


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
        facts_of(path)
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
            more = stream.read(max(CHUNK_BYTES, document_bytes))
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
        for number, line in enumerate(lines_of(stream, path), start=1):
            if line.strip():
                yield Document(f"{name}:{number}", _text_of_line(line, f"{path}, line {number}"))


def _rows_at_once(metadata: Any) -> int:
    """Choose how many rows are held at a time: about a megabyte of text."""
    row_bytes = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(_PARQUET_ROWS, CHUNK_BYTES * metadata.num_rows // max(1, row_bytes)))


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
    parquet = optional("pyarrow.parquet", path)
    arrow = optional("pyarrow", path)
    try:
        # Buffered, a column is read as it is needed; else all of it that a row group holds, however much that is.
        with parquet.ParquetFile(path, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise DataError(f"{path}: expected a column 'text', found {', '.join(columns) or 'none'}")
            row = 0
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=["text"]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield Document(f"{name}:{row}", _checked_text(text, f"{path}, row {row}"))
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a parquet file that can be read: {error}") from None


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
