"""Held-out alignment: what one more FLOP of a gear is worth to the loss that is minimised.

Suffixes: M parts of a gradient probe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossover.control.signals.scene import Row, Scene, State
from crossover.records import Reading
from crossover.registry import register


@register("signal", "alignment")
@dataclass(frozen=True)
class Alignment:
    """Marginal value per FLOP of each gear for the target's held-out loss.

    A small step of length e along the gear's preconditioned gradient, -e P g, changes the held-out loss to first order
    by -e <g_control, g>_P, where <a, b>_P = a' P b and P = diag(1 / (sqrt(v) + eps)) is what the optimizer multiplies
    gradients by. Divided by what a token of the gear costs, this is the decrease of held-out loss per FLOP, up to the
    factor e that all gears share; divided by |g_control|_P, it does not shrink merely because the held-out gradient
    does; divided by |g|_P, where the row has it, it does not grow because a loss has large weights: the length of a
    step is the optimizer's choice, which clips and adapts. A gear with twice the alignment repays a FLOP twice as well;
    a negative one harms the target. Cost: five gradients of a quarter step each (one more with masks), charged.

    The standard error is that of the gear's own sample, sd / sqrt(M) over the parts: with four parts it has three
    degrees of freedom, and probes that share no data can confirm each other, so nothing is averaged by default. The
    held-out gradient is the same for all parts of a probe: its sampling error is in none of the errors, and is shared
    by gears only as far as they are measured at the same weights and on the same control text. Under target l2r its
    objective predicts every hidden token from the visible prefix, which is like that of the procedure and not the same.

    Args:
        decay: Weight of a probe relative to the next one of the same gear.
    """

    decay: float = 0.0
    probes = ("gradient",)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}; 0 keeps the newest probe alone")

    def update(self, state: State, record: Row) -> State:
        """Take in a "gradient" row that was made along the held-out gradient.

        Rows of another target measure in another unit: when the target changes, all that came before is forgotten.

        Args:
            state: The target, and by gear the count of probes, their weight, and weighted sums of value and variance.
            record: Any row of signals.jsonl.

        Returns:
            The new state; the old one when the row is of another kind, was made without a held-out gradient, or holds
            none that can be divided by.
        """
        # What was not finite when it was measured is null in the log.
        if record.get("probe") != "gradient" or None in [*(record.get("along_M") or [None]), record["control_norm2"]]:
            return state
        scale = math.sqrt(max(record["control_norm2"], 0.0)) * record["flops_per_token"]
        own_norm2 = record.get("own_norm2")
        scale *= 1.0 if own_norm2 is None else math.sqrt(max(own_norm2, 0.0))
        if not (math.isfinite(scale) and scale > 0 and np.isfinite(record["along_M"]).all()):
            return state
        value, variance = _mean(record["along_M"], scale)
        gears = dict(state["gears"]) if state.get("target") == record["target"] else {}
        old: dict[str, Any] = gears.get(record["gear"], {"probes": 0, "weight": 0.0, "value": 0.0, "variance": 0.0})
        gears[record["gear"]] = {
            "probes": old["probes"] + 1,
            "weight": self.decay * old["weight"] + 1,
            "value": self.decay * old["value"] + value,
            "variance": self.decay**2 * old["variance"] + variance,
        }
        return {"target": record["target"], "gears": gears}

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Say what a FLOP of each gear is worth.

        Args:
            state: The state after the last row.
            scene: Not needed.

        Returns:
            "alignment:<gear>", per FLOP, ready after one probe; "alignment.probes:<gear>", how many there were.
        """
        found = {}
        for gear, sums in state.get("gears", {}).items():
            error = math.sqrt(sums["variance"]) / sums["weight"]
            found[f"alignment:{gear}"] = Reading(sums["value"] / sums["weight"], error, True)
            found[f"alignment.probes:{gear}"] = Reading(float(sums["probes"]), 0.0, True)
        return found


def _mean(along_M: Sequence[float], scale: float) -> tuple[float, float]:
    """Average the parts, and estimate the variance of their mean; of one part nothing but its size is known."""
    values_M = np.asarray(along_M, float) / scale
    value = float(values_M.mean())
    return value, float(values_M.var(ddof=1)) / len(values_M) if len(values_M) > 1 else value**2
