"""Held-out alignment per FLOP and the generalisation gap: what they equal, how far off they are, what they ignore."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.control.signals.alignment import Alignment
from crossover.control.signals.gap import Gap, unit_mean
from crossover.control.signals.scene import Scene
from crossover.errors import RecipeError
from crossover.records import Mix
from crossover.registry import component_of

GEARS = ("autoregressive", "masked")
SCENE = Scene(128, 100_000, GEARS, dict.fromkeys(GEARS, 1e6), Mix((("masked", 1.0),)))
LOSSES = {"probe": "loss", "units": ["w0", "w1", "w2"], "unit_tokens": [100, 50, 50], "data_tokens": 5}


def row(along_M, gear: str = "masked", target: str = "ar", norm2: float = 4.0, flops: float = 10.0) -> dict:
    along = None if along_M is None else [float(along) for along in along_M]
    return {
        **{"probe": "gradient", "gear": gear, "target": target, "along_M": along},
        **{"control_norm2": norm2, "flops_per_token": flops, "parts": 4},
    }


def losses(control: dict, train: dict) -> dict:
    return {**LOSSES, "control": control, "train": train}


def fold(signal, rows) -> dict:
    """Fold rows, and check what holds for every state and every reading."""
    state = {}
    for record in rows:
        before = json.dumps(state)
        state, old = signal.update(state, record), state
        assert json.dumps(old) == before, "the old state stays as it was"
        assert json.loads(json.dumps(state)) == state
    found = signal.readings(state, SCENE)
    assert found == signal.readings(json.loads(json.dumps(state)), SCENE)
    for name, reading in found.items():
        assert type(reading.value) is type(reading.standard_error) is float and type(reading.ready) is bool
        assert math.isfinite(reading.value) and math.isfinite(reading.standard_error), name
    return found


def test_alignment_is_the_first_order_fall_of_the_held_out_loss_per_flop():
    rng = np.random.default_rng(0)
    hessian, here, goal = np.diag([1.0, 2.0, 5.0]), rng.normal(size=3), rng.normal(size=3)
    scale = np.array([0.5, 1.0, 3.0])

    def held_out(weights):
        return 0.5 * (weights - goal) @ hessian @ (weights - goal)

    control = hessian @ (here - goal)
    gears = {"autoregressive": (rng.normal(size=(4, 3)), 10.0), "masked": (control + rng.normal(size=(4, 3)), 20.0)}
    rows = [row(g @ (scale * control), name, "ar", control @ (scale * control), f) for name, (g, f) in gears.items()]
    found = fold(Alignment(), rows)
    step = 1e-6
    for name, (gradients, flops) in gears.items():
        fall = held_out(here) - held_out(here - step * scale * gradients.mean(0))
        per_flop = fall / step / flops / math.sqrt(control @ (scale * control))
        assert found[f"alignment:{name}"].value == pytest.approx(per_flop, rel=1e-3, abs=1e-6)


def test_the_mean_of_the_parts_lies_within_its_error():
    draws_DRM = np.random.default_rng(1).normal(3.0, 2.0, size=(1000, 3, 6))
    found = [fold(Alignment(), [row(parts) for parts in rows])["alignment:masked"] for rows in draws_DRM]
    truth = 3.0 / (2.0 * 10.0)
    hit = np.mean([abs(reading.value - truth) < 2 * reading.standard_error for reading in found])
    assert 0.88 <= hit <= 0.98


def test_probes_of_a_gear_fade_by_half():
    found = fold(Alignment(0.5), [row([20.0, 40.0]), row([80.0, 100.0])])
    assert found["alignment:masked"].value == pytest.approx((0.5 * 1.5 + 4.5) / 1.5)
    one = 0.5
    assert found["alignment:masked"].standard_error == pytest.approx(math.hypot(0.5 * one, one) / 1.5)
    assert found["alignment.probes:masked"].value == 2
    newest = fold(Alignment(), [row([20.0, 40.0]), row([80.0, 100.0])])
    assert newest["alignment:masked"].value == pytest.approx(4.5)


def test_a_loss_with_large_weights_has_no_larger_alignment():
    plain, heavy = row([20.0, 40.0]), row([200.0, 400.0])
    found = [fold(Alignment(), [{**item, "own_norm2": norm2}]) for item, norm2 in ((plain, 4.0), (heavy, 400.0))]
    values = [item["alignment:masked"] for item in found]
    assert values[0].value == pytest.approx(values[1].value) == pytest.approx(0.75)
    assert values[0].standard_error == pytest.approx(values[1].standard_error)


def test_what_was_not_finite_is_left_out_as_null():
    for broken in ({"along_M": [None, 1.0]}, {"control_norm2": None}):
        assert fold(Alignment(), [{**row([20.0, 40.0]), **broken}]) == {}


def test_one_probe_is_enough_and_one_part_is_as_uncertain_as_it_is_large():
    assert fold(Alignment(), [row([20.0, 40.0])])["alignment:masked"].ready
    single = fold(Alignment(), [row([20.0])])["alignment:masked"]
    assert single.standard_error == single.value == 1.0


def test_another_target_forgets_what_was_measured_before():
    rows = [row([1.0, 2.0], "autoregressive"), row([1.0, 2.0]), row([7.0, 9.0], target="nelbo")]
    found = fold(Alignment(), rows)
    assert found == fold(Alignment(), rows[-1:])
    assert not any("autoregressive" in name for name in found)


def test_alignment_ignores_foreign_rows():
    state = Alignment().update({}, row([1.0, 2.0]))
    foreign = [losses({}, {}), {"asked": True}, row(None, target="l2r"), row([1.0], norm2=0.0), row([math.nan])]
    for other in foreign:
        assert Alignment().update(state, other) == state


@given(st.lists(st.builds(row, st.lists(st.floats(-1e9, 1e9), max_size=4), st.sampled_from(GEARS)), max_size=6))
def test_alignments_are_finite(rows):
    assert fold(Alignment(), rows).keys() == {
        f"alignment{part}:{row['gear']}" for row in rows if row["along_M"] for part in ("", ".probes")
    }


def test_the_gap_weighs_held_out_windows_by_their_tokens():
    found = fold(Gap(), [losses({"ar": [4.0, 6.0, 6.0]}, {"ar": [3.0, 2.0, 4.0]})])
    assert found["gap:ar"].value == pytest.approx(5.0 - 3.0)
    errors = unit_mean([4.0, 6.0, 6.0], [100, 50, 50])[1], unit_mean([3.0, 2.0, 4.0], [1, 1, 1])[1]
    assert found["gap:ar"].standard_error == pytest.approx(math.hypot(*errors)) and found["gap:ar"].ready
    assert errors[1] == pytest.approx(1 / math.sqrt(3))


def test_the_planted_gap_lies_within_its_error():
    rng, tokens = np.random.default_rng(2), np.arange(40, 128, 4)
    hits = []
    for _ in range(1000):
        control = 4.5 + 0.4 * rng.normal(size=len(tokens))
        train = 3.8 + 0.5 * rng.normal(size=len(tokens))
        row = {**losses({"ar": control.tolist()}, {"ar": train.tolist()}), "unit_tokens": tokens.tolist()}
        reading = Gap().readings(Gap().update({}, row), SCENE)["gap:ar"]
        hits.append(abs(reading.value - 0.7) < 2 * reading.standard_error)
    assert 0.91 <= np.mean(hits) <= 0.98


def test_the_newest_row_alone_counts_and_both_samples_must_be_there():
    old = losses({"ar": [9.0] * 3, "nelbo": [9.0] * 3}, {"ar": [1.0] * 3, "nelbo": [1.0] * 3})
    new = losses({"ar": [4.0] * 3, "nelbo": [9.0] * 3}, {"ar": [3.0] * 3})
    assert {name: reading.value for name, reading in fold(Gap(), [old, new]).items()} == {"gap:ar": 1.0}
    assert fold(Gap(), [losses({"ar": [4.0] * 3}, {})]) == {} == Gap().readings({}, SCENE)
    assert not fold(Gap(), [losses({"ar": [4.0] * 3}, {"ar": [3.0]})])["gap:ar"].ready
    assert fold(Gap(), [losses({"ar": [4.0, math.inf, 4.0]}, {"ar": [3.0] * 3})]) == {}


def test_the_gap_ignores_foreign_rows():
    state = Gap().update({}, losses({"ar": [4.0] * 3}, {"ar": [3.0] * 3}))
    for other in (row([1.0]), {"asked": True}, {"probe": "novelty"}):
        assert Gap().update(state, other) == state


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), min_size=1, max_size=30), st.floats(-5, 5))
def test_unit_means_move_with_a_constant_and_their_errors_do_not(units, constant):
    values, tokens = np.array([value for value, _ in units]), [size for _, size in units]
    mean, error = unit_mean(values, tokens)
    moved, same = unit_mean(values + constant, tokens)
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
    assert moved == pytest.approx(mean + constant) and same == pytest.approx(error, abs=1e-9)


def test_they_have_names_and_refuse_what_makes_no_sense():
    assert component_of("signal", "alignment") == Alignment(0.0)
    assert component_of("signal", "gap").probes == ("loss",)
    with pytest.raises(RecipeError, match="decay"):
        component_of("signal", "alignment(1.0)")
