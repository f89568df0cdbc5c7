"""Tokenizers: nothing is lost, every byte is accounted for, and Hugging Face reads the same ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from crossover.data.tokenizer import Bpe, Bytes, Tokenizer, TokenizerFile
from crossover.errors import DataError, RecipeError
from crossover.registry import component_of

TEXTS = ["def forward(self, x):\n    return self.layer(x)\n", "Die Straße, the café, 日本語. don't stop\n\n\n"] * 20
GPT2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "gpt2"
TRAINED = {"bpe": Bpe(300).fit(TEXTS), "bytes": Bytes().fit(())}
ODD = "x<|mask|><|bos|> <|eos|>\r\n\t  é e\u0301 日本 \U0001f600\u200d\x00 \ufeff end  "


@pytest.mark.parametrize("kind", TRAINED)
@given(text=st.text())
@example(text=ODD)
@example(text="")
def test_no_text_is_lost_and_every_byte_is_counted(kind: str, text: str) -> None:
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode()) == tokenizer.text_bytes(ids)
    assert not np.any(ids >= tokenizer.vocabulary.bos_id)


@given(texts=st.lists(st.text(), max_size=5))
def test_a_batch_is_what_each_text_gives_alone(texts: list[str]) -> None:
    tokenizer = TRAINED["bpe"]
    batch = tokenizer.encode_batch(texts)
    assert all(np.array_equal(ids, tokenizer.encode(text)) for ids, text in zip(batch, texts, strict=True))


def test_special_pieces_come_last_and_the_mask_is_never_predicted() -> None:
    for tokenizer, pieces in ((TRAINED["bpe"], 300), (TRAINED["bytes"], 256)):
        vocabulary = tokenizer.vocabulary
        assert (vocabulary.bos_id, vocabulary.eos_id) == (pieces, pieces + 1)
        assert vocabulary.mask_id % 16 == 0 and pieces + 1 < vocabulary.mask_id <= pieces + 17
        assert vocabulary.predictable == vocabulary.mask_id
        assert vocabulary.size % 64 == 0 and vocabulary.mask_id < vocabulary.size <= vocabulary.mask_id + 64
        assert len(tokenizer.token_bytes_V) == vocabulary.size
        assert not tokenizer.token_bytes_V[pieces:].any()
        assert tokenizer.decode([pieces, 65, pieces + 1, vocabulary.mask_id, vocabulary.size - 1]) == tokenizer.decode(
            [65]
        )


def test_a_byte_is_its_own_id() -> None:
    assert TRAINED["bytes"].encode("é\n a").tolist() == list("é\n a".encode())


def test_training_is_deterministic_and_merges_what_is_frequent() -> None:
    again = Bpe(300).fit(iter(TEXTS))
    assert again.hash == TRAINED["bpe"].hash
    assert Bpe(300).fit(TEXTS[:1] * 20).hash != again.hash
    assert len(TRAINED["bpe"].encode(TEXTS[0])) < len(TEXTS[0].encode())


def test_small_text_yields_fewer_pieces_without_an_error() -> None:
    tokenizer = Bpe(4096).fit(["ab ab"])
    assert 256 <= tokenizer.vocabulary.bos_id < 300
    assert tokenizer.decode(tokenizer.encode(ODD)) == ODD


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least the 256 bytes"):
        component_of("tokenizer", "bpe(100)")
    assert component_of("tokenizer", {"name": "bpe", "vocabulary": "32k"}) == Bpe(32_000)


@pytest.mark.parametrize("kind", TRAINED)
def test_hugging_face_reads_the_same_ids(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, vocabulary = TRAINED[kind], TRAINED[kind].vocabulary
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = TEXTS[0] + TEXTS[1] + " , . x ' s"
    assert theirs(text).input_ids == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text)) == text
    ends = (theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id)
    assert ends == (vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id)
    whole = [vocabulary.bos_id, *tokenizer.encode(text), vocabulary.eos_id]
    assert theirs.decode(whole, skip_special_tokens=True) == text


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    tokenizer = TRAINED["bpe"]
    tokenizer.save(tmp_path)
    for loaded in (Tokenizer.load(tmp_path), TokenizerFile(str(tmp_path)).fit(())):
        assert loaded.hash == tokenizer.hash
        assert np.array_equal(loaded.encode(ODD), tokenizer.encode(ODD))
        assert loaded.vocabulary == tokenizer.vocabulary
    (tmp_path / "crossover_tokenizer.json").unlink()
    assert Tokenizer.load(tmp_path).vocabulary == tokenizer.vocabulary


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    TRAINED["bpe"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex":true', '"use_regex":false'))
    with pytest.raises(DataError, match=r"tokenizer\.json: hash .* changed since"):
        Tokenizer.load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"no Hugging Face tokenizer\.json"):
        TokenizerFile(str(path)).fit(())


def foreign(path: Path, *specials: str, prefix_space: bool = False, lower: bool = False) -> Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    engine.decoder = decoders.ByteLevel()
    if lower:
        engine.normalizer = normalizers.Lowercase()
    engine.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=list(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    engine.enable_truncation(4)
    engine.save(str(path))
    return TokenizerFile(str(path)).fit(())


def test_a_tokenizer_of_ones_own_keeps_its_ids_and_special_pieces(tmp_path: Path) -> None:
    tokenizer = foreign(tmp_path / "t.json", "<s>", "</s>", "<|mask|>")
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.bos_id, vocabulary.eos_id) == (0, 1)
    assert vocabulary.mask_id == 304, "a mask that is not the last piece cannot serve"
    assert tokenizer.decode(tokenizer.encode(ODD)) == ODD
    assert tokenizer.token_bytes_V[tokenizer.encode(ODD)].sum() == len(ODD.encode())
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").vocabulary == vocabulary


def test_missing_special_pieces_are_appended(tmp_path: Path) -> None:
    vocabulary = foreign(tmp_path / "t.json", "<|endoftext|>").vocabulary
    assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.mask_id) == (0, 290, 304)


@pytest.mark.parametrize("change", ["prefix_space", "lower"])
def test_a_tokenizer_that_changes_text_gives_no_bytes_per_piece(tmp_path: Path, change: str) -> None:
    tokenizer = foreign(tmp_path / "t.json", **{change: True})
    assert len(tokenizer.encode("abc")) > 0
    with pytest.raises(DataError, match=r"no exact bytes per piece.*bpe\(4096\)"):
        _ = tokenizer.token_bytes_V


def test_pieces_with_byte_fallback_are_exact_when_no_space_is_added(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "a": 258, "▁a": 259}
    tree = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [["▁", "a"]],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(tree))
    tokenizer = TokenizerFile(str(path)).fit(())
    text = "a a  日b\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes_V[tokenizer.encode(text)].sum() == len(text.encode())
    tree["model"]["byte_fallback"] = False
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="<unk>"):
        _ = TokenizerFile(str(path)).fit(()).token_bytes_V


@pytest.mark.skipif(not GPT2.is_dir(), reason="needs shared/data/tokenizers/gpt2 beside the repository")
def test_gpt2_counts_every_byte(tmp_path: Path) -> None:
    engine = tokenizers.Tokenizer(models.BPE.from_file(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt")))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TokenizerFile(str(tmp_path)).fit(())
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.mask_id, vocabulary.size) == (50256, 50257, 50272, 50304)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.token_bytes_V[tokenizer.encode(ODD)].sum() == len(ODD.encode())
