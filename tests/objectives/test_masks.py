"""Which tokens are hidden: counts, strata, static shapes, suffixes, borders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import tiny
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.objectives.windows import documents_of, exact_masks, strata, with_bos
from crossover.records import Pattern
from crossover.streams import stream

WORDS = tiny.vocabulary(9)
OBJECTIVES = [
    Autoregressive(),
    Autoregressive(input_mask_rate=0.9),
    Autoregressive(input_mask_rate=0.5, rate="uniform", masked_input_weight=0.4),
    Autoregressive(orders=4),
    Masked(),
    Masked(count="bernoulli"),
    Masked(suffix_share=0.5),
    Block(2),
    Block(4, clean="causal", autoregressive_weight=0.5),
    Block(4, count="bernoulli"),
]


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_strata_share_out_the_unit_interval(count: int, seed: int) -> None:
    points = strata(count, np.random.default_rng(seed))
    assert (points > 0).all() and (points <= 1).all()
    assert np.array_equal(np.sort(np.ceil(points * count - 1e-12).astype(int)), np.arange(1, count + 1))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 10**6))
def test_exact_masks_hide_a_static_number_and_weigh_its_inverse(groups: int, size: int, seed: int) -> None:
    masks = exact_masks(groups, size, np.random.default_rng(seed))
    counts = masks.hidden_KS.sum(1)
    assert (counts >= 1).all()
    assert masks.weights_K * counts == pytest.approx(np.full(groups, size))
    assert masks.reads == groups // 2 * (size + 1) + groups % 2 * size
    assert counts.sum() <= masks.reads
    if groups % 2 == 0:
        assert counts.sum() == masks.reads == groups * (size + 1) / 2


@pytest.mark.parametrize("groups", [1, 2, 6, 7])
def test_each_count_is_uniform_at_every_place_of_a_slice(groups: int) -> None:
    """Strata are permuted: no place in a window or batch is tied to a noise level (in bd3lms it is)."""
    size, slices = 4, 3000
    counts = np.stack([exact_masks(groups, size, stream(0, "m", index)).hidden_KS.sum(1) for index in range(slices)])
    for place in range(groups):
        assert chisquare(np.bincount(counts[:, place], minlength=size + 1)[1:]).pvalue > 1e-3


def test_every_set_of_a_size_is_as_likely_as_any_other() -> None:
    masks = np.concatenate([exact_masks(8, 4, stream(1, "m", index)).hidden_KS for index in range(2000)])
    codes = masks @ (1 << np.arange(4))
    for size in (1, 2, 3):
        found = codes[masks.sum(1) == size]
        _, frequencies = np.unique(found, return_counts=True)
        assert len(frequencies) == {1: 4, 2: 6, 3: 4}[size]
        assert chisquare(frequencies).pvalue > 1e-3


@pytest.mark.parametrize("count", ["exact", "bernoulli"])
def test_a_blocks_place_in_the_window_says_nothing_about_its_noise(count: str) -> None:
    objective, windows, blocks, size = Block(4, count=count), 2, 4, 4
    tokens = np.zeros((windows, blocks * size), np.int64)
    shares = []
    for index in range(1500):
        example = objective.corrupt(tokens, stream(2, "m", index), WORDS)
        noisy = example.inputs_BN[:, example.pattern.clean :].reshape(windows * blocks, size + 1)
        shares.append((noisy[:, 1:] == WORDS.mask_id).mean(1))
    shares = np.stack(shares)
    expected = (size + 1) / 2 / size if count == "exact" else 0.5
    error = shares.std(0) / len(shares) ** 0.5
    assert (np.abs(shares.mean(0) - expected) < 4 * error).all()
    assert np.corrcoef(shares.T)[0, 1:].mean() == pytest.approx(-1 / 7, abs=0.05), "levels are shared out, not repeated"


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_bos_is_never_hidden_and_never_a_target(objective) -> None:
    for index in range(20):
        example = objective.corrupt(np.zeros((4, 8), np.int64), stream(3, "m", index), WORDS)
        assert (example.inputs_BN[:, 0] == WORDS.bos_id).all()
        first = example.positions_BN == 0
        assert (example.inputs_BN[first] == WORDS.bos_id).all()
        assert (example.targets_R < WORDS.predictable).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_shapes_are_static_and_reads_lie_inside(objective) -> None:
    examples = [
        objective.corrupt(stream(4, "text", index).integers(0, 9, (6, 8)), stream(4, "m", index), WORDS)
        for index in range(20)
    ]
    for example in examples:
        reads = tiny.reads(example)
        assert len(reads) == len(example.targets_R) == len(example.weights_R)
        assert reads.min() >= 0 and reads.max() < example.inputs_BN.size
        assert example.data_tokens == 48
        assert example.positions_BN.shape == example.inputs_BN.shape
    lengths = {len(example.targets_R) for example in examples}
    assert len({example.inputs_BN.shape for example in examples}) == 1
    assert len(lengths) == 1 or (getattr(objective, "count", "") == "bernoulli" and len(lengths) <= 16)


@pytest.mark.parametrize("objective", [Masked(), Masked(count="bernoulli"), Block(2), Block(4, clean="causal")])
def test_exactly_the_hidden_tokens_are_read_each_from_the_state_before_it(objective) -> None:
    tokens = stream(5, "text").integers(0, 9, (5, 8))
    example = objective.corrupt(tokens, stream(5, "m"), WORDS)
    live = example.weights_R > 0
    row, place = np.divmod(example.reads_R[live], example.inputs_BN.shape[1])
    position = example.positions_BN[row, place]
    assert np.array_equal(example.targets_R[live], tokens[row, position])
    assert len(set(zip(row, position, strict=True))) == live.sum(), "no token is read twice"
    assert (example.inputs_BN[row, place + 1] == WORDS.mask_id).all()
    assert (example.positions_BN[row, place + 1] == position + 1).all()
    assert (example.inputs_BN == WORDS.mask_id).sum() == live.sum()


def test_suffixes_are_hidden_as_often_as_asked_and_change_no_count() -> None:
    tokens = np.zeros((400, 8), np.int64)
    plain, half, all_of_them = (
        Masked(suffix_share=share).corrupt(tokens, stream(6, "m"), WORDS).inputs_BN[:, 1:] == WORDS.mask_id
        for share in (0.0, 0.5, 1.0)
    )
    suffix = (np.diff(all_of_them.astype(int), axis=1) >= 0).all(1)
    assert suffix.all()
    assert np.array_equal(plain.sum(1), all_of_them.sum(1)) and np.array_equal(plain.sum(1), half.sum(1))
    assert np.array_equal(half.sum(1), plain.sum(1))
    moved = (half != plain).any(1)
    could = (all_of_them != plain).any(1)
    assert moved.sum() / could.sum() == pytest.approx(0.5, abs=0.1)
    assert np.array_equal(half[moved], all_of_them[moved])


def test_documents_are_numbered_by_the_ends_that_show() -> None:
    words = tiny.vocabulary(9, separate=True)
    window = with_bos(np.array([[1, 8, 2, 3, 8, 4]]), words)
    assert documents_of(window, tiny.vocabulary(9)) is None
    assert documents_of(window, words).tolist() == [[0, 0, 1, 1, 1, 2, 2]]
    window[0, 2] = words.mask_id
    assert documents_of(window, words).tolist() == [[0, 0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("clean", ["block", "causal"])
def test_a_noisy_copy_knows_the_borders_before_it_and_those_it_shows(clean: str) -> None:
    words = tiny.vocabulary(9, separate=True)
    tokens = np.array([[1, 8, 2, 3, 8, 4, 8, 5]])
    for index in range(30):
        example = Block(4, clean=clean).corrupt(tokens, stream(7, "m", index), words)
        assert example.documents_BN[0, :4].tolist() == [0, 0, 1, 1]
        for block, border in ((0, 0), (1, 1)):
            first = 4 + 5 * block
            shown = example.inputs_BN[0, first : first + 5]
            wanted = border + np.cumsum(shown == words.eos_id)
            assert example.documents_BN[0, first : first + 5].tolist() == wanted.tolist()


@pytest.mark.parametrize("objective", [Autoregressive(), Masked(), Block(4), Block(4, clean="causal")], ids=repr)
def test_documents_that_are_kept_apart_predict_only_themselves(objective) -> None:
    """Also the first token of a document: the state that predicts it may not see the document before it."""
    words = tiny.vocabulary(9, separate=True)
    model = tiny.model(words, 8).double()
    text = np.array([1, 5, 3, 8, 2, 4, 7, 6])
    for index in range(12):
        found = []
        for changed in (text, np.where(np.arange(8) == 1, 2, text), np.where(np.arange(8) == 5, 3, text)):
            example = objective.corrupt(changed[None], stream(8, "m", index), words)
            live = example.weights_R > 0
            states = tiny.states(model, example)[tiny.reads(example)[live]].numpy()
            found.append((states, example.positions_BN.ravel()[tiny.reads(example)[live]], example))
        (plain, token, example), (first, _, _), (second, _, _) = found
        if isinstance(objective, Masked) and example.inputs_BN[0, 4] == words.mask_id:
            continue  # a hidden end is no border
        assert np.abs(first - plain)[token >= 4].max(initial=0) < 1e-12
        assert np.abs(second - plain)[token < 4].max(initial=0) < 1e-12


def test_the_first_token_of_a_window_is_predicted_from_its_document() -> None:
    words = tiny.vocabulary(9, separate=True)
    model = tiny.model(words, 8)
    told = []
    for last in (1, 2):
        window = np.array([[words.bos_id, words.mask_id, 1, 2, 3, 4, last, 8, 5]])
        documents = tiny.tensor(documents_of(window, words))
        plan = model.plan(Pattern("full"), 9, documents)
        told.append(model.states(tiny.tensor(window), tiny.tensor(np.arange(9)[None]), plan)[0, 0].detach())
    assert float((told[0] - told[1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masked(eps=0.1),
        lambda: Masked(suffix_share=1.5),
        lambda: Block(0),
        lambda: Block(4, eps=0.1),
        lambda: Block(4, autoregressive_weight=0.1),
        lambda: Block(3).workload(8),
        lambda: Block(8, clean="causal", autoregressive_weight=0.1).workload(8),
        lambda: Autoregressive(input_mask_rate=1.0),
        lambda: Autoregressive(rate="uniform"),
        lambda: Autoregressive(masked_input_weight=0.4),
        lambda: Autoregressive(orders=0),
    ],
)
def test_a_setting_that_is_wrong_or_has_no_effect_is_an_error(make) -> None:
    with pytest.raises(ValueError):
        make()
