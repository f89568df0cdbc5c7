"""Prepared text on disk: shards of token ids, their offsets, a tokenizer, and a manifest that vouches for them all."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossover.data.tokenizer import Tokenizer
from crossover.errors import DataError
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded
from crossover.records import Vocabulary

# Shape suffixes: U unique tokens, D documents, V vocabulary.

FORMAT_VERSION = 1
# Ids of two bytes, or of four.
DTYPES = ("<u2", "<u4")
_CHUNK_BYTES = 1 << 22


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _are_files(value: Any) -> bool:
    """Say whether files lie in the folder and have a size and a hash each."""
    return isinstance(value, dict) and all(
        re.fullmatch(r"(tokenizer/)?\w+\.\w+", name)
        and isinstance(facts, dict)
        and _is_count(facts.get("bytes"))
        and isinstance(facts.get("sha256"), str)
        for name, facts in value.items()
    )


# What a manifest must hold before anything of it is used.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "files": _are_files,
    "data_hash": lambda value: isinstance(value, str),
    "dtype": lambda value: value in DTYPES,
    "data": lambda value: isinstance(value, dict) and isinstance(value.get("attend_across_documents"), bool),
    "unique_tokens": _is_count,
    "control_offset": _is_count,
    "control_tokens": _is_count,
    "inexact_documents": _is_count,
}
_NEEDED = ("format", *_KINDS)
# What numpy writes before a list of numbers; nothing else is evaluated.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<i8|<f4)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n", re.DOTALL
)


@dataclass(frozen=True)
class HeldOutDocument:
    """A document that is scored, not trained on (or, in the control part, perhaps not).

    Args:
        name: Where the text came from.
        index: Which document of its part, from 0.
        tokens: Ids, EOS included unless the token budget cut the document short.
        text_bytes: UTF-8 bytes of exactly the text that `tokens` stand for.
    """

    name: str
    index: int
    tokens: NDArray[np.int64]
    text_bytes: int


@dataclass(frozen=True)
class PreparedText:
    """Prepared text, opened for reading; shards stay on disk until they are read.

    Args:
        folder: Where it lies.
        manifest: What it is: sources, counts, hashes.
        tokenizer: The tokenizer that made the ids.
        vocabulary: The tokenizer's vocabulary with the training text's rarities and the choice about borders.
    """

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> PreparedText:
        """Open a folder that `prepare` made.

        Args:
            folder: The folder.
            verify: Whether to compare every file with the sha256 in the manifest; sizes are always compared.

        Raises:
            DataError: A file is missing or is not what was written.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name, facts in manifest["files"].items():
            _check_file(folder, name, facts, verify)
        tokenizer = Tokenizer.load(folder / "tokenizer")
        inexact = manifest["inexact_documents"]
        if inexact and tokenizer.bytes_problem is None:
            tokenizer.bytes_problem = f"the pieces of {inexact:,} document(s) of this text do not add up to their bytes"
        vocabulary = dataclasses.replace(
            tokenizer.vocabulary,
            rarity_V=_array(folder / "rarity.npy", "<f4"),
            separate_documents=not manifest["data"]["attend_across_documents"],
        )
        text = cls(folder, manifest, tokenizer, vocabulary)
        if verify:
            text._check_tokens()
        return text

    def _check_tokens(self) -> None:
        """Refuse ids that the tokenizer does not have; a model would read beyond its embedding."""
        for split in ("train", "dev", "test"):
            parts = chunks_of(self.folder / f"{split}.bin", self.manifest["dtype"]) if len(self._shard(split)) else ()
            last = max((int(part.max()) for part in parts), default=0)
            if last >= self.vocabulary.predictable:
                place = self.folder / f"{split}.bin"
                raise DataError(f"{place}: holds an id {last} that no piece has; {_advice(self.folder)}")
        rows, train = len(self.vocabulary.rarity_V), len(self._shard("train"))  # pyright: ignore[reportArgumentType]
        if rows != self.vocabulary.size or self.manifest["control_offset"] > train:
            raise DataError(f"{self.folder}: its files do not fit each other; {_advice(self.folder)}")

    @property
    def data_hash(self) -> str:
        """sha256 over all shards, offsets and the tokenizer: equal hashes mean equal text, ids and splits."""
        return self.manifest["data_hash"]

    @property
    def unique_tokens(self) -> int:
        """Tokens of training text, the control part included."""
        return self.manifest["unique_tokens"]

    @property
    def control_tokens(self) -> int:
        """Tokens at the end of the training text that an online controller holds out."""
        return self.manifest["control_tokens"]

    def train_tokens(self, with_control: bool) -> NDArray[np.integer]:
        """Give the packed training text.

        Args:
            with_control: True for arms whose controller needs no held-out text: they train on all of it.

        Returns:
            Ids [U], mapped from disk, documents ended by EOS.
        """
        tokens_U = self._shard("train")
        return tokens_U if with_control else tokens_U[: self.manifest["control_offset"]]

    def control_documents(self) -> list[HeldOutDocument]:
        """Give the control part, document by document; the first may lack its beginning and the last its end."""
        tokens_U = self._shard("train")
        starts_D = self._numbers("train_offsets")
        start = self.manifest["control_offset"]
        borders = [start, *(int(border) for border in starts_D if border > start)]
        found = []
        for index, (first, last) in enumerate(itertools.pairwise(borders)):
            tokens = tokens_U[first:last].astype(np.int64)
            found.append(HeldOutDocument(f"control {index}", index, tokens, self.tokenizer.text_bytes(tokens)))
        return found

    def documents(self, split: Literal["dev", "test"]) -> list[HeldOutDocument]:
        """Give a held-out split.

        Args:
            split: "dev" to choose by, "test" to read the result once.

        Returns:
            Its documents, in an order that is unrelated to their names.
        """
        tokens, offsets_D = self._shard(split), self._numbers(f"{split}_offsets")
        bytes_D = self._numbers(f"{split}_bytes")
        names = _names(self.folder / f"{split}_names.json")
        within = np.diff(offsets_D, prepend=0, append=len(tokens)).min() >= 0
        if not within or not len(names) == len(bytes_D) == len(offsets_D) - 1:
            raise DataError(f"{self.folder}: the {split} documents do not fit its tokens; {_advice(self.folder)}")
        return [
            HeldOutDocument(name, index, tokens[offsets_D[index] : offsets_D[index + 1]].astype(np.int64), int(size))
            for index, (name, size) in enumerate(zip(names, bytes_D, strict=True))
        ]

    def _shard(self, split: str) -> NDArray[np.integer]:
        path, dtype = self.folder / f"{split}.bin", np.dtype(self.manifest["dtype"])
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise DataError(f"{path}: {size:,} bytes are no whole number of tokens; {_advice(self.folder)}")
        if size == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    def _numbers(self, name: str) -> NDArray[np.int64]:
        return _array(self.folder / f"{name}.npy", "<i8")


def chunks_of(shard: Path, dtype: str) -> Iterator[NDArray[np.integer]]:
    """Read a shard in pieces, so that a long one does not show up as resident memory."""
    with open(shard, "rb") as file:
        while len(tokens := np.fromfile(file, dtype=dtype, count=_CHUNK_BYTES)):
            yield tokens


def rarity(counts_V: NDArray[np.int64], predictable: int) -> NDArray[np.float32]:
    """Rank pieces by how rare they are in the training text.

    Args:
        counts_V: How often each id occurs.
        predictable: Ids from here on are never predicted.

    Returns:
        Rarity [V] in [0, 1]: the share of other pieces that occur at least as often; 1 for the rarest.
    """
    rarity_V = np.ones(len(counts_V), dtype=np.float32)
    counts = counts_V[:predictable]
    at_least = len(counts) - np.searchsorted(np.sort(counts), counts, side="left")
    rarity_V[:predictable] = (at_least - 1) / max(1, len(counts) - 1)
    return rarity_V


def sha256_file(path: Path) -> str:
    """Hash a file's content to 64 hexadecimal digits."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest()


def combined_hash(files: dict[str, Any]) -> str:
    """Hash the hashes of what a run reads: shards, their numbers and the tokenizer (names of documents left out).

    Args:
        files: Facts of each file by its name, as they stand in the manifest.

    Returns:
        64 hexadecimal digits.
    """
    read = {name: facts for name, facts in files.items() if name.endswith((".bin", ".npy", "/tokenizer.json"))}
    lines = [f"{name} {facts['sha256']}\n" for name, facts in sorted(read.items())]
    # A damaged file may name things that are no text; their hash is simply another one.
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hash what a manifest says, so that a changed count is found as a changed shard is.

    Args:
        manifest: The manifest; its own hash is left out.

    Returns:
        64 hexadecimal digits.
    """
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path, advice = folder / "manifest.json", _advice(folder)
    try:
        manifest = parse_json(read_bounded(path, LARGEST_JSON_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; {advice}") from None
    except ValueError as error:
        raise DataError(f"{path}: is damaged: {error}; {advice}") from None
    missing = [key for key in _NEEDED if not isinstance(manifest, dict) or key not in manifest]
    if missing or manifest["format"] != FORMAT_VERSION:
        what = f"lacks {', '.join(missing)}" if missing else f"has format {manifest['format']}, not {FORMAT_VERSION}"
        raise DataError(f"{path}: {what}; {advice}")
    for key, fits in _KINDS.items():
        if not fits(manifest[key]):
            raise DataError(f"{path}: {key} is of another kind than is written there; {advice}")
    if combined_hash(manifest["files"]) != manifest["data_hash"]:
        raise DataError(f"{path}: its data_hash does not follow from its files; {advice}")
    # Text that an earlier version prepared has none.
    if manifest.get("manifest_sha256", manifest_hash(manifest)) != manifest_hash(manifest):
        raise DataError(f"{path}: is not what was written (sha256 differs); {advice}")
    return manifest


def _advice(folder: Path) -> str:
    return f"delete {folder} and the text is prepared again"


def _array(path: Path, dtype: str) -> NDArray[Any]:
    """Read a list of numbers that numpy wrote."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; {_advice(path.parent)}") from None
    header = _HEADER.match(content[:256])
    kind, count = (header[1].decode(), int(header[2])) if header else ("", 0)
    if header is None or kind != dtype or len(content) - header.end() != count * np.dtype(kind).itemsize:
        raise DataError(f"{path}: is no list of {dtype} numbers; {_advice(path.parent)}")
    return np.frombuffer(content, dtype, offset=header.end()).copy()


def _names(path: Path) -> list[str]:
    """Read the names of documents."""
    try:
        names = parse_json(read_bounded(path, LARGEST_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {_advice(path.parent)}") from None
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
        raise DataError(f"{path}: is no list of names; {_advice(path.parent)}")
    return names


def _check_file(folder: Path, name: str, facts: dict[str, Any], verify: bool) -> None:
    path, advice = folder / name, _advice(folder)
    if not path.is_file():
        raise DataError(f"{path}: is missing; {advice}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise DataError(f"{path}: has {size:,} bytes, but {facts['bytes']:,} were written; {advice}")
    if verify and sha256_file(path) != facts["sha256"]:
        raise DataError(f"{path}: is not what was written (sha256 differs); {advice}")
