from __future__ import annotations

from dataclasses import replace

from crossover.evidence.scaling.choice import check_overfitting, fit_family
from crossover.evidence.scaling.design import best_so_far, distinct, upturns
from crossover.evidence.scaling.fit import fit_law
from crossover.evidence.scaling.laws import MUENNIGHOFF, Form, Point
from evidence_scaling.grids import SIZES, TEXTS, measured

OVERFITTING = replace(MUENNIGHOFF, overfit_coefficient=2e-3, overfit_repeats_exponent=1.2, overfit_size_exponent=0.5)


def test_the_overfitting_term_is_kept_where_curves_turn_up_and_its_constants_are_found():
    points = measured(OVERFITTING, texts=TEXTS[:3])
    law, check = fit_family(points)
    assert check.needed and "is needed" in check.told and law.form.overfitting
    for name in ("data_reuse", "overfit_coefficient", "overfit_repeats_exponent", "overfit_size_exponent"):
        low, high = law.intervals[name]
        assert low <= getattr(OVERFITTING, name) <= high and law.identified[name]


def test_the_overfitting_term_is_rarely_kept_where_no_curve_turns_up():
    needed = sum(check_overfitting(measured(case=case, texts=TEXTS[:3])).needed for case in range(8))
    assert needed <= 1
    law, check = fit_family(measured(texts=TEXTS[:3]), draws=30)
    assert not check.needed and not law.form.overfitting and law.constants.overfit_coefficient == 0


def test_fitting_the_term_without_need_is_found_out_by_the_intervals():
    law = fit_law(measured(texts=TEXTS[:3]), Form(overfitting=True))
    assert not law.identified["overfit_coefficient"] and law.identified["data_reuse"]


def test_without_repeats_nothing_is_asked():
    check = check_overfitting(measured(epochs=(1.0,)))
    assert not check.needed and check.told.startswith("no text is repeated")


def runs_that_turn_up() -> list[Point]:
    return [
        Point(size, unique, unique * epochs, float(OVERFITTING.loss_nats(size, unique, unique * epochs)), "ar", 0, name)
        for size in SIZES[1:5]
        for unique in TEXTS[:3]
        for name in [f"{size}-{unique}"]
        for epochs in (1, 2, 4, 8, 16, 40, 100)
    ]


def test_an_upturn_is_noted_and_best_so_far_takes_it_out():
    points = runs_that_turn_up()
    up, runs = upturns(points)
    assert runs == 12 and up > 6
    assert any("end more than 1% above" in note for note in fit_law(points, draws=20).notes)
    kept = best_so_far(points[::-1])
    assert upturns(kept) == (0, 12) and len(kept) == len(points)
    lowest = {point.group: min(p.loss_nats for p in points if p.group == point.group) for point in points}
    assert all(point.loss_nats == lowest[point.group] for point in kept if point.tokens == 100 * point.unique_tokens)


def test_sizes_that_differ_by_rounding_are_one():
    assert distinct([1e6, 1.001e6, 2e6, 2.01e6, 4e6]) == 3
