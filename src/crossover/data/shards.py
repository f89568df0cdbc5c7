"""Prepared text on disk: shards of token ids, their offsets, a tokenizer, and a manifest that vouches for them all."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossover.data.tokenizer import Tokenizer
from crossover.errors import DataError
from crossover.records import Vocabulary

# Shape suffixes: U unique tokens, D documents, V vocabulary.

FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 22
_NEEDED = (
    "format",
    "files",
    "data_hash",
    "dtype",
    "data",
    "unique_tokens",
    "control_offset",
    "control_tokens",
    "inexact_documents",
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
            rarity_V=np.load(folder / "rarity.npy", allow_pickle=False),
            separate_documents=not manifest["data"]["attend_across_documents"],
        )
        return cls(folder, manifest, tokenizer, vocabulary)

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
        names = json.loads((self.folder / f"{split}_names.json").read_text("utf-8"))
        return [
            HeldOutDocument(name, index, tokens[offsets_D[index] : offsets_D[index + 1]].astype(np.int64), int(size))
            for index, (name, size) in enumerate(zip(names, bytes_D, strict=True))
        ]

    def _shard(self, split: str) -> NDArray[np.integer]:
        path, dtype = self.folder / f"{split}.bin", np.dtype(self.manifest["dtype"])
        if path.stat().st_size == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    def _numbers(self, name: str) -> NDArray[np.int64]:
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)


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
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    advice = f"delete {folder} and the text is prepared again"
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; {advice}") from None
    except ValueError as error:
        raise DataError(f"{path}: is damaged: {error}; {advice}") from None
    missing = [key for key in _NEEDED if not isinstance(manifest, dict) or key not in manifest]
    if missing or manifest["format"] != FORMAT_VERSION:
        what = f"lacks {', '.join(missing)}" if missing else f"has format {manifest['format']}, not {FORMAT_VERSION}"
        raise DataError(f"{path}: {what}; {advice}")
    if combined_hash(manifest["files"]) != manifest["data_hash"]:
        raise DataError(f"{path}: its data_hash does not follow from its files; {advice}")
    return manifest


def _check_file(folder: Path, name: str, facts: dict[str, Any], verify: bool) -> None:
    path = folder / name
    advice = f"delete {folder} and the text is prepared again"
    if not path.is_file():
        raise DataError(f"{path}: is missing; {advice}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise DataError(f"{path}: has {size:,} bytes, but {facts['bytes']:,} were written; {advice}")
    if verify and sha256_file(path) != facts["sha256"]:
        raise DataError(f"{path}: is not what was written (sha256 differs); {advice}")
