"""Where curves are held against one another: amounts of compute that they share, and what each had reached there.

Shape suffixes: K weightings of the documents, E evaluations, G grid points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.curves import Curve

Floats = NDArray[np.float64]
Axis = Literal["flops", "flops_6nd", "epochs"]
# Two runs with one budget end within a step of each other; their last points belong together.
MATCHED_WITHIN = 0.005
# A decayed point this close to the end of what is compared tells nothing that the end does not.
CLOSE_TO_END = 0.05


def positions(curve: Curve, axis: Axis) -> Floats:
    """Give the amounts at which a curve was measured, [E]."""
    return {"flops": curve.flops_E, "flops_6nd": curve.flops_6nd_E, "epochs": curve.epochs_E}[axis]


def common_grid(holder: Sequence[Curve], challenger: Sequence[Curve], axis: Axis) -> Floats:
    """Choose the amounts at which two arms are compared.

    Curves of evaluations are compared where the one that was measured least often was measured. Points of decayed runs
    are few and lie apart, and runs of one budget do not end at quite the same amount: they are compared at the ends of
    what all curves cover and at the points between.

    Args:
        holder: Curves of one arm.
        challenger: Curves of the other.
        axis: What is matched.

    Returns:
        The amounts [G], rising.

    Raises:
        RunError: The curves have nothing in common, or other documents.
    """
    curves = [*holder, *challenger]
    if not holder or not challenger:
        raise RunError("a crossing needs at least one measured run on each side")
    if any(not np.array_equal(curve.bytes_D, curves[0].bytes_D) for curve in curves):
        raise RunError("the runs were measured on different documents and cannot be paired; use the same data settings")
    spans = [positions(curve, axis) for curve in curves]
    start, end = max(span[0] for span in spans), min(span[-1] for span in spans)
    if all(curve.is_decayed for curve in curves):
        low, high = start * (1 + CLOSE_TO_END), end / (1 + CLOSE_TO_END)
        between = min((span[(span >= low) & (span <= high)] for span in spans), key=len)
        found = np.concatenate([[start], between, [end]]) if start <= end else np.empty(0)
    else:
        end *= 1 + MATCHED_WITHIN
        inside = [span[(span * (1 + MATCHED_WITHIN) >= start) & (span <= end) & (span > 0)] for span in spans]
        found = min(inside, key=len)
    if not len(found) or not np.isfinite(found).all():
        raise RunError(f"the runs have no measurement at a common number of {axis}; let them go on")
    return np.unique(found)


def losses_at(curve: Curve, loss_KE: Floats, grid_G: Floats, axis: Axis, best_so_far: bool) -> Floats:
    """Read a curve at amounts of compute.

    An evaluation on the way holds until the next one. Between decayed points the loss is taken to be linear in the
    logarithm of the amount: the point before may be half of the compute away.

    Args:
        curve: The curve.
        loss_KE: Its losses, under one or more weightings of the documents.
        grid_G: Amounts, rising.
        axis: What they count.
        best_so_far: Read the best loss up to each amount, else the latest.

    Returns:
        Losses [K, G]; before the first measurement, that one.
    """
    if best_so_far:
        loss_KE = np.minimum.accumulate(loss_KE, axis=1)
    at_E = positions(curve, axis)
    if curve.is_decayed:
        return np.stack([np.interp(np.log(grid_G), np.log(at_E), loss_E) for loss_E in loss_KE])
    reached_G = np.searchsorted(at_E, grid_G * (1 + MATCHED_WITHIN), side="right") - 1
    return loss_KE[:, np.maximum(reached_G, 0)]
