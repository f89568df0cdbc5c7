"""Faster and leaner ways to encode give the library's own ids; the trainer's text is bounded by its words."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.data import encoding
from crossover.data.encoding import divided, is_divisible, is_raw_bytes
from crossover.data.sample import bounded
from crossover.data.tokenizer import Bpe, Bytes, Tokenizer

LINES = ["the model reads a text again; and it's 12 words, naïve 日本 (x)\n  for you"] * 20
TOKENIZERS = {"bytes": Bytes().fit(()), "bpe": Bpe(400).fit(LINES)}
TEXT = st.text(alphabet=st.sampled_from("ab'st  \n,1é日") | st.characters(codec="utf-8"), max_size=200)


def tree(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer._json)


@given(TEXT, st.integers(1, 20))
def test_a_divided_text_is_the_same_text(text: str, size: int) -> None:
    parts = list(divided(text, size))
    assert "".join(parts) == text
    assert all(len(part) >= size for part in parts[:-1])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200)
@given(text=TEXT, size=st.integers(1, 20))
def test_ids_are_those_of_the_library(name: str, text: str, size: int) -> None:
    tokenizer = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "LONG_TEXT", size)
        found = tokenizer.encode_batch([text, "a short one"])
    expected = tokenizer._ids([text, "a short one"])
    assert all(np.array_equal(one, two) and one.dtype == two.dtype for one, two in zip(found, expected, strict=True))


def test_long_texts_are_cut_indeed() -> None:
    text = " ".join(LINES)
    parts = list(divided(text, 100))
    assert 5 < len(parts) <= len(text) // 100
    ids = [TOKENIZERS["bpe"]._ids([part])[0] for part in parts]
    assert np.array_equal(np.concatenate(ids), TOKENIZERS["bpe"]._ids([text])[0])


def test_only_tokenizers_whose_structure_allows_it_are_cut_short() -> None:
    raw, words = tree(TOKENIZERS["bytes"]), tree(TOKENIZERS["bpe"])
    assert is_raw_bytes(raw) and not is_raw_bytes(words)
    assert is_divisible(words) and not is_divisible(raw)
    spaced = {**words["pre_tokenizer"], "add_prefix_space": True}
    reaching = [{"content": "the model", "special": False}]
    for changed in ({"normalizer": {"type": "NFC"}}, {"pre_tokenizer": spaced}, {"added_tokens": reaching}):
        assert not is_divisible({**words, **changed})
    swapped = {**raw["model"]["vocab"], "a": 98, "b": 97}
    assert not is_raw_bytes({**raw, "model": {**raw["model"], "vocab": swapped}})


def test_the_trainer_gets_all_of_a_usual_text_and_a_bounded_number_of_words() -> None:
    usual = ["the same few words again"] * 1000
    assert list(bounded(usual, 10_000)) == usual
    unusual = [f"word{number}" for number in range(1000)]
    given_ = list(bounded(unusual, 90_000))
    assert given_ == unusual[: len(given_)] and 90 <= len(given_) <= 150
