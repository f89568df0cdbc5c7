"""Documents on their way to the shards: read once and kept on disk, so that memory holds little of each."""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.data import workplace
from crossover.data.appended import Appended, Damaged
from crossover.data.corpus import Corpus, at_revision, newest_of, parts_of
from crossover.data.files import Document
from crossover.data.workplace import Workplace
from crossover.errors import DataError

# Shape suffix: D documents, as they were read.

_BATCH_BYTES = 1 << 20
# Hash of the text (in the order of its bytes), offset in the spool, bytes and sum of the name, bytes of the text.
_RECORD = struct.Struct(">16sQIIQ")
_COLUMNS = np.dtype([("high", ">u8"), ("low", ">u8"), ("rest", f"V{_RECORD.size - 16}")])
_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A document read back.

    Args:
        name: The document's name.
        digest: Hash of its text.
        text: Its text.
        size: UTF-8 bytes of its text.
    """

    name: str
    digest: bytes
    text: str
    size: int


class Spool:
    """All texts of a corpus in one file, exact duplicates included, and 40 bytes on each in another.

    Args:
        folder: Where the two files lie.
        marks: What `mark` gave, to go on from there; None begins anew.

    Raises:
        Damaged: The files are not what the marks say.
    """

    def __init__(self, folder: Path, marks: dict[str, Any] | None = None) -> None:
        # Each text has its own hash, compared when it is read back: the spool needs no sum of its own.
        self._texts = Appended(folder / "spool", marks["texts"] if marks else None, summed=False)
        try:
            self._index = Appended(folder / "index", marks["index"] if marks else None)
        except BaseException:
            self._texts.close()
            raise

    def __len__(self) -> int:
        return self._index.size // _RECORD.size

    @property
    def text_bytes(self) -> int:
        """Bytes of the spool."""
        return self._texts.size

    def add(self, document: Document) -> None:
        """Keep a document.

        Raises:
            DataError: Its text is none that UTF-8 can write.
        """
        name = document.name.encode("utf-8", "replace")
        try:
            text = document.text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{document.name}: its text has half a surrogate pair at character {error.start}") from None
        digest = hashlib.blake2b(text, digest_size=16).digest()
        self._index.append(_RECORD.pack(digest, self._texts.size, len(name), zlib.crc32(name), len(text)))
        self._texts.append(name + text)

    def mark(self) -> dict[str, Any]:
        """Make what there is durable, and say what it is."""
        return {"texts": self._texts.mark(), "index": self._index.mark()}

    def digests(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Give the hashes of all texts as two halves [D] each; halves compare as the hash's bytes do."""
        high_D, low_D = np.empty(len(self), np.uint64), np.empty(len(self), np.uint64)
        for start in range(0, len(self), _ROWS):
            rows = min(_ROWS, len(self) - start)
            part = np.frombuffer(self._index.read(start * _RECORD.size, rows * _RECORD.size), _COLUMNS)
            high_D[start : start + rows], low_D[start : start + rows] = part["high"], part["low"]
        return high_D, low_D

    def size(self, number: int) -> int:
        """Say how many UTF-8 bytes a document's text has."""
        return self._record(number)[-1]

    def name(self, number: int) -> str:
        """Give a document's name."""
        return self.entry(number).name

    def entry(self, number: int) -> Entry:
        """Read a document back.

        Args:
            number: Its place in the order of reading, from 0.

        Raises:
            Damaged: The text is not what was read.
        """
        digest, start, name_bytes, name_sum, text_bytes = self._record(number)
        content = self._texts.read(start, name_bytes + text_bytes)
        name, text = content[:name_bytes], content[name_bytes:]
        if hashlib.blake2b(text, digest_size=16).digest() != digest or zlib.crc32(name) != name_sum:
            raise Damaged(f"document {number} of {self._texts.path} is not what was read")
        return Entry(name.decode(), digest, text.decode(), text_bytes)

    def _record(self, number: int) -> tuple[bytes, int, int, int, int]:
        return _RECORD.unpack(self._index.read(number * _RECORD.size, _RECORD.size))

    def batches(self, numbers: Iterable[int]) -> Iterator[list[Entry]]:
        """Read documents back in groups that fit in memory easily, in the order given."""
        group: list[Entry] = []
        size = 0
        for number in numbers:
            if group and size + self.size(number) > _BATCH_BYTES:
                yield group
                group, size = [], 0
            group.append(self.entry(number))
            size += group[-1].size
        if group:
            yield group

    def close(self) -> None:
        """Let go of the files."""
        self._texts.close()
        self._index.close()


def each(numbers: NDArray[np.int64]) -> Iterator[int]:
    """Give numbers one by one; as a list they would take five times their memory."""
    for start in range(0, len(numbers), _ROWS):
        yield from numbers[start : start + _ROWS].tolist()


def read_corpus(place: Workplace, source: Corpus, document_bytes: int, say: Callable[[str], None]) -> Spool:
    """Read a corpus to its end, or what is left of it after an interruption.

    Args:
        place: Where the spool lies, and what is known of how far it is.
        source: The corpus.
        document_bytes: Plain-text files longer than this are cut.
        say: Called with a sentence where reading goes on.

    Returns:
        The spool; the caller closes it.

    Raises:
        DataError: The text is missing, damaged or blank, or changed while it was read.
        Damaged: What was read before the interruption is not what was written.
    """
    noted: dict[str, Any] = place.done.get("read", {})
    spool = Spool(place.folder, noted.get("marks"))
    try:
        if noted.get("is_whole"):
            return spool
        if noted:
            say(f"going on after an interruption: {len(spool):,} documents, {spool.text_bytes:,} bytes are read")
        if "revision" not in place.done.get("source", {}):
            place.note("source", {"revision": newest_of(source)})
        _read_on(place, spool, source, document_bytes)
    except BaseException:
        spool.close()
        raise
    return spool


def _read_on(place: Workplace, spool: Spool, source: Corpus, document_bytes: int) -> None:
    noted = place.done.get("read", {})
    part, taken = noted.get("part", 0), noted.get("taken", 0)
    marked_bytes = spool.text_bytes
    parts = parts_of(at_revision(source, place.done["source"]["revision"]), document_bytes)
    for documents in itertools.islice(parts, part, None):
        for document in itertools.islice(documents, taken, None):
            spool.add(document)
            taken += 1
            if spool.text_bytes - marked_bytes >= workplace.MARK_BYTES:
                place.note("read", {"part": part, "taken": taken, "marks": spool.mark()})
                marked_bytes = spool.text_bytes
        part, taken = part + 1, 0
    if not len(spool):
        raise DataError(f"{source.describe()}: holds no text; every document in it is blank")
    if source.signature() != place.facts["source"]["signature"]:
        raise DataError(f"{source.describe()}: changed while it was read; prepare it again once it stays as it is")
    place.note("read", {"is_whole": True, "marks": spool.mark()})
