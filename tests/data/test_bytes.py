"""Bytes are counted exactly: over a document they sum to its UTF-8 length, for every kind of tokenizer that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from crossover.data.tokenizer import Bpe, Bytes, Tokenizer, TokenizerFile
from crossover.errors import DataError

TEXTS = ["def forward(self, x):\n    return self.layer(x)\n", "Die Straße, the café, 日本語. don't stop\n\n\n"] * 20
PROBES = [
    "", " ", "  ", "\n", "a", " a", "  a", "\n a", "a ", "a  b   c", "\t\tx\r\n", "e\u0301 é", "\U0001f600\u200d",
    "日本 語", " \u0301", "\x00", "\ufeffx", "<|mask|> <|bos|>", "<unk>", "don't  STOP\n\n",
]  # fmt: skip
# U+2581 is SentencePiece's own sign for a space, and no tokenizer of that kind can tell the two apart.
DOCUMENTS = st.text() | st.lists(
    st.sampled_from(["a", "the", " ", "  ", "\n", "\t", "é", "e\u0301", "日本", "\U0001f600", "\u200d", "don't", "x1"])
).map("".join)


def from_engine(engine: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    return TokenizerFile(str(folder)).fit(())


def trained_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces of a small BPE over ▁-words, with all 256 byte pieces."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    tree = json.loads(engine.to_str())["model"]
    # Kept to letters: all else goes through the byte pieces.
    kept = [piece for piece in tree["vocab"] if piece.replace("▁", "").isascii()]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *kept]
    merges = [tuple(pair) for pair in tree["merges"] if {*pair, "".join(pair)} <= set(kept)]
    return {piece: number for number, piece in enumerate(names)}, merges


def with_fallback() -> tokenizers.Tokenizer:
    pieces, merges = trained_pieces()
    return tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=merges, byte_fallback=True, unk_token="<unk>"))


def llama_like() -> tokenizers.Tokenizer:
    """As Llama's tokenizer.json: a normaliser puts ▁ first, the decoder takes one space off."""
    engine = with_fallback()
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    taken_off = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(taken_off)
    return engine


def metaspace(scheme: str, *, split: bool = True) -> tokenizers.Tokenizer:
    engine = with_fallback()
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    kinds = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=split), decoders.Fuse()]
    engine.decoder = decoders.Sequence(kinds)
    return engine


def unigram() -> tokenizers.Tokenizer:
    """As T5 and ALBERT cut text, with the byte pieces that they lack."""
    pieces, _ = trained_pieces()
    scores = [(piece, -10.0 if piece[0] == "<" else -6.0 + 0.5 * len(piece)) for piece in pieces]
    engine = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    engine.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return engine


def byte_level(*, split: bool = False) -> tokenizers.Tokenizer:
    """As GPT-2's, or with a splitting rule of its own as Llama 3's and Qwen's."""
    engine = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    rule = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}|\s+(?!\S)|\s?\S+"), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence([rule, level]) if split else level
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return engine


ENGINES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level file": byte_level,
    "byte-level file, own split": lambda: byte_level(split=True),
    "llama": llama_like,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always, whole": lambda: metaspace("always", split=False),
    "metaspace never": lambda: metaspace("never"),
    "unigram": unigram,
}
SPACED = ["llama", "metaspace first", "metaspace always, whole", "unigram"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {name: from_engine(engine(), folder / name) for name, engine in ENGINES.items()}
    return {"bpe": Bpe(300).fit(TEXTS), "bytes": Bytes().fit(()), **made}


def off_by(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.document_bytes(tokenizer.encode(text)).sum()) - len(text.encode("utf-8"))


@pytest.mark.parametrize("kind", ["bpe", "bytes", *ENGINES])
@given(texts=st.lists(DOCUMENTS, min_size=1, max_size=4))
@example(texts=PROBES)
def test_bytes_of_documents_sum_to_their_utf8_length(kinds: dict[str, Tokenizer], kind: str, texts: list[str]) -> None:
    tokenizer = kinds[kind]
    texts = [text.replace("▁", "_") for text in texts]
    counted = 0
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        whole = np.append(ids, tokenizer.vocabulary.eos_id)
        sizes = tokenizer.document_bytes(whole, text)
        assert (sizes >= 0).all() and sizes[-1] == 0
        assert tokenizer.decode(ids) == text, "nothing is lost, a leading space included"
        assert tokenizer.text_bytes(ids) == sizes.sum()
        counted += int(sizes.sum())
    assert counted == sum(len(text.encode("utf-8")) for text in texts)


@pytest.mark.parametrize("kind", SPACED)
@given(text=DOCUMENTS.map(lambda text: text.replace("▁", "_").lstrip(" ")).filter(bool), spaces=st.integers(0, 3))
def test_an_added_space_counts_nothing_and_one_in_the_text_counts_once(
    kinds: dict[str, Tokenizer], kind: str, text: str, spaces: int
) -> None:
    """The same word costs one byte more after a space, and the space that the tokenizer puts there costs none."""
    tokenizer = kinds[kind]
    assert tokenizer.adds_space
    led = " " * spaces + text
    sizes = tokenizer.document_bytes(tokenizer.encode(led))
    assert sizes.sum() == spaces + len(text.encode())
    assert tokenizer.decode(tokenizer.encode(led)) == led


def test_the_tokenizer_library_alone_cannot_tell_a_leading_space_and_ours_can(kinds: dict[str, Tokenizer]) -> None:
    engine = metaspace("first")
    assert engine.encode("the x").ids == engine.encode(" the x").ids
    ours = kinds["metaspace first"]
    assert ours.encode("the x").tolist() == engine.encode("the x").ids, "ids stay the library's own"
    assert ours.encode(" the x").tolist() != ours.encode("the x").tolist()


@pytest.mark.parametrize("kind", ["bpe", "bytes", *ENGINES])
@pytest.mark.parametrize("error", [-1, 1])
def test_one_miscounted_byte_is_found(kinds: dict[str, Tokenizer], kind: str, error: int) -> None:
    """Whatever piece a probe uses: one byte more or less in its count, and the sum is not the text's."""
    tokenizer = kinds[kind]
    text = " the café  日本\n"
    right = tokenizer._byte_counts_V.copy()
    try:
        for piece in set(tokenizer.encode(text).tolist()):
            tokenizer._byte_counts_V[piece] += error
            assert off_by(tokenizer, text) != 0
            with pytest.raises(DataError, match=r"stand for \d+ bytes, the text has \d+"):
                tokenizer.document_bytes(tokenizer.encode(text), text)
            tokenizer._byte_counts_V[:] = right
    finally:
        tokenizer._byte_counts_V[:] = right
    assert off_by(tokenizer, text) == 0


@pytest.mark.parametrize("kind", SPACED)
def test_forgetting_the_added_space_is_found(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    tokenizer.adds_space = False
    try:
        assert [off_by(tokenizer, text) for text in ("the", " the", "the the")] == [1, 1, 1]
    finally:
        tokenizer.adds_space = True


@pytest.mark.parametrize("kind", SPACED)
def test_a_table_by_piece_alone_is_refused_where_a_first_piece_counts_otherwise(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    with pytest.raises(DataError, match="a first piece counts a byte less"):
        _ = kinds[kind].token_bytes_V


def lossy(change: str) -> tokenizers.Tokenizer:
    engine = byte_level() if change != "unknown" else metaspace("never")
    if change == "lower":
        engine.normalizer = normalizers.Lowercase()
    elif change == "nfkc":
        engine.normalizer = normalizers.NFKC()
    elif change == "strip":
        engine.normalizer = normalizers.Strip()
    elif change == "prefix":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "words":
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
    elif change == "decoder":
        engine.decoder = decoders.WordPiece()
    else:
        tree: dict[str, Any] = json.loads(engine.to_str())
        tree["model"]["byte_fallback"] = False
        engine = tokenizers.Tokenizer.from_str(json.dumps(tree))
    return engine


@pytest.mark.parametrize("change", ["lower", "nfkc", "strip", "prefix", "words", "decoder", "unknown"])
def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path, change: str) -> None:
    tokenizer = from_engine(lossy(change), tmp_path)
    for ask in (lambda: tokenizer.token_bytes_V, lambda: tokenizer.document_bytes(np.array([1]))):
        with pytest.raises(DataError, match=r"no exact bytes per piece: .*; bits per byte need a byte-level"):
            ask()


def test_what_depends_on_the_text_is_refused_with_the_text(tmp_path: Path, kinds: dict[str, Tokenizer]) -> None:
    """Composition leaves most text alone, and ▁ itself is rare: each text is judged by its own bytes."""
    engine = byte_level()
    engine.normalizer = normalizers.NFC()
    composed = from_engine(engine, tmp_path / "nfc")
    removing = byte_level()
    drop = pre_tokenizers.Split(" ", "removed")
    removing.pre_tokenizer = pre_tokenizers.Sequence([drop, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    cases = [
        (composed, "é", "e\u0301"),
        (from_engine(removing, tmp_path / "removed"), "the\n", "a b"),
        (kinds["llama"], "the <0x41>", "the▁x"),
        # A text that spells a byte piece is that piece for this model.
        (kinds["unigram"], "the", "a <0x41>"),
    ]
    for tokenizer, good, bad in cases:
        assert tokenizer.document_bytes(tokenizer.encode(good), good).sum() == len(good.encode())
        with pytest.raises(DataError, match=r"stand for \d+ bytes, the text has \d+"):
            tokenizer.document_bytes(tokenizer.encode(bad), bad)


def test_real_tokenizers(shared_data: Path, tmp_path: Path) -> None:
    """GPT-2's pieces are exact; a SentencePiece protocol buffer is refused for what it is."""
    folder = shared_data / "tokenizers"
    gpt2 = tokenizers.Tokenizer(models.BPE.from_file(*(str(folder / "gpt2" / n) for n in ("vocab.json", "merges.txt"))))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    tokenizer = from_engine(gpt2, tmp_path)
    assert [off_by(tokenizer, text) for text in [*PROBES, *TEXTS]] == [0] * len([*PROBES, *TEXTS])
    with pytest.raises(DataError, match=r"is no (Hugging Face )?tokenizer\.json"):
        TokenizerFile(str(folder / "fineweb_8192_bpe.model")).fit(())
