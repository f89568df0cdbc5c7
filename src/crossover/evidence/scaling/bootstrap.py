"""How sure the constants of a law are: runs are resampled, and what the data do not pin down is left to its box.

Shape suffixes: K draws, Z free coordinates, P constants, I points, C runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.scaling.fitting import Problem, polish
from crossover.evidence.scaling.laws import NAMES, Floats, Point
from crossover.evidence.scaling.space import CENTRED, Space
from crossover.streams import stream

Interval = tuple[float, float]
CONFIDENCE = 0.95
# A constant is known when the data narrow it to less than this share of what its box alone says, and when its interval
# spans less than this part of the box (a factor of 10 for a reuse constant) and does not reach an end of it.
KNOWN_SHARE = 0.3
WIDEST = 1 / 6
AT_THE_END = 0.005
# Residuals of a perfect fit are rounding; their scale must not count as certainty about directions without data.
SMALLEST_RESIDUAL = 1e-6


@dataclass(frozen=True)
class Resampled:
    """The law refitted to resampled runs.

    Args:
        draws_KP: Constants of each draw, as `Constants.theta` has them.
        known: Whether the data pin a constant down, for each free one.
    """

    draws_KP: Floats
    known: Mapping[str, bool]


def quantiles(values_K: Floats) -> Interval:
    """Give the 95% interval of draws; a draw of inf (not reached) may be its end."""
    low, high = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    return float(np.quantile(values_K, low, method="lower")), float(np.quantile(values_K, high, method="higher"))


def runs_of(points: Sequence[Point]) -> NDArray[np.int64]:
    """Number the run, a (group, seed), that each point belongs to, shape (I,)."""
    numbers: dict[tuple[str, int], int] = {}
    return np.array([numbers.setdefault((point.group, point.seed), len(numbers)) for point in points])


def resample(problem: Problem, y_Z: Floats, points: Sequence[Point], draws: int, seed: int) -> Resampled:
    """Refit under random weights of the runs.

    The Bayesian bootstrap (Rubin 1981) by runs: all points of a run share one gamma-distributed weight of mean 1, so
    that no draw loses a whole size or text. Its variance is C / (C - Z), not 1, since Z fitted constants have
    shrunk the residuals. Each draw starts at a random place, as far from the optimum as the data leave open: along a
    direction that no point constrains it stays there, and the interval shows it.

    Args:
        problem: The fitted problem.
        y_Z: Its optimum in the unit box.
        points: Its points.
        draws: Draws, K.
        seed: Seed of the draws.

    Returns:
        The draws, and which constants the data pin down.

    Raises:
        RunError: There are no more runs than free constants.
    """
    run_I = runs_of(points)
    runs, free = int(run_I.max()) + 1, len(problem.space.names)
    if runs <= free:
        raise RunError(
            f"scaling law: {runs} runs cannot give intervals for {free} free constants; "
            f"add runs, or hold constants at published values"
        )
    rng = stream(seed, f"scaling/{points[0].family}")
    variance = runs / (runs - free)
    weights_KI = rng.gamma(1 / variance, variance, (draws, runs))[:, run_I]
    covariance_ZZ = _covariance(problem, y_Z, free)
    jitter_KZ = rng.multivariate_normal(np.zeros(free), covariance_ZZ, draws, method="eigh")
    draws_KZ = polish(problem, np.clip(y_Z + jitter_KZ, 0.0, 1.0), weights_KI)
    narrowed_Z = np.sqrt(np.diag(covariance_ZZ) * 12.0)
    return Resampled(problem.space.theta(draws_KZ), _known(problem.space, narrowed_Z, draws_KZ))


def _covariance(problem: Problem, y_Z: Floats, free: int) -> Floats:
    """Give what remains open: the inverse of the data's information plus that of a uniform box, variance 1/12."""
    residuals_KI, slopes_KZI = problem.slopes(y_Z[None])
    residuals_I, slopes_ZI = residuals_KI[0], slopes_KZI[0]
    scale = 1.4826 * float(np.median(np.abs(residuals_I))) * np.sqrt(len(residuals_I) / (len(residuals_I) - free))
    scale = max(scale, SMALLEST_RESIDUAL / problem.delta)
    covariance_ZZ = np.linalg.inv(slopes_ZI @ slopes_ZI.T / scale**2 + 12.0 * np.eye(free))
    return (covariance_ZZ + covariance_ZZ.T) / 2


def _known(space: Space, narrowed_Z: Floats, draws_KZ: Floats) -> dict[str, bool]:
    """Judge each free constant; a coefficient is known only if its exponents are, being an extrapolation to N = 1."""
    known: dict[str, bool] = {}
    for column, name in enumerate(space.names):
        low, high = quantiles(draws_KZ[:, column])
        # The overfitting exponent of size may well be 0, the lower end of its box.
        low_end = name != "overfit_size_exponent" and low < AT_THE_END
        narrow = narrowed_Z[column] < KNOWN_SHARE and high - low < WIDEST
        known[name] = bool(narrow and not low_end and high <= 1 - AT_THE_END)
    for coefficient, exponents in CENTRED.items():
        if coefficient in known:
            known[coefficient] = all(known.get(name, True) for name in (coefficient, *exponents))
    return known


def interval_of(draws_KP: Floats, name: str) -> Interval:
    """Give the 95% interval of a constant in plain units."""
    return quantiles(plain_draws(draws_KP, name))


def plain_draws(draws_KP: Floats, name: str) -> Floats:
    """Give the draws of a constant in plain units, shape (K,)."""
    column_K = draws_KP[:, NAMES.index(name)]
    return column_K if name.endswith("exponent") else np.exp(column_K)
