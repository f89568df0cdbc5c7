from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence.scaling.fit import fit_law, ratio
from crossover.evidence.scaling.laws import MUENNIGHOFF, Constants, Form, Point
from crossover.streams import stream
from evidence_scaling.grids import AUTOREGRESSIVE, DIFFUSION, SIZES, TEXTS, measured, small

OVERFITTING = replace(MUENNIGHOFF, overfit_coefficient=2e-3, overfit_repeats_exponent=1.2, overfit_size_exponent=0.5)


@pytest.mark.parametrize(
    ("truth", "form"),
    [
        (MUENNIGHOFF, Form()),
        (MUENNIGHOFF, Form(tied_exponents=True)),
        (AUTOREGRESSIVE, Form()),
        (DIFFUSION, Form()),
        (OVERFITTING, Form(overfitting=True)),
        (OVERFITTING, Form(tied_exponents=True, overfitting=True)),
    ],
)
def test_without_noise_every_constant_is_found(truth: Constants, form: Form):
    points = small(truth, "masked", noise=0.0) if truth is DIFFUSION else measured(truth, noise=0.0)
    law = fit_law(points, form, draws=20)
    assert asdict(law.constants) == pytest.approx(asdict(truth), rel=1e-3)
    assert law.r_squared > 1 - 1e-8 and all(law.identified.values()) and law.notes == ()


def coverage(simulations: int, draws: int) -> dict[str, float]:
    """Give, for each of Muennighoff's constants, the share of simulated studies whose interval holds it."""
    covered: dict[str, float] = {}
    for case in range(simulations):
        law = fit_law(measured(case=case), draws=draws, seed=case)
        for name, (low, high) in law.intervals.items():
            held = low <= getattr(MUENNIGHOFF, name) <= high and law.identified[name]
            covered[name] = covered.get(name, 0.0) + held / simulations
    return covered


def test_muennighoffs_constants_are_recovered_from_noisy_runs():
    # Of 20 intervals that hold 95% of the time, 16 or fewer hold with a probability of 0.3%.
    covered = coverage(20, 200)
    assert len(covered) == 7 and min(covered.values()) >= 17 / 20, covered


@pytest.mark.slow
def test_intervals_cover_in_at_least_nine_of_ten_of_200_simulations():
    covered = coverage(200, 300)
    print({name: round(share, 3) for name, share in covered.items()})
    assert len(covered) == 7 and min(covered.values()) >= 0.9, covered


def test_the_two_families_reuse_of_text_is_told_apart():
    ar = fit_law(small(AUTOREGRESSIVE, "autoregressive"))
    masked = fit_law(small(DIFFUSION, "masked"))
    assert ar.intervals["data_reuse"][0] <= 31.19 <= ar.intervals["data_reuse"][1] < 50
    assert 300 < masked.intervals["data_reuse"][0] <= 493.89 <= masked.intervals["data_reuse"][1] < 800
    times = ratio(masked, ar, "data_reuse")
    assert times.identified and 10 < times.interval[0] <= 493.89 / 31.19 <= times.interval[1] < 25


def test_spoilt_runs_hardly_move_the_fit():
    points = measured()
    rng = stream(0, "test/spoilt")
    for place in rng.choice(len(points), 8, replace=False):
        points[place] = replace(points[place], loss_nats=points[place].loss_nats * 1.5)
    law = fit_law(points)
    assert law.constants.data_reuse == pytest.approx(MUENNIGHOFF.data_reuse, rel=0.1)
    assert law.constants.irreducible_nats == pytest.approx(MUENNIGHOFF.irreducible_nats, rel=0.02)
    # A few bad runs show in the root mean square and not in the median.
    assert law.rms_log_residual > 0.05 and law.median_log_residual < 0.005


def trajectories(case: int, noise: float) -> list[Point]:
    """Draw runs whose points, one after each epoch, share one error: a lucky run is lucky throughout."""
    rng, points = stream(case, "test/trajectories"), []
    for unique in TEXTS[:3]:
        for size in SIZES[:5]:
            error = noise * rng.standard_normal()
            for epochs in (1, 2, 4, 8, 16, 40):
                loss = float(MUENNIGHOFF.loss_nats(size, unique, unique * epochs)) * np.exp(error)
                points.append(Point(size, unique, unique * epochs, loss, "autoregressive", case, f"{size}-{unique}"))
    return points


def test_points_of_one_run_are_not_independent_evidence():
    held, widths = 0, []
    for case in range(6):
        points = trajectories(case, 0.01)
        alone = [replace(point, group=str(place)) for place, point in enumerate(points)]
        by_run, by_point = (fit_law(each, draws=100).intervals["irreducible_nats"] for each in (points, alone))
        held += by_run[0] <= MUENNIGHOFF.irreducible_nats <= by_run[1]
        widths.append((by_run[1] - by_run[0]) / (by_point[1] - by_point[0]))
    assert held >= 5 and np.median(widths) > 1.3


def test_one_epoch_says_nothing_of_repeats():
    law = fit_law(measured(epochs=(1.0,)))
    low, high = law.intervals["data_reuse"]
    assert not law.identified["data_reuse"] and low < 1 and high > 1e4
    assert "not identified" in law.told("data_reuse")
    assert any("data reuse is not identified" in note for note in law.notes)
    assert law.identified["data_exponent"] and law.identified["size_reuse"]
    # What 40 epochs would bring is therefore unknown, and the prediction says so itself.
    once, forty = law.predict(1.2e8, 4e8, 4e8), law.predict(1.2e8, 4e8, 1.6e10)
    assert forty.extrapolation and "data_reuse" in forty.rests_on_unknown and not once.rests_on_unknown
    assert np.diff(forty.interval) > 10 * np.diff(once.interval)


def test_one_size_cannot_tell_the_size_term_from_the_floor():
    law = fit_law(measured(sizes=(1.2e8,), epochs=(0.3, 1, 2, 4, 8, 16, 40)))
    unknown = {name for name, known in law.identified.items() if not known}
    assert {"irreducible_nats", "size_coefficient", "size_exponent", "size_reuse"} <= unknown
    assert law.identified["data_reuse"]
    # Held at published values they are no longer asked for, and the rest is known.
    held = {name: getattr(MUENNIGHOFF, name) for name in ("size_coefficient", "size_exponent", "size_reuse")}
    law = fit_law(measured(sizes=(1.2e8,), epochs=(0.3, 1, 2, 4, 8, 16, 40)), Form(tied_exponents=True, held=held))
    assert set(law.intervals) == {"irreducible_nats", "data_coefficient", "data_reuse"} and all(law.identified.values())
    assert law.constants.data_exponent == MUENNIGHOFF.size_exponent
    assert law.told("size_exponent") == "size exponent is held at 0.3527"


def test_one_text_cannot_tell_how_text_matters():
    law = fit_law(measured(texts=(1e8,), epochs=(1, 2, 4, 8, 16, 40, 100)))
    assert not law.identified["data_exponent"] and not law.identified["data_coefficient"]


def test_reuse_far_beyond_the_repeats_is_not_a_number_without_a_warning():
    law = fit_law(measured(replace(MUENNIGHOFF, data_reuse=500.0), epochs=(1, 2, 4, 8)))
    assert not law.identified["data_reuse"] or any("far beyond the 7 repeats" in note for note in law.notes)


def test_predictions_hold_the_truth_and_say_where_they_extrapolate():
    inside, outside = (1.2e8, 4e8, 4e9), (1e10, 1e11, 1e12)
    held = {inside: 0, outside: 0}
    for case in range(8):
        law = fit_law(measured(case=case), draws=150)
        for at in held:
            found = law.predict(*at)
            held[at] += found.interval[0] <= MUENNIGHOFF.loss_nats(*at) <= found.interval[1]
            assert found.run_interval[1] - found.run_interval[0] > found.interval[1] - found.interval[0]
            assert found.interval[0] <= found.loss_nats <= found.interval[1]
            assert bool(found.extrapolation) == (at is outside)
            if at is outside:
                assert "parameters 1e+10 is 2.5 times the most in the data (4e+09)" in found.extrapolation
    assert min(held.values()) >= 7


def test_a_fit_is_a_function_of_its_points_and_seed():
    points = measured()
    first, again, other = fit_law(points, draws=30), fit_law(points, draws=30), fit_law(points, draws=30, seed=1)
    assert first.intervals == again.intervals and first.constants == again.constants == other.constants
    assert first.intervals != other.intervals


def test_what_cannot_be_fitted_is_refused():
    points = measured()
    with pytest.raises(RunError, match="one family at a time"):
        fit_law([*points, replace(points[0], family="masked")])
    with pytest.raises(RunError, match="one family at a time"):
        fit_law([])
    with pytest.raises(RunError, match="5 runs cannot give intervals for 7 free constants"):
        fit_law(points[:5])
    with pytest.raises(RunError, match="repeated text"):
        fit_law(measured(epochs=(1.0,)), Form(overfitting=True))
