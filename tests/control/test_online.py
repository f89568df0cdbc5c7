"""The online controller on planted readings: what makes it move, how it moves, and what it never does."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.control.critical import critical_compute_flops
from crossover.records import Mix, Progress, Reading
from planted import AR, ASKS, UNIQUE, Readings, aligned, drive, losses, moves, online

# ---- when it stays


def test_with_too_few_epochs_for_repetition_it_stays_and_says_so() -> None:
    asked = drive(online(), losses(lambda count: 1.0), planned=1.9)
    assert {item.decision.mix for item in asked} == {AR}
    assert "1.90 epochs are planned, too few" in asked[0].decision.reason
    assert asked[0].decision.details["critical_compute_flops"] == critical_compute_flops(UNIQUE)


@pytest.mark.parametrize("flops", [True, False])
def test_critical_compute_keeps_a_small_budget_only_where_it_is_given_weight(flops: bool) -> None:
    asked = drive(online(planted={"critical_compute_factor": 3.0}), losses(lambda count: 1.0), flops=flops)
    assert {item.decision.mix for item in asked} == {AR} and "critical compute" in asked[0].decision.reason
    assert moves(drive(online(), losses(lambda count: 1.0), flops=flops))


# ---- what makes it shift


def test_two_rising_evaluations_in_a_row_shift_and_the_sentence_says_why() -> None:
    first, *_ = moves(drive(online(), losses(lambda count: 0.95 if count >= 8 else 0.2)))
    assert first.progress.epochs == 9 and first.decision.details["evidence"] == ["curvature"]
    said = ("AR has seen each token 9.0 times", "(ar) is rising with probability 0.95", "shifting to masked", "1.5 ep")
    assert all(words in first.decision.reason for words in said)
    assert "autoregressive 13.7%" in first.decision.reason, "(16 - 9) exposures spread over 51 epochs"
    assert first.decision.details["to"]["autoregressive"] == pytest.approx(7 / 51)
    assert "_" not in {name[0] for name in first.decision.details["thresholds"]}, "values of a reader, not of Python"
    assert first.decision.mark == "keep" and first.decision.details["alternatives"][-1]["stays"]


def test_one_rising_evaluation_is_noise_and_the_count_begins_anew() -> None:
    alternating = drive(online(), losses(lambda count: 0.95 if count % 2 else 0.5), planned=20)
    assert not moves(alternating) and max(item.share for item in alternating) == 1.0


def test_a_gradient_that_is_noise_is_the_second_witness() -> None:
    def readings_at(progress: Progress) -> Readings:
        noise = Reading(100 * (9 if progress.epochs >= 4 else 7), 0, True)
        return losses(lambda count: 0.95 if count == 8 else 0.2)(progress) | {
            "variance.noise_scale:autoregressive": noise
        }

    (first,) = moves(drive(online(), readings_at, planned=20))
    assert first.progress.epochs == 8 and "noise scale is 9 batches" in first.decision.reason
    assert not moves(
        drive(online(signals=("curvature",)), losses(lambda count: 0.95 if count == 8 else 0.2), planned=20)
    )


@pytest.mark.parametrize(("warmup", "earliest"), [(0, 1.0), (3 * UNIQUE, 3.0)])
def test_nothing_moves_before_the_text_was_seen_and_the_learning_rate_is_up(warmup: int, earliest: float) -> None:
    asked = drive(online(planted={"most_ar_exposures": 0.1}), warmup_tokens=warmup)
    assert moves(asked)[0].progress.epochs == earliest


def test_too_little_plateau_is_left_for_a_shift_to_arrive() -> None:
    """60 epochs, decay from 45: a ramp of 1.5 and a dwell of 1 have to fit."""
    last_chance = drive(online(planted={"most_ar_exposures": 42.4}))
    assert moves(last_chance)[0].progress.epochs == 42.4375
    assert not moves(drive(online(planted={"most_ar_exposures": 42.6})))


def test_alignment_that_leads_in_two_probes_shifts_to_the_gear_that_leads() -> None:
    values = aligned(lambda at: {"autoregressive": 1.0, "masked": 0.1, "block(16)": 3.0 if at >= 4 else 0.5})
    first, *_ = moves(drive(online(gears=("masked", "block(16)")), values, planned=30))
    assert first.progress.epochs == 5 and first.decision.details["gear"] == "block(16)"
    assert "block(16)'s gradient helps the held-out loss 3.0 times more per FLOP" in first.decision.reason
    once = aligned(lambda at: {"autoregressive": 1.0, "masked": 3.0 if at == 4 else 0.5})
    assert not moves(drive(online(), once, planned=20))


def test_alignment_of_another_target_is_counted_anew() -> None:
    """With "best" the loss that counts may change; probes then begin at 1, and one gear may be measured first."""

    def readings_at(progress: Progress) -> Readings:
        found = aligned(lambda at: {"autoregressive": 1.0, "masked": 3.0})(replace(progress, data_tokens=UNIQUE * 9))
        late = progress.epochs - 0.75
        if late < 0:
            return found
        fresh = {name: Reading(int(late / 4) + 1, 0, True) for name in found if "probes" in name}
        return {name: found[name] for name in found if "masked" not in name or late > 2} | {
            name: value for name, value in fresh.items() if "masked" not in name or late > 2
        }

    assert moves(drive(online(), readings_at, planned=20))[0].progress.epochs == 4.75


def test_sixteen_exposures_are_the_most_and_count_inside_a_mix() -> None:
    (shift,) = moves(drive(online()))
    assert shift.progress.autoregressive_epochs == pytest.approx(16, abs=0.01)
    assert "AR has seen each token 16.0 times, its most" in shift.decision.reason
    start = Mix((("autoregressive(0.15)", 0.5), ("masked", 0.5)))
    asked = drive(online(start=start))
    (fall,) = moves(asked)
    assert fall.progress.epochs == pytest.approx(32, abs=0.1) and asked[-1].share == pytest.approx(1 / 64)
    assert dict(asked[-1].decision.mix.shares).keys() <= {"autoregressive(0.15)", "masked", "autoregressive"}


def test_the_share_alone_falls_where_next_token_training_is_not_the_main_part() -> None:
    asked = drive(online(start=Mix((("autoregressive(0.15)", 0.4), ("masked", 0.6))), floor=0.0))
    (fall,) = moves(asked)
    assert fall.progress.autoregressive_epochs == pytest.approx(16, abs=0.05) and "inside the mix" in (
        fall.decision.reason
    )
    assert asked[-1].decision.mix.shares == (("masked", pytest.approx(1.0)),)


# ---- how it hands over


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([0.25, 1.0, 1.5, 3.0]), st.floats(1 / 64, 0.3), st.sampled_from(["ramp", "blocks", "hard"]),
    st.sampled_from(["spread", "floor"]), st.sampled_from([2.0, 6.0, 12.0]), st.booleans(),
)  # fmt: skip
def test_a_handover_is_monotone_keeps_the_floor_and_ends_in_time(length, floor, handover, remainder, cap, flops):
    controller = online(
        ramp_epochs=length, floor=floor, handover=handover, remainder=remainder, planted={"most_ar_exposures": cap}
    )
    asked = drive(controller, planned=24.0, flops=flops)
    begin = asked.index(moves(asked)[0])
    after = [item.share for item in asked[begin:]]
    assert all(late <= early + 1e-12 for early, late in pairwise(after))
    assert min(after) >= floor - 1e-12
    steps = 0 if handover == "hard" else round(length * ASKS)
    assert len({item.decision.mix for item in asked[begin + steps :]}) == 1
    if handover != "hard":
        assert dict(asked[-1].decision.mix.shares) == moves(asked)[0].decision.details["to"]


def test_a_handover_by_blocks_passes_their_sizes_in_order() -> None:
    asked = drive(online(handover="blocks", ramp_blocks=(4, 16), planted={"most_ar_exposures": 4.0}))
    others = [[name for name, _ in item.decision.mix.shares if name != "autoregressive"] for item in asked]
    assert list(dict.fromkeys(name for names in others for name in names)) == ["block(4)", "block(16)", "masked"]
    shares = [item.decision.mix.share("autoregressive") for item in asked]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(shares)), "nothing jumps to the floor"
    assert max(earlier - later for earlier, later in pairwise(shares)) < 0.1
    assert "by way of block(4), block(16) over 1.5 epochs" in moves(asked)[0].decision.reason
    with pytest.raises(ValueError, match="put masked among the gears"):
        online(handover="blocks", gears=("block(16)",))


def test_a_share_inside_a_mix_moves_without_blocks() -> None:
    start = Mix((("masked", 0.75), ("autoregressive", 0.25)))
    asked = drive(online(start=start, handover="blocks", planted={"most_ar_exposures": 4.0}))
    assert {name for item in asked for name, _ in item.decision.mix.shares} == {"autoregressive", "masked"}
    assert asked[-1].share == pytest.approx(1 / 64)


def test_the_learning_rate_rises_again_after_a_shift_when_asked_to() -> None:
    asked = drive(online(rewarm_epochs=0.5))
    assert [item.decision.rewarm_tokens for item in asked if item.decision.rewarm_tokens] == [UNIQUE // 2]
