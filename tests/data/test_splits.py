"""Splits and orders: functions of the texts' hashes alone, whatever else is in the corpus."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossover.data.splits import assign, distinct, places, training_order
from crossover.streams import digest


def assigned(*hashes: int, dev: float = 0.1, test: float = 0.1) -> dict[str, list[int]]:
    """Split documents of these hashes (first halves), and give the hashes of each split."""
    sorted_K = np.array(sorted(hashes), dtype=np.uint64)
    found = assign(sorted_K, dev_share=dev, test_share=test)
    return {name: sorted_K[members].tolist() for name, members in found.items()}


HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=12, unique=True)


@given(HASHES, st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_no_split_is_empty_and_none_loses_a_document(hashes: list[int], dev: float, test: float) -> None:
    splits = assigned(*hashes, dev=dev, test=test)
    assert all(splits.values())
    assert sorted(itertools.chain.from_iterable(splits.values())) == sorted(hashes)
    filled = [name for name, members in splits.items() if len(members) > 1]
    low = {"test": 0.0, "dev": test, "train": test + dev}
    high = {"test": test, "dev": test + dev, "train": 2.0}
    # Where a split has several, none of them was moved.
    assert all(low[name] <= number / 2**64 < high[name] for name in filled for number in splits[name])


def test_an_empty_split_takes_the_nearest_document() -> None:
    hashes = {name: int(place * 2**64) for name, place in {"a": 0.9, "b": 0.3, "c": 0.6}.items()}
    assert assigned(*hashes.values()) == {"train": [hashes["a"]], "dev": [hashes["c"]], "test": [hashes["b"]]}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_a_place_is_the_hash_as_a_share_correctly_rounded(hashes: list[int]) -> None:
    assert places(np.array(hashes, dtype=np.uint64)).tolist() == [number / 2**64 for number in hashes]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_first_of_equal_texts_is_kept(halves: list[tuple[int, int]]) -> None:
    high_D, low_D = np.array(halves, dtype=np.uint64).T
    kept = distinct(high_D, low_D).tolist()
    assert sorted(kept) == [number for number, half in enumerate(halves) if half not in halves[:number]]
    assert [halves[number] for number in kept] == sorted(set(halves))


def test_the_training_order_is_a_shuffle_that_the_seed_decides() -> None:
    high_S, low_S = np.arange(50, dtype=np.uint64), np.full(50, 2**63, dtype=np.uint64)
    first, again = training_order(0, high_S, low_S), training_order(0, high_S, low_S)
    assert first.tolist() == again.tolist() != training_order(1, high_S, low_S).tolist()
    numbers = [place << 64 | 2**63 for place in range(50)]
    assert first.tolist() == sorted(range(50), key=lambda place: digest(0, "documents", numbers[place]))
