"""Degraded text: training text loses a stated share of its order, and nothing else changes."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data.corpus import Files, StandardLibrary
from crossover.data.degraded import Degraded
from crossover.data.prepare import PreparedText, prepare
from crossover.data.tokenizer import Bpe
from crossover.errors import RecipeError
from crossover.registry import component_of, dump, label
from crossover.sections import DataRecipe

WORDS = ["the", "model", "reads", "a", "text", "again", "naïve", "words;", "(x)", "\n   ", "for"]


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> dict[float, PreparedText]:
    folder = tmp_path_factory.mktemp("degraded")
    path = folder / "text.jsonl"
    rows = []
    for number in range(120):
        draw = random.Random(number)
        rows.append(json.dumps({"text": f"{number}: " + " ".join(draw.choice(WORDS) for _ in range(80))}))
    path.write_text("\n".join(rows))
    clean = DataRecipe(source=Files(str(path)), tokenizer=Bpe(300), unique_tokens=3000, dev_share=0.1, test_share=0.1)
    recipes = {0.0: clean} | {
        share: dataclasses.replace(clean, source=Degraded(clean.source, share)) for share in (0.3, 0.6, 1.0)
    }
    return {share: prepare(recipe, seed=0, cache=folder / "cache") for share, recipe in recipes.items()}


def test_held_out_text_and_tokenizer_are_those_of_the_clean_text(levels: dict[float, PreparedText]) -> None:
    clean = levels[0.0]
    for share in (0.3, 1.0):
        assert levels[share].tokenizer.hash == clean.tokenizer.hash
        for split in ("dev", "test"):
            pairs = zip(levels[share].documents(split), clean.documents(split), strict=True)
            assert all(np.array_equal(one.tokens, two.tokens) and one.name == two.name for one, two in pairs)
        assert levels[share].data_hash != clean.data_hash


def test_the_training_text_keeps_its_documents_lengths_bytes_and_pieces(levels: dict[float, PreparedText]) -> None:
    clean, spoiled = levels[0.0], levels[0.6]
    for name in ("train_offsets", "train_bytes"):
        left, right = (np.load(one.folder / f"{name}.npy") for one in (clean, spoiled))
        assert np.array_equal(left, right)
    ends = np.load(clean.folder / "train_offsets.npy")
    before, after = clean.train_tokens(True), spoiled.train_tokens(True)
    for start, end in itertools.pairwise(ends):
        assert np.array_equal(np.sort(before[start:end]), np.sort(after[start:end]))
    assert all(after[end - 1] == clean.vocabulary.eos_id for end in ends[1:-1])


def test_no_token_from_beyond_the_budget_comes_into_the_training_text(levels: dict[float, PreparedText]) -> None:
    clean = levels[0.0]
    ends, tokens = np.load(clean.folder / "train_offsets.npy"), clean.train_tokens(True)
    assert ends[-1] == 3000 and tokens[-1] != clean.vocabulary.eos_id, "the budget cuts a document"
    for share in (0.3, 0.6, 1.0):
        assert np.array_equal(np.sort(levels[share].train_tokens(True)), np.sort(tokens))
        assert np.any(levels[share].train_tokens(True)[ends[-2] :] != tokens[ends[-2] :]), "its rest is degraded too"


def test_more_is_moved_at_a_higher_share(levels: dict[float, PreparedText]) -> None:
    clean = levels[0.0].train_tokens(True)
    moved = {share: float(np.mean(levels[share].train_tokens(True) != clean)) for share in (0.3, 0.6, 1.0)}
    # A token may change places with one of its own kind, so less is seen to move.
    assert 0.15 < moved[0.3] < 0.3 < moved[0.6] < 0.6 < moved[1.0]


@given(st.integers(0, 60), st.floats(0.01, 1), st.binary(min_size=16, max_size=16), st.integers(0, 3))
def test_a_share_of_places_is_shuffled_by_text_and_seed_alone(
    size: int, share: float, digest: bytes, seed: int
) -> None:
    tokens = np.arange(size)
    once, again = (Degraded("stdlib", share, seed).spoil(tokens, digest) for _ in range(2))
    assert np.array_equal(once, again) and np.array_equal(np.sort(once), tokens)
    assert np.count_nonzero(once != tokens) <= round(share * size)


def test_every_order_of_the_moved_tokens_is_possible() -> None:
    orders = {tuple(Degraded("stdlib", 1.0).spoil(np.arange(3), bytes([i]) * 16).tolist()) for i in range(100)}
    assert len(orders) == 6


def test_it_is_written_as_a_recipe_writes_it() -> None:
    built = component_of("corpus", "degraded(stdlib, 0.5)")
    assert built == Degraded(StandardLibrary(), 0.5) and label(built) == "degraded(stdlib, share=0.5)"
    assert component_of("corpus", dump(built)) == built
    assert component_of("corpus", "degraded('my_text/', 0.5)").source == Files("my_text/")
    assert "50% of the training tokens shuffled" in built.describe()
    with pytest.raises(RecipeError, match="share"):
        component_of("corpus", "degraded(stdlib, 0)")
    with pytest.raises(RecipeError, match="degraded already"):
        component_of("corpus", "degraded(degraded(stdlib, 0.1), 0.1)")
