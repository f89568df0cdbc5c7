"""Near-duplicates: documents that share most of their phrases with an earlier one.

Broder, "On the resemblance and containment of documents" (1997): the share of equal minima of random permutations
estimates the Jaccard similarity of two sets. Leskovec, Rajaraman and Ullman, "Mining of massive datasets", section
3.4: minima in bands find pairs that are worth comparing. datasketch computes the minima and chooses the bands; its own
index would hold 2 to 5 kilobytes of each document in memory, so bands are sorted here, one at a time.
"""

from __future__ import annotations

import random
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.data import workplace
from crossover.data.appended import Appended
from crossover.data.spool import Spool, each
from crossover.data.workplace import Workplace
from crossover.errors import DataError

# Shape suffixes: K distinct documents in the order of reading, P permutations, H shingles.

# Counts up when other documents would be dropped: what an older method prepared is not taken for this.
METHOD = 2
PERMUTATIONS = 128
SHINGLE_WORDS = 5
_SEED = 1
# Candidates are compared exactly, so a false one costs little and a missed one is lost.
_WEIGHTS = (0.02, 0.98)
# Three standard errors of an estimate near 0.8; candidates below are not worth reading.
_MARGIN = 0.11
_EXAMPLES = 3
_ROWS = 1 << 14
# Shingles that are kept for the next comparison, and how many texts are compared at once, at most.
_KEPT_BYTES = 1 << 27
_AT_ONCE = 256
_AT_ONCE_BYTES = 1 << 24
# Rows that lie so near each other on the disk are read together with those between them.
_GAP = 32
_ROW_BYTES = 4 * PERMUTATIONS
_MIXER = np.uint64(0x9E3779B97F4A7C15)
# Letters of scripts that do not put spaces between words are words of their own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Beyond it are no marks but those that choose between forms of a character.
_LAST_MARK = 0x1F000


@cache
def _word() -> re.Pattern[str]:
    """Compile what a word is; vowel signs and accents that are characters of their own belong to it."""
    signs = [code for code in range(0x300, _LAST_MARK) if unicodedata.category(chr(code)).startswith("M")]
    marks = {code for code in signs if not re.match(f"[{_UNSPACED}]", chr(code))}
    # In few ranges, and only where there is no space: the search is several times slower otherwise.
    borders = zip(
        sorted(marks - {code + 1 for code in marks}), sorted(marks - {code - 1 for code in marks}), strict=True
    )
    ranges = "".join(f"{chr(first)}-{chr(last)}" for first, last in borders)
    letters = rf"[^\W{_UNSPACED}]"
    return re.compile(rf"{letters}++(?:(?![\s\x00-\x7f])[{ranges}]++{letters}*+)*+|[{_UNSPACED}]")


def shingles(text: str) -> NDArray[np.uint64]:
    """Hash every run of five words of a text, whatever stands between the words and however they are capitalised.

    Args:
        text: The text; one of fewer words is one shingle, one of no words is like no other text.

    Returns:
        Hashes [H], sorted, each once.
    """
    words = _word().findall(text.lower()) or [text]
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    length = min(SHINGLE_WORDS, len(hashes))
    mixed = np.zeros(len(hashes) - length + 1, dtype=np.uint64)
    for place in range(length):
        mixed = _mix(mixed, hashes[place : place + len(mixed)])
    return np.unique(mixed)


def _mix(state: NDArray[np.uint64], more: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = ((state ^ more) + _MIXER) * _MIXER
    return mixed ^ (mixed >> np.uint64(29))


def jaccard(one: NDArray[np.uint64], others: list[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """Say which share of the shingles that a text and each of others have together they have in common."""
    sizes = np.array([len(other) for other in others])
    joined = np.concatenate(others)
    places = np.minimum(np.searchsorted(one, joined), len(one) - 1)
    shared = np.add.reduceat(one[places] == joined, np.cumsum(sizes) - sizes, dtype=np.int64)
    return shared / (len(one) + sizes - shared)


@dataclass(frozen=True)
class NearDuplicates:
    """What was found.

    Args:
        dropped: Numbers of the documents that are not kept.
        examples: The first few: which document was dropped for which, and how similar they are.
    """

    dropped: NDArray[np.int64]
    examples: list[dict[str, Any]]


@dataclass
class Sketcher:
    """Minima of permutations, and which of them stand in one band."""

    threshold: float
    _one: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            from datasketch import MinHash
        except ImportError:
            raise DataError(
                "data.near_duplicates: needs datasketch; pip install 'crossover-lm[data]', or leave the setting out"
            ) from None
        self._one = MinHash(PERMUTATIONS, seed=_SEED, hashfunc=int, scheme="affine32")
        self.bands, self.rows = _bands(self.threshold)

    def sketch(self, text: str) -> NDArray[np.uint32]:
        """Compute the minima [P] of a text's shingles."""
        self._one.clear()
        hashes = shingles(text) >> np.uint64(32)
        # A long document's permutations would fill the memory all at once.
        for start in range(0, len(hashes), _ROWS):
            self._one.update_batch(hashes[start : start + _ROWS].tolist())
        return self._one.hashvalues.astype(np.uint32)

    def keys(self, minima_KP: NDArray[np.uint32], band: int) -> NDArray[np.uint64]:
        """Hash the minima of a band [K]; keys of different bands differ."""
        keys_K = np.full(len(minima_KP), band, dtype=np.uint64)
        for column in range(band * self.rows, (band + 1) * self.rows):
            keys_K = _mix(keys_K, minima_KP[:, column].astype(np.uint64))
        return keys_K


def _bands(threshold: float) -> tuple[int, int]:
    """Choose how many bands of how many minima find pairs above a threshold and few others."""
    from datasketch import MinHashLSH

    chosen = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=_WEIGHTS)
    return chosen.b, chosen.r


class _Shingled:
    """The shingles of a spool's documents, as many kept as memory allows: look-alikes are compared again and again."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: dict[int, NDArray[np.uint64]] = {}
        self._numbers: list[int] = []
        self._bytes = 0
        self._random = random.Random(0)

    def of(self, number: int) -> NDArray[np.uint64]:
        if number in self._kept:
            return self._kept[number]
        found = shingles(self._spool.entry(number).text)
        # Any one goes: a long list of candidates is gone through in order, so the oldest would be the next one needed.
        while self._numbers and self._bytes + found.nbytes > _KEPT_BYTES:
            place = self._random.randrange(len(self._numbers))
            self._numbers[place], self._numbers[-1] = self._numbers[-1], self._numbers[place]
            self._bytes -= self._kept.pop(self._numbers.pop()).nbytes
        self._kept[number] = found
        self._numbers.append(number)
        self._bytes += found.nbytes
        return found


class NearSearch:
    """A search for near-duplicates among the distinct documents of a spool.

    Args:
        place: Where minima are kept, and what is known of how far they are.
        spool: The documents.
        numbers_K: Numbers of the distinct documents, in the order of reading.
        threshold: Jaccard similarity from which on the later document of two is dropped.

    Raises:
        DataError: datasketch is not installed.
        Damaged: Minima of before an interruption are not what was written.
    """

    def __init__(self, place: Workplace, spool: Spool, numbers_K: NDArray[np.int64], threshold: float) -> None:
        self.place, self.spool, self.numbers_K, self.threshold = place, spool, numbers_K, threshold
        self.sketcher, self.shingled = Sketcher(threshold), _Shingled(spool)
        self.file = Appended(place.folder / "minima", place.done.get("near"))

    def run(self, say: Callable[[str], None]) -> NearDuplicates:
        """Drop, in the order of reading, each document that is similar to an earlier one that was kept."""
        try:
            say(f"looking for near-duplicates among {len(self.numbers_K):,} documents")
            self._sketch()
            shared_K = self._shared()
            kept: dict[int, list[int]] = {}
            dropped: list[int] = []
            examples: list[dict[str, Any]] = []
            for place in each(np.flatnonzero(shared_K)):
                keys = list(self._keys(place, int(shared_K[place])))
                twin = self._twin(place, sorted({other for key in keys for other in kept.get(key, ())}))
                if twin is None:
                    for key in keys:
                        kept.setdefault(key, []).append(place)
                    continue
                dropped.append(int(self.numbers_K[place]))
                if len(examples) < _EXAMPLES:
                    examples.append({"dropped": self._name(place), "for": self._name(twin[0]), "similarity": twin[1]})
            return NearDuplicates(np.array(dropped, dtype=np.int64), examples)
        finally:
            self.file.close()

    def _name(self, place: int) -> str:
        return self.spool.name(int(self.numbers_K[place]))

    def _sketch(self) -> None:
        unmarked_bytes = 0
        for number in each(self.numbers_K[self.file.size // _ROW_BYTES :]):
            entry = self.spool.entry(number)
            self.file.append(self.sketcher.sketch(entry.text).tobytes())
            unmarked_bytes += entry.size
            if unmarked_bytes >= workplace.MARK_BYTES:
                self.place.note("near", self.file.mark())
                unmarked_bytes = 0
        self.place.note("near", self.file.mark())

    def _minima(self, first: int, count: int) -> NDArray[np.uint32]:
        content = self.file.read(first * _ROW_BYTES, count * _ROW_BYTES)
        return np.frombuffer(content, dtype=np.uint32).reshape(-1, PERMUTATIONS)

    def _chunks(self) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
        for first in range(0, len(self.numbers_K), _ROWS):
            count = min(_ROWS, len(self.numbers_K) - first)
            yield slice(first, first + count), self._minima(first, count)

    def _shared(self) -> NDArray[np.uint64]:
        """Mark, bit by bit, which bands of each document equal those of another one [K]."""
        shared_K = np.zeros(len(self.numbers_K), dtype=np.uint64)
        keys_K = np.empty(len(self.numbers_K), dtype=np.uint64)
        for band in range(self.sketcher.bands):
            for rows, minima in self._chunks():
                keys_K[rows] = self.sketcher.keys(minima, band)
            order_K = np.argsort(keys_K)
            ordered_K = keys_K[order_K]
            equals_next = ordered_K[1:] == ordered_K[:-1]
            bit = np.uint64(1 << band)
            shared_K[order_K[1:][equals_next]] |= bit
            shared_K[order_K[:-1][equals_next]] |= bit
        return shared_K

    def _keys(self, place: int, shared: int) -> Iterator[int]:
        """Give the keys of a document's bands that another document has too."""
        minima = self._minima(place, 1)
        for band in range(self.sketcher.bands):
            if shared >> band & 1:
                yield int(self.sketcher.keys(minima, band)[0])

    def _twin(self, place: int, candidates: list[int]) -> tuple[int, float] | None:
        """Find the first candidate that is similar enough, and how similar it is, compared exactly."""
        close = self._close(place, candidates)
        # The first is like it most often; texts of one template have thousands that are almost.
        start, most = 0, 1
        while start < len(close):
            others, held_bytes = [], 0
            for candidate in close[start : start + most]:
                others.append(self.shingled.of(int(self.numbers_K[candidate])))
                held_bytes += others[-1].nbytes
                if held_bytes >= _AT_ONCE_BYTES:
                    break
            similarity = jaccard(self.shingled.of(int(self.numbers_K[place])), others)
            if (found := np.flatnonzero(similarity >= self.threshold)).size:
                return close[start + int(found[0])], round(float(similarity[found[0]]), 4)
            start, most = start + len(others), min(2 * most, _AT_ONCE)
        return None

    def _close(self, place: int, candidates: list[int]) -> list[int]:
        """Leave out candidates whose minima show that they are not worth reading."""
        own = self._minima(place, 1)
        close: list[int] = []
        start = 0
        while start < len(candidates):
            first, end = candidates[start], start + 1
            while end < len(candidates) and candidates[end] - candidates[end - 1] <= _GAP:
                if candidates[end] - first >= _ROWS:
                    break
                end += 1
            run = np.array(candidates[start:end])
            minima = self._minima(first, int(run[-1]) - first + 1)[run - first]
            close += run[(minima == own).mean(axis=1) >= self.threshold - _MARGIN].tolist()
            start = end
        return close
