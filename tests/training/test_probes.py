"""Probes: the numbers are those of a direct computation, and training does not notice that they were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from crossover.errors import DataError, RecipeError
from crossover.objectives.masked import Masked
from crossover.registry import component_of
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import procedure_of
from crossover.training.probes import prober as probers
from crossover.training.probes.bench import modes_of_target, undisturbed
from crossover.training.probes.clip import ClipProbe, clip_windows
from crossover.training.probes.gradients import GradientProbe
from crossover.training.probes.losses import LossProbe
from crossover.training.probes.prober import Prober
from probing import GEARS, MIX, at, held_out, make, probe_of, trained

PLENTY = 1e18


@pytest.fixture
def shop(workshop: Callable[..., Any]) -> Any:
    """A run whose training text ends before the control part, after a few steps."""
    return trained(held_out(workshop(controller=MIX, model__residual_dropout=0.1)))


def rounds(prober: Prober, turns: int, turn: Any = None, tokens: int = 0, stride: int = 10**9) -> tuple[list, Any]:
    """Take so many turns, far apart."""
    rows, turn = [], turn or {}
    for index in range(turns):
        more, turn, _ = prober.take(turn, PLENTY, {"step": index, "data_tokens": tokens + index * stride, "mix": GEARS})
        rows += more
    return rows, turn


# --- losses ----------------------------------------------------------------------------------------------------------


def test_units_add_up_to_the_card_of_the_same_windows(shop):
    probe = probe_of(make(shop), LossProbe)
    row = probe.measure(at(0, {}))
    assert list(row["control"]) == ["ar", "nelbo"] == list(row["train"])
    tokens = np.array(row["unit_tokens"])
    for mode, values in row["control"].items():
        card = score(shop.model, probe.control, procedure_of(mode, draws=2, positions=4))
        assert float(np.average(values, weights=tokens)) == pytest.approx(card.loss_nats, rel=1e-12)
    # Common random numbers: the same units in the same state give the same numbers.
    assert probe.measure(at(5, {})) == row


def test_control_units_are_held_out_and_train_units_are_not(shop):
    probe = probe_of(make(shop), LossProbe)
    train = shop.stepper.loader.tokens_U.tobytes()
    whole = np.asarray(shop.text.train_tokens(with_control=True))[len(shop.stepper.loader.tokens_U) :].tobytes()
    kind = shop.stepper.loader.tokens_U.dtype

    def pieces(windows: Any) -> list[bytes]:
        return [row[:n].astype(kind).tobytes() for row, n in zip(windows.tokens_WT, windows.lengths_W, strict=True)]

    assert len(probe.train) == len(probe.control)
    assert all(piece in whole for piece in pieces(probe.control))
    assert all(piece in train for piece in pieces(probe.train))


def test_modes_follow_the_target_and_the_gears():
    assert modes_of_target("ar", GEARS, 32) == {"ar": "ar"}
    assert modes_of_target("best", GEARS, 32) == {"ar": "ar", "nelbo": "nelbo"}
    assert modes_of_target("l2r", GEARS, 32) == {"l2r": "l2r"}
    blocks = ("autoregressive", "block(4)", "block(16)")
    assert modes_of_target("best", blocks, 32) == {"ar": "ar", "nelbo": "nelbo(16)"}
    assert modes_of_target("best", ("masked",), 32) == {"nelbo": "nelbo"}
    with pytest.raises(RecipeError, match=r"controller\.target"):
        modes_of_target("l2r", blocks, 32)


def test_the_bound_of_the_largest_block_stands_for_one_that_no_gear_has(shop):
    gears = ("autoregressive", "block(4)", "block(8)")
    prober = make(shop, target="nelbo", gears=gears)
    row = probe_of(prober, LossProbe).measure(at(0, {}))
    assert list(row["control"]) == ["nelbo"]
    gradient = probe_of(prober, GradientProbe, "block(4)")
    target, objective = gradient._target({})
    assert target == "nelbo" and objective == component_of("objective", "block(8)")


def test_too_little_control_text_is_known_before_training(workshop):
    shop = held_out(workshop(controller=MIX))
    shop = replace(shop, text=replace(shop.text, manifest={**shop.text.manifest, "control_offset": 10**9}))
    with pytest.raises(DataError, match=r"data\.control_share"):
        make(shop)


# --- clip windows ----------------------------------------------------------------------------------------------------


def test_clip_windows_cover_the_grid():
    windows = clip_windows()
    assert windows[0] == (0.0, 1.0) and len(set(windows)) == len(windows) == 21
    assert all(0 <= beta < omega <= 1 for beta, omega in windows)
    assert {round(omega - beta, 6) for beta, omega in windows} == {0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


def test_the_variance_of_a_clip_window_is_that_of_its_blocks(shop):
    probe = probe_of(make(shop), ClipProbe, "block(8)")
    row = probe.measure(at(0, {}))
    assert row["windows"][0] == [0.0, 1.0] and len(row["variance"]) == 21
    assert row["variance"] == probe.measure(at(9, {}))["variance"]
    assert row["variance"][3] == float(probe.nats_K(*row["windows"][3]).var(ddof=1))
    # Small rates weigh 1/t: the whole range varies more than its upper half.
    upper = row["windows"].index([0.5, 1.0])
    assert row["variance"][0] > row["variance"][upper] > 0


def test_the_weighted_loss_of_blocks_is_a_bound_by_the_same_masks_as_training(shop):
    """Over all blocks, the mean of the weighted loss is near ln V for a model that has learnt nothing."""
    with torch.no_grad():
        for parameter in shop.model.parameters():
            parameter.zero_()
    probe = probe_of(make(shop), ClipProbe, "block(8)")
    u_K, r_KS = probe._draws
    hidden = r_KS < u_K[:, None]
    expected = np.log(shop.text.vocabulary.predictable) * hidden.sum(1) / (8 * u_K)
    assert probe.nats_K(0.0, 1.0) == pytest.approx(expected, rel=1e-5)


# --- prices ----------------------------------------------------------------------------------------------------------


def test_a_row_costs_what_was_said_before(shop):
    prober = make(shop)
    for probe in (*prober.cycle, *prober.clips):
        price = probe.cost(at())
        name = {"step": 0, "data_tokens": 0, "mix": GEARS}
        one = replace(prober, cycle=(probe,), clips=(), novelty=None)
        rows, turn, spent = one.take({}, price, name)
        assert [row["flops"] for row in rows] == [spent] == [price] and turn["number"] == 1
        rows, turn, spent = one.take({}, price * (1 - 1e-9), name)
        assert rows == [] and spent == 0.0 and turn["number"] == 0


def test_a_gradient_row_costs_the_training_price_of_its_tokens(shop):
    prober = make(shop, target="ar")
    per_token = {probe.gear: probe.bench.flops_per_token[probe.gear] for probe in prober.cycle if probe.kind != "loss"}
    masked = probe_of(prober, GradientProbe, "masked")
    tokens = masked.windows * 32
    control = masked.control_windows * 32 * per_token["autoregressive"]
    assert masked.cost(at()) == pytest.approx(5 * tokens * per_token["masked"] + control)
    # Nothing is random in next-token prediction, so its second draw is neither made nor charged.
    plain = probe_of(prober, GradientProbe, "autoregressive")
    assert plain.cost(at()) == pytest.approx(4 * tokens * per_token["autoregressive"] + control)
    assert 4 * masked.windows * 32 <= shop.recipe.training.batch_tokens


# --- turns -----------------------------------------------------------------------------------------------------------


def named(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['probe']} {row['gear']}" if "gear" in row else row["probe"] for row in rows]


def test_probes_go_round(shop):
    rows, turn = rounds(make(shop), 11)
    probes = [row for row in rows if row["probe"] != "novelty"]
    assert named(probes) == [
        *("loss", "loss", "gradient autoregressive", "loss", "loss", "gradient block(8)", "loss", "clip block(8)"),
        *("loss", "gradient masked", "loss"),
    ]
    # One loss in six is whole; the others are control text alone.
    assert ["train" in row for row in probes if row["probe"] == "loss"] == [True, *[False] * 5, True]
    assert len(rows) == 2 * len(probes), "novelty comes with every row that is so far from the last"
    assert turn["number"] == 11 and set(turn["losses"]) == {"ar", "nelbo"}


def test_a_loss_is_not_measured_twice_within_a_quarter_of_an_epoch(shop):
    prober = make(shop, kinds=frozenset({"loss"}))
    epoch = len(shop.stepper.loader.tokens_U)
    _, turn, spent = prober.take({}, PLENTY, {"step": 0, "data_tokens": 1000, "mix": GEARS})
    assert spent > 0
    early = {"step": 1, "data_tokens": 1000 + epoch // 4 - 1, "mix": GEARS}
    assert prober.take(turn, PLENTY, early) == ([], turn, 0.0)
    assert prober.take(turn, PLENTY, {"step": 2, "data_tokens": 1001 + epoch // 4, "mix": GEARS})[2] > 0


def test_novelty_alone_comes_every_half_epoch_and_costs_nothing(shop):
    prober = make(shop, kinds=frozenset({"novelty"}))
    epoch, turn, seen = len(shop.stepper.loader.tokens_U), {}, []
    for tokens in range(0, 4 * epoch, epoch // 8):
        rows, turn, spent = prober.take(turn, 0.0, {"step": 0, "data_tokens": tokens, "mix": GEARS})
        seen += rows
        assert spent == 0.0
    assert 5 <= len(seen) <= 8 and all(row["probe"] == "novelty" and row["flops"] == 0 for row in seen)


def test_what_nobody_asks_for_is_not_measured(shop):
    prober = make(shop, kinds=frozenset())
    prober.observe(0, ("masked",) * 4)
    assert rounds(prober, 3)[0] == [] and prober.tensors() == {}
    with pytest.raises(RecipeError, match="curvatur"):
        make(shop, kinds=frozenset({"curvatur"}))


# --- training does not notice ----------------------------------------------------------------------------------------


def weights(shop: Any) -> list[torch.Tensor]:
    state = [value for optimizer in shop.stepper.optimizers for value in optimizer.state.values()]
    tensors = [*shop.model.parameters(), *(item for values in state for item in values.values())]
    return [tensor.detach().clone() for tensor in tensors]


def test_a_run_with_probes_has_the_weights_of_one_without(workshop):
    runs = []
    for probed in (False, True):
        shop = held_out(workshop(controller=MIX, model__residual_dropout=0.1, model__attention_dropout=0.1))
        prober, turn = make(shop), {}
        for step in range(12):
            kinds = ("autoregressive", "masked") * 2
            shop.stepper.run(step, kinds, 1.0)
            if probed:
                prober.observe(step, kinds)
                _, turn, spent = prober.take(
                    turn, PLENTY, {"step": step + 1, "data_tokens": (step + 1) * 10**6, "mix": GEARS}
                )
                assert spent > 0
        runs.append(weights(shop))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_a_probe_leaves_no_trace(shop):
    shop.model.train()
    torch.manual_seed(5)
    before, numbers, pieces = weights(shop), torch.get_rng_state(), shop.model.pieces
    rounds(make(shop), 9)
    assert all(torch.equal(*pair) for pair in zip(before, weights(shop), strict=True))
    assert torch.equal(numbers, torch.get_rng_state())
    assert shop.model.training and all(module.training for module in shop.model.modules())
    assert shop.model.pieces is pieces and all(parameter.grad is None for parameter in shop.model.parameters())


def test_gradients_that_were_there_are_put_back(shop):
    kept = torch.ones(())
    parameter = next(shop.model.parameters())
    parameter.grad = kept.expand_as(parameter).clone()
    with pytest.raises(ZeroDivisionError), undisturbed(shop.model):
        assert parameter.grad is None and not shop.model.training
        raise ZeroDivisionError
    assert parameter.grad is not None and torch.equal(parameter.grad, torch.ones_like(parameter))
    parameter.grad = None


def test_probes_go_on_after_a_checkpoint_as_if_nothing_had_happened(shop):
    kinds = ("autoregressive", "masked") * 2

    def go(prober: Prober, turn: Any, steps: range) -> tuple[list, Any]:
        rows = []
        for step in steps:
            prober.observe(step, kinds)
            more, turn, _ = prober.take(turn, PLENTY, {"step": step, "data_tokens": step * 1000, "mix": GEARS})
            rows += [{**row, "seconds_spent": 0} for row in more]
        return rows, turn

    whole, last = go(make(shop), {}, range(20))
    first = make(shop)
    rows, turn = go(first, {}, range(9))
    tensors = {name: value.clone() for name, value in first.tensors().items()}
    second = make(shop)
    second.restore(tensors)
    more, end = go(second, turn, range(9, 20))
    assert rows + more == whole and end == last
    assert {"loss", "gradient", "novelty", "clip"} == {row["probe"] for row in whole}


def test_the_suffix_objective_stands_for_left_to_right(shop):
    _, objective = probe_of(make(shop, target="l2r"), GradientProbe, "masked")._target({})
    assert objective == Masked(suffix_share=1.0)
    assert probers.CLIP_TURNS == 8
