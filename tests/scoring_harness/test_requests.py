"""A request's score is the model's own probability of its text, and depends on nothing but that text."""

import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from crossover.data.tokenizer import Bpe, Bytes
from crossover.records import Pattern
from crossover.scoring.likelihood import window_nats, window_scores
from crossover.scoring.pairs import Encoded, encode_pair, scored_bytes, shared_draws
from crossover.scoring.procedures import procedure_of
from crossover.scoring.requests import (
    Piece,
    _windows,
    continuation_pieces,
    score_pieces,
    text_pieces,
    window_width,
)
from crossover.scoring.windows import cut

WORDS, WINDOW = tiny.vocabulary(7), 8
NAMES = ("ar", "l2r", "nelbo", "nelbo(4)", "order(random)", "order(confidence, 2)", "block(4)", "block(2, margin)")
PIECES = st.lists(
    st.lists(st.integers(0, 6), min_size=1, max_size=WINDOW).flatmap(
        lambda tokens: st.integers(0, len(tokens) - 1).map(lambda start: Piece(tuple(tokens), start))
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def model():
    return tiny.model(WORDS, WINDOW)


def procedure(name):
    return procedure_of(name, draws=3, positions=2)


def test_ar_is_the_product_of_next_token_probabilities(model) -> None:
    piece = Piece((3, 1, 4, 1, 5), 2)
    ids = torch.tensor([[WORDS.bos_id, *piece.tokens]])
    with torch.no_grad():
        states = model.states(ids, torch.arange(6)[None], model.plan(Pattern("causal"), 6))
        logs = torch.log_softmax(model.logits(states)[0].double(), -1)
    wanted = -sum(float(logs[place, piece.tokens[place]]) for place in range(2, 5))
    likeliest = all(int(logs[place].argmax()) == piece.tokens[place] for place in range(2, 5))
    (score,), spent = score_pieces(model, [piece], procedure("ar"))
    assert score.nats == pytest.approx(wanted, abs=1e-5) and score.greedy is likeliest
    assert spent.passes == 1 and spent.flops > 0


def test_the_likeliest_text_is_greedy_and_any_other_is_not(model) -> None:
    ids = [2, 5]
    for _ in range(4):
        inputs = torch.tensor([[WORDS.bos_id, *ids]])
        count = inputs.shape[1]
        with torch.no_grad():
            states = model.states(inputs, torch.arange(count)[None], model.plan(Pattern("causal"), count))
            ids.append(int(model.logits(states[0, -1]).argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 7]
    scores, _ = score_pieces(model, [Piece(tuple(ids), 2), Piece(tuple(other), 2)], procedure("ar"))
    assert [score.greedy for score in scores] == [True, False]


@settings(max_examples=15)
@given(pieces=PIECES, name=st.sampled_from(NAMES), seed=st.integers(0, 3))
def test_a_score_depends_on_its_own_text_alone(model, pieces, name, seed) -> None:
    together, _ = score_pieces(model, pieces, procedure(name), seed=seed)
    backwards, _ = score_pieces(model, [*pieces[::-1], *pieces], procedure(name), seed=seed)
    for index, piece in enumerate(pieces):
        (alone,), _ = score_pieces(model, [piece], procedure(name), seed=seed)
        for score in (together[index], backwards[len(pieces) - 1 - index], backwards[len(pieces) + index]):
            assert score.nats == pytest.approx(alone.nats, abs=1e-5)
            assert score.greedy == alone.greedy


def test_equal_requests_are_computed_once(model) -> None:
    one, spent = score_pieces(model, [Piece((1, 2, 3), 1)], procedure("nelbo"))
    many, again = score_pieces(model, [Piece((1, 2, 3), 1)] * 5, procedure("nelbo"))
    assert many == one * 5 and again == spent


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_one_token_share_the_passes_of_their_context(model, name) -> None:
    """Four letters behind a question cost what one letter costs, and each has the score that it has alone."""
    letters = [Piece((1, 2, 3, token), 3, f"{token}") for token in range(6)]
    others = [Piece((4, token), 1) for token in range(2)] + [Piece((token,), 0) for token in range(3)]
    together, spent = score_pieces(model, [*letters, *others], procedure(name))
    alone = [score_pieces(model, [piece], procedure(name)) for piece in (*letters, *others)]
    assert [score.nats for score in together] == pytest.approx([score.nats for (score,), _ in alone], abs=1e-5)
    assert [score.greedy for score in together] == [score.greedy for (score,), _ in alone]
    assert spent.passes == 3 and alone[0][1].passes == 1
    assert alone[0][1].flops < spent.flops < sum(price.flops for _, price in alone)
    assert sum(np.exp(-score.nats) for score in together[:6]) < 1


class Request:
    """What is read of a request of lm-evaluation-harness."""

    def __init__(self, document: int | None, *args: str) -> None:
        self.task_name, self.doc_id, self.args = "task", document, args


def test_choices_of_one_document_share_their_draws_and_documents_do_not() -> None:
    asked = [
        Request(0, "a", "b"),
        Request(0, "a", "c"),
        Request(1, "a", "b"),
        Request(1, "x", "c"),
        Request(2, "a", "b"),
    ]
    names = shared_draws(asked)
    assert names[0] == names[1] != names[2] == names[3] != "" == names[4]
    moved = [Request(7, *request.args) for request in asked[1::-1]]
    assert shared_draws(moved) == names[:2], "neither the number of a document nor the order of its choices counts"
    assert shared_draws([Request(None, "a", "b"), Request(None, "a", "c")]) == ["", ""]


@pytest.mark.parametrize("name", ["nelbo", "nelbo(4)", "order(random)"])
def test_shared_draws_leave_the_mean_and_make_differences_less_noisy(model, name) -> None:
    """Two texts that differ in one prompt token, as the two choices of WinoGrande do."""
    texts = [(1, 2, 3, 4, 5, 0, 1), (6, 2, 3, 4, 5, 0, 1)]
    how, repeats = procedure_of(name, draws=2, positions=2), 300
    scores = {}
    for shared in (False, True):
        names = [(f"{number}", f"{number}" if shared else f"{number}'") for number in range(repeats)]
        pieces = [Piece(text, 1, name) for pair in names for text, name in zip(texts, pair, strict=True)]
        found, _ = score_pieces(model, pieces, how)
        scores[shared] = np.array([score.nats for score in found]).reshape(repeats, 2)
    apart, together = (scores[shared][:, 0] - scores[shared][:, 1] for shared in (False, True))
    error = np.sqrt((apart.var(ddof=1) + together.var(ddof=1)) / repeats)
    assert abs(apart.mean() - together.mean()) < 4 * error
    assert together.var() < 0.8 * apart.var()


def test_windows_of_one_long_ending_do_not_share_their_draws() -> None:
    made = continuation_pieces([1], [5] * 20, 8, draws="x")
    assert [piece.draws for piece in made.pieces] == ["x/0", "x/1", "x/2"]


def test_texts_without_random_numbers_are_computed_once_whatever_their_names(model) -> None:
    pieces = [Piece((1, 2, 3), 1, name) for name in "abc"]
    assert [score_pieces(model, pieces, procedure(name))[1].passes for name in ("ar", "order(confidence)")] == [1, 2]
    assert score_pieces(model, pieces, procedure("nelbo"))[1].passes == 9


def test_draws_differ_between_seeds_texts_and_borders(model) -> None:
    piece = Piece((1, 2, 3, 4, 5, 6, 0), 1)
    nats = {seed: score_pieces(model, [piece], procedure("nelbo"), seed=seed)[0][0].nats for seed in range(4)}
    assert len(set(nats.values())) == 4
    (exact,), _ = score_pieces(model, [piece], procedure("ar"), seed=0)
    (same,), _ = score_pieces(model, [piece], procedure("ar"), seed=1)
    assert exact.nats == same.nats


def test_greedy_is_known_where_it_is_defined_and_nowhere_else(model) -> None:
    short, long = Piece((1, 2, 3, 4), 2), Piece((1, 2, 3, 4, 5), 1)
    known = {
        name: [score.greedy is None for score in score_pieces(model, [short, long], procedure(name))[0]]
        for name in NAMES
    }
    assert known["nelbo"] == known["nelbo(4)"] == [True, True]
    # With two positions a continuation of two tokens is scored whole and one of four is not.
    assert known["l2r"] == [False, True]
    assert all(known[name] == [False, False] for name in NAMES if name not in ("l2r", "nelbo", "nelbo(4)"))


def test_a_bound_of_one_token_needs_one_draw(model) -> None:
    piece = Piece((1, 2, 3, 4), 3)
    (score,), spent = score_pieces(model, [piece], procedure("nelbo"))
    all_draws, _ = window_scores(model, _windows([piece], WINDOW, 0), procedure("nelbo"))
    assert spent.passes == 1 and score.nats == pytest.approx(all_draws[0], abs=1e-5)
    # There is one way to hide one token, so the bound is the exact score of any order.
    (exact,), _ = score_pieces(model, [piece], procedure("order(confidence)"))
    assert score.nats == pytest.approx(exact.nats, abs=1e-5)


@pytest.mark.parametrize("name", ["ar", "nelbo(2)", "nelbo(4)", "block(1)", "block(2)", "block(4, random)"])
@pytest.mark.parametrize("length", [1, 3, 4, 5])
def test_a_narrow_window_gives_the_score_of_the_whole_one(model, name, length) -> None:
    tokens = tuple((3 * place + 1) % 7 for place in range(length))
    assert window_width(procedure(name), length, WINDOW) < WINDOW or length > 4
    (score,), _ = score_pieces(model, [Piece(tokens, 0)], procedure(name))
    nats_W, greedy_W = window_scores(model, _windows([Piece(tokens, 0)], WINDOW, 0), procedure(name))
    assert score.nats == pytest.approx(nats_W[0], abs=1e-5)
    assert score.greedy == (None if greedy_W is None else greedy_W[0])


@pytest.mark.parametrize("name", ["l2r", "nelbo", "order(confidence)"])
def test_full_attention_sees_the_whole_window(name) -> None:
    assert window_width(procedure(name), 3, WINDOW) == WINDOW


def test_a_long_context_is_cut_from_the_left() -> None:
    made = continuation_pieces(range(10), [20, 21, 22], 8)
    assert made.pieces == (Piece((5, 6, 7, 8, 9, 20, 21, 22), 5),) and made.cut_tokens == 5
    assert continuation_pieces(range(5), [20, 21, 22], 8).cut_tokens == 0
    assert continuation_pieces([1], range(8), 8).pieces == (Piece(tuple(range(8)), 0),)
    assert continuation_pieces([1], range(8), 8).cut_tokens == 1


def test_a_long_continuation_is_cut_into_disjoint_windows() -> None:
    made = continuation_pieces([1, 2], range(10, 29), 8)
    assert [piece.tokens for piece in made.pieces] == [tuple(range(10, 18)), tuple(range(18, 26)), (26, 27, 28)]
    assert all(piece.start == 0 for piece in made.pieces) and made.cut_tokens == 2


def test_empty_continuations_and_texts_have_no_window() -> None:
    assert continuation_pieces([1, 2], [], 8).pieces == () == text_pieces([], 8).pieces
    assert continuation_pieces([], [1], 8).pieces == (Piece((1,), 0),)


@settings(max_examples=20)
@given(
    tokens=st.lists(st.integers(0, 6), min_size=9, max_size=30), name=st.sampled_from(["ar", "order(left_to_right)"])
)
def test_a_text_is_scored_in_the_windows_of_held_out_text(model, tokens, name) -> None:
    scores, _ = score_pieces(model, text_pieces(tokens, WINDOW).pieces, procedure(name))
    windows = cut([np.array(tokens)], np.ones_like, WINDOW, None, "x")
    wanted = window_nats(model, windows, procedure(name))
    assert [score.nats for score in scores] == pytest.approx(wanted.tolist(), abs=1e-5)


TEXTS = st.text(st.sampled_from("ab \n.é"), max_size=12)


@given(context=TEXTS, continuation=TEXTS)
def test_a_pair_is_cut_where_its_text_is_cut(context, continuation) -> None:
    encode = Bytes().fit([]).encode
    made = encode_pair(encode, context, continuation)
    scored = made.continuation
    assert [*made.context, *scored] == encode(context + continuation).tolist() and made.aligned
    if context.strip() and continuation:
        assert len(scored) == scored_bytes(context, continuation)
    assert bool(scored) == bool(continuation) == bool(scored_bytes(context, continuation))


def test_a_piece_across_the_border_counts_as_continuation() -> None:
    tokenizer = Bpe(300).fit(["abab abab abab abab"] * 9)
    assert len(tokenizer.encode("abab")) == len(tokenizer.encode("ab")) == 1
    made = encode_pair(tokenizer.encode, "ab", "ab")
    assert made == Encoded([], tokenizer.encode("abab").tolist(), aligned=False)
    assert encode_pair(tokenizer.encode, "ab", " ab").aligned


def test_bytes_are_those_of_the_scored_tokens(shared_data) -> None:
    path = shared_data / "evals" / "hellaswag" / "hellaswag_val.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[:200]]
    tokenizer = Bpe(512).fit(row["ctx"] for row in rows)
    for row in rows:
        for context, ending in [(row["ctx"], " " + row["endings"][0]), (row["ctx_a"] + " ", row["ctx_b"] + "x")]:
            made = encode_pair(tokenizer.encode, context, ending)
            scored = made.continuation
            assert made.aligned and tokenizer.token_bytes_V[scored].sum() == scored_bytes(context, ending)
