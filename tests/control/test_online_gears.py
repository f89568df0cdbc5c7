"""The online controller's choices: which gear, whether it paid, which share, how it is written down."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from crossover.control.controllers.rules import StaticDual
from crossover.control.signals.fold import fold_of
from crossover.control.signals.scene import Scene
from crossover.errors import RecipeError
from crossover.recipe import resolve, to_tree
from crossover.records import Mix, Progress, Reading
from crossover.registry import component_of, dump
from planted import AR, PRICES, UNIQUE, Readings, aligned, drive, losses, moves, online

SIGNALS = ("coverage", "variance", "curvature", "alignment", "gap")
MIXED = Mix((("masked", 0.75), ("autoregressive", 0.25)))
EAGER = {"autoregressive": 2.0, "masked": 1.0}


def novel(**shares: float) -> Callable[[Progress], Readings]:
    return lambda progress: {f"coverage.novelty:{gear}": Reading(share, 0, True) for gear, share in shares.items()}


# ---- which gear


@pytest.mark.parametrize(
    ("masked", "block", "wanted"),
    [
        (0.3, 0.9, "masked"),  # both clear the floor of 0.2: masked is cheaper
        (0.1, 0.3, "block(16)"),  # one alone clears it
        (0.09, 0.1, "masked"),  # none: 0.1 of novelty per unit of FLOPs against 0.056
        (0.04, 0.1, "block(16)"),  # none: 0.044 against 0.056
    ],
)
def test_the_cheapest_gear_with_something_new_else_the_most_novelty_per_flop(masked, block, wanted) -> None:
    readings = novel(**{"masked": masked, "block(16)": block})
    controller = online(gears=("block(16)", "masked"), planted={"novelty_floor": 0.2, "most_ar_exposures": 4.0})
    details = moves(drive(controller, readings))[0].decision.details
    assert details["gear"] == wanted
    rows = {row["gear"]: row for row in details["alternatives"]}
    assert rows["masked"]["novelty"] == masked and rows["block(16)"]["clears_floor"] == (block >= 0.2)
    assert rows["autoregressive"]["stays"] and rows["masked"]["flops_per_token"] == PRICES["masked"]


def test_gears_in_the_order_of_the_list_and_where_nothing_is_known_of_them() -> None:
    new = novel(**{"masked": 0.9, "block(16)": 0.9})
    short = {"gears": ("block(16)", "masked"), "planted": {"most_ar_exposures": 4.0}}
    assert moves(drive(online(**short, choice="listed"), new))[0].decision.details["gear"] == "block(16)"
    assert moves(drive(online(**short)))[0].decision.details["gear"] == "block(16)"


@pytest.mark.parametrize("choice", ["listed", "novelty"])
def test_a_gear_that_has_seen_the_text_often_enough_is_left_for_good(choice: str) -> None:
    gears = ("block(16)", "masked", "autoregressive(0.15)")
    controller = online(gears=gears, choice=choice, gear_epochs=6.0, planted={"most_ar_exposures": 4.0})
    asked = drive(controller)
    assert [item.decision.details["gear"] for item in moves(asked)] == ["block(16)", "masked"]
    assert "block(16) has seen the text 6.1 times, its most" in moves(asked)[1].decision.reason


@pytest.mark.parametrize("share", [0.6, 0.5, 0.3])
def test_a_mix_that_uses_its_text_up_gives_half_of_its_next_token_share_away(share: float) -> None:
    mix = Mix((("autoregressive", share), ("masked", 1 - share)))
    asked = drive(online(start=mix, rebalance=False, retreat=False), losses(lambda count: 1.0), planned=20)
    assert moves(asked)[0].decision.details["to"]["autoregressive"] == pytest.approx(share / 2)
    shares = [item.share for item in asked]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(shares)) and shares[-1] >= 1 / 64


def test_a_shift_to_the_mix_that_holds_is_no_shift() -> None:
    least = Mix((("masked", 63 / 64), ("autoregressive", 1 / 64)))
    asked = drive(online(start=least, rebalance=False), losses(lambda count: 1.0), planned=20)
    assert not moves(asked) and not any(item.decision.mark for item in asked)


def test_a_fall_of_the_share_that_did_not_pay_is_not_made_again_as_a_cap() -> None:
    worse = losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 33 else 4.1)
    even = Mix((("autoregressive", 0.5), ("masked", 0.5)))
    asked = drive(online(start=even, rebalance=False), worse)
    assert [item.decision.mark for item in moves(asked)] == ["keep", "back"]
    assert asked[-1].decision.mix == even and asked[-1].progress.autoregressive_epochs > 17


# ---- what it starts with


@pytest.mark.parametrize("flops", [True, False])
@pytest.mark.parametrize(
    ("planned", "exponent", "share"), [(12, 0.5, 1), (16, 0.5, 1), (64, 0.5, 0.5), (64, 1.0, 0.25)]
)
def test_the_start_follows_the_horizon(planned: float, exponent: float, share: float, flops: bool) -> None:
    asked = drive(online(start=None, start_exponent=exponent), planned=planned, flops=flops)
    mix = asked[0].decision.mix
    repeats = asked[0].progress.epochs_under(mix)
    assert mix.share("autoregressive") == pytest.approx(min(1, (16 / repeats) ** exponent))
    assert mix.share("autoregressive") == pytest.approx(share, abs=0.03 if flops else 1e-9)
    # What the start plans is within the cap: without readings nothing moves before the decay.
    assert not moves(asked) and len({item.decision.mix for item in asked}) == 1
    blocks = online(start=None, gears=("block(4)", "masked", "autoregressive(0.15)"), start_exponent=exponent)
    assert drive(blocks, planned=planned, flops=flops)[0].decision.mix == mix, (
        "shared with the last that is another gear"
    )
    same = StaticDual().decide({}, {}, asked[0].progress)[1].mix
    if exponent == 1:
        assert mix.share("autoregressive") == same.share("autoregressive")


# ---- whether it paid


@pytest.mark.parametrize("flops", [True, False])
@pytest.mark.parametrize("gear", ["masked", "block(4)"])
def test_a_gear_that_does_not_pay_is_taken_back_after_a_quarter_of_what_was_left(gear: str, flops: bool) -> None:
    worse = losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 17 else 4.1)
    asked = drive(online(gears=(gear,)), worse, flops=flops)
    keep, back = (next(item for item in asked if item.decision.mark == mark) for mark in ("keep", "back"))
    assert moves(asked) == [keep, back], "refused afterwards, although the reason for the shift still holds"
    assert back.decision.to_step == keep.progress.step > 0
    assert back.decision.mix == AR == asked[-1].decision.mix and back.state["refused"] == [gear]
    assert "does not pay: 4.100 nats in sight, 4.000 at the shift" in back.decision.reason
    waited = back.progress.budget_fraction - keep.progress.budget_fraction
    # Within an epoch: the ramp's tokens have another price than those after it.
    assert waited == pytest.approx((0.75 - keep.progress.budget_fraction) / 4, abs=1.8 / 60)


def test_a_gear_that_pays_is_noted_once_and_kept() -> None:
    better = losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 5 else 3.9)
    asked = drive(online(planted={"most_ar_exposures": 4.0}), better)
    assert [item.decision.mark for item in asked if item.decision.mark] == ["keep", "note"]
    assert asked[-1].decision.mix.share("masked") > 0.98


def test_a_falling_loss_is_followed_to_the_end_of_the_plateau() -> None:
    def falling(progress: Progress) -> Readings:
        found = losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 5 else 4.1)(progress)
        return found | ({"curvature.slope:ar": Reading(-0.2, 0.01, True)} if progress.epochs > 5 else {})

    asked = drive(online(planted={"most_ar_exposures": 4.0}), falling)
    note = next(item for item in asked if item.decision.mark == "note")
    projected = 4.1 - 0.2 * np.log(45 / note.progress.epochs)
    assert f"{projected:.3f} nats in sight" in note.decision.reason


@pytest.mark.parametrize("settings", [{"retreat": False}, {"target": "nelbo"}])
def test_nothing_is_taken_back_where_that_is_off_or_the_loss_is_unknown(settings: dict[str, Any]) -> None:
    worse = losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 5 else 4.1)
    asked = drive(online(planted={"most_ar_exposures": 4.0}, **settings), worse)
    assert not any(item.decision.mark for item in asked) and len(moves(asked)) == 1


def test_a_share_that_moves_does_not_cancel_the_judgement_of_the_gear() -> None:
    def readings_at(progress: Progress) -> Readings:
        values = aligned(lambda at: {"autoregressive": 1.0, "masked": 3.0 if at < 7 else 0.1})(progress)
        return values | losses(lambda count: 0.2, loss=lambda count: 4.0 if count < 3 else 4.1)(progress)

    asked = drive(online(remainder="floor"), readings_at)
    told = [item.decision.reason for item in moves(asked)]
    assert any("autoregressive's gradient leads" in reason for reason in told)
    assert [item.decision.mark for item in asked if item.decision.mark] == ["keep", "back"]


# ---- which share


def test_the_share_follows_the_leader_within_floor_and_half() -> None:
    up = drive(online(start=MIXED), aligned(lambda at: EAGER), planned=20)
    assert [item.share for item in up[-3:]] == [0.5] * 3 and len(moves(up)) == 1
    assert "autoregressive's gradient leads per FLOP in 2 probes: moving to" in moves(up)[0].decision.reason
    down = drive(online(start=MIXED), aligned(lambda at: {"autoregressive": 1.0, "masked": 2.0}))
    targets = [item.decision.details["to"]["autoregressive"] for item in moves(down)]
    assert targets == pytest.approx([1 / 8, 1 / 16, 1 / 32, 1 / 64]) and down[-1].share == pytest.approx(1 / 64)
    assert not moves(drive(online(start=MIXED, rebalance=False), aligned(lambda at: EAGER)))


@pytest.mark.parametrize(("cap", "when"), [(18.0, None), (26.0, 16.0), (32.0, 2.0)])
def test_the_share_rises_once_the_cap_has_room_for_it_until_the_end(cap: float, when: float | None) -> None:
    """At epoch t of 60 a quarter of t is spent, and half of what is left would be."""
    asked = drive(online(start=MIXED, planted={"most_ar_exposures": cap}), aligned(lambda at: EAGER))
    assert [item.progress.epochs for item in moves(asked)] == ([] if when is None else [when])


@pytest.mark.parametrize(("share", "leader"), [(0.75, "autoregressive"), (0.005, "masked")])
def test_a_leader_does_not_lose_share_because_the_start_lies_outside_the_range(share: float, leader: str) -> None:
    start = Mix((("autoregressive", share), ("masked", 1 - share)))
    values = {"autoregressive": 1.0, "masked": 1.0, leader: 2.0}
    assert not moves(drive(online(start=start), aligned(lambda at: values), planned=10))


# ---- worn text


def test_a_worn_objective_stands_in_once_half_of_the_exposures_are_spent() -> None:
    asked = drive(online(worn="autoregressive(0.15)", gears=("autoregressive(0.15)", "masked"), choice="listed"),
                  losses(lambda count: 0.95), planned=40)  # fmt: skip
    for item in asked:
        worn = item.progress.autoregressive_epochs >= 8
        assert item.decision.mix.share("autoregressive") == 0 if worn else True
    assert {item.decision.mix.shares[0][0] for item in asked} == {"autoregressive", "autoregressive(0.15)", "masked"}


def test_dropout_rises_with_the_exposures_and_stays_at_its_end() -> None:
    asked = drive(online(worn_dropout=0.3, planted={"most_ar_exposures": 8.0}), residual_dropout=0.1)[1:]
    rates = [item.decision.residual_dropout or 0.0 for item in asked]
    assert rates == sorted(rates) and rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.3)
    assert len(set(rates)) <= 21
    assert all(item.decision.residual_dropout is None for item in drive(online(), planned=4))


# ---- what is left without a signal


def rows_of(epoch: int) -> list[dict[str, Any]]:
    """An epoch's probes: next-token loss is lowest at 6 epochs, masked training's gradient leads from the 12th on."""
    clock = {"data_tokens": epoch * UNIQUE, "step": epoch}
    units = 4 + 0.1 * np.cos(np.arange(8))
    ar = units + 0.3 * np.log(epoch / 6) ** 2 + 0.001 * np.sin(7 * epoch + np.arange(8))
    control = {"ar": ar.tolist(), "nelbo": (units + 2 - 0.2 * np.log(epoch)).tolist()}
    train = {mode: (np.array(values) - 0.01 * epoch).tolist() for mode, values in control.items()}
    units_of = {"units": [f"w{unit}" for unit in range(8)], "unit_tokens": [64] * 8}
    found = [{**clock, "probe": "loss", **units_of, "control": control, "train": train}]
    for gear in ("autoregressive", "masked"):
        lead = 3.0 if gear == "masked" and epoch >= 12 else 1.0
        along = [lead * PRICES[gear] * part for part in (0.95, 1.0, 1.05, 1.0)]
        numbers = {"norm2_M": [2.0, 2.1, 1.9, 2.0], "mean_norm2": 1.0, "control_norm2": 1.0, "along_M": along}
        more = {"target": "ar", "parts": 4, "part_tokens": 64, "mask_half_distance2": None, "pair_tokens": 0}
        found.append({**clock, "probe": "gradient", "gear": gear, "flops_per_token": PRICES[gear], **numbers, **more})
    return [*found, {**clock, "probe": "novelty", "seen_K": [0.1] * 16, "new": 10.0, "exposures": 90.0}]


@pytest.mark.parametrize("signals", [SIGNALS, *(SIGNALS[:out] + SIGNALS[out + 1 :] for out in range(5)), ()])
def test_it_works_with_the_signals_that_are_left(signals: tuple[str, ...]) -> None:
    controller = online(signals=signals)
    fold, state, told = fold_of(controller.watching.signals), {}, {0: {}}

    def readings_at(progress: Progress) -> Readings:
        nonlocal state
        epoch = int(progress.epochs)
        if epoch not in told:
            for row in rows_of(epoch):
                state = json.loads(json.dumps(fold.update(state, row)))
            told[epoch] = fold.readings(state, Scene(128, UNIQUE, controller.watching.gears, PRICES, AR))
        return told[epoch]

    shift, *_ = moves(drive(controller, readings_at, planned=30.0))
    evidence = shift.decision.details["evidence"]
    if "curvature" in signals:
        assert evidence == ["curvature"] and 6 < shift.progress.epochs < 12
    elif "alignment" in signals:
        assert evidence == ["alignment"] and shift.progress.epochs == 13
    else:
        assert evidence == ["cap"] and shift.progress.epochs == 16


# ---- how it is written down


def test_a_recipe_with_every_setting_is_read_and_written_alike() -> None:
    written = {
        "name": "online", "start": {"masked": 0.5, "autoregressive": 0.5}, "gears": ["block(16)", "masked"],
        "target": "nelbo", "signals": ["gap", "curvature"], "choice": "listed", "handover": "blocks",
        "ramp_blocks": [2, 8], "worn": "autoregressive(0.15)", "worn_dropout": 0.3, "retreat_epochs": 2,
        "thresholds": {"slope_delta_nats": 0.05, "gap_nats": 0.5},
    }  # fmt: skip
    recipe = resolve({"controller": written})
    assert resolve(json.loads(json.dumps(to_tree(recipe)))) == recipe
    assert component_of("controller", json.loads(json.dumps(dump(recipe.controller)))) == recipe.controller
    assert recipe.controller.watching.signals == ("gap", "curvature(delta=0.05)"), "the threshold reaches the signal"
    assert recipe.controller.watching.gears == ("masked", "autoregressive", "block(16)")
    blocks = {"block(2)", "block(8)", "autoregressive(0.15)"}
    assert set(recipe.controller.objectives()) == {*recipe.controller.watching.gears, *blocks}


def test_thresholds_come_from_a_file_too(tmp_path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"thresholds": {"most_ar_exposures": 9.0}, "provenance": {}}))
    assert resolve({"controller": {"name": "online", "thresholds": str(path)}}).controller.thresholds == (
        component_of("controller", {"name": "online", "thresholds": str(path)}).thresholds
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"signals": ["curvatur"]}, "controller.signals: no signal called 'curvatur'; did you mean 'curvature'"),
        ({"gears": ["maskd"]}, "controller.gears: no objective called 'maskd'; did you mean 'masked'"),
        ({"gears": []}, "one or more different objectives"),
        ({"gears": ["masked", "masked"]}, "one or more different objectives"),
        ({"target": "arr"}, "controller.target: .*'ar', 'l2r', 'nelbo' or 'best'"),
        ({"worn": "masked"}, r"worn must be a next-token objective such as autoregressive\(0.15\)"),
        ({"ramp_epochs": 0}, "ramp_epochs must be above 0; for a shift at once use handover=hard"),
        ({"handover": "blocks", "ramp_blocks": []}, "ramp_blocks must be block sizes"),
        ({"floor": 0.7}, "controller.floor: .*less than or equal to 0.5"),
        ({"thresholds": {"novelty_floor": 3}}, "controller.thresholds.novelty_floor"),
        ({"thresholds": {"novelty": 3}}, "controller.thresholds.*novelty"),
        ({"thresholds": "missing.json"}, "missing.json: cannot be read"),
        ({"gearz": ["masked"]}, "controller.gearz: no such setting; did you mean 'gears'"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve({"controller": {"name": "online", **setting}})
