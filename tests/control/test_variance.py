"""Gradient variance: planted traces, signals and mask shares are found within the errors that are stated.

Suffixes: D simulated runs, R rows, M parts, P parameters.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.control.signals.scene import Scene
from crossover.control.signals.variance import Variance
from crossover.errors import RecipeError
from crossover.records import Mix
from crossover.registry import component_of, dump

GEARS = ("autoregressive", "masked")
SCENE = Scene(128, 100_000, GEARS, dict.fromkeys(GEARS, 1e6), Mix((("masked", 1.0),)))
PARAMETERS, PARTS, PART_TOKENS, PAIR_TOKENS = 48, 4, 512, 1024


def row(norm2_M, mean_norm2: float, gear: str = "masked", **more) -> dict:
    norms = [float(norm2) for norm2 in norm2_M]
    made = {"probe": "gradient", "gear": gear, "target": "ar", "parts": len(norms), "part_tokens": PART_TOKENS}
    found = {"norm2_M": norms, "mean_norm2": float(mean_norm2), "along_M": None, "mask_half_distance2": None}
    return {**made, **found, "pair_tokens": 0, "flops_per_token": 1e6, **more}


def simulate(runs: int, rows: int, noise_scale: float, mask_share: float = 0.6, seed: int = 0) -> tuple[list, dict]:
    """Draw gradients with one mean and a diagonal covariance of unequal entries; part of it is due to masks."""
    rng = np.random.default_rng(seed)
    token_P = np.exp(rng.normal(size=PARAMETERS))
    mean_P = rng.normal(size=PARAMETERS)
    mean_P *= math.sqrt(token_P.sum() / noise_scale / (mean_P @ mean_P))
    shape = (runs, rows, PARTS, PARAMETERS)
    parts = mean_P + np.sqrt(token_P / PART_TOKENS) * rng.normal(size=shape)
    text = mean_P + np.sqrt((1 - mask_share) * token_P / PAIR_TOKENS) * rng.normal(size=(runs, rows, 1, PARAMETERS))
    masks = np.sqrt(mask_share * token_P / PAIR_TOKENS) * rng.normal(size=(runs, rows, 2, PARAMETERS))
    pair = text + masks
    norm2_DRM, mean_norm2_DR = (parts**2).sum(-1), (parts.mean(2) ** 2).sum(-1)
    half_DR = 0.5 * ((pair[:, :, 0] - pair[:, :, 1]) ** 2).sum(-1)
    made = [
        [
            row(norm2_DRM[d, r], mean_norm2_DR[d, r], mask_half_distance2=float(half_DR[d, r]), pair_tokens=PAIR_TOKENS)
            for r in range(rows)
        ]
        for d in range(runs)
    ]
    truth = {"trace": token_P.sum(), "signal": mean_P @ mean_P, "noise_scale": noise_scale, "mask_share": mask_share}
    return made, {f"variance.{name}:masked": float(value) for name, value in truth.items()}


def fold(rows, signal=None) -> dict:
    signal, state = signal or Variance(), {}
    for record in rows:
        state = signal.update(state, record)
    return signal.readings(state, SCENE)


@pytest.mark.parametrize(("rows", "noise_scale"), [(5, 400.0), (12, 400.0), (30, 4000.0)])
def test_planted_values_lie_within_two_standard_errors(rows, noise_scale):
    runs, truth = simulate(1000, rows, noise_scale)
    found = [fold(run) for run in runs]
    for name, value in truth.items():
        ready = [readings[name] for readings in found if readings[name].ready]
        hit = np.mean([abs(reading.value - value) < 2 * reading.standard_error for reading in ready])
        # Five rows have four degrees of freedom: Student's t then holds 88% within two standard errors.
        assert 0.85 <= hit <= 1.0, (name, hit)
        middle = np.median([reading.value for reading in ready])
        assert middle == pytest.approx(value, rel=0.1), name
    if rows == 30:
        share = np.mean([readings["variance.noise_scale:masked"].ready for readings in found])
        assert share > 0.95


def test_a_gradient_without_signal_has_no_noise_scale():
    runs, _ = simulate(1000, 12, 1e12)
    found = [fold(run) for run in runs]
    assert np.mean([readings["variance.noise_scale:masked"].ready for readings in found]) < 0.05
    signal = [readings["variance.signal:masked"] for readings in found]
    assert 0.35 < np.mean([reading.value < 0 for reading in signal]) < 0.65, "unbiased, so half of them are negative"
    assert all(readings["variance.noise_scale:masked"].value > 0 for readings in found)


def test_the_formulas_are_those_of_the_covariance():
    gradients_MP = np.random.default_rng(3).normal(size=(PARTS, PARAMETERS))
    found = fold([row((gradients_MP**2).sum(1), (gradients_MP.mean(0) ** 2).sum())])
    trace = np.trace(np.cov(gradients_MP.T))
    assert found["variance.trace:masked"].value == pytest.approx(PART_TOKENS * trace)
    signal = (gradients_MP.mean(0) ** 2).sum() - trace / PARTS
    assert found["variance.signal:masked"].value == pytest.approx(signal)
    assert not any(reading.ready for reading in found.values()), "one row says nothing of its error"


def test_the_memory_fades_and_its_start_is_corrected():
    low, high = row([3.0, 3.0], 2.0), row([30.0, 30.0], 20.0)
    assert fold([low])["variance.trace:masked"].value == pytest.approx(2 * PART_TOKENS)
    assert fold([low, high], Variance(0.5))["variance.trace:masked"].value == pytest.approx(
        PART_TOKENS * (2 * 0.5 + 20) / 1.5
    )
    assert fold([low] * 5 + [high] * 200)["variance.signal:masked"].value == pytest.approx(10.0)


def test_parts_of_any_number_and_size_estimate_the_same():
    rng = np.random.default_rng(5)
    rows = []
    for n in range(400):
        parts, tokens = 2 + n % 7, 256 * (1 + n % 3)
        gradients = 0.1 + rng.normal(size=(parts, PARAMETERS)) * math.sqrt(100 / tokens)
        rows.append(row((gradients**2).sum(1), (gradients.mean(0) ** 2).sum(), part_tokens=tokens))
    found = fold(rows, Variance(0.999))
    assert found["variance.trace:masked"].value == pytest.approx(100 * PARAMETERS, rel=0.03)
    assert found["variance.signal:masked"].value == pytest.approx(0.01 * PARAMETERS, rel=0.15)


def test_masks_are_compared_only_where_there_are_two():
    plain, paired = row([3.0, 5.0], 2.0), row([3.0, 5.0], 2.0, mask_half_distance2=0.5, pair_tokens=512)
    assert "variance.mask_share:masked" not in fold([plain] * 5)
    found = fold([plain] * 5 + [paired] * 3)
    assert found["variance.trace:masked"].ready and not found["variance.mask_share:masked"].ready
    found = fold([plain, paired] * 5)
    assert found["variance.mask_share:masked"].value == pytest.approx(0.125)
    assert found["variance.mask_share:masked"].ready
    more = row([3.0, 5.0], 2.0, mask_half_distance2=50.0, pair_tokens=512)
    assert fold([more])["variance.mask_share:masked"].value == 1.0


def test_gears_are_kept_apart():
    found = fold([row([3.0, 5.0], 2.0, "masked"), row([9.0, 9.0], 2.0, "autoregressive")])
    assert found["variance.trace:masked"] == fold([row([3.0, 5.0], 2.0)])["variance.trace:masked"]
    assert found["variance.trace:autoregressive"].value > found["variance.trace:masked"].value


norms = st.floats(0, 1e12)
rows_of_norms = st.builds(
    lambda norm2, share, distance: row(
        norm2, share * float(np.mean(norm2)), mask_half_distance2=distance, pair_tokens=9
    ),
    st.lists(norms, min_size=2, max_size=5),
    st.floats(0, 1),
    st.none() | norms,
)


@given(st.lists(rows_of_norms, max_size=8))
def test_states_are_json_and_readings_finite(rows):
    signal, state = Variance(), {}
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
        assert reading.standard_error >= 0


def test_foreign_rows_change_nothing():
    state = Variance().update({}, row([3.0, 5.0], 2.0))
    foreign = [{"probe": "loss", "units": []}, {"asked": True}, row([3.0], 3.0), row([3.0, math.nan], 2.0)]
    for other in [*foreign, row([3.0, 3.0], 2.0, mask_half_distance2=math.inf, pair_tokens=9)]:
        assert Variance().update(state, other) == state


def test_it_has_a_name_and_refuses_what_makes_no_sense():
    made = component_of("signal", "variance(decay=0.99)")
    assert made == Variance(0.99) and made.probes == ("gradient", "clip")
    assert dump(made) == {"name": "variance", "decay": 0.99}
    with pytest.raises(RecipeError, match="decay"):
        component_of("signal", "variance(1.0)")
