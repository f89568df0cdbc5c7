"""From a corpus to shards: read, drop duplicates, split, train the tokenizer, cut to the token budget, write once."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

import crossover
from crossover.data.degraded import Degraded
from crossover.data.files import as_json, write_durably
from crossover.data.shards import (
    FORMAT_VERSION,
    HeldOutDocument,
    PreparedText,
    combined_hash,
    rarity,
    sha256_file,
)
from crossover.data.spool import Entry, Spool, assign
from crossover.data.tokenizer import Tokenizer
from crossover.errors import DataError
from crossover.registry import component_of
from crossover.sections import DataRecipe
from crossover.streams import digest
from crossover.trees import fingerprint

__all__ = ["HeldOutDocument", "PreparedText", "default_cache", "prepare", "prepared_folder"]

# A tokenizer sees about the text that the token budget admits; a piece of BPE holds three to four bytes.
_BYTES_PER_BUDGET_TOKEN = 4


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
        say(f"prepared text found: {folder}")
        return PreparedText.open(folder)
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        _Preparation(data, seed, temporary, say).run(facts)
        _publish(temporary, folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}; set CROSSOVER_CACHE") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return PreparedText.open(folder)


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
    return {
        "format": FORMAT_VERSION,
        "seed": seed,
        "data": section,
        "source": {"description": data.source.describe(), "signature": data.source.signature()},
        "tokenizer": data.tokenizer.signature(),
    }


def _publish(temporary: Path, folder: Path) -> None:
    """Make everything durable, then visible under its name at once."""
    for path in [*temporary.rglob("*"), temporary]:
        _synchronise(path)
    try:
        os.rename(temporary, folder)
    except OSError:
        # Another process was faster with the same text; what it wrote is as good.
        if not (folder / "manifest.json").is_file():
            raise
    _synchronise(folder.parent)


def _synchronise(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@dataclass
class _Stream:
    """A shard while it is written.

    Args:
        offsets: Where each document begins, and where the last one ends, in tokens.
        text_bytes: UTF-8 bytes of each document's text.
        names: Name of each document.
        counts_V: How often each id occurs.
        inexact: Documents whose pieces do not add up to their text.
    """

    counts_V: NDArray[np.int64]
    offsets: list[int] = field(default_factory=lambda: [0])
    text_bytes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    inexact: int = 0


class _Preparation:
    """One preparation, in a temporary folder."""

    def __init__(self, data: DataRecipe, seed: int, folder: Path, say: Callable[[str], None]) -> None:
        self.data, self.seed, self.folder, self.say = data, seed, folder, say

    def run(self, facts: dict[str, Any]) -> None:
        """Write shards, tokenizer and manifest."""
        self.say(f"reading {facts['source']['description']}")
        spool_path = self.folder / "spool"
        spool = Spool(spool_path, self.data.source.documents(self.data.document_bytes))
        try:
            splits = assign(spool.entries, dev_share=self.data.dev_share, test_share=self.data.test_share)
            self.say(
                f"{len(spool.entries):,} documents ({spool.duplicates:,} exact duplicates dropped): "
                + ", ".join(f"{len(entries):,} {name}" for name, entries in splits.items())
            )
            splits["train"].sort(key=lambda entry: digest(self.seed, "documents", int.from_bytes(entry.digest, "big")))
            tokenizer = self._tokenizer(spool, splits["train"])
            tokenizer.save(self.folder / "tokenizer")
            streams = {
                name: self._write(name, spool, entries, tokenizer, self.data.unique_tokens if name == "train" else None)
                for name, entries in splits.items()
            }
        finally:
            spool.close()
            spool_path.unlink(missing_ok=True)
        self._finish(facts, tokenizer, streams, spool.duplicates)

    def _tokenizer(self, spool: Spool, entries: Sequence[Entry]) -> Tokenizer:
        """Train on the documents that the token budget admits, and on no others."""
        budget = self.data.unique_tokens
        admitted: list[Entry] = []
        size = 0
        for entry in entries:
            if budget is not None and size >= budget * _BYTES_PER_BUDGET_TOKEN:
                break
            admitted.append(entry)
            size += entry.size
        self.say(f"tokenizer: {len(admitted):,} training documents, {size:,} bytes")
        return self.data.tokenizer.fit(spool.text(entry) for entry in admitted)

    def _write(
        self, name: str, spool: Spool, entries: Sequence[Entry], tokenizer: Tokenizer, budget: int | None
    ) -> _Stream:
        """Write a shard, cut at exactly the budget."""
        vocabulary = tokenizer.vocabulary
        stream = _Stream(np.zeros(vocabulary.size, dtype=np.int64))
        source = self.data.source
        with open(self.folder / f"{name}.bin", "wb") as file:
            for entry, tokens, exact in _encoded(spool, entries, tokenizer, round_trip=name != "train"):
                room = len(tokens) if budget is None else budget - stream.offsets[-1]
                kept = tokens[:room]
                if name == "train" and isinstance(source, Degraded):
                    # After the cut: no token from beyond the budget may change places with one before it.
                    body = min(len(kept), len(tokens) - 1)
                    kept[:body] = source.spoil(kept[:body], entry.digest)
                file.write(kept.astype(_dtype(vocabulary.size)).tobytes())
                stream.counts_V += np.bincount(kept, minlength=vocabulary.size)
                stream.offsets.append(stream.offsets[-1] + len(kept))
                stream.text_bytes.append(entry.size if len(kept) >= len(tokens) - 1 else tokenizer.text_bytes(kept))
                stream.names.append(entry.name)
                stream.inexact += not exact
                if stream.offsets[-1] == budget:
                    break
        if budget is not None and stream.offsets[-1] < budget:
            raise DataError(
                f"data.unique_tokens: {budget:,} asked for, but the training documents have {stream.offsets[-1]:,} "
                "tokens with this tokenizer; lower it, give more text, or set it to null to take all there is"
            )
        return stream

    def _finish(
        self, facts: dict[str, Any], tokenizer: Tokenizer, streams: dict[str, _Stream], duplicates: int
    ) -> None:
        train = streams["train"]
        np.save(self.folder / "rarity.npy", rarity(train.counts_V, tokenizer.vocabulary.predictable))
        for name, stream in streams.items():
            np.save(self.folder / f"{name}_offsets.npy", np.array(stream.offsets, dtype=np.int64))
            np.save(self.folder / f"{name}_bytes.npy", np.array(stream.text_bytes, dtype=np.int64))
            (self.folder / f"{name}_names.json").write_bytes(as_json(stream.names))
        unique_tokens = train.offsets[-1]
        control_offset = _control_offset(train.offsets, int(self.data.control_share * unique_tokens))
        inexact = sum(stream.inexact for stream in streams.values())
        if inexact:
            self.say(f"the tokenizer changes {inexact:,} document(s): bits per byte will not be given")
        files = _hash_files(self.folder)
        manifest = {
            **facts,
            "tokenizer": {**facts["tokenizer"], "hash": tokenizer.hash, "size": tokenizer.vocabulary.size},
            "data_hash": combined_hash(files),
            "documents": {name: len(stream.names) for name, stream in streams.items()},
            "duplicates_removed": duplicates,
            "inexact_documents": inexact,
            "unique_tokens": unique_tokens,
            "control_tokens": unique_tokens - control_offset,
            "control_offset": control_offset,
            "tokens": {name: stream.offsets[-1] for name, stream in streams.items()},
            "bytes": {name: sum(stream.text_bytes) for name, stream in streams.items()},
            "bytes_per_token": sum(train.text_bytes) / unique_tokens,
            "dtype": _dtype(tokenizer.vocabulary.size),
            "crossover_version": crossover.__version__,
            "files": files,
        }
        write_durably(self.folder / "manifest.json", as_json(manifest))
        self.say(f"{unique_tokens:,} training tokens, {manifest['bytes_per_token']:.2f} bytes each")


def _encoded(
    spool: Spool, entries: Sequence[Entry], tokenizer: Tokenizer, *, round_trip: bool
) -> Iterator[tuple[Entry, NDArray[np.int64], bool]]:
    """Encode documents in their order; each with its EOS, and whether its pieces add up to its bytes."""
    end = np.array([tokenizer.vocabulary.eos_id], dtype=np.int64)
    for group in spool.batches(entries):
        texts = [spool.text(entry) for entry in group]
        for entry, text, tokens in zip(group, texts, tokenizer.encode_batch(texts), strict=True):
            exact = tokenizer.text_bytes(tokens) == entry.size if tokenizer.bytes_problem is None else True
            # Equal bytes do not prove equal text; held-out text is little enough to look.
            exact = exact and not (round_trip and tokenizer.bytes_problem is None and tokenizer.decode(tokens) != text)
            yield entry, np.concatenate([tokens, end]), exact


def _control_offset(offsets: Sequence[int], wanted: int) -> int:
    """Choose where the control part begins: the document start that gives the nearest size, if one is near."""
    total = offsets[-1]
    if wanted == 0:
        return total
    near = [start for start in offsets[1:-1] if 0.75 * wanted <= total - start <= 1.25 * wanted]
    return min(near, key=lambda start: (abs(total - start - wanted), start), default=total - wanted)


def _dtype(vocabulary_size: int) -> str:
    return "<u2" if vocabulary_size <= 2**16 else "<u4"


def _hash_files(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
