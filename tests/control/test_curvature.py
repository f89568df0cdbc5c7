"""Validation curvature: rare false alarms on flat curves, planted minima found, alarms after them and not before.

Suffixes: D simulated runs, N evaluations of a run, J evaluations of a fit, U units.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit

from crossover.control.signals.curvature import Curvature, estimate, minimum, parabola, rising
from crossover.control.signals.scene import Scene
from crossover.errors import RecipeError
from crossover.records import Mix
from crossover.registry import component_of, dump

SCENE = Scene(128, 100_000, ("autoregressive",), {"autoregressive": 1e6}, Mix((("autoregressive", 1.0),)))
RUNS, UNITS, K = 4000, 20, 6
EPOCHS_N = np.arange(4.0, 30.0)
TOKENS_N = 1e5 * EPOCHS_N


def sizes_U(units: int = UNITS) -> np.ndarray:
    return np.random.default_rng(7).integers(60, 129, units).astype(float)


def noisy(curve_N: np.ndarray, seed: int, common=0.01, own=0.02, trend=0.0, units=UNITS, runs=RUNS) -> np.ndarray:
    """Put noise on a curve: of training (common to units), of each unit, levels of units, and trends of units."""
    rng, count = np.random.default_rng(seed), len(curve_N)
    levels = (
        rng.normal(size=(runs, 1, units))
        + trend * rng.normal(size=(runs, 1, units)) * np.linspace(-1, 0, count)[:, None]
    )
    noise = common * rng.normal(size=(runs, count, 1)) + own * rng.normal(size=(runs, count, units))
    return 4 + curve_N[:, None] + levels + noise


def probabilities(losses_DNU: np.ndarray, tokens_N: np.ndarray = TOKENS_N, delta: float = 0.0, rows: int = K):
    """Return the probability that the slope exceeds -delta, at every evaluation from the K-th on."""
    sizes, found = sizes_U(losses_DNU.shape[-1]), []
    for end in range(rows, len(tokens_N) + 1):
        fit = parabola(tokens_N[end - rows : end])
        assert fit is not None
        found.append(rising(estimate(fit.slope_J, fit, losses_DNU[:, end - rows : end], sizes), delta))
    return np.stack(found, axis=1)


NOISES = {
    "training": {"common": 0.01, "own": 0.0},
    "units": {"common": 0.0, "own": 0.02},
    "both": {"common": 0.01, "own": 0.02},
    "trends": {"common": 0.01, "own": 0.01, "trend": 0.1},
    "five units": {"common": 0.01, "own": 0.01, "trend": 0.05, "units": 5},
    "one unit": {"common": 0.01, "own": 0.0, "units": 1},
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
def test_on_flat_curves_alarms_are_as_rare_as_their_probability_says(noise):
    flat = noisy(np.zeros(7), 1, **noise)
    said_DN = probabilities(flat, TOKENS_N[:7])
    for p in (0.9, 0.95):
        allowed = 1 - p + 3 * math.sqrt(p * (1 - p) / RUNS)
        assert (said_DN > p).mean(axis=0).max() <= allowed
        assert (said_DN > p).all(axis=1).mean() <= 0.5 * (1 - p), "two in a row are rarer still"
    if noise.get("own") == 0:
        # Where nothing is counted twice, the probability is exact and not merely safe.
        assert (said_DN[:, 0] > 0.9).mean() == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / RUNS))


def test_five_rows_are_the_worst_case_and_still_close_to_what_is_said():
    said_DN = probabilities(noisy(np.zeros(5), 2, trend=0.1, own=0.01, runs=20_000), TOKENS_N[:5], rows=5)
    assert (said_DN > 0.9).mean() < 0.11
    assert (said_DN > 0.95).mean() < 0.065


def test_delta_lets_a_slow_fall_count_as_flat():
    curve = -0.1 * np.log(TOKENS_N[:K] / TOKENS_N[0])
    losses = noisy(curve, 3, own=0.0)
    assert (probabilities(losses, TOKENS_N[:K]) > 0.9).mean() < 0.04
    exact = (probabilities(losses, TOKENS_N[:K], delta=0.1) > 0.9).mean()
    assert exact == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / RUNS))


@pytest.mark.parametrize(("common", "own"), [(0.01, 0.01), (0.01, 0.03), (0.03, 0.03)])
def test_alarms_come_after_a_planted_minimum_and_not_before(common, own):
    # 0.4 ln^2: from 10 to 20 epochs the loss rises by 0.19 nats, as that of next-token training on small text does.
    away_N = np.log(EPOCHS_N / 10)
    said_DN = probabilities(noisy(0.4 * away_N**2, 4, common, own, runs=2000))
    two_DN = (said_DN[:, 1:] > 0.9) & (said_DN[:, :-1] > 0.9)
    fired_D, away_D = two_DN.any(axis=1), away_N[K + two_DN.argmax(axis=1)]
    assert fired_D.mean() > (0.99 if common < 0.02 else 0.9)
    assert (fired_D & (away_D < 0)).mean() < 0.01
    assert np.quantile(away_D[fired_D], 0.9) < (0.6 if common < 0.02 else 1.0)


def test_a_curve_that_keeps_falling_raises_no_alarm_though_it_is_no_parabola():
    said_DN = probabilities(noisy(3 * (EPOCHS_N / 4) ** -0.5, 5, runs=1000))
    assert (said_DN[:, 1:] > 0.9).mean() < 0.02


@pytest.mark.parametrize("best_epoch", [6.5, 9.0, 11.0])
def test_the_planted_slope_minimum_and_gain_lie_within_their_errors(best_epoch):
    tokens, sizes = 1e5 * np.array([4.0, 5, 6, 7, 8, 9]), sizes_U()
    fit = parabola(tokens)
    assert fit is not None
    losses = noisy(0.4 * np.log(tokens / (1e5 * best_epoch)) ** 2, 6, 0.003)
    slope = estimate(fit.slope_J, fit, losses, sizes)
    ahead = math.log(best_epoch / 9)
    limit = stdtrit(slope.freedom, 0.975)
    assert (np.abs(slope.value + 0.8 * ahead) < limit * slope.error).mean() > 0.94
    assert slope.value.mean() == pytest.approx(-0.8 * ahead, abs=0.01)
    place, gain = minimum(fit, losses, sizes)
    opens = losses.mean(axis=-1) @ fit.bend_J > 0
    assert opens.mean() > 0.99
    assert np.median(place.value[opens]) == pytest.approx(ahead, abs=0.05)
    within = np.abs(place.value - ahead) < stdtrit(place.freedom, 0.975) * place.error
    assert within[opens].mean() > 0.9
    left = 0.4 * max(ahead, 0.0) ** 2
    assert np.median(gain.value[opens]) == pytest.approx(left, abs=0.01)
    assert (np.abs(gain.value - left) < stdtrit(gain.freedom, 0.975) * gain.error)[opens].mean() > 0.85


def row(tokens: float, losses_U, sizes=None) -> dict:
    sizes = [1] * len(losses_U) if sizes is None else list(sizes)
    losses = [float(loss) for loss in losses_U]
    return {"probe": "loss", "data_tokens": float(tokens), "unit_tokens": sizes, "control": {"ar": losses}}


def fold(rows, signal=None) -> dict:
    """Fold rows, and check what holds for every state and every reading."""
    signal, state = signal or Curvature(), {}
    for record in rows:
        before = json.dumps(state)
        state, old = signal.update(state, record), state
        assert json.dumps(old) == before, "the old state stays as it was"
        assert json.loads(json.dumps(state)) == state
    found = signal.readings(state, SCENE)
    assert found == signal.readings(json.loads(json.dumps(state)), SCENE)
    for name, reading in found.items():
        assert math.isfinite(reading.value) and math.isfinite(reading.standard_error), name
        assert type(reading.value) is float and reading.standard_error >= 0
    return found


def values(readings) -> np.ndarray:
    return np.array([[reading.value, reading.standard_error] for reading in readings.values()])


curves = st.lists(st.lists(st.floats(2, 6), min_size=3, max_size=3), min_size=5, max_size=8)


@given(curves, st.floats(-1, 5), st.permutations(range(3)))
def test_a_constant_and_the_order_of_units_change_nothing(losses, constant, order):
    sizes = [50, 90, 128]
    rows = [row(1e5 * (n + 2), units, sizes) for n, units in enumerate(losses)]
    moved = [row(1e5 * (n + 2), np.array(units) + constant, sizes) for n, units in enumerate(losses)]
    turned = [
        row(1e5 * (n + 2), [units[i] for i in order], [sizes[i] for i in order]) for n, units in enumerate(losses)
    ]
    mine, others = fold(rows), (fold(moved), fold(turned))
    for name in ("slope", "rising"):
        for other in others:
            same = f"curvature.{name}:ar"
            assert other[same].value == pytest.approx(mine[same].value, rel=1e-6, abs=1e-6)
            assert other[same].standard_error == pytest.approx(mine[same].standard_error, rel=1e-6, abs=1e-9)
    assert others[0]["curvature.loss:ar"].value == pytest.approx(mine["curvature.loss:ar"].value + constant)


def test_readings_are_those_of_the_parabola_through_the_last_rows():
    tokens = 1e5 * np.arange(2.0, 12.0)
    losses = 4 + 0.3 * np.log(tokens / 2e6) ** 2
    rows = [row(t, [loss - 1, loss + 1]) for t, loss in zip(tokens, losses, strict=True)]
    found = fold(rows)
    assert found["evaluations"].value == 10
    assert found["curvature.loss:ar"].value == pytest.approx(losses[-1])
    assert found["curvature.loss:ar"].standard_error == pytest.approx(1.0)
    assert found["curvature.slope:ar"].value == pytest.approx(0.6 * math.log(1.1e6 / 2e6))
    assert found["curvature.slope:ar"].standard_error < 1e-12
    assert found["curvature.rising:ar"].value < 1e-6
    assert found["curvature.minimum:ar"].value == pytest.approx(2e6)
    assert found["curvature.gain:ar"].value == pytest.approx(losses[-1] - 4)
    assert all(reading.ready for reading in found.values())


def test_a_parabola_that_opens_downwards_has_no_minimum():
    found = fold([row(1e5 * n, [4 - 0.3 * math.log(n) ** 2, 4.0]) for n in range(2, 9)])
    assert not found["curvature.minimum:ar"].ready and not found["curvature.gain:ar"].ready
    assert found["curvature.slope:ar"].ready and found["curvature.rising:ar"].value < 0.5


def test_a_minimum_that_lies_behind_leaves_nothing_to_gain():
    found = fold([row(1e5 * n, [4 + 0.3 * math.log(n / 3) ** 2, 4.0]) for n in range(2, 9)])
    assert found["curvature.minimum:ar"].value == pytest.approx(3e5)
    assert found["curvature.gain:ar"].value == 0 and found["curvature.gain:ar"].ready
    assert found["curvature.rising:ar"].value > 0.5


def test_nothing_is_said_of_a_slope_before_five_rows():
    rows = [row(1e5 * n, [4.0 + 0.1 * n, 4.0]) for n in range(1, 6)]
    assert list(fold(rows[:4])) == ["evaluations", "curvature.loss:ar"]
    assert fold(rows)["curvature.rising:ar"].ready
    assert Curvature().readings({}, SCENE) == {}


def test_every_mode_has_a_curve_of_its_own():
    rows = [row(1e5 * n, [4.0 + 0.1 * n, 4.0]) for n in range(1, 9)]
    both = [r if n < 2 else {**r, "control": {**r["control"], "nelbo": [6 - 0.1 * n] * 2}} for n, r in enumerate(rows)]
    found = fold(both)
    assert found["curvature.slope:ar"].value > 0 > found["curvature.slope:nelbo"].value
    assert "curvature.slope:nelbo" not in fold(both[:6])


def test_rows_that_cannot_be_compared_are_forgotten():
    rows = [row(1e5 * n, [4.0, 4.0 + 0.01 * n]) for n in range(1, 7)]
    assert "curvature.slope:ar" in fold(rows)
    assert "curvature.slope:ar" not in fold([*rows, row(7e5, [4.0, 4.0, 4.0])]), "other units"
    assert "curvature.slope:ar" not in fold([*rows, row(7e5, [4.0, 4.0], [1, 2])]), "units of other sizes"
    assert "curvature.slope:ar" not in fold([*rows, row(2e5, [4.0, 4.0])]), "the clock ran back"
    twice = fold([*rows, rows[-1]])
    assert twice["evaluations"].value == 7
    assert values(twice)[1:] == pytest.approx(values(fold(rows))[1:]), "an equal clock replaces"
    assert fold([*rows, {**row(7e5, [math.inf, 4.0])}]).keys() == {"evaluations"}, "a loss that is no number"


@pytest.mark.parametrize("losses_U", [[0.0], [4.0], [4.0, 4.0], [4.0, 5.0, 9.0]])
@pytest.mark.parametrize("step", [1, 1e5, 1e-6])
def test_losses_without_noise_and_clocks_that_barely_move_do_no_harm(losses_U, step):
    found = fold([row(1e9 + step * n, losses_U) for n in range(1, 9)])
    if "curvature.rising:ar" in found:
        assert found["curvature.rising:ar"].value == pytest.approx(0.5, abs=0.2)


@given(st.lists(st.tuples(st.integers(1, 10**12), st.floats(0, 20)), min_size=1, max_size=12))
def test_readings_are_finite_whatever_the_losses(points):
    fold([row(tokens, [loss]) for tokens, loss in sorted(points)])


def test_foreign_rows_change_nothing():
    state = Curvature().update({}, row(1e5, [4.0, 4.0]))
    for other in ({"probe": "gradient", "gear": "masked"}, {"asked": True}, {"probe": "novelty"}, row(0, [7.0, 7.0])):
        assert Curvature().update(state, other) == state


def test_it_has_a_name_and_refuses_what_makes_no_sense():
    made = component_of("signal", "curvature(evaluations=8)")
    assert made == Curvature(8) and made.probes == ("loss",)
    assert dump(made) == {"name": "curvature", "evaluations": 8, "delta": 0.0}
    for wrong in ("curvature(4)", "curvature(delta=-1)"):
        with pytest.raises(RecipeError, match=r"evaluations|delta"):
            component_of("signal", wrong)
