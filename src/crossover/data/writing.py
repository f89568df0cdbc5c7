"""Shards written document by document, so that an interruption loses no more than the last few."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.data import workplace
from crossover.data.appended import Appended
from crossover.data.degraded import Degraded
from crossover.data.shards import chunks_of
from crossover.data.spool import Entry, Spool, each
from crossover.data.tokenizer import Tokenizer
from crossover.data.workplace import Workplace
from crossover.folders import synchronise

# Shape suffixes: S documents of a split, V vocabulary.


@dataclass(frozen=True)
class Encoder:
    """How documents of the spool become tokens.

    Args:
        spool: The documents.
        tokenizer: The tokenizer.
        degraded: The corpus that spoils training documents, if it is one that does.
    """

    spool: Spool
    tokenizer: Tokenizer
    degraded: Degraded | None

    @property
    def dtype(self) -> str:
        """How an id is stored."""
        return stored_as(self.tokenizer.vocabulary.size)

    def encoded(self, numbers: Iterable[int], *, round_trip: bool) -> Iterator[tuple[Entry, NDArray[np.int64], bool]]:
        """Encode documents in their order; each with its EOS, and whether its pieces add up to its bytes."""
        tokenizer = self.tokenizer
        end = np.array([tokenizer.vocabulary.eos_id], dtype=np.int64)
        for group in self.spool.batches(numbers):
            ids = tokenizer.encode_batch([entry.text for entry in group])
            for entry, tokens in zip(group, ids, strict=True):
                exact = tokenizer.text_bytes(tokens) == entry.size if tokenizer.bytes_problem is None else True
                # Equal bytes do not prove equal text; held-out text is little enough to look.
                looked = round_trip and tokenizer.bytes_problem is None
                exact = exact and not (looked and tokenizer.decode(tokens) != entry.text)
                yield entry, np.concatenate([tokens, end]), exact


class ShardWriter:
    """One split on its way to the disk.

    Args:
        place: Where its files grow, and what is known of how far they are.
        name: The split.

    Raises:
        Damaged: What was written before an interruption is not there.
    """

    def __init__(self, place: Workplace, name: str) -> None:
        self.place, self.name = place, name
        self.noted: dict[str, Any] = place.done.get(name) or {"documents": 0, "tokens": 0, "inexact": 0}
        place.text.mkdir(exist_ok=True)
        marks = self.noted.get("marks", {})
        paths = {
            "shard": place.text / f"{name}.bin",
            # Numbers of each document: where it ends in the shard, and the bytes of its text.
            "ends": place.folder / f"{name}_ends",
            "bytes": place.folder / f"{name}_bytes",
            "names": place.folder / f"{name}_names",
        }
        self.files: dict[str, Appended] = {}
        try:
            for key, path in paths.items():
                self.files[key] = Appended(path, marks.get(key))
        except BaseException:
            self.close()
            raise

    def run(self, encoder: Encoder, numbers: NDArray[np.int64], budget: int | None) -> None:
        """Write what is not written yet, cut at exactly the budget.

        Args:
            encoder: Gives the tokens.
            numbers: The split's documents [S] in their order.
            budget: Tokens to write, or None for all; fewer are written where there are no more.
        """
        if self.noted.get("is_whole"):
            return
        left = each(numbers[self.noted["documents"] :]) if self.noted["tokens"] != budget else ()
        unmarked_bytes = 0
        for entry, tokens, exact in encoder.encoded(left, round_trip=self.name != "train"):
            self._take(encoder, entry, tokens, None if budget is None else budget - self.noted["tokens"])
            self.noted["inexact"] += not exact
            unmarked_bytes += entry.size
            if self.noted["tokens"] == budget:
                break
            if unmarked_bytes >= workplace.MARK_BYTES:
                self._mark()
                unmarked_bytes = 0
        self.noted["is_whole"] = True
        self._mark()

    def _take(self, encoder: Encoder, entry: Entry, tokens: NDArray[np.int64], room: int | None) -> None:
        kept = tokens[:room]
        if self.name == "train" and encoder.degraded is not None:
            # After the cut: no token from beyond the budget may change places with one before it.
            body = min(len(kept), len(tokens) - 1)
            kept[:body] = encoder.degraded.spoil(kept[:body], entry.digest)
        # Without its EOS the text is still whole.
        text_bytes = entry.size if len(kept) >= len(tokens) - 1 else encoder.tokenizer.text_bytes(kept)
        self.noted["documents"] += 1
        self.noted["tokens"] += len(kept)
        self.files["shard"].append(kept.astype(encoder.dtype).tobytes())
        self.files["ends"].append(np.int64(self.noted["tokens"]).tobytes())
        self.files["bytes"].append(np.int64(text_bytes).tobytes())
        self.files["names"].append(json.dumps(entry.name, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def _mark(self) -> None:
        self.noted["marks"] = {key: file.mark() for key, file in self.files.items()}
        self.place.note(self.name, self.noted)

    def finish(self) -> dict[str, Any]:
        """Write down the documents' borders, bytes and names beside the shard.

        Returns:
            `documents`, `tokens`, `bytes` and `inexact` of the split, and `offsets`: borders of documents in tokens.
        """
        text = self.place.text
        ends_S = np.fromfile(self.files["ends"].path, dtype=np.int64)
        sizes_S = np.fromfile(self.files["bytes"].path, dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends_S])
        np.save(text / f"{self.name}_offsets.npy", offsets)
        np.save(text / f"{self.name}_bytes.npy", sizes_S)
        self._write_names(text / f"{self.name}_names.json")
        facts = {key: self.noted[key] for key in ("documents", "tokens", "inexact")}
        return {**facts, "bytes": int(sizes_S.sum()), "offsets": offsets}

    def _write_names(self, path: Path) -> None:
        """Write the names as one indented JSON list, without holding them all."""
        between = b"[\n  "
        with open(self.files["names"].path, "rb") as lines, open(path, "wb") as file:
            for line in lines:
                file.write(between + line.rstrip(b"\n"))
                between = b",\n  "
            file.write(b"\n]\n" if self.noted["documents"] else b"[]\n")
        synchronise(path)

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files.values():
            file.close()


def stored_as(vocabulary_size: int) -> str:
    """Say how an id of a vocabulary is stored: in two bytes where they suffice, else in four."""
    return "<u2" if vocabulary_size <= 2**16 else "<u4"


def counted(shard: Path, dtype: str, vocabulary_size: int) -> NDArray[np.int64]:
    """Count how often each id occurs [V] in a shard."""
    counts_V = np.zeros(vocabulary_size, dtype=np.int64)
    for tokens in chunks_of(shard, dtype):
        counts_V += np.bincount(tokens, minlength=vocabulary_size)
    return counts_V
