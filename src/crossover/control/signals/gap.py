"""Generalisation gap: what the model knows of its training text and not of other text like it.

Suffixes: U units, that is scoring windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossover.control.signals.scene import Row, Scene, State
from crossover.records import Reading
from crossover.registry import register


@register("signal", "gap")
@dataclass(frozen=True)
class Gap:
    """Held-out minus train loss of the newest evaluation, in every mode that was measured on both.

    Its two samples of windows are independent, so the variances of the two means add up. Nothing is smoothed: the same
    windows are measured each time, and what they share between evaluations would not average out.
    """

    probes = ("loss",)

    def update(self, state: State, record: Row) -> State:
        """Keep what the newest "loss" row says.

        Args:
            state: Value, standard error and readiness by mode.
            record: Any row of signals.jsonl.

        Returns:
            The new state; the old one when the row is of another kind or has no training text.
        """
        if record.get("probe") != "loss" or not record.get("train"):
            return state
        control, train, tokens_U = record["control"], record["train"], record["unit_tokens"]
        train_tokens_U = record.get("train_unit_tokens")
        modes = [mode for mode in control if train.get(mode) and np.isfinite([*control[mode], *train[mode]]).all()]
        return {"modes": {mode: list(_gap(control[mode], tokens_U, train[mode], train_tokens_U)) for mode in modes}}

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Say how much worse the model is on held-out text.

        Args:
            state: The state after the last row.
            scene: Not needed.

        Returns:
            "gap:<mode>" in nats per token; ready when both samples have at least two windows, because one alone says
            nothing of how much windows differ.
        """
        return {f"gap:{mode}": Reading(*values) for mode, values in state.get("modes", {}).items()}


def _gap(
    control_U: list[float], tokens_U: list[float], train_U: list[float], train_tokens_U: list[float] | None
) -> tuple[float, float, bool]:
    """Take the difference of two means; windows of training text weigh alike where their sizes are not told."""
    held_out, held_out_error = unit_mean(control_U, tokens_U)
    train, train_error = unit_mean(train_U, np.ones(len(train_U)) if train_tokens_U is None else train_tokens_U)
    return held_out - train, math.hypot(held_out_error, train_error), min(len(control_U), len(train_U)) > 1


def unit_mean(losses_U: ArrayLike, tokens_U: ArrayLike) -> tuple[float, float]:
    """Average losses per token over units of unequal size.

    Args:
        losses_U: Nats per token of each unit.
        tokens_U: Tokens of each unit.

    Returns:
        Nats per token of all units together, and its standard error over units: the linearised one of a ratio of sums
        (Cochran 1977, Sampling Techniques, section 6.5), or 0 for a single unit, whose error cannot be known.
    """
    losses, tokens = np.asarray(losses_U, float), np.asarray(tokens_U, float)
    mean = float(tokens @ losses / tokens.sum())
    return mean, math.sqrt(float(unit_variance(losses - mean, tokens)))


def unit_variance(residuals_U: NDArray[np.float64], tokens_U: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the variance of a token-weighted mean over units (linearised, Cochran 1977, section 6.5).

    Args:
        residuals_U: Each unit's value minus that mean; [..., U].
        tokens_U: Tokens of each unit, [U].

    Returns:
        The variance [...]; 0 for a single unit.
    """
    count = len(tokens_U)
    return count / max(count - 1, 1) * np.sum((residuals_U * tokens_U) ** 2, axis=-1) / tokens_U.sum() ** 2
