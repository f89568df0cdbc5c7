"""From a corpus to shards: read, drop duplicates, split, train the tokenizer, cut to the token budget, write once.

Every stage streams, and notes durably how far it is: what an interruption left is found again and gone on with.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

import crossover
from crossover.data.appended import Damaged
from crossover.data.degraded import Degraded
from crossover.data.files import Unreachable, as_json, write_durably
from crossover.data.near import METHOD, NearSearch, Sketcher
from crossover.data.shards import (
    FORMAT_VERSION,
    HeldOutDocument,
    PreparedText,
    combined_hash,
    manifest_hash,
    rarity,
    sha256_file,
)
from crossover.data.splits import assign, check_shares, distinct, training_order
from crossover.data.spool import Spool, each, read_corpus
from crossover.data.tokenizer import Tokenizer, TokenizerFile
from crossover.data.workplace import Workplace, clear_up_after, give_up_stale, held
from crossover.data.writing import Encoder, ShardWriter, counted
from crossover.errors import DataError
from crossover.folders import synchronise
from crossover.registry import component_of
from crossover.sections import DataRecipe
from crossover.trees import fingerprint

__all__ = ["HeldOutDocument", "PreparedText", "default_cache", "prepare", "prepared_folder"]

# A tokenizer sees about the text that the token budget admits; a piece of BPE holds three to four bytes.
_BYTES_PER_BUDGET_TOKEN = 4
# What the manifest tells of each split.
_OF_SPLITS = ("documents", "tokens", "bytes")


def default_cache() -> Path:
    """Say where prepared text is kept: $CROSSOVER_CACHE, else $XDG_CACHE_HOME/crossover, else ~/.cache/crossover."""
    if chosen := os.environ.get("CROSSOVER_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "crossover"


def prepare(
    data: DataRecipe, *, seed: int, cache: Path | None = None, notify: Callable[[str], None] | None = None
) -> PreparedText:
    """Turn a corpus into shards of tokens, or find those that were made before.

    Args:
        data: Which text, how much of it, cut how.
        seed: Seed of the order in which training documents are taken.
        cache: Folder for prepared text; `default_cache` if None.
        notify: Called with a sentence when something takes time or is worth knowing.

    Returns:
        The prepared text; the same recipe, text and seed give the same `data_hash`.

    Raises:
        DataError: The text is missing, damaged or too little, or a prepared folder is not what was written.
    """
    say = notify or (lambda message: None)
    data = _with_components(data)
    facts = _facts(data, seed)
    folder = _folder(facts, cache)
    if folder.exists():
        clear_up_after(folder)
        say(f"prepared text found: {folder}")
        return PreparedText.open(folder)
    try:
        with held(folder, say) as working:
            if working is not None:
                give_up_stale(folder, facts, say)
                _work(data, seed, Workplace(working, facts), folder, say)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}; free some space or set CROSSOVER_CACHE. "
            "What is done so far is kept: the same command goes on with it"
        ) from error
    return PreparedText.open(folder)


def _work(data: DataRecipe, seed: int, place: Workplace, folder: Path, say: Callable[[str], None]) -> None:
    """Prepare the text in its place and put it where it belongs."""
    # A first attempt may go on with what an interruption left; if that is damaged, the second one begins anew.
    for is_last in (False, True):
        try:
            place.note("begun", {})
            _Preparation(data, seed, place, say).run()
            break
        except Unreachable:
            raise
        except DataError:
            # What is done led to this; the same command would only come here again.
            place.remove()
            raise
        except Damaged as problem:
            if is_last:
                place.remove()
                raise DataError(f"{problem}: the disk under {folder.parent} loses what is written to it") from None
            say(f"{problem}: what an interrupted preparation left is thrown away, and it starts anew")
            place.forget()
    _publish(place.text, folder)
    place.remove()


def prepared_folder(data: DataRecipe, *, seed: int, cache: Path | None = None) -> Path:
    """Say where a recipe's prepared text lies, or would lie.

    Args:
        data: Which text, how much of it, cut how.
        seed: Seed of the order in which training documents are taken.
        cache: Folder for prepared text; `default_cache` if None.

    Returns:
        The folder; it need not exist.

    Raises:
        DataError: There is no text at the source, so nothing identifies it.
    """
    return _folder(_facts(_with_components(data), seed), cache)


def _with_components(data: DataRecipe) -> DataRecipe:
    # A recipe made by hand may hold names where a resolved one holds components.
    return dataclasses.replace(
        data, source=component_of("corpus", data.source), tokenizer=component_of("tokenizer", data.tokenizer)
    )


def _folder(facts: dict[str, Any], cache: Path | None) -> Path:
    return (cache or default_cache()) / f"text-{fingerprint(facts)}"


def _facts(data: DataRecipe, seed: int) -> dict[str, Any]:
    """Collect everything that decides what the shards hold; it names the folder and stands in the manifest."""
    section = TypeAdapter(DataRecipe).dump_python(data, mode="json")
    # The window's length is the loader's affair: one prepared text serves every context.
    del section["context"]
    if data.near_duplicates is None:
        # Text that was prepared before there was this setting is the same text.
        del section["near_duplicates"]
    return {
        "format": FORMAT_VERSION,
        "seed": seed,
        "data": section,
        "source": {"description": data.source.describe(), "signature": data.source.signature()},
        "tokenizer": data.tokenizer.signature(),
    } | ({} if data.near_duplicates is None else {"near_duplicates_method": METHOD})


class _Preparation:
    """One preparation, in a folder of its own."""

    def __init__(self, data: DataRecipe, seed: int, place: Workplace, say: Callable[[str], None]) -> None:
        self.data, self.seed, self.place, self.say = data, seed, place, say

    def run(self) -> None:
        """Write shards, tokenizer and manifest into the place's `text`."""
        self._refuse_early()
        self.say(f"reading {self.place.facts['source']['description']}")
        spool = read_corpus(self.place, self.data.source, self.data.document_bytes, self.say)
        try:
            splits, facts = self._splits(spool)
            tokenizer = self._tokenizer(spool, splits["train"])
            source = self.data.source
            encoder = Encoder(spool, tokenizer, source if isinstance(source, Degraded) else None)
            written = {name: self._write(name, encoder, numbers) for name, numbers in splits.items()}
        finally:
            spool.close()
        self._finish(facts, encoder, written)

    def _refuse_early(self) -> None:
        """Find what would be an error only after hours of reading, which would be lost with it."""
        check_shares(self.data.dev_share, self.data.test_share)
        if self.data.near_duplicates is not None:
            Sketcher(self.data.near_duplicates)
        if isinstance(self.data.tokenizer, TokenizerFile):
            self.data.tokenizer.fit(())

    def _splits(self, spool: Spool) -> tuple[dict[str, NDArray[np.int64]], dict[str, Any]]:
        """Choose the documents of each split, in their order; and say what was dropped."""
        high_D, low_D = spool.digests()
        kept = distinct(high_D, low_D)
        facts: dict[str, Any] = {"duplicates_removed": len(spool) - len(kept)}
        told = f"{facts['duplicates_removed']:,} exact duplicates dropped"
        if self.data.near_duplicates is not None:
            search = NearSearch(self.place, spool, np.sort(kept), self.data.near_duplicates)
            found = search.run(self.say)
            kept = kept[~np.isin(kept, found.dropped)]
            facts |= {"near_duplicates_removed": len(found.dropped), "near_duplicates": found.examples}
            told += f", {len(found.dropped):,} near-duplicates"
        places = assign(high_D[kept], dev_share=self.data.dev_share, test_share=self.data.test_share)
        splits = {name: kept[members] for name, members in places.items()}
        shares = ", ".join(f"{len(numbers):,} {name}" for name, numbers in splits.items())
        self.say(f"{len(kept):,} documents ({told}): {shares}")
        train = splits["train"]
        high_S, low_S = high_D[train], low_D[train]
        # Of many short documents these are most of the memory there is.
        del kept, places, high_D, low_D
        splits["train"] = train[training_order(self.seed, high_S, low_S)]
        return splits, facts

    def _tokenizer(self, spool: Spool, numbers: NDArray[np.int64]) -> Tokenizer:
        """Train on the documents that the token budget admits, and on no others."""
        folder = self.place.text / "tokenizer"
        if known := self.place.done.get("tokenizer"):
            return _trained_before(folder, known["hash"])
        admitted, size = self._admitted(spool, numbers)
        self.say(f"tokenizer: {len(admitted):,} training documents, {size:,} bytes")
        seen: list[int] = [0]

        def texts() -> Iterator[str]:
            for number in each(admitted):
                entry = spool.entry(number)
                seen[0] += entry.size
                yield entry.text

        tokenizer = self.data.tokenizer.fit(texts())
        if self.data.tokenizer.signature() != self.place.facts["tokenizer"]:
            raise DataError("data.tokenizer: the file changed while text was prepared; prepare it again")
        if 0 < seen[0] < size:
            self.say(f"the tokenizer was trained on the first {seen[0]:,} bytes: more words would not fit into memory")
        tokenizer.save(folder)
        self.place.note("tokenizer", {"hash": tokenizer.hash})
        return tokenizer

    def _admitted(self, spool: Spool, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        budget = self.data.unique_tokens
        size, count = 0, 0
        for number in each(numbers):
            if budget is not None and size >= budget * _BYTES_PER_BUDGET_TOKEN:
                break
            size += spool.size(number)
            count += 1
        return numbers[:count], size

    def _write(self, name: str, encoder: Encoder, numbers: NDArray[np.int64]) -> dict[str, Any]:
        budget = self.data.unique_tokens if name == "train" else None
        writer = ShardWriter(self.place, name)
        try:
            if writer.noted["documents"] > 0 and not writer.noted.get("is_whole"):
                self.say(f"going on with {name} after {writer.noted['documents']:,} documents")
            writer.run(encoder, numbers, budget)
            written = writer.finish()
        finally:
            writer.close()
        if budget is not None and written["tokens"] < budget:
            raise DataError(
                f"data.unique_tokens: {budget:,} asked for, but the training documents have {written['tokens']:,} "
                "tokens with this tokenizer; lower it, give more text, or set it to null to take all there is"
            )
        return written

    def _finish(self, facts: dict[str, Any], encoder: Encoder, written: dict[str, dict[str, Any]]) -> None:
        text, vocabulary = self.place.text, encoder.tokenizer.vocabulary
        counts_V = counted(text / "train.bin", encoder.dtype, vocabulary.size)
        np.save(text / "rarity.npy", rarity(counts_V, vocabulary.predictable))
        unique_tokens = written["train"]["tokens"]
        control_offset = _control_offset(written["train"]["offsets"], int(self.data.control_share * unique_tokens))
        inexact = sum(split["inexact"] for split in written.values())
        if inexact:
            self.say(f"the tokenizer changes {inexact:,} document(s): bits per byte will not be given")
        (text / "manifest.json").unlink(missing_ok=True)
        files = _hash_files(text)
        of_splits = {key: {name: split[key] for name, split in written.items()} for key in _OF_SPLITS}
        known, revision = self.place.facts, self.place.done["source"]["revision"]
        manifest = {
            **known,
            "source": {**known["source"], **({"revision": revision} if revision else {})},
            "tokenizer": {**known["tokenizer"], "hash": encoder.tokenizer.hash, "size": vocabulary.size},
            "data_hash": combined_hash(files),
            **of_splits,
            **facts,
            "inexact_documents": inexact,
            "unique_tokens": unique_tokens,
            "control_tokens": unique_tokens - control_offset,
            "control_offset": control_offset,
            "bytes_per_token": written["train"]["bytes"] / unique_tokens,
            "dtype": encoder.dtype,
            "crossover_version": crossover.__version__,
            "files": files,
        }
        write_durably(text / "manifest.json", as_json({**manifest, "manifest_sha256": manifest_hash(manifest)}))
        self.say(f"{unique_tokens:,} training tokens, {manifest['bytes_per_token']:.2f} bytes each")


def _trained_before(folder: Path, known: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise Damaged(str(error)) from None
    if tokenizer.hash != known:
        raise Damaged(f"{folder} is not what was written")
    return tokenizer


def _publish(text: Path, folder: Path) -> None:
    """Make everything durable, then visible under its name at once."""
    for path in [*text.rglob("*"), text]:
        synchronise(path)
    try:
        os.rename(text, folder)
    except OSError:
        # Another process was faster with the same text; what it wrote is as good.
        if not (folder / "manifest.json").is_file():
            raise
    synchronise(folder.parent)


def _control_offset(offsets: NDArray[np.int64], wanted: int) -> int:
    """Choose where the control part begins: the document start that gives the nearest size, if one is near."""
    total = int(offsets[-1])
    if wanted == 0:
        return total
    left = total - offsets[1:-1]
    near = left[(left >= 0.75 * wanted) & (left <= 1.25 * wanted)]
    # The first of two that are equally near leaves the larger part.
    return total - int(near[np.argmin(np.abs(near - wanted))] if len(near) else wanted)


def _hash_files(folder: Path) -> dict[str, Any]:
    for torn in [path for path in folder.rglob(".*") if path.is_file()]:
        torn.unlink()  # what a process was writing when it was killed
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
