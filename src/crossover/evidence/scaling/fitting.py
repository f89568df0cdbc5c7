"""Huber loss of the law's log residuals, minimised from several starts: L-BFGS-B, then many weightings at once.

Shape suffixes: K candidates or weightings, P constants, Z free coordinates, I points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize, nnls

from crossover.evidence.scaling.laws import NAMES, Floats, Form, Inputs, Point, inputs_of, log_loss, log_loss_gradient
from crossover.evidence.scaling.space import Space, space_of

# Hoffmann et al. (arXiv 2203.15556, equation 3) and Muennighoff et al.: the Huber loss turns linear at this log
# residual.
HUBER_DELTA = 1e-3
STARTS = 4
POLISH_STEPS = 200
# A step is tried with this damping first; it falls by the one factor when it helps, rises by the other when not.
DAMPING, EASE, STIFFEN = 1e-3, 0.2, 6.0
LARGEST_DAMPING = 1e10


@dataclass(frozen=True)
class Problem:
    """What is minimised: the sum over points of Huber(ln L_law - ln L) in units of delta.

    A sum in units of delta, since the mean in plain units is about 1e-6, where an optimiser's usual tolerance stops
    it at once; that has spoilt a published fit (Besiroglu et al., arXiv 2404.10102).

    Args:
        space: The box that is searched.
        at: The points' sizes and tokens.
        log_loss_I: ln L measured.
        delta: Log residual beyond which the loss is linear.
    """

    space: Space
    at: Inputs
    log_loss_I: Floats
    delta: float

    def residuals(self, y_KZ: Floats) -> Floats:
        """Give law minus measurement of ln L, in units of delta, shape (K, I)."""
        return (log_loss(self.space.theta(y_KZ), self.at) - self.log_loss_I) / self.delta

    def value(self, y_KZ: Floats, weights_KI: Floats) -> Floats:
        """Give the weighted objective of each candidate, shape (K,)."""
        return (weights_KI * huber(self.residuals(y_KZ))).sum(1)

    def slopes(self, y_KZ: Floats) -> tuple[Floats, Floats]:
        """Give the residuals (K, I) and their derivatives by the coordinates (K, Z, I)."""
        value_KI, by_theta_KPI = log_loss_gradient(self.space.theta(y_KZ), self.at)
        by_y_PZ = self.space.matrix_PZ * self.space.width_Z
        return (value_KI - self.log_loss_I) / self.delta, by_y_PZ.T @ by_theta_KPI / self.delta


def huber(residuals: Floats) -> Floats:
    """Give half the square up to 1, and linear growth beyond."""
    size = np.abs(residuals)
    return np.where(size <= 1, 0.5 * size**2, size - 0.5)


def problem_of(points: Sequence[Point], form: Form, huber_delta: float = HUBER_DELTA) -> Problem:
    """State the problem for measured points.

    Args:
        points: Points of one family.
        form: Which constants are free.
        huber_delta: Log residual beyond which the loss is linear.

    Returns:
        The problem.

    Raises:
        RunError: The form asks for what no point can show.
    """
    log_loss_I = np.log([point.loss_nats for point in points])
    return Problem(space_of(points, form), inputs_of(points), log_loss_I, huber_delta)


def minimise(problem: Problem) -> tuple[Floats, Floats]:
    """Search from several starts with L-BFGS-B and polish what it finds.

    Args:
        problem: What to minimise.

    Returns:
        The best point of the unit box (Z,), and the objective that each start came down to, the best first.
    """
    box = [(0.0, 1.0)] * len(problem.space.names)
    found_KZ = np.stack(
        [minimize(_objective, y_Z, (problem,), "L-BFGS-B", jac=True, bounds=box).x for y_Z in starts(problem)]
    )
    found_KZ = polish(problem, found_KZ, np.ones((len(found_KZ), len(problem.log_loss_I))))
    values_K = problem.value(found_KZ, np.ones((1, len(problem.log_loss_I))))
    return found_KZ[np.argmin(values_K)], np.sort(values_K)


def _objective(y_Z: Floats, problem: Problem) -> tuple[float, Floats]:
    residuals_KI, slopes_KZI = problem.slopes(y_Z[None])
    return float(huber(residuals_KI).sum()), slopes_KZI[0] @ np.clip(residuals_KI[0], -1, 1)


def starts(problem: Problem) -> Floats:
    """Choose starts: on a grid of exponents and reuse constants, solve for E, A and B, keep the best few.

    With the exponents, the reuse constants and N_opt given, the law is linear in E, A and B, so non-negative least
    squares finds them at once; N_opt is 1/20 of the tokens first and what those A and B say then.

    Args:
        problem: What is to be minimised.

    Returns:
        Points of the unit box, shape (STARTS, Z), the best first.
    """
    grid_KP = np.array(
        [_linear_start(problem, *at) for at in product((0.25, 0.6), (0.25, 0.6), (8.0, 150.0), (5.0, 300.0))]
    )
    y_KZ = np.unique(problem.space.inside(grid_KP), axis=0)
    values_K = problem.value(y_KZ, np.ones((1, len(problem.log_loss_I))))
    return y_KZ[np.argsort(values_K)[:STARTS]]


def _linear_start(problem: Problem, alpha: float, beta: float, reuse_d: float, reuse_n: float) -> Floats:
    at, lowest = problem.at, float(np.exp(problem.log_loss_I.min()))
    loss_I = np.exp(problem.log_loss_I)
    log_d_I = at.log_fresh_I + np.log1p(-reuse_d * np.expm1(-at.repeats_I / reuse_d))
    log_optimal_I = at.log_fresh_I - np.log(20.0)
    coefficients = np.ones(3)
    for _ in range(2):
        excess_I = np.expm1(np.maximum(at.log_parameters_I - log_optimal_I, 0.0))
        log_n_I = np.minimum(at.log_parameters_I, log_optimal_I)
        log_n_I = log_n_I + np.log1p(-reuse_n * np.expm1(-excess_I / reuse_n))
        # Each column is scaled to 1 in the mean; residuals are relative, as those of the fit are.
        scale = np.array([1.0, np.exp(-alpha * log_n_I.mean()), np.exp(-beta * log_d_I.mean())])
        columns = np.stack([np.ones_like(loss_I), np.exp(-alpha * log_n_I), np.exp(-beta * log_d_I)], 1) / scale
        coefficients = np.maximum(nnls(columns / loss_I[:, None], np.ones_like(loss_I))[0], 0.02 * lowest) / scale
        log_optimal_I = np.log(alpha * coefficients[1] / (beta * coefficients[2])) + beta * at.log_fresh_I
        log_optimal_I = np.clip(log_optimal_I / alpha, -100, 100)
    theta_P = np.array([0.0, 0.0, alpha, 0.0, beta, np.log(reuse_d), np.log(reuse_n), -np.inf, 1.5, 0.5])
    theta_P[[0, 1, 3]] = np.log(np.maximum(coefficients, 1e-300))
    # The overfitting term begins at a tenth of the lowest loss, at the typical repeated point.
    space, name = problem.space, "overfit_coefficient"
    if name in space.names:
        middle_Z = np.where(np.array(space.names) == name, np.log(0.1 * lowest), 0.0)
        row_Z = space.matrix_PZ[NAMES.index(name)] * (np.array(space.names) != name)
        others_Z = np.array([theta_P[NAMES.index(each)] for each in space.names])
        others_Z[np.array(space.names) == name] = 0.0
        theta_P[NAMES.index(name)] = space.base_P[NAMES.index(name)] + row_Z @ others_Z + middle_Z.sum()
    return theta_P


def polish(problem: Problem, y_KZ: Floats, weights_KI: Floats, steps: int = POLISH_STEPS) -> Floats:
    """Minimise the objective under K weightings of the points at once, each from its own start.

    Damped Gauss-Newton steps on the Huber loss by iteratively reweighted least squares: every accepted step lowers
    the objective. One call takes the place of K runs of an optimiser, which makes a bootstrap cheap.

    Args:
        problem: What to minimise.
        y_KZ: Starts in the unit box.
        weights_KI: Weight of each point in each problem.
        steps: Most steps to take.

    Returns:
        The minima, shape (K, Z).
    """
    y_KZ = y_KZ.copy()
    value_K = problem.value(y_KZ, weights_KI)
    damping_K = np.full(len(y_KZ), DAMPING)
    still_K = np.zeros(len(y_KZ), int)
    for _ in range(steps):
        open_K = np.flatnonzero((still_K < 3) & (damping_K < LARGEST_DAMPING))
        if not len(open_K):
            break
        proposed_KZ = _step(problem, y_KZ[open_K], weights_KI[open_K], damping_K[open_K])
        proposed_K = problem.value(proposed_KZ, weights_KI[open_K])
        better_K = proposed_K < value_K[open_K]
        small_K = value_K[open_K] - proposed_K < 1e-6 * value_K[open_K]
        still_K[open_K] = np.where(better_K & ~small_K, 0, still_K[open_K] + (better_K & small_K))
        damping_K[open_K] *= np.where(better_K, EASE, STIFFEN)
        kept = open_K[better_K]
        y_KZ[kept], value_K[kept] = proposed_KZ[better_K], proposed_K[better_K]
    return y_KZ


def _step(problem: Problem, y_KZ: Floats, weights_KI: Floats, damping_K: Floats) -> Floats:
    """Take one damped step inside the box; a coordinate at its end that would leave it stays."""
    residuals_KI, slopes_KZI = problem.slopes(y_KZ)
    curved_KI = weights_KI / np.maximum(np.abs(residuals_KI), 1.0)
    weighted_KZI = slopes_KZI * curved_KI[:, None]
    gradient_KZ = (weighted_KZI @ residuals_KI[:, :, None])[:, :, 0]
    matrix_KZZ = weighted_KZI @ slopes_KZI.transpose(0, 2, 1)
    stuck_KZ = ((y_KZ <= 0) & (gradient_KZ > 0)) | ((y_KZ >= 1) & (gradient_KZ < 0))
    gradient_KZ[stuck_KZ] = 0.0
    matrix_KZZ[stuck_KZ[:, :, None] | stuck_KZ[:, None, :]] = 0.0
    diagonal_KZ = np.einsum("kzz->kz", matrix_KZZ)
    floor_K = 1e-9 * diagonal_KZ.max(1) + 1e-30
    diagonal_KZ += damping_K[:, None] * diagonal_KZ + floor_K[:, None]
    step_KZ = np.linalg.solve(matrix_KZZ, -gradient_KZ[:, :, None])[:, :, 0]
    return np.clip(y_KZ + np.clip(step_KZ, -0.3, 0.3), 0.0, 1.0)
