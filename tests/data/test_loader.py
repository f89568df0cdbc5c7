"""The order of the text: every epoch sees every token once, however a step is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data.loader import Loader
from crossover.errors import DataError

SIZES = [
    (1000, 16, 64),
    (1000, 128, 256),
    (37, 64, 128),
    (1, 8, 16),
    (3, 128, 128),
    (96, 32, 96),
    (512, 64, 64),
    (65, 64, 64),
]


def loader(size: int, context: int, batch_tokens: int, *, slices: int = 1, seed: int = 0) -> Loader:
    tokens_U = np.arange(size, dtype=np.uint16)
    return Loader(tokens_U, context=context, batch_tokens=batch_tokens, slice_tokens=batch_tokens // slices, seed=seed)


def consumed(of: Loader, tokens: int) -> np.ndarray:
    steps = -(-tokens // (of.context * of.windows_per_slice * of.slices_per_step))
    served = [of.batch(step, part) for step in range(steps) for part in range(of.slices_per_step)]
    return np.concatenate(served).ravel()


@pytest.mark.parametrize(("size", "context", "batch_tokens"), SIZES)
def test_every_epoch_sees_every_token_exactly_once(size: int, context: int, batch_tokens: int) -> None:
    epochs = max(4, 3 * context // size)
    stream = consumed(loader(size, context, batch_tokens), epochs * size)
    for epoch in range(epochs):
        seen = stream[epoch * size : (epoch + 1) * size]
        assert np.array_equal(np.sort(seen), np.arange(size)), f"epoch {epoch}"


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**63))
def test_every_epoch_is_exact_for_any_sizes(size: int, context: int, windows: int, seed: int) -> None:
    stream = consumed(loader(size, context, context * windows, seed=seed), 3 * size)
    for epoch in range(3):
        assert np.array_equal(np.sort(stream[epoch * size : (epoch + 1) * size]), np.arange(size))


@pytest.mark.parametrize("size", [1000, 37, 512])
def test_slices_only_cut_a_step(size: int) -> None:
    whole, halves, quarters = (loader(size, 16, 64, slices=slices) for slices in (1, 2, 4))
    for step in range(20):
        expected = whole.batch(step, 0)
        assert np.array_equal(np.concatenate([halves.batch(step, part) for part in range(2)]), expected)
        assert np.array_equal(np.concatenate([quarters.batch(step, part) for part in range(4)]), expected)


def test_a_batch_depends_on_nothing_that_came_before() -> None:
    forward = loader(333, 16, 64)
    batches = {step: forward.batch(step, 0) for step in range(40)}
    assert batches[0].shape == (4, 16)
    assert batches[0].dtype == np.int64
    for step in (39, 3, 17, 0):
        assert np.array_equal(loader(333, 16, 64).batch(step, 0), batches[step])
        assert np.array_equal(forward.batch(step, 0), batches[step])


def test_windows_are_pieces_of_the_text_in_its_own_order() -> None:
    of = loader(1000, 50, 100)
    for number in range(60):
        steps = np.diff(of.window(number)) % 1000
        assert np.count_nonzero(steps != 1) <= 1


def test_epochs_and_seeds_differ_in_order() -> None:
    first = consumed(loader(640, 16, 64), 1280)
    assert not np.array_equal(first[:640], first[640:1280])
    assert not np.array_equal(first, consumed(loader(640, 16, 64, seed=1), 1280))
    starts = np.array([loader(640, 16, 64).window(number)[0] for number in range(40)])
    assert np.any(np.diff(starts) % 640 != 16), "windows come shuffled"


def test_order_hash_tells_seeds_texts_and_windows_apart_but_not_slices() -> None:
    known = loader(1000, 16, 64).data_order_hash()
    assert known == loader(1000, 16, 64, slices=4).data_order_hash()
    others = {loader(1000, 16, 64, seed=1), loader(999, 16, 64), loader(1000, 32, 64)}
    assert known not in {other.data_order_hash() for other in others}


def test_text_that_is_missing_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="no training text"):
        loader(0, 16, 64)
    with pytest.raises(ValueError, match="must divide"):
        loader(100, 16, 40)
    with pytest.raises(IndexError, match="no slice 1"):
        loader(100, 16, 64).batch(0, 1)
