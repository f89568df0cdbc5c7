"""Gradient variance: how much of a gradient is signal, how much is noise, and how much of the noise is masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.control.signals.scene import Row, Scene, State
from crossover.records import Reading
from crossover.registry import register

# With fewer rows their spread says too little of the error: at four rows, 2 standard errors hold 86% of a Student's t.
ROWS = 4


@register("signal", "variance")
@dataclass(frozen=True)
class Variance:
    """Trace of the gradient's covariance, squared norm of its mean, their ratio, and the share that is due to masks.

    Of M parts of b tokens with gradients g_m and mean gbar,

        tr S_b = M / (M - 1) (mean |g_m|^2 - |gbar|^2),    |G|^2 = (M |gbar|^2 - mean |g_m|^2) / (M - 1)

    are unbiased for the trace of the covariance of a b-token gradient and for the squared norm of the true gradient;
    b tr S_b is the trace per token, and b tr S_b / |G|^2 the noise scale in tokens: the batch at which noise and signal
    are equal (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1, with B_small = b and B_big = M b). Numerator and
    denominator are averaged separately, because the mean of ratios is not the ratio of means.

    Two masks of the same n tokens have 0.5 |g_a - g_b|^2 = the trace of the covariance due to masks alone, on average;
    n times it is the trace per token. Its share of the trace of all noise is taken over the rows that have both.

    Standard errors come from the spread of the rows around their weighted mean, so they assume nothing of the
    gradient's distribution; ratios are linearised (delta method). A drift of the true values within the memory, about
    (1 + decay) / (1 - decay) rows, widens the spread and so the error; the lag that it causes is not in the error.

    Args:
        decay: Weight of a row relative to the next one of the same gear.
    """

    decay: float = 0.9
    probes = ("gradient", "clip")

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {self.decay}")

    def update(self, state: State, record: Row) -> State:
        """Take in a "gradient" row, made for a probe or for free from the micro-batches of a step.

        Args:
            state: By gear, weighted sums over all rows and over those with two masks of the same tokens.
            record: Any row of signals.jsonl.

        Returns:
            The new state; the old one when the row is of another kind, of a single part or not finite.
        """
        if record.get("probe") == "clip":
            return self._clipped(state, record)
        if record.get("probe") != "gradient" or record["parts"] < 2:
            return state
        # What was not finite when it was measured is null in the log.
        if None in record["norm2_M"] or record["mean_norm2"] is None:
            return state
        trace, signal = _trace_and_signal(record)
        distance = record.get("mask_half_distance2")
        masks = None if distance is None else float(record["pair_tokens"] * distance)
        if not np.isfinite([trace, signal, masks or 0.0]).all():
            return state
        old = state.get(record["gear"], {})
        new = {**old, "all": _add(old.get("all"), (trace, signal), self.decay), "pairs": old.get("pairs")}
        if masks is not None:
            new["pairs"] = _add(new["pairs"], (masks, trace), self.decay)
        return {**state, record["gear"]: new}

    def _clipped(self, state: State, record: Row) -> State:
        """Keep the least variance of the bound among the clip windows, as a part of that without clipping."""
        pairs = zip(record["windows"], record["variance"], strict=True)
        finite = {tuple(window): float(value) for window, value in pairs if value is not None and np.isfinite(value)}
        whole = finite.get((0.0, 1.0), 0.0)
        if whole <= 0:
            return state
        return {**state, record["gear"]: {**state.get(record["gear"], {}), "clip": min(finite.values()) / whole}}

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Say what the gradients of each gear are made of.

        Args:
            state: The state after the last row.
            scene: Not needed.

        Returns:
            For each gear that had a row: "variance.trace:<gear>" per token and "variance.signal:<gear>", which may come
            out negative, ready after four rows; "variance.noise_scale:<gear>" in tokens, ready when besides |G|^2 lies
            2 standard errors above 0, and until then divided by no less than that one standard error, so that it is a
            finite lower end and no estimate; "variance.mask_share:<gear>" in [0, 1], if masks were compared, ready
            after four comparisons; "variance.clip:<gear>" in (0, 1], for blocks: the variance of the bound under the
            best clip window over that without (the proxy of BD3-LM, arXiv 2503.09573).
        """
        found: dict[str, Reading] = {}
        for gear, sums in state.items():
            if "clip" in sums:
                found[f"variance.clip:{gear}"] = Reading(sums["clip"], 0.0, True)
            if "all" not in sums:
                continue
            mean, covariance, enough = _mean(sums["all"])
            trace_error, signal_error = np.sqrt(np.diag(covariance)).tolist()
            found[f"variance.trace:{gear}"] = Reading(float(mean[0]), trace_error, enough)
            found[f"variance.signal:{gear}"] = Reading(float(mean[1]), signal_error, enough)
            seen = enough and bool(mean[1] > 2 * signal_error)
            found[f"variance.noise_scale:{gear}"] = Reading(*_ratio(mean, covariance), seen)
            if sums["pairs"]:
                mean, covariance, enough = _mean(sums["pairs"])
                share, error = _ratio(mean, covariance)
                found[f"variance.mask_share:{gear}"] = Reading(min(1.0, max(0.0, share)), error, enough)
        return found


def _trace_and_signal(record: Row) -> tuple[float, float]:
    """Estimate the trace per token and |G|^2 from the norms of parts and of their mean."""
    parts, part_norm2, mean_norm2 = record["parts"], float(np.mean(record["norm2_M"])), record["mean_norm2"]
    trace = record["part_tokens"] * parts / (parts - 1) * (part_norm2 - mean_norm2)
    return float(trace), float((parts * mean_norm2 - part_norm2) / (parts - 1))


def _add(sums: dict[str, Any] | None, values: Sequence[float], decay: float) -> dict[str, Any]:
    """Add a row to exponentially weighted sums; dividing by the weight corrects the start."""
    pair = np.asarray(values)
    old = sums or {"rows": 0, "weight": 0.0, "weight2": 0.0, "sum": [0.0, 0.0], "products": [[0.0, 0.0], [0.0, 0.0]]}
    return {
        "rows": old["rows"] + 1,
        "weight": decay * old["weight"] + 1,
        "weight2": decay**2 * old["weight2"] + 1,
        "sum": (decay * np.asarray(old["sum"]) + pair).tolist(),
        "products": (decay * np.asarray(old["products"]) + np.outer(pair, pair)).tolist(),
    }


def _mean(sums: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Return two weighted means, the covariance of the means, and whether there are rows enough to know it.

    Rows are taken as independent with one covariance; its unbiased estimate under weights w is the weighted one over
    1 - sum w^2 / (sum w)^2. Of one row nothing but its size is known, and the size is taken as the error.
    """
    mean = np.asarray(sums["sum"]) / sums["weight"]
    if sums["rows"] < 2:
        return mean, np.diag(mean**2), False
    part = sums["weight2"] / sums["weight"] ** 2
    spread = np.asarray(sums["products"]) / sums["weight"] - np.outer(mean, mean)
    np.fill_diagonal(spread, np.maximum(np.diag(spread), 0.0))
    return mean, spread * part / (1 - part), sums["rows"] >= ROWS


def _ratio(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> tuple[float, float]:
    """Divide the first mean by the second, or by its standard error where that is greater; 0 where both are 0."""
    bottom = max(float(mean[1]), math.sqrt(covariance[1, 1]))
    if bottom <= 0:
        return 0.0, 0.0
    value = float(mean[0]) / bottom
    slopes = np.array([1.0, -value]) / bottom
    return value, math.sqrt(max(float(slopes @ covariance @ slopes), 0.0))
