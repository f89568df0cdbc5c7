"""Whether the upturn is there: the law with and without its overfitting term, on runs that neither has seen.

Shape suffixes: K folds, I points, C runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.scaling.bootstrap import runs_of
from crossover.evidence.scaling.fit import FittedLaw, fit_law
from crossover.evidence.scaling.fitting import HUBER_DELTA, minimise, polish, problem_of
from crossover.evidence.scaling.laws import OVERFIT, Floats, Form, Point
from crossover.streams import stream

MOST_FOLDS = 20
# One-sided 95%, and a share of the error that is worth three more constants.
NORMAL_95 = 1.645
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class OverfittingCheck:
    """Whether the overfitting term predicts left-out runs better.

    Args:
        needed: Whether it does, by more than chance (one-sided 95%) and by at least a twentieth of their error.
        gain: How much smaller the absolute log residual of a left-out run is with it, mean over runs.
        standard_error: Of `gain`, over runs.
        told: The same in words.
    """

    needed: bool
    gain: float
    standard_error: float
    told: str


def check_overfitting(
    points: Sequence[Point], form: Form | None = None, *, seed: int = 0, huber_delta: float = HUBER_DELTA
) -> OverfittingCheck:
    """Compare the law with and without the overfitting term by cross-validation over runs.

    Args:
        points: Points of one family, as measured (not best so far).
        form: The other settings of the form.
        seed: Seed of the folds.
        huber_delta: Log residual beyond which a point counts linearly.

    Returns:
        The verdict; without repeated text the term is 0 everywhere and is not needed.

    Raises:
        RunError: Points that no law can be fitted to.
    """
    if not any(point.tokens > point.unique_tokens for point in points):
        return OverfittingCheck(False, 0.0, 0.0, "no text is repeated, so the overfitting term is not needed")
    forms = (without_overfitting(form), with_overfitting(form))
    run_I = runs_of(points)
    runs = int(run_I.max()) + 1
    folds = min(runs, MOST_FOLDS)
    fold_C = stream(seed, f"scaling/folds/{points[0].family}").permutation(runs) % folds
    errors = [_left_out(points, each, fold_C[run_I], folds, huber_delta) for each in forms]
    sizes_C = np.bincount(run_I)
    gain_C = np.bincount(run_I, errors[0] - errors[1]) / sizes_C
    gain, error = float(gain_C.mean()), float(gain_C.std(ddof=1) / np.sqrt(runs)) if runs > 1 else float("inf")
    before = float((np.bincount(run_I, errors[0]) / sizes_C).mean())
    needed = gain > NORMAL_95 * error and gain > LEAST_SHARE * before
    verdict = "is needed" if needed else "is not shown to be needed"
    moves = f"{before:.2%} by {gain:.3%} ± {error:.3%} (s.e.)"
    told = f"the overfitting term {verdict}: it lowers the error on left-out runs of {moves}"
    return OverfittingCheck(needed, gain, error, told)


def fit_family(
    points: Sequence[Point],
    form: Form | None = None,
    *,
    draws: int = 300,
    seed: int = 0,
    huber_delta: float = HUBER_DELTA,
) -> tuple[FittedLaw, OverfittingCheck]:
    """Fit one family's law with the overfitting term if the data show that it is needed, and without it if not.

    Args:
        points: Points of one family, as measured.
        form: The other settings of the form.
        draws: Bootstrap draws.
        seed: Seed of the folds and of the bootstrap.
        huber_delta: Log residual beyond which a point counts linearly.

    Returns:
        The law, and the check that chose its form. Intervals do not cover the choice itself.

    Raises:
        RunError: Points that no law can be fitted to.
    """
    check = check_overfitting(points, form, seed=seed, huber_delta=huber_delta)
    chosen = with_overfitting(form) if check.needed else without_overfitting(form)
    return fit_law(points, chosen, draws=draws, seed=seed, huber_delta=huber_delta), check


def with_overfitting(form: Form | None) -> Form:
    """Give the same form with its overfitting term."""
    return replace(form or Form(), overfitting=True)


def without_overfitting(form: Form | None) -> Form:
    """Give the same form without its overfitting term and what it held of it."""
    form = form or Form()
    return replace(form, overfitting=False, held={n: v for n, v in form.held.items() if n not in OVERFIT})


def _left_out(points: Sequence[Point], form: Form, fold_I: NDArray[np.int64], folds: int, huber_delta: float) -> Floats:
    """Give the absolute log residual of each point under the law fitted without its fold."""
    problem = problem_of(points, form, huber_delta)
    y_Z, _ = minimise(problem)
    weights_KI = (np.arange(folds)[:, None] != fold_I).astype(float)
    without_KZ = polish(problem, np.repeat(y_Z[None], folds, 0), weights_KI)
    residuals_KI = np.abs(problem.residuals(without_KZ)) * huber_delta
    return residuals_KI[fold_I, np.arange(len(points))]
