"""Samples are judged by numbers that can be checked by hand, and perplexity is never had without entropy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.errors import CheckpointError, RecipeError
from crossover.sampling.judges import Embedding, Judge
from crossover.sampling.quality import distinct, entropy_nats, quality, quality_lines

IDS = st.lists(st.integers(0, 5), min_size=1, max_size=30)


def judge_of(nats: dict[str, float] | float, window: int = 10**6, *, upper: bool = False) -> Judge:
    """A judge over characters that gives each one its nats whatever stands before it."""

    def cost(ids: list[int]) -> np.ndarray:
        assert 0 < len(ids) <= window
        return np.array([nats[chr(one)] if isinstance(nats, dict) else nats for one in ids])

    def decode(ids: list[int]) -> str:
        text = "".join(map(chr, ids))
        return text.upper() if upper else text

    return Judge("by hand", window, lambda text: [ord(one) for one in text], decode, cost)


def samples_of(*texts: str) -> list[tuple[list[int], str]]:
    return [([ord(one) for one in text], text) for text in texts]


@pytest.mark.parametrize("vocabulary", [2, 512, 50257])
def test_a_uniform_judge_has_the_perplexity_of_its_vocabulary(vocabulary: int) -> None:
    found = quality(samples_of("abc", "", "some more"), judge_of(math.log(vocabulary)))
    assert found.perplexity.value == pytest.approx(vocabulary)
    assert found.perplexity.standard_error == pytest.approx(0, abs=1e-9 * vocabulary)
    assert found.bits_per_byte.value == pytest.approx(math.log2(vocabulary))


def test_every_number_of_a_small_case_by_hand() -> None:
    found = quality(samples_of("aab", "", "éb"), judge_of({"a": 1.0, "b": 2.0, "é": 4.0}, window=2))
    assert found.loss_nats.value == pytest.approx((1 + 1 + 2 + 4 + 2) / 5)
    # Residuals -2 and +2 of sums 4 of 3 and 6 of 2 at a mean of 2: sqrt(2 * (4 + 4)) / 5.
    assert found.loss_nats.standard_error == pytest.approx(4 / 5)
    assert found.perplexity.standard_error == pytest.approx(math.exp(2) * 4 / 5)
    assert found.bits_per_byte.value == pytest.approx(10 / math.log(2) / 6), "é has two bytes"
    aab = math.log(3) - 2 / 3 * math.log(2)
    assert found.entropy_nats.value == pytest.approx((aab + math.log(2)) / 2)
    assert found.entropy_nats.standard_error == pytest.approx(abs(aab - math.log(2)) / 2)
    assert found.distinct == (pytest.approx(3 / 5), 1.0, 1.0, None)
    assert (found.samples, found.empty_samples, found.judge_tokens) == (3, 1, 5)
    assert (found.tokens_mean, found.tokens_range) == (pytest.approx(5 / 3), (0, 3))
    assert (found.cut_samples, found.changed_samples) == (1, 0)


@given(texts=st.lists(st.text("abc", min_size=1, max_size=12), min_size=2, max_size=6), window=st.integers(1, 5))
def test_windows_cut_a_text_without_losing_a_token(texts: list[str], window: int) -> None:
    cost = {"a": 0.5, "b": 1.5, "c": 3.0}
    whole, cut = (quality(samples_of(*texts), judge_of(cost, size)) for size in (100, window))
    assert cut.loss_nats.value == pytest.approx(whole.loss_nats.value)
    assert cut.cut_samples == sum(len(text) > window for text in texts)
    assert (cut.judge_tokens, cut.judge_window_tokens) == (whole.judge_tokens, window)


def test_pieces_of_a_cut_text_begin_anew() -> None:
    first = Judge("first", 4, lambda text: [0] * len(text), lambda ids: "", lambda ids: np.eye(len(ids))[0])
    assert quality(samples_of("x" * 10, "x" * 4), first).loss_nats.value == pytest.approx((3 + 1) / 14)


@given(ids=IDS)
def test_entropy_of_unigrams(ids: list[int]) -> None:
    shares = np.bincount(ids) / len(ids)
    assert entropy_nats(ids) == pytest.approx(-sum(share * math.log(share) for share in shares if share))
    assert -1e-12 <= entropy_nats(ids) <= math.log(len(ids)) + 1e-12
    assert entropy_nats([7] * len(ids)) == 0, "constant text"
    assert entropy_nats(range(len(ids))) == pytest.approx(math.log(len(ids)))


@given(samples=st.lists(IDS, max_size=4), size=st.integers(1, 4))
def test_distinct_by_enumeration(samples: list[list[int]], size: int) -> None:
    seen, count = [], 0
    for ids in samples:
        for place in range(len(ids)):
            gram = ids[place : place + size]
            if len(gram) == size:
                count += 1
                seen += [] if gram in seen else [gram]
    assert distinct(samples, size) == (None if count == 0 else pytest.approx(len(seen) / count))


def test_repetition_buys_perplexity_and_pays_in_entropy() -> None:
    """Why the two go together: the text that says one thing is the more likely one."""
    judge = judge_of({"a": 0.1, "b": 3.0, "c": 3.0})
    dull, lively = (quality(samples_of(text, text), judge) for text in ("aaaaaa", "abcabc"))
    assert dull.perplexity.value < lively.perplexity.value
    assert dull.entropy_nats.value == 0 < lively.entropy_nats.value
    assert dull.distinct[0] == 1 / 12


def test_perplexity_is_never_printed_without_entropy() -> None:
    found = quality(samples_of("ab", "abcd"), judge_of(1.0))
    with_perplexity = [line for line in quality_lines(found) if "perplexity" in line]
    assert len(with_perplexity) == 1
    assert "perplexity 2.72 +- 0.00, unigram entropy 1.040 +-" in with_perplexity[0]
    assert "distinct-1 to -4 0.667, 0.750, 1.000, 1.000" in with_perplexity[0]
    said = "\n".join(quality_lines(found))
    assert "judge by hand: 6 tokens" in said and "2 samples of 3.0 tokens (2 to 4)" in said and "MAUVE" not in said
    with pytest.raises(TypeError, match="entropy_nats"):
        type(found)(**{key: value for key, value in vars(found).items() if key != "entropy_nats"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.entropy_nats = found.loss_nats  # pyright: ignore[reportAttributeAccessIssue]


def test_mauve_comes_with_what_it_depends_on() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([[text.count("a"), text.count("b")] for text in texts], float)

    texts = ["aab"] * 10 + ["abb"] * 10
    found = quality(
        samples_of(*texts), judge_of(1.0), embedding=Embedding("counts", embed), references=texts, clusters=2
    )
    assert found.mauve is not None and found.mauve.value == pytest.approx(1)
    assert "MAUVE 1.0000 (k = 2, 20 samples, 20 references, embedding counts)" in quality_lines(found)[-1]
    with pytest.raises(RecipeError, match=r"MAUVE of 20 samples and 0 references"):
        quality(samples_of(*texts), judge_of(1.0), embedding=Embedding("counts", embed))


def test_what_gives_no_number_is_an_error() -> None:
    for few in ([], [""], ["a"], ["a", ""]):
        with pytest.raises(RecipeError, match=r"[01] of \d samples hold text; at least 2"):
            quality(samples_of(*few), judge_of(1.0))
    with pytest.raises(CheckpointError, match="by hand: has no finite score"):
        quality(samples_of("a", "b"), judge_of({"a": 1.0, "b": math.nan}))
    deaf = dataclasses.replace(judge_of(1.0), encode=lambda text: [])
    with pytest.raises(CheckpointError, match="finds no token"):
        quality(samples_of("a", "b"), deaf)


def test_a_judge_that_reads_another_text_is_told_of() -> None:
    found = quality(samples_of("ab", "AB", "b1"), judge_of(1.0, upper=True))
    assert found.changed_samples == 2
    assert "2 changed by its tokenizer" in quality_lines(found)[3]
