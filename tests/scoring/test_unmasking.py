"""Scores of declared orders are the likelihoods of the samplers that write so: by enumeration and step by step."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.errors import RecipeError, RunError
from crossover.scoring.likelihood import score, window_nats, window_scores
from crossover.scoring.procedures import ChainRule, LeftToRight, procedure_of
from crossover.scoring.unmasking import FIXED, LED, TIE, Unmasking, choose
from crossover.scoring.windows import ScoringWindows
from crossover.streams import stream

T = 4
ORDERS = [Unmasking(policy, each) for policy in FIXED + LED for each in (1, 2)]
BLOCKS = [Unmasking(policy, block=2) for policy in FIXED + LED]
CAUSAL = [Unmasking("confidence", block=2, clean="causal"), Unmasking("random", 2, block=2)]
EXACT = [
    ChainRule(),
    LeftToRight(99),
    *ORDERS,
    *BLOCKS,
    *CAUSAL,
    Unmasking("margin", block=T),
    Unmasking("random", block=1),
]


def called(procedure) -> str:
    return f"{procedure.name} {getattr(procedure, 'tokens_per_step', '')}"


def windows_of(texts, context: int = T, start: int = 0, key: int | None = None) -> ScoringWindows:
    """Windows of one start; with a key, they share their random numbers, as one sampler's texts do."""
    tokens = np.zeros((len(texts), context), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    lengths, index = np.array([len(text) for text in texts]), np.arange(len(texts))
    windows = ScoringWindows(tokens, lengths, 2 * (lengths - start), index, np.full(len(texts), start))
    if key is not None:
        object.__setattr__(windows, "keys_W", (key,) * len(texts))
    return windows


def distributions(model, text, hidden: set[int], procedure, first: int) -> np.ndarray:
    """Log-probabilities at the places of a block when some are hidden, computed alone and without a second stream."""
    words, size = model.vocabulary, procedure.block or T
    shown = [words.mask_id if place in hidden else token for place, token in enumerate(text)]
    window = [words.bos_id, *text[:first], *shown[first:], *[words.mask_id] * (T - len(text))]
    length = T + 1 if size == T else first + size + 1
    # The block's copy holds the token before it, too; the clean tokens before that one do not see the copy.
    group = np.where(np.arange(length) < first, np.arange(length) // size, first)
    clean = group if procedure.clean == "block_causal" else np.minimum(np.arange(length), first)
    seen = clean[:, None] >= clean[None, :]
    if words.separate_documents:
        # An end of document is a border as soon as it is uncovered.
        number = np.cumsum(np.array(window[:length]) == words.eos_id)
        seen &= number[:, None] == number[None, :]
    plan = tiny.dense_plan(seen)
    with torch.no_grad():
        states = model.states(torch.tensor([window[:length]]), torch.arange(length)[None], plan)[0]
        return torch.log_softmax(model.logits(states), -1).double().numpy()[first : first + size]


def step_by_step(model, text, start: int, key: int, procedure) -> tuple[float, bool]:
    """Play the sampler with one text, one window and one block at a time, as its definition says."""
    nats, greedy, size = 0.0, True, procedure.block or T
    for first in range(0, len(text), size):
        places = [place for place in range(first, min(first + size, len(text))) if place >= start]
        if procedure.policy == "random":
            places = [places[index] for index in stream(0, "unmasking", key, first).permutation(len(places))]
        while places:
            logs = distributions(model, text, set(places), procedure, first)
            ranked = list(places)
            if procedure.policy in LED:
                chances = np.sort(np.exp(logs), axis=1)
                scores = chances[:, -1] - (chances[:, -2] if procedure.policy == "margin" else 0)
                ranked.sort(key=lambda place: -scores[place - first])
            for place in ranked[: procedure.tokens_per_step]:
                nats -= logs[place - first, text[place]]
                greedy &= logs[place - first].argmax() == text[place]
                places.remove(place)
    return nats, greedy


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("procedure", [*ORDERS, *BLOCKS, *CAUSAL], ids=called)
def test_a_score_is_that_of_the_sampler_played_step_by_step(procedure, separate) -> None:
    model = tiny.model(tiny.vocabulary(3, separate=separate), T)
    rng = np.random.default_rng(0)
    # A document's end may only stand at its end.
    texts = [(*rng.integers(0, 2, length - 1), rng.integers(0, 3)) for length in (1, 2, 3, 4, 4, 4)]
    for start in (0, 1, 2):
        known = [text for text in texts if len(text) >= start]
        nats, greedy = window_scores(model, windows_of(known, start=start, key=7), procedure)
        expected = [step_by_step(model, text, start, 7, procedure) for text in known]
        assert nats == pytest.approx([value for value, _ in expected], abs=2e-5)
        assert greedy.tolist() == [flag for _, flag in expected]


@pytest.mark.parametrize("procedure", EXACT, ids=called)
def test_all_texts_of_a_length_share_out_the_probability_and_one_is_greedy(procedure) -> None:
    model = tiny.model(tiny.vocabulary(3), T)
    for length in (1, 3, T):
        texts = list(itertools.product(range(3), repeat=length))
        nats, greedy = window_scores(model, windows_of(texts, key=3), procedure)
        assert np.exp(-nats).sum() == pytest.approx(1.0, abs=1e-6)
        assert np.exp(-nats).max() > 1.2 / 3**length, "the model is not uniform, or the test would say nothing"
        assert greedy.sum() == 1
        assert nats == pytest.approx(window_nats(model, windows_of(texts, key=3), procedure), abs=1e-5)


@pytest.mark.parametrize("procedure", EXACT, ids=called)
def test_all_continuations_of_a_prompt_share_out_the_probability(procedure) -> None:
    model = tiny.model(tiny.vocabulary(3), T)
    for prompt, length in itertools.product([(1,), (0, 1), (1, 1, 0)], (3, T)):
        start = len(prompt)
        texts = [(*prompt, *rest) for rest in itertools.product(range(3), repeat=length - start)]
        nats, greedy = window_scores(model, windows_of(texts, start=start, key=3), procedure)
        assert np.exp(-nats).sum() == pytest.approx(1.0, abs=1e-6)
        assert greedy.sum() == 1


@pytest.mark.parametrize("procedure", [item for item in ORDERS if item.policy in LED], ids=called)
def test_five_places_share_out_the_probability_too(procedure) -> None:
    model = tiny.model(tiny.vocabulary(3), 5)
    texts = list(itertools.product(range(3), repeat=5))
    assert np.exp(-window_nats(model, windows_of(texts, 5), procedure)).sum() == pytest.approx(1.0, abs=1e-6)


def test_the_chain_rule_is_that_of_prefixes_alone() -> None:
    model, texts = tiny.model(tiny.vocabulary(3), T), list(itertools.product(range(3), repeat=T))
    for start in (0, 2):
        expected = np.zeros(len(texts))
        for place in range(start, T):
            inputs = torch.tensor([(model.vocabulary.bos_id, *text[:place]) for text in texts])
            plan = tiny.dense_plan(np.tri(place + 1, dtype=bool))
            with torch.no_grad():
                states = model.states(inputs, torch.arange(place + 1)[None], plan)[:, -1]
                logs = torch.log_softmax(model.logits(states), -1).double().numpy()
            expected -= logs[np.arange(len(texts)), [text[place] for text in texts]]
        assert window_nats(model, windows_of(texts, start=start), ChainRule()) == pytest.approx(expected, abs=2e-5)


def test_orders_that_are_other_procedures_give_their_scores() -> None:
    model = tiny.model(tiny.vocabulary(3), T)
    windows = windows_of(list(itertools.product(range(3), repeat=T)))

    def nats(name: str) -> np.ndarray:
        return window_nats(model, windows, procedure_of(name, draws=1, positions=T))

    assert nats("order(left_to_right)") == pytest.approx(nats("l2r"), abs=1e-5)
    assert nats("block(1)") == pytest.approx(nats("ar"), abs=1e-5)
    for policy in FIXED + LED:
        assert nats(f"block(4, {policy})") == pytest.approx(nats(f"order({policy})"), abs=1e-5)
    assert np.abs(nats("order(confidence)") - nats("order(margin)")).max() > 1e-3
    assert np.abs(nats("order(confidence)") - nats("order(confidence, 2)")).max() > 1e-3


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_choice_ignores_rounding_and_keeps_to_its_groups(groups, seed) -> None:
    """Blocks of `size` places, `count` of them wanted; scores are equal or far apart, then shaken."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(groups)), [size for size, _ in groups])
    first = rng.choice([0.3, 0.5, 0.9], len(group))
    second = first * rng.choice([0.2, 0.4], len(group))
    count = groups[0][1]
    for policy in LED:
        plain = choose(policy, count, group, first, second)
        noise = 1 + TIE / 10 * rng.uniform(-1, 1, (2, len(group)))
        assert np.array_equal(choose(policy, count, group, first * noise[0], second * noise[1]), plain)
        values = first - second if policy == "margin" else first
        for index, (size, _) in enumerate(groups):
            mine = np.flatnonzero(group == index)
            ranked = sorted(mine, key=lambda place: (-round(values[place], 9), place))
            assert set(np.flatnonzero(plain & (group == index))) == set(ranked[: min(count, size)])


@pytest.mark.parametrize("policy", LED)
def test_an_indifferent_model_is_uncovered_from_left_to_right(policy) -> None:
    model = tiny.model(tiny.vocabulary(3), T)
    with torch.no_grad():
        model.head_PD.zero_()
    places = [rows.reads_R[choice][0] for rows, choice in played(model, windows_of([(0, 1, 2, 1)]), Unmasking(policy))]
    assert places == [0, 1, 2, 3]


def played(model, windows, procedure):
    """Give each pass with what was chosen in it, as a model with equal probabilities chooses."""
    for rows in procedure.rows(windows, model.vocabulary):
        equal = np.full(len(rows.reads_R), 1 / 3)
        yield rows, rows.choose(equal, equal)


def test_a_random_order_is_the_same_for_all_models_and_differs_between_windows() -> None:
    text, words = (0, 1, 0, 1), tiny.vocabulary(3)
    windows = windows_of([text] * 200)
    orders = np.stack([rows.reads_R % (T + 1) for rows in Unmasking("random").rows(windows, words)])
    turns = orders.reshape(200, T)
    assert {tuple(turn) for turn in turns} == set(itertools.permutations(range(T)))
    model = tiny.model(words, T)
    nats = window_nats(model, windows, Unmasking("random"))
    every = [step_by_order(model, text, order) for order in itertools.permutations(range(T))]
    assert abs(nats.mean() - np.mean(every)) < 4 * np.std(every) / 200**0.5
    assert set(np.round(nats, 3)) <= set(np.round([v + d for v in every for d in (-1e-3, 0, 1e-3)], 3))


def step_by_order(model, text, order) -> float:
    whole = Unmasking("random")
    steps = enumerate(order)
    return -sum(distributions(model, text, set(order[done:]), whole, 0)[at, text[at]] for done, at in steps)


def test_an_order_that_the_model_leads_is_computed_in_float32_whatever_is_asked() -> None:
    model, windows = tiny.model(tiny.vocabulary(3), T), windows_of([(0, 1, 2, 1), (1, 1)])
    for policy in FIXED + LED:
        card = score(model, windows, Unmasking(policy, 2), precision="bfloat16")
        assert card.conditions["precision"] == ("float32" if policy in LED else "bfloat16")
        assert (card.conditions["policy"], card.conditions["tokens_per_step"]) == (policy, 2)
        same = card.document_nats == score(model, windows, Unmasking(policy, 2)).document_nats
        assert same is (policy in LED)


def test_rows_that_the_model_leads_cannot_be_made_before() -> None:
    with pytest.raises(RunError, match=r"order 'margin': the model leads, so its rows cannot be made before"):
        list(Unmasking("margin").rows(windows_of([(0, 1)]), tiny.vocabulary(3)))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("order(left_to_right)", None),
        ("order( random,1)", "order(random)"),
        ("order(confidence,2)", "order(confidence, 2)"),
        ("block(2)", None),
        ("block(2, left_to_right)", "block(2)"),
        ("block(2,margin)", "block(2, margin)"),
        ("block(2,causal)", "block(2, causal)"),
        ("block(2, random, causal)", None),
    ],
)
def test_a_name_makes_its_procedure(written: str, name: str | None) -> None:
    procedure = procedure_of(written, draws=1, positions=1)
    assert procedure.exact and procedure.name == (name or written)
    assert procedure_of(procedure.name, draws=9, positions=9) == procedure


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("order(confidense)", r"no policy called 'confidense'; did you mean 'confidence'"),
        ("block(2, marginn)", r"no policy called 'marginn'; did you mean 'margin'"),
        ("oder(confidence)", r"no procedure called 'oder\(confidence\)'; did you mean 'order\(confidence\)'"),
        ("order", r"no procedure called 'order'.*order\(confidence\)"),
        ("order(random, 0)", r"no procedure called 'order\(random, 0\)'; did you mean 'order\(random, 2\)'"),
        ("block(0)", r"no procedure called 'block\(0\)'; did you mean 'block\(16\)'"),
        ("nelbo(0)", r"no procedure called 'nelbo\(0\)'; did you mean 'nelbo\(16\)'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(written: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        procedure_of(written, draws=1, positions=1)


def test_what_does_not_fit_is_said() -> None:
    model, windows = tiny.model(tiny.vocabulary(3), T), windows_of([(0, 1, 2, 1)])
    with pytest.raises(RecipeError, match=r"'block\(3\)': a block must be longer than 1 and divide the window of 4"):
        window_nats(model, windows, Unmasking("left_to_right", block=3))
    with pytest.raises(RecipeError, match="at least 1 token is uncovered per step"):
        Unmasking("margin", 0)
