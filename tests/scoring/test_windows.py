"""Held-out text is cut into windows that share nothing, miss nothing and weigh exactly their bytes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data.tokenizer import Bpe, Bytes
from crossover.errors import DataError
from crossover.scoring.windows import ScoringWindows, cut

TEXTS = ["naïve café ½ 東京\n\n\ttabs  and   spaces", "emoji 🙂🙂 and Zürich", "plain words, plain words", "ß"]


@pytest.mark.parametrize("recipe", [Bytes(), Bpe(300)], ids=["bytes", "bpe"])
@pytest.mark.parametrize("context", [3, 7, 64])
def test_windows_hold_the_text_once_and_weigh_its_utf8_bytes(recipe, context: int) -> None:
    tokenizer = recipe.fit(TEXTS)
    documents = [np.append(tokenizer.encode(text), tokenizer.vocabulary.eos_id) for text in TEXTS]
    windows = cut(documents, tokenizer.document_bytes, context, None, "test")
    for index, (text, document) in enumerate(zip(TEXTS, documents, strict=True)):
        mine = windows.documents_W == index
        pieces = [row[:length] for row, length in zip(windows.tokens_WT[mine], windows.lengths_W[mine], strict=True)]
        assert np.array_equal(np.concatenate(pieces), document)
        assert windows.bytes_W[mine].sum() == len(text.encode("utf-8"))


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.integers(1, 9), st.integers(2, 20))
def test_a_limit_chooses_windows_alike_for_every_model(lengths: list[int], context: int, limit: int) -> None:
    edges = np.cumsum([0, *lengths])
    documents = [np.arange(start, end) for start, end in itertools.pairwise(edges)]
    sizes = np.ones(edges[-1], np.int64)
    every = cut(documents, sizes.__getitem__, context, None, "dev")
    some, again = (cut(documents, sizes.__getitem__, context, limit, "dev") for _ in range(2))
    assert len(some) == min(limit, len(every))
    assert np.array_equal(some.tokens_WT, again.tokens_WT) and some.keys_W == again.keys_W
    starts = [int(row[0]) for row in some.tokens_WT]
    assert starts == sorted(set(starts)), "in the text's order, none twice"
    assert len(set(some.keys_W)) == len(some)


def test_windows_of_the_same_text_draw_their_own_numbers() -> None:
    same = np.array([4, 5, 6])
    windows = cut([same, same, np.array([4, 5, 7])], np.ones_like, 8, None, "dev")
    other = cut([np.array([1]), np.array([4, 5, 7]), same], np.ones_like, 8, None, "dev")
    assert len(set(windows.keys_W)) == 3
    assert other.keys_W[1:] == (windows.keys_W[2], windows.keys_W[0])


@pytest.mark.parametrize(("documents", "limit"), [([], None), ([np.arange(5)], None), ([np.arange(50)], 1)])
def test_fewer_than_two_windows_are_an_error(documents, limit) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        cut(documents, np.ones_like, 8, limit, "dev")


def windows_from(starts, lengths, context: int = 4) -> ScoringWindows:
    tokens, index = np.tile(np.arange(context), (len(starts), 1)), np.arange(len(starts))
    return ScoringWindows(tokens, np.array(lengths), index, index, np.array(starts, np.int64))


def test_a_prompt_is_part_of_a_windows_address() -> None:
    plain = windows_from([0, 0, 0], [4, 4, 3])
    assert plain.keys_W == cut([np.arange(4), np.arange(4), np.arange(3)], np.ones_like, 4, None, "dev").keys_W
    asked = windows_from([1, 2, 1, 1], [4, 4, 4, 3])
    assert len({*plain.keys_W, *asked.keys_W}) == 7
    assert asked.keys_W[::3] == windows_from([1, 1], [4, 3]).keys_W
    assert asked.scored_W.tolist() == [3, 2, 3, 2]


@pytest.mark.parametrize(("start", "length"), [(5, 4), (3, 2), (-1, 4), (0, 5), (5, 6)])
def test_a_prompt_longer_than_its_window_is_an_error(start, length) -> None:
    with pytest.raises(DataError, match=rf"window 1: scored from token {start} to {length} of 4; .* must fit"):
        windows_from([0, start], [4, length])
