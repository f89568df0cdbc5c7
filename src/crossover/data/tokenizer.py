"""Tokenizers: how text becomes ids, which ids are special, and exactly how many bytes of text each id stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from crossover.data.encoding import way_of
from crossover.data.engine import encoded, engine_of, explained
from crossover.data.files import as_json, write_durably
from crossover.data.layout import mask_after, rows_up_to
from crossover.data.piece_bytes import byte_symbols, bytes_problem, decoded_bytes, spaceless
from crossover.data.sample import bounded
from crossover.errors import DataError
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded
from crossover.records import Vocabulary
from crossover.registry import register
from crossover.sections import Positive

# Shape suffix: V vocabulary, special pieces and padding included.

_BOS, _EOS, _MASK = "<|bos|>", "<|eos|>", "<|mask|>"
_BOS_NAMES = (_BOS, "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|begin▁of▁sentence|>")
_EOS_NAMES = (_EOS, "</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<|end▁of▁sentence|>")
FACTS = "crossover_tokenizer.json"


class TokenizerRecipe(Protocol):
    """What every tokenizer component does."""

    def fit(self, texts: Iterable[str]) -> Tokenizer:
        """Train on texts; a tokenizer that needs no training ignores them."""
        ...

    def signature(self) -> dict[str, Any]:
        """Identify, without training, what decides the outcome beside the texts."""
        ...


@register("tokenizer", "bpe")
@dataclass(frozen=True)
class Bpe:
    """Byte-level BPE, trained on the training text; loses nothing, whatever the text.

    Args:
        vocabulary: Text pieces, at least 256; special pieces come on top. Small text may yield fewer.
    """

    vocabulary: Positive = 4096

    def __post_init__(self) -> None:
        if not 256 <= self.vocabulary <= 1 << 22:
            raise ValueError(f"a vocabulary holds at least the 256 bytes, at most 2**22 pieces; not {self.vocabulary}")

    def fit(self, texts: Iterable[str]) -> Tokenizer:
        """Train on texts, deterministically: on the first of them, if all their words would not fit into memory."""
        engine = _byte_level_engine(models.BPE(), split_words=True)
        # A pair that occurs once is no regularity; merging it would only memorise a text.
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary, initial_alphabet=alphabet, min_frequency=2, show_progress=False
        )
        engine.train_from_iterator(bounded(texts), trainer)
        return Tokenizer.with_specials(engine)

    def signature(self) -> dict[str, Any]:
        """Identify the trainer's settings."""
        return {"tokenizer": "bpe", "vocabulary": self.vocabulary}


@register("tokenizer", "bytes")
@dataclass(frozen=True)
class Bytes:
    """Raw bytes: id b is byte b; nothing is trained."""

    def fit(self, texts: Iterable[str]) -> Tokenizer:
        """Return the byte tokenizer; the texts are not read."""
        vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        return Tokenizer.with_specials(_byte_level_engine(models.BPE(vocab=vocabulary, merges=[]), split_words=False))

    def signature(self) -> dict[str, Any]:
        """Identify the byte tokenizer."""
        return {"tokenizer": "bytes"}


@register("tokenizer", "file")
@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists already.

    Args:
        path: A Hugging Face tokenizer.json, or a folder that holds one.
    """

    path: str

    def fit(self, texts: Iterable[str]) -> Tokenizer:
        """Read the tokenizer; the texts are not read.

        Raises:
            DataError: The file is missing or is no tokenizer.
        """
        path, content = self._read()
        if (path.parent / FACTS).is_file():
            return Tokenizer.load(path.parent)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, byte {error.start}: is not UTF-8, so it is no tokenizer.json") from None
        with explained(path):
            return Tokenizer.with_specials(engine_of(text))

    def signature(self) -> dict[str, Any]:
        """Identify the tokenizer by the hash of its file."""
        return {"tokenizer": "file", "sha256": hashlib.sha256(self._read()[1]).hexdigest()}

    def _read(self) -> tuple[Path, bytes]:
        path = Path(self.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return path, read_bounded(path, LARGEST_JSON_BYTES)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path}: cannot be read: {reason}; data.tokenizer takes a tokenizer.json") from None


class Tokenizer:
    """A tokenizer in use: ids out of text and back.

    Ids are text pieces first, then what is special, then unused ones up to a multiple of 16; the mask is the last id,
    so that a model's head can stop before it. The embedding is padded above that to a multiple of 64 rows.

    A tokenizer that puts a space before a text (SentencePiece's dummy prefix) puts exactly one before every text, also
    where the text begins with one, as SentencePiece does; that space is no byte of the text.

    Args:
        json_text: A Hugging Face tokenizer.json that declares the three special pieces.
        bos: The piece that begins every window.
        eos: The piece that ends every document.
        mask: The piece that hides a token.

    Raises:
        DataError: The JSON is no tokenizer, or does not declare the special pieces as it must.
    """

    def __init__(self, json_text: str, *, bos: str = _BOS, eos: str = _EOS, mask: str = _MASK) -> None:
        self._engine = engine_of(json_text)
        if self._engine.post_processor is not None:
            # It tells other programs what to put around a text; here windows say that, and it is no part of the hash.
            self._engine.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
            json_text = self._engine.to_str()
        self._json = json_text
        # Text that happens to spell a special piece is text.
        self._engine.encode_special_tokens = True
        self._names = {"bos": bos, "eos": eos, "mask": mask}
        known = self._engine.get_vocab(with_added_tokens=True)
        ids = {name: known.get(piece, -1) for name, piece in self._names.items()}
        last = max(known.values())
        if -1 in ids.values() or ids["mask"] != last:
            raise DataError(f"expected {bos}, {eos} and, as the last piece, {mask}; found ids {ids}")
        self.vocabulary = Vocabulary(rows_up_to(last), last, bos_id=ids["bos"], eos_id=ids["eos"], mask_id=last)
        self._special_ids = {key for key, token in self._engine.get_added_tokens_decoder().items() if token.special}
        tree, plain = json.loads(json_text), json.loads(json_text, object_hook=spaceless)
        self._way = way_of(tree)
        changed = [tree.get(step) != plain.get(step) for step in ("normalizer", "pre_tokenizer")]
        self.adds_space = any(changed)
        # The library's Metaspace spares the space where the text begins with one; its Prepend never does.
        self._spares_space = changed == [False, True]
        # Why bytes per piece cannot be relied on, or None; preparation adds a reason when a text disproves them.
        self.bytes_problem = bytes_problem(json.dumps(plain))

    @classmethod
    def with_specials(
        cls, engine: tokenizers.Tokenizer, *, bos: str | None = None, eos: str | None = None
    ) -> Tokenizer:
        """Declare what special pieces are missing, the mask after all others.

        Args:
            engine: A Hugging Face tokenizer; its pieces keep their ids.
            bos: The piece that begins a text, where it is known; else the first of the common names that there is.
            eos: The piece that ends a document, likewise.

        Returns:
            The tokenizer in use; commonly named pieces for BOS and EOS are taken as they are.
        """
        known = engine.get_vocab(with_added_tokens=True)
        bos = bos or next((name for name in _BOS_NAMES if name in known), _BOS)
        eos = eos or next((name for name in _EOS_NAMES if name in known), _EOS)
        mask = _MASK
        while mask in known and known[mask] != max(known.values()):
            mask = mask.replace("mask", "last_mask")
        # One at a time: a piece that is declared already keeps its id, and the next must still come after it.
        _declare(engine, bos)
        _declare(engine, eos)
        if mask not in known:
            taken = engine.get_vocab_size(with_added_tokens=True)
            for index in range(mask_after(taken) - taken):
                _declare(engine, f"<|unused_{index}|>")
        _declare(engine, mask)
        engine.no_truncation()
        engine.no_padding()
        return cls(engine.to_str(), bos=bos, eos=eos, mask=mask)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of the sha256 of tokenizer.json."""
        return hashlib.sha256(self._json.encode()).hexdigest()[:16]

    @cached_property
    def _byte_counts_V(self) -> NDArray[np.int64]:
        return decoded_bytes(self._json, self._engine, self.vocabulary.size, self._special_ids)

    @property
    def token_bytes_V(self) -> NDArray[np.int64]:
        """UTF-8 bytes of text that each id stands for wherever it stands; 0 for special pieces and padding.

        Raises:
            DataError: The tokenizer changes text, or the first piece of a text counts otherwise than later ones.
        """
        self._require_bytes("a first piece counts a byte less (see document_bytes)" if self.adds_space else None)
        return self._byte_counts_V

    def document_bytes(self, ids: NDArray[np.integer], text: str | None = None) -> NDArray[np.int64]:
        """Count the UTF-8 bytes that each id of a document stands for.

        Args:
            ids: Ids [tokens] from the document's start.
            text: The document; where it is given, the ids must add up to its bytes.

        Returns:
            Bytes [tokens]; 0 for special pieces; a space that the tokenizer added is not among them.

        Raises:
            DataError: The tokenizer changes text, in general or this one.
        """
        self._require_bytes()
        sizes = self._byte_counts_V[ids]
        sizes[np.flatnonzero(sizes)[:1]] -= int(self.adds_space)
        if text is not None and sizes.sum() != (wanted := len(text.encode("utf-8", "surrogatepass"))):
            self._require_bytes(f"its pieces of {text[:40]!r}... stand for {sizes.sum()} bytes, the text has {wanted}")
        return sizes

    def _require_bytes(self, problem: str | None = None) -> None:
        if problem := self.bytes_problem or problem:
            advice = "bits per byte need a byte-level tokenizer, such as data.tokenizer=bpe(4096)"
            raise DataError(f"this tokenizer has no exact bytes per piece: {problem}; {advice}")

    def encode(self, text: str) -> NDArray[np.int64]:
        """Turn text into ids, without special pieces.

        Args:
            text: Any text; what looks like a special piece in it is text all the same.

        Returns:
            Ids [tokens].
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """Turn several texts into ids, each as `encode` does."""
        begun = [f" {text}" if self._spares_space and text.startswith((" ", "▁")) else text for text in texts]
        return self._way(begun, self._ids)

    def _ids(self, texts: list[str]) -> list[NDArray[np.int64]]:
        return [np.array(ids, dtype=np.int64) for ids in encoded(self._engine, texts)]

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Turn ids back into text; special pieces and padding are left out.

        Args:
            ids: Ids; bytes that are not UTF-8 together become the replacement character.

        Returns:
            The text.
        """
        return self._engine.decode([int(number) for number in ids], skip_special_tokens=True)

    def text_bytes(self, ids: NDArray[np.integer]) -> int:
        """Count the UTF-8 bytes of text that ids stand for (of the decoded text where pieces are not exact)."""
        if self.bytes_problem is None:
            return int(self.document_bytes(ids).sum())
        return len(self.decode(ids).encode("utf-8", "surrogatepass"))

    def save(self, folder: Path | str) -> None:
        """Write a folder that Hugging Face's AutoTokenizer reads, with the same ids.

        Args:
            folder: Made if it is not there; other files in it are left alone.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pieces = {f"{name}_token": self._names[name] for name in ("bos", "eos", "mask")}
        pieces["pad_token"] = pieces["eos_token"]
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **pieces}
        write_durably(folder / "tokenizer.json", self._json.encode())
        write_durably(folder / "tokenizer_config.json", as_json(config))
        write_durably(folder / "special_tokens_map.json", as_json(pieces))
        write_durably(folder / FACTS, as_json({**self._names, "hash": self.hash}))

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read a folder that `save` wrote, or any other folder with a tokenizer.json.

        Raises:
            DataError: A file is missing, damaged, or was changed after it was saved.
        """
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            return TokenizerFile(str(folder / "tokenizer.json")).fit(())
        try:
            facts = parse_json(read_bounded(folder / FACTS, LARGEST_JSON_BYTES))
            text = (folder / "tokenizer.json").read_bytes().decode("utf-8")
            names = {key: str(facts[key]) for key in ("bos", "eos", "mask")}
            stated = str(facts["hash"])
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: is no tokenizer folder of Crossover's: {error!r}") from None
        with explained(folder / "tokenizer.json"):
            tokenizer = cls(text, **names)
        if tokenizer.hash != stated:
            raise DataError(
                f"{folder / 'tokenizer.json'}: hash {tokenizer.hash}, but {stated} was saved; it was changed since. "
                f"Restore it, or delete {FACTS} to take it as a tokenizer of its own"
            )
        return tokenizer


def _declare(engine: tokenizers.Tokenizer, name: str) -> None:
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False)])


def _byte_level_engine(model: Any, *, split_words: bool) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore[reportAttributeAccessIssue]
        add_prefix_space=False, use_regex=split_words
    )
    engine.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return engine
