"""Costs in closed form are those of the passes that are made, and evaluations keep within their share of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.model.shapes import live_entries
from crossover.scoring.cost import EVALUATION_SHARE, Cost, common_interval, score_flops
from crossover.scoring.procedures import Bound, ChainRule, LeftToRight
from crossover.scoring.unmasking import FIXED, LED, Unmasking
from crossover.scoring.windows import ScoringWindows

PROCEDURES = [ChainRule(), LeftToRight(3), LeftToRight(99), Bound(200), Bound(200, 4), Bound(200, 2, "causal")]
PROCEDURES += [Unmasking(policy, each, block) for policy in FIXED + LED for each in (1, 3) for block in (0, 4)]
PROCEDURES += [Unmasking("margin", block=8), Unmasking("margin", block=1), Unmasking("random", 2, 2, "causal")]


def made_by(procedure, windows, vocabulary):
    """Make the rows as they are run; where the model leads, by what it says about each place."""
    rng = np.random.default_rng(0)
    for rows in procedure.rows(windows, vocabulary):
        if rows.choose is not None:
            rows.choose(rng.uniform(0.5, 1, len(rows.reads_R)), rng.uniform(0, 0.5, len(rows.reads_R)))
        yield rows


@pytest.mark.parametrize("starts", [None, [2, 3, 0, 0, 4, 7, 1]], ids=["whole", "prompts"])
@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda item: f"{item.name} {getattr(item, 'positions', '')}")
def test_work_is_what_the_rows_are(procedure, starts) -> None:
    lengths = np.array([8, 3, 8, 1, 5, 8, 2])
    tokens = np.random.default_rng(0).integers(0, 9, (len(lengths), 8))
    starts = None if starts is None else np.array(starts)
    more = () if starts is None else (starts,)
    windows = ScoringWindows(tokens, lengths, 2 * lengths, np.arange(len(lengths)), *more)
    made = list(made_by(procedure, windows, tiny.vocabulary(9)))
    rows, work = procedure.work(lengths, 8, starts)
    assert rows == sum(len(part.inputs_QN) for part in made)
    assert {part.inputs_QN.shape[1] for part in made} == {work.inputs}
    assert {live_entries(part.pattern, part.inputs_QN.shape[1]) for part in made} == {work.entries}
    reads = sum(len(part.reads_R) for part in made)
    # How many tokens a bound hides is drawn; everything else is exact.
    assert reads == pytest.approx(rows * work.reads, rel=1e-12 if procedure.exact else 0.01)


def test_a_row_per_token_is_the_price_of_an_order_and_a_row_per_place_that_of_blocks() -> None:
    lengths, shape = np.array([64, 64, 10]), tiny.shape()
    assert Unmasking("confidence").work(lengths, 64)[0] == 138
    assert Unmasking("confidence", 4).work(lengths, 64)[0] == 16 + 16 + 3
    assert Unmasking("confidence", block=16).work(lengths, 64)[0] == 16 + 16 + 10
    orders = [score_flops(shape, 3, lengths, 64, name, 32, 99) for name in ("l2r", "order(random)", "order(margin)")]
    assert orders[0] == pytest.approx(orders[1]) and orders[1] < orders[2], "a led order reads all that is hidden"
    prompted = score_flops(shape, 3, lengths, 64, "order(margin)", 32, 99, np.array([60, 60, 6]))
    assert prompted < orders[2] * 12 / 138


def loop(cost: Cost, every: int) -> int:
    """Count the evaluations of a run as its loop takes them: after the first step, at each multiple, after the last."""
    budget, seen, due, count = cost.training_flops / cost.flops_per_token, 0, 0, 0
    while seen < budget:
        seen += cost.batch_tokens
        if seen >= budget or seen >= due:
            due, count = seen // every * every + every, count + 1
    return count


costs = st.builds(
    Cost,
    training_flops=st.floats(1e9, 1e12),
    evaluation_flops=st.floats(1e6, 1e11),
    final_flops=st.just(1e9),
    flops_per_token=st.floats(1e6, 2e6),
    batch_tokens=st.integers(500, 4000),
    train_tokens=st.integers(2000, 60_000),
)


@given(costs)
def test_evaluations_keep_within_their_share_and_come_as_often_as_that_allows(cost: Cost) -> None:
    every = cost.interval_tokens
    assert every % cost.train_tokens == 0

    def share(interval: int) -> float:
        spent = loop(cost, interval) * cost.evaluation_flops
        return spent / (spent + cost.training_flops)

    # Two evaluations, of the beginning and of the result, are the least.
    assert share(every) <= EVALUATION_SHARE + 1e-9 or loop(cost, every) <= 2
    assert share(every) <= cost.evaluation_share(every) + 1e-9
    if every > cost.train_tokens:
        assert cost.evaluation_share(every - cost.train_tokens) > EVALUATION_SHARE - 1e-9


def test_a_budget_of_minutes_is_spaced_without_knowing_its_end() -> None:
    cost = Cost(None, evaluation_flops=5e9, final_flops=1e9, flops_per_token=1e6, batch_tokens=512, train_tokens=10_000)
    epochs = cost.interval_tokens // 10_000
    assert epochs == math.ceil(5e9 / (10_000 * 1e6) * (1 - EVALUATION_SHARE) / EVALUATION_SHARE) == 6
    assert cost.evaluation_share(10_000) is None and cost.total_flops(10_000) == 1e9


def test_runs_share_the_grid_of_the_one_that_can_afford_least() -> None:
    cheap = Cost(1e12, 1e9, 1e9, 1e6, 512, 10_000)
    dear = Cost(1e12, 2e10, 1e9, 1e6, 512, 10_000)
    assert common_interval([cheap, dear]) == dear.interval_tokens > cheap.interval_tokens
    assert dear.total_flops(10_000) > cheap.total_flops(10_000) > cheap.total_flops(20_000) > 1e12
