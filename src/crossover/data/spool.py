"""Documents on their way to the shards: read once, kept on disk, without exact duplicates, assigned to splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from crossover.data.files import Document
from crossover.errors import DataError

_BATCH_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a document's text lies in the spool.

    Args:
        name: The document's name.
        digest: Hash of its text.
        start: Offset in the spool, in bytes.
        size: UTF-8 bytes of its text.
    """

    name: str
    digest: bytes
    start: int
    size: int

    @property
    def place(self) -> float:
        """The document's place in [0, 1), a function of its text alone."""
        return int.from_bytes(self.digest[:8], "big") / 2**64


class Spool:
    """All distinct texts of a corpus in one temporary file; only their hashes and offsets are in memory.

    Args:
        path: The temporary file; the caller removes it.
        documents: The corpus; it is read to its end.
    """

    def __init__(self, path: Path, documents: Iterable[Document]) -> None:
        self.entries: list[Entry] = []
        self.duplicates = 0
        self._file: IO[bytes] = open(path, "w+b")  # noqa: SIM115 (closed by close)
        try:
            self._take(documents)
        except BaseException:
            # The caller gets no spool that it could close.
            self._file.close()
            raise

    def _take(self, documents: Iterable[Document]) -> None:
        seen: set[bytes] = set()
        end = 0
        for document in documents:
            content = document.text.encode()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest in seen:
                self.duplicates += 1
                continue
            seen.add(digest)
            self._file.write(content)
            self.entries.append(Entry(document.name, digest, end, len(content)))
            end += len(content)

    def text(self, entry: Entry) -> str:
        """Read a document's text back."""
        self._file.seek(entry.start)
        return self._file.read(entry.size).decode()

    def batches(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        """Group entries so that a group's text fits in memory easily, in the order given."""
        group: list[Entry] = []
        size = 0
        for entry in entries:
            if group and size + entry.size > _BATCH_BYTES:
                yield group
                group, size = [], 0
            group.append(entry)
            size += entry.size
        if group:
            yield group

    def close(self) -> None:
        """Let go of the temporary file."""
        self._file.close()


def assign(entries: Sequence[Entry], *, dev_share: float, test_share: float) -> dict[str, list[Entry]]:
    """Split documents by the hash of their text, so that adding documents moves none (while no split is empty).

    Args:
        entries: Distinct documents.
        dev_share: Part of the documents for choosing.
        test_share: Part of the documents for the result.

    Returns:
        Entries of "train", "dev" and "test", sorted by hash.

    Raises:
        DataError: There are too few documents, or nothing is left to train on.
    """
    if dev_share + test_share >= 1:
        raise DataError(
            f"data.dev_share {dev_share:g} and data.test_share {test_share:g} leave nothing to train on; lower them"
        )
    if len(entries) < 3:
        raise DataError(
            f"the corpus has {len(entries)} distinct document(s), but train, dev and test need one each; "
            "give more text, or lower data.document_bytes so that plain text is cut into more documents"
        )
    ranges = {"test": (0.0, test_share), "dev": (test_share, test_share + dev_share)}
    ranges["train"] = (test_share + dev_share, 1.0)
    ordered = sorted(entries, key=lambda entry: entry.digest)
    splits = {name: [entry for entry in ordered if low <= entry.place < high] for name, (low, high) in ranges.items()}
    # A place may round up to 1.
    splits["train"] += [entry for entry in ordered if entry.place >= 1]
    for name, (low, high) in ranges.items():
        if not splits[name] and high > low:
            _move_nearest(splits, name, low, high)
    return {name: splits[name] for name in ("train", "dev", "test")}


def _move_nearest(splits: dict[str, list[Entry]], name: str, low: float, high: float) -> None:
    """Fill an empty split from a split that can spare one."""

    def distance(entry: Entry) -> tuple[float, bytes]:
        return max(low - entry.place, entry.place - high, 0.0), entry.digest

    spare = [(other, entry) for other, entries in splits.items() if len(entries) > 1 for entry in entries]
    other, entry = min(spare, key=lambda pair: distance(pair[1]))
    splits[other].remove(entry)
    splits[name].append(entry)
