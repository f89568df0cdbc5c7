"""Validation curvature: is the held-out loss still falling, where is its minimum, and what is left to gain.

Suffixes: J evaluations, U units (scoring windows), P coefficients of the parabola. Leading axes are independent
repetitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from crossover.control.signals.gap import unit_mean, unit_variance
from crossover.control.signals.scene import Row, Scene, State
from crossover.records import Reading
from crossover.registry import register

Floats = NDArray[np.float64]

# A parabola through four evaluations leaves one degree of freedom, too few to know the noise.
FEWEST = 5
# A minimum further away than this, in ln tokens, is no prediction but a straight line's noise.
HORIZON = 20.0


@register("signal", "curvature")
@dataclass(frozen=True)
class Curvature:
    """Slope, curvature and minimum of the held-out loss in s = ln(data tokens), from a parabola through the last rows.

    L = a + b s + c s^2 is fitted by least squares to the mean losses of the last evaluations, which weigh alike because
    all are of the same windows under the same masks. The slope at the newest, v = b + 2 c s_end, is a weighted sum of
    the losses, v = sum_j a_j L_j, and so are c and, linearised (delta method), the minimum s* = s_end - v / 2c and the
    remaining gain v^2 / 4c. Each weighted sum has two errors, added in quadrature:

    - units are a sample of text: the sum is taken of each unit's own losses, v_u = sum_j a_j l_ju, and the spread of
      the v_u is the error of their token-weighted mean. The a_j sum to 0, so how much units differ in level is no
      matter, only how much they differ in trend;
    - training is noisy: the residuals' variance, on J - 3 degrees of freedom, times sum_j a_j^2.

    Noise that a unit has for itself is in both, so the error is rather too large than too small. The probability that
    the slope exceeds -delta is Student's t at (v + delta) / error, with the degrees of freedom of Welch (1947) and
    Satterthwaite (1946). On a flat curve with independent normal noise it exceeds p in at most 1 - p of the evaluations
    (delta = 0), up to what Welch's approximation is off: simulated with 20 units and any proportion of the two errors,
    10.3% at most exceed .9 and 5.4% exceed .95 with six rows, 10.6% and 6.0% with five. That holds for each evaluation
    alone: two in a row exceed .9 in about 2% of the pairs of a flat curve, yet somewhere among 35 evaluations of one
    that stays flat in 38 to 48% of the runs. Training noise that lasts from one evaluation to the next is a trend to
    any fit, and counts as one: at a correlation of one half, 17% of single evaluations exceed .9. Of a single unit
    nothing is known of other text, and the error is that of training noise alone.

    Args:
        evaluations: Rows that are fitted, K; no fewer than five.
        delta: How fast a loss may fall, in nats per unit of ln tokens, and still count as not falling.
    """

    evaluations: int = 6
    delta: float = 0.0
    probes = ("loss",)

    def __post_init__(self) -> None:
        if self.evaluations < FEWEST:
            raise ValueError(f"evaluations must be at least {FEWEST}, not {self.evaluations}: a parabola takes three")
        if not 0 <= self.delta < math.inf:
            raise ValueError(f"delta must be 0 or more nats per unit of ln tokens, not {self.delta}")

    def update(self, state: State, record: Row) -> State:
        """Take in a "loss" row.

        Evaluations of other units cannot be compared, and none lies after the newest: when the units change, or the
        clock stands still or runs back, the rows that do not fit are forgotten.

        Args:
            state: How many rows there were, and the last K: tokens seen, tokens of the units, losses of each mode.
            record: Any row of signals.jsonl.

        Returns:
            The new state; the old one when the row is of another kind or was taken before the first token.
        """
        if record.get("probe") != "loss" or record["data_tokens"] < 1:
            return state
        losses = {mode: list(losses_U) for mode, losses_U in record["control"].items() if np.isfinite(losses_U).all()}
        units = list(record.get("units", []))
        new = {"data_tokens": record["data_tokens"], "unit_tokens": list(record["unit_tokens"]), "units": units}
        kept = [row for row in state.get("rows", []) if _comparable(row, new)]
        return {
            "evaluations": state.get("evaluations", 0) + 1,
            "rows": [*kept, {**new, "losses": losses}][-self.evaluations :],
        }

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Fit every mode that the newest row has.

        Args:
            state: The state after the last row.
            scene: Not needed.

        Returns:
            "evaluations", how many rows there were; for each mode "curvature.loss:<mode>", the newest loss in nats per
            token with its error over units; and, left out before five rows, "curvature.slope:<mode>" in nats per unit
            of ln tokens, "curvature.rising:<mode>", the probability that the slope exceeds -delta,
            "curvature.minimum:<mode>" in tokens, ready only where the parabola opens upwards, and
            "curvature.gain:<mode>", the nats that are left to the minimum, 0 when it lies behind.
        """
        if not state:
            return {}
        found = {"evaluations": Reading(float(state["evaluations"]), 0.0, True)}
        tokens_U = np.asarray(state["rows"][-1]["unit_tokens"], float)
        for mode, losses_U in state["rows"][-1]["losses"].items():
            found[f"curvature.loss:{mode}"] = Reading(*unit_mean(losses_U, tokens_U), True)
            rows = [row for row in state["rows"] if mode in row["losses"]]
            fit = parabola(np.array([row["data_tokens"] for row in rows], float))
            if fit is not None:
                losses_JU = np.array([row["losses"][mode] for row in rows], float)
                said = _said(fit, losses_JU, tokens_U, self.delta, rows[-1]["data_tokens"])
                found |= {f"curvature.{name}:{mode}": reading for name, reading in said.items()}
        return found


def _comparable(row: dict[str, Any], new: dict[str, Any]) -> bool:
    same = all(row[key] == new[key] for key in ("unit_tokens", "units"))
    return same and row["data_tokens"] < new["data_tokens"]


@dataclass(frozen=True)
class Parabola:
    """Least squares of a parabola on given points, as weights of the losses that it will be fitted to.

    Args:
        slope_J: Weights of the slope at the newest point.
        bend_J: Weights of the quadratic coefficient c.
        rest_JJ: Takes losses to their residuals.
    """

    slope_J: Floats
    bend_J: Floats
    rest_JJ: Floats


def parabola(tokens_J: Floats) -> Parabola | None:
    """Solve least squares of a + b s + c s^2, s = ln(tokens), for all losses at once.

    Args:
        tokens_J: Data tokens seen at each evaluation, increasing.

    Returns:
        The weights, or None with fewer than five points or with points too close to tell a parabola from a line.
    """
    if len(tokens_J) < FEWEST:
        return None
    # s is measured from the newest point, in units of its range: then b is the slope there, and columns are alike.
    back_J = np.log(tokens_J / tokens_J[-1])
    reach = -back_J.min()
    if reach <= 0:
        return None
    columns_JP = np.stack([np.ones_like(back_J), back_J / reach, (back_J / reach) ** 2], axis=1)
    if np.linalg.matrix_rank(columns_JP) < 3:
        return None
    solve_PJ = np.linalg.pinv(columns_JP)
    return Parabola(solve_PJ[1] / reach, solve_PJ[2] / reach**2, np.eye(len(tokens_J)) - columns_JP @ solve_PJ)


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of losses with its error.

    Args:
        value: The sum, [...].
        error: Its standard error, [...].
        freedom: Degrees of freedom of the error, [...].
    """

    value: Floats
    error: Floats
    freedom: Floats


def estimate(weights_J: Floats, fit: Parabola, losses_JU: Floats, tokens_U: Floats) -> Estimate:
    """Take a weighted sum over evaluations and find its error from units and from training noise.

    Args:
        weights_J: Weights of the evaluations, [..., J]; they sum to 0.
        fit: Gives the residuals.
        losses_JU: Nats per token, [..., J, U].
        tokens_U: Tokens of each unit, [U].

    Returns:
        The estimate; its degrees of freedom are those of a sum of two variances (Satterthwaite 1946).
    """
    # Levels cancel in exact arithmetic; taken away first, they leave no rounding errors either.
    change_JU = losses_JU - losses_JU[..., -1:, :]
    change_J = change_JU @ tokens_U / tokens_U.sum()
    value = np.sum(weights_J * change_J, axis=-1)
    each_U = np.einsum("...j,...ju->...u", weights_J, change_JU)
    units = unit_variance(each_U - value[..., None], tokens_U)
    spare = fit.rest_JJ.shape[0] - 3
    noise = np.sum((change_J @ fit.rest_JJ) ** 2, axis=-1) / spare * np.sum(weights_J**2, axis=-1)
    shares = units**2 / max(len(tokens_U) - 1, 1) + noise**2 / spare
    # Below this, differences of losses are rounding.
    finest = np.finfo(float).eps * np.sum(np.abs(weights_J), axis=-1) * np.abs(losses_JU).max(axis=(-2, -1))
    freedom = np.divide((units + noise) ** 2, shares, out=np.full_like(shares, spare), where=shares > 0)
    return Estimate(value, np.sqrt(units + noise + finest**2), freedom)


def rising(slope: Estimate, delta: float) -> Floats:
    """Return the probability that the slope exceeds -delta: Student's t at the estimate.

    Args:
        slope: The slope at the newest evaluation.
        delta: Nats per unit of ln tokens.

    Returns:
        Probabilities [...]; a half where neither the slope nor its error differs from 0.
    """
    # Only losses that are all exactly 0 have no error at all; they are not steep.
    return stdtr(slope.freedom, (slope.value + delta) / np.maximum(slope.error, 1e-30))


def minimum(fit: Parabola, losses_JU: Floats, tokens_U: Floats) -> tuple[Estimate, Estimate]:
    """Predict how far away the minimum is and what is left to gain; only where the parabola opens upwards.

    s* - s_end = -v / 2c and the gain v^2 / 4c are linearised in v and c, which are weighted sums of the same losses.

    Args:
        fit: The parabola's weights.
        losses_JU: Nats per token, [..., J, U].
        tokens_U: Tokens of each unit.

    Returns:
        The distance to the minimum in ln tokens, negative when it lies behind, and the remaining gain in nats, 0 when
        it does.
    """
    change_J = (losses_JU - losses_JU[..., -1:, :]) @ tokens_U / tokens_U.sum()
    slope, bend = change_J @ fit.slope_J, change_J @ fit.bend_J
    ahead = -slope / (2 * bend)
    ahead_J = (-fit.slope_J - 2 * ahead[..., None] * fit.bend_J) / (2 * bend[..., None])
    gain_J = -ahead[..., None] * fit.slope_J - ahead[..., None] ** 2 * fit.bend_J
    place, gain = (estimate(weights_J, fit, losses_JU, tokens_U) for weights_J in (ahead_J, gain_J))
    left = np.where(ahead > 0, bend * ahead**2, 0.0)
    return Estimate(ahead, place.error, place.freedom), Estimate(left, gain.error, gain.freedom)


def _said(fit: Parabola, losses_JU: Floats, tokens_U: Floats, delta: float, newest_tokens: float) -> dict[str, Reading]:
    slope, bend = (estimate(weights_J, fit, losses_JU, tokens_U) for weights_J in (fit.slope_J, fit.bend_J))
    found = {
        "slope": Reading(float(slope.value), float(slope.error), True),
        "rising": Reading(float(rising(slope, delta)), 0.0, True),
        "minimum": Reading(0.0, 0.0, False),
        "gain": Reading(0.0, 0.0, False),
    }
    if not bend.value > bend.error * np.finfo(float).eps:
        return found
    place, gain = minimum(fit, losses_JU, tokens_U)
    if abs(place.value) < HORIZON:
        tokens = newest_tokens * math.exp(place.value)
        found["minimum"] = Reading(tokens, tokens * float(place.error), True)
        found["gain"] = Reading(float(gain.value), float(gain.error), True)
    return found
