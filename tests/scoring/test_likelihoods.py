"""Scores are what they say: likelihoods sum to one, bounds are unbiased and bound, by enumeration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from crossover.errors import DataError, RecipeError, RunError
from crossover.records import Pattern, ScoreCard
from crossover.scoring import procedures
from crossover.scoring.cost import modes_of
from crossover.scoring.likelihood import make_card, ratio, score, window_nats, window_scores
from crossover.scoring.procedures import Bound, ChainRule, LeftToRight, procedure_of
from crossover.scoring.unmasking import FIXED, LED, Unmasking
from crossover.scoring.windows import ScoringWindows

T = 4


def windows_of(texts, context: int = T, documents=None, starts=()) -> ScoringWindows:
    tokens = np.zeros((len(texts), context), np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    lengths = np.array([len(text) for text in texts])
    index = np.arange(len(texts)) if documents is None else np.array(documents)
    starts = np.array(starts or [0] * len(texts))
    return ScoringWindows(tokens, lengths, 2 * (lengths - starts), index, starts)


def nats(model, texts, procedure, context: int = T, starts=()) -> np.ndarray:
    return window_nats(model, windows_of(texts, context, starts=starts), procedure)


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("procedure", [ChainRule(), LeftToRight(T)], ids=["ar", "l2r"])
def test_exact_procedures_give_a_distribution_over_texts(procedure, length, family, separate) -> None:
    model = tiny.model(tiny.vocabulary(3, separate=separate), T, family)
    texts = list(itertools.product(range(3), repeat=length))
    probabilities = np.exp(-nats(model, texts, procedure))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    assert probabilities.max() > 1.2 / 3**length, "the model is not uniform, or the test would say nothing"


@pytest.mark.parametrize("procedure", [ChainRule(), LeftToRight(T)], ids=["ar", "l2r"])
def test_texts_that_end_where_they_like_share_out_the_probability(procedure) -> None:
    """All texts up to the end token, and all that reach the window's end: the length shows nowhere."""
    model = tiny.model(tiny.vocabulary(3), T)
    texts = [(*body, 2) for size in range(T) for body in itertools.product(range(2), repeat=size)]
    texts += list(itertools.product(range(2), repeat=T))
    assert np.exp(-nats(model, texts, procedure)).sum() == pytest.approx(1.0, abs=1e-5)


def conditional(model, text, hidden: set[int], block: int) -> np.ndarray:
    """Nats of each token of a text when some are hidden; behind its end, all is hidden."""
    words = model.vocabulary
    shown = [token if place not in hidden else words.mask_id for place, token in enumerate(text)]
    window = np.array([words.bos_id, *shown, *[words.mask_id] * (T - len(text))])
    if block == T:
        plan = model.plan(Pattern("full"), T + 1)
        with torch.no_grad():
            states = model.states(tiny.tensor(window[None]), torch.arange(T + 1)[None], plan)[0]
        return -torch.log_softmax(model.logits(states), -1).detach().double().numpy()[range(len(text)), list(text)]
    found = np.zeros(len(text))
    for first in range(0, len(text), block):
        sequence = np.concatenate([[words.bos_id], text])[:first]
        sequence = np.concatenate([sequence, [([words.bos_id, *text])[first]], window[first + 1 : first + block + 1]])
        group = np.arange(len(sequence)) // block
        group[first:] = first // block
        with torch.no_grad():
            plan = tiny.dense_plan(group[:, None] >= group[None, :])
            states = model.states(tiny.tensor(sequence[None]), torch.arange(len(sequence))[None], plan)[0]
        told = -torch.log_softmax(model.logits(states), -1).detach().double().numpy()
        for place in range(first, min(first + block, len(text))):
            found[place] = told[place, text[place]]
    return found


def by_enumeration(model, text, block: int, start: int = 0) -> tuple[float, float, float]:
    """Expectation and standard deviation of one draw of the bound, and minus the log of the order-averaged model."""
    mean = variance = exact = 0.0
    for first in range(0, len(text), block):
        places = list(range(max(first, start), min(first + block, len(text))))
        if not places:
            continue
        draws, chances = [], []
        for count in range(1, len(places) + 1):
            sets = list(itertools.combinations(places, count))
            for hidden in sets:
                values = conditional(model, text, set(hidden), block)
                draws.append(len(places) / count * sum(values[place] for place in hidden))
                chances.append(1 / len(places) / len(sets))
        expected = float(np.dot(draws, chances))
        mean += expected
        variance += float(np.dot((np.array(draws) - expected) ** 2, chances))
        orders = list(itertools.permutations(places))
        logs = []
        for order in orders:
            steps = [conditional(model, text, set(order[done:]), block)[order[done]] for done in range(len(order))]
            logs.append(-sum(steps))
        assert expected == pytest.approx(-np.mean(logs), abs=1e-6), "the bound is the mean over orders of -log p"
        exact -= math.log(np.mean(np.exp(logs)))
    return mean, variance**0.5, exact


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(("text", "start"), [((1, 0, 2, 1), 0), ((0, 1, 2), 0), ((2,), 0), ((1, 0, 2, 1), 1)])
def test_the_bound_is_unbiased_and_bounds(text, start, block) -> None:
    """10,000 draws of the whole text, or of what follows a prompt."""
    model = tiny.model(tiny.vocabulary(3), T)
    mean, deviation, exact = by_enumeration(model, text, block or T, start)
    copies, draws = 1250, 8
    scores = nats(model, [text] * copies, Bound(draws, block), starts=[start] * copies)
    error = max(scores.std(ddof=1), 1e-6) / copies**0.5
    assert abs(scores.mean() - mean) < 4 * error
    assert scores.std() <= 1.2 * deviation / draws**0.5 + 1e-6, "stratified draws are no noisier than plain ones"
    assert mean >= exact - 1e-9
    if len(text) > 1:
        assert mean > exact + 1e-3


def test_a_subsample_of_positions_is_unbiased() -> None:
    model = tiny.model(tiny.vocabulary(3), T)
    text = (1, 0, 2, 1)
    whole = nats(model, [text, text], LeftToRight(T))[0]
    some = nats(model, [text] * 400, LeftToRight(2))
    assert abs(some.mean() - whole) < 4 * some.std(ddof=1) / 20
    assert some.std() > 0.01


PROCEDURES = [ChainRule(), LeftToRight(3), Bound(4), Bound(4, 4), Bound(3, 2, "causal")]
EVERY = [
    *PROCEDURES,
    Unmasking("confidence"),
    Unmasking("margin", 3),
    Unmasking("left_to_right", 3),
    Unmasking("random"),
]
EVERY += [Unmasking(policy, block=4) for policy in FIXED + LED]


def corpus(context: int = 8) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, 9, length)) for length in (8, 3, 8, 1, 5, 8, 2)]


STARTS = [2, 3, 0, 0, 4, 7, 1]
CASES = [(False, [0] * 7), (True, [0] * 7), (True, STARTS)]


@pytest.mark.parametrize(("separate", "starts"), CASES, ids=["whole", "documents", "prompts"])
@pytest.mark.parametrize("procedure", EVERY, ids=lambda item: item.name)
def test_a_score_depends_on_its_text_alone(procedure, separate, starts, monkeypatch) -> None:
    """Not on how rows are grouped into passes, the order of documents, which others are scored, or the padding."""
    model, texts = tiny.model(tiny.vocabulary(9, separate=separate), 8), corpus()
    reference = nats(model, texts, procedure, 8, starts)
    for inputs in (1, 60):
        monkeypatch.setattr(procedures, "INPUTS_PER_PASS", inputs)
        assert nats(model, texts, procedure, 8, starts) == pytest.approx(reference, abs=1e-5)
    order = np.random.default_rng(1).permutation(len(texts))
    windows = windows_of([texts[index] for index in order], 8, starts=[starts[index] for index in order])
    windows.tokens_WT[np.arange(8) >= windows.lengths_W[:, None]] = 5
    assert window_nats(model, windows, procedure) == pytest.approx(reference[order], abs=1e-5)
    assert nats(model, texts[2:5], procedure, 8, starts[2:5]) == pytest.approx(reference[2:5], abs=1e-5)


@pytest.mark.parametrize("procedure", [LeftToRight(8), Bound(4), Bound(4, 4)], ids=lambda item: item.name)
def test_nothing_behind_a_text_or_hidden_in_it_shows(procedure) -> None:
    """Rows of two texts that differ in a hidden token only, or in what follows the end, are the same rows."""
    words = tiny.vocabulary(9, separate=True)
    texts = windows_of([(1, 8, 3, 4, 5), (1, 8, 3, 4, 5)], 8)
    texts.tokens_WT[1, 5:] = 7
    object.__setattr__(texts, "keys_W", (1, 1))
    for rows in procedure.rows(texts, words):
        half = len(rows.inputs_QN) // 2
        live = slice(rows.pattern.clean, None)
        assert np.array_equal(rows.inputs_QN[:half, live], rows.inputs_QN[half:, live])
        assert np.array_equal(rows.documents_QN[:half, live], rows.documents_QN[half:, live])
        shown = rows.inputs_QN[:, live]
        assert (shown[:, -3:] == words.mask_id).all()


def test_the_card_adds_up_documents() -> None:
    model = tiny.model(tiny.vocabulary(9), 8)
    texts, owners = corpus(), [5, 5, 9, 9, 9, 12, 12]
    card = score(model, windows_of(texts, 8, owners), Bound(4), conditions={"weights": "raw"})
    alone = nats(model, texts, Bound(4), 8)
    assert isinstance(card, ScoreCard)
    assert card.document_nats == pytest.approx([alone[:2].sum(), alone[2:5].sum(), alone[5:].sum()], abs=1e-5)
    assert card.document_tokens == (11, 14, 10) and card.document_bytes == (22, 28, 20)
    assert (card.tokens, card.text_bytes, card.documents) == (35, 70, 3)
    assert card.loss_nats == pytest.approx(alone.sum() / 35)
    assert card.bits_per_byte == pytest.approx(alone.sum() / 70 / math.log(2))
    assert card.standard_error_bits == pytest.approx(card.standard_error_nats / 2 / math.log(2), rel=1e-6)
    assert card.perplexity == pytest.approx(math.exp(alone.sum() / 35))
    stated = {"context": 8, "windows": 7, "precision": "float32", "draws": 4, "block": 0, "weights": "raw"}
    assert dict(card.conditions) == stated


@pytest.mark.parametrize(
    ("text", "exact"),
    [("ar", True), ("l2r", True), ("nelbo", False), ("nelbo(4)", False), ("nelbo(4, causal)", False)],
)
def test_a_procedure_carries_its_name_and_says_whether_it_is_exact(text, exact) -> None:
    procedure = procedure_of(text, draws=3, positions=2)
    card = score(tiny.model(tiny.vocabulary(9), 8), windows_of(corpus(), 8), procedure)
    assert card.procedure == procedure.name == text
    assert card.exact is exact
    assert ("draws" in card.conditions) is not exact
    assert ("positions" in card.conditions) is (text == "l2r")


def test_a_single_document_takes_its_uncertainty_from_its_windows() -> None:
    card = make_card(np.array([1.0, 2.0, 4.0]), windows_of([(1, 2), (1, 2), (1, 2)], 8, [3, 3, 3]), ChainRule(), {})
    assert card.documents == 1 and len(card.document_nats) == 3
    assert card.standard_error_nats == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5 / 2)


def test_the_standard_error_of_a_ratio_is_its_spread() -> None:
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(1500):
        size = rng.integers(5, 60, 40).astype(float)
        estimates.append(0.0)
        rate = 2 + 0.5 * rng.standard_normal(40) + 0.01 * size
        estimates[-1], error = ratio(rate * size, size)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.1)


def test_what_cannot_be_scored_is_said() -> None:
    model, texts = tiny.model(tiny.vocabulary(9), 8), windows_of(corpus(), 8)
    with pytest.raises(RecipeError, match=r"no procedure called 'nlbo'.*did you mean 'nelbo'"):
        procedure_of("nlbo", draws=1, positions=1)
    for name in ("nelbo(3)", "nelbo(1)", "nelbo(16)"):
        with pytest.raises(RecipeError, match=r"divide the window of 8"):
            score(model, texts, procedure_of(name, draws=1, positions=1))
    model.train()
    with torch.no_grad():
        next(model.parameters())[3] = float("nan")
    with pytest.raises(RunError, match=r"scoring with ar: window \d has no finite score"):
        score(model, texts, ChainRule())
    assert model.training, "scoring leaves the model's mode as it was, even when it fails"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("procedure", EVERY, ids=lambda item: item.name)
def test_logits_that_are_not_numbers_are_an_error_in_every_procedure(procedure, value) -> None:
    model, texts = tiny.model(tiny.vocabulary(9), 8, tied=False), windows_of(corpus(), 8)
    model.train()
    with torch.no_grad():
        model.head_PD[4] = value
    for call in (window_nats, window_scores):
        with pytest.raises(RunError, match=r"window \d has no finite score; the weights are not usable"):
            call(model, texts, procedure)
    assert model.training


def test_a_mix_can_be_scored_in_every_mode_of_its_objectives() -> None:
    assert modes_of(("autoregressive", "block(4)"), 8) == ("ar", "nelbo(4)")
    assert modes_of(("masked", "block(8)"), 8) == ("nelbo", "l2r")
    assert modes_of(("block(4, clean=causal, autoregressive_weight=1)", "block(1)"), 8) == ("nelbo(4, causal)", "ar")


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("procedure", [ChainRule(), LeftToRight(T)], ids=["ar", "l2r"])
def test_a_prompt_and_its_continuation_add_up_to_the_text(procedure, cut) -> None:
    model, text = tiny.model(tiny.vocabulary(3), T), (1, 0, 2, 1)
    whole, front = nats(model, [text, text[:cut]], procedure)
    rest, nothing = nats(model, [text, text], procedure, starts=[cut, T])
    assert whole == pytest.approx(front + rest, abs=1e-5)
    assert nothing == 0, "what scores nothing has 0 nats"


def test_a_card_with_prompts_counts_what_is_scored() -> None:
    windows = windows_of(corpus(), 8, starts=STARTS)
    card = score(tiny.model(tiny.vocabulary(9), 8), windows, Unmasking("margin"))
    assert (card.tokens, card.conditions["prompt_tokens"]) == (18, 17)
    assert card.loss_nats == pytest.approx(sum(card.document_nats) / 18)


def test_greedy_is_said_where_it_is_known() -> None:
    model, texts = tiny.model(tiny.vocabulary(9), 8), windows_of(corpus(), 8)
    for procedure in EVERY:
        scores, greedy = window_scores(model, texts, procedure)
        assert scores == pytest.approx(window_nats(model, texts, procedure), abs=1e-5)
        assert (greedy is None) is (procedure in PROCEDURES[1:])
    assert window_scores(model, windows_of([(1, 2, 3)], 8), LeftToRight(3))[1] is not None


@pytest.mark.parametrize(
    ("texts", "starts", "message"),
    [
        ([(1, 2), (1, 9, 2)], [0, 0], "window 1: scored token 9 at place 1 is not one of the model's 9 tokens"),
        ([(1, 10, 2)], [2], "window 0: prompt token 10 at place 1 is not one of"),
        ([(1, -1, 2)], [2], "window 0: prompt token -1 at place 1"),
        ([(1, 99, 2)], [0], "another tokenizer"),
    ],
)
def test_tokens_that_the_model_does_not_know_are_an_error(texts, starts, message) -> None:
    for procedure in (ChainRule(), Bound(2)):
        with pytest.raises(DataError, match=message):
            nats(tiny.model(tiny.vocabulary(9), 8), texts, procedure, 8, starts)


def test_a_model_without_a_mask_is_scored_by_the_chain_rule_alone() -> None:
    model, texts = tiny.model(tiny.vocabulary(9), 8), windows_of(corpus(), 8)
    model.vocabulary = replace(model.vocabulary, mask_id=13)
    assert window_nats(model, texts, ChainRule()).min() > 0
    for procedure in EVERY[1:]:
        with pytest.raises(RecipeError, match="this model has no mask token; score it with 'ar'"):
            window_nats(model, texts, procedure)
