"""Where one group of runs passes another for good: paired bootstrap over documents and seeds, or "not reached"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.common_grid import Axis, common_grid, losses_at
from crossover.evidence.curves import Curve
from crossover.streams import stream

# Shape suffixes: K bootstrap draws, S seeds, E evaluations, D documents, G grid points.
CONFIDENCE = 0.95
# What is matched, whether the best evaluation so far is compared, and how that is called.
VARIANTS: tuple[tuple[Axis, bool, str], ...] = (
    ("flops", True, "best so far, matched FLOPs (headline)"),
    ("flops_6nd", True, "best so far, matched FLOPs by 6ND"),
    ("epochs", False, "same epoch, latest evaluation"),
)


@dataclass(frozen=True)
class Crossing:
    """Whether and where the challenger passes the holder.

    Args:
        status: "crossed"; "not reached" by c_max (a censored result); or "always ahead" since the first common point.
        axis: What `low`, `high`, `root`, `ci` and `c_max` count: "flops", "flops_6nd" or "epochs".
        best_so_far: Whether the best evaluation so far is compared (the fair one) or the latest.
        low: Last grid point where the holder is not behind, None unless crossed.
        high: First grid point where the challenger's lead is established, None unless crossed.
        root: Where the curves meet, interpolated in the logarithm, None unless crossed.
        ci: 95% interval of the root, None unless crossed; an end at the edge of the grid is censored.
        c_max: How far the comparison reaches.
        lead_bits: The holder's loss minus the challenger's at c_max, bits per byte; positive: challenger ahead.
        lead_bits_ci: 95% interval of `lead_bits`.
        leads_at_end_only: The lead is established at the last point alone; a crossing needs two in a row.
        lost_again: A lead was established at two points in a row, but the challenger fell behind after them.
        seeds: Pairs of seeds (or the smaller number of seeds, unpaired).
        points: Grid points.
        grid: The grid itself.
        lead_bits_by_point: The challenger's lead at each grid point.
        lower_bound_bits_by_point: Its one-sided 95% lower bound, simultaneous over the grid.
        unconfirmed_bound: The 95% bound of the lead at c_max over seeds that took a crossing back; None otherwise.
    """

    status: Literal["crossed", "not reached", "always ahead"]
    axis: Axis
    best_so_far: bool
    low: float | None
    high: float | None
    root: float | None
    ci: tuple[float, float] | None
    c_max: float
    lead_bits: float
    lead_bits_ci: tuple[float, float]
    leads_at_end_only: bool
    lost_again: bool
    seeds: int
    points: int
    grid: tuple[float, ...]
    lead_bits_by_point: tuple[float, ...]
    lower_bound_bits_by_point: tuple[float, ...]
    unconfirmed_bound: float | None = None


def find_crossing(
    holder: Sequence[Curve],
    challenger: Sequence[Curve],
    *,
    axis: Axis = "flops",
    best_so_far: bool = True,
    draws: int = 1000,
    seed: int = 0,
) -> Crossing:
    """Find where the challenger passes the holder.

    The lead at C is m_holder(C) - m_challenger(C), with m(C) the mean over seeds of the lowest loss up to C (or the
    latest, if not best so far). It is established at a grid point when its lower bound is above 0; the bound is
    one-sided 95% *simultaneously over the grid* (studentised maximum of a paired cluster bootstrap over documents
    and seeds), since a search over many points would otherwise find a lead by chance. A crossing needs two grid
    points in a row, and no point behind after them. Grid points are the evaluations of the group that was measured
    less often.

    Args:
        holder: Its curve for each seed.
        challenger: Its curve for each seed.
        axis: What is matched: FLOPs, FLOPs by 6ND, or epochs.
        best_so_far: Compare the best evaluation so far, else the latest.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The crossing, or that it is not reached.

    Raises:
        RunError: A group is empty, documents differ or the curves have no compute in common.
    """
    grid_G = common_grid(holder, challenger, axis)
    lead_G, lead_KG = _leads(holder, challenger, grid_G, axis, best_so_far, draws, seed)
    error_G = lead_KG.std(0)
    lower_G = _lower_bounds(lead_G, lead_KG, error_G)
    ahead_G = lower_G > 0
    twice = np.flatnonzero(ahead_G[:-1] & ahead_G[1:])
    behind = np.flatnonzero(lead_G <= 0)
    last = int(behind[-1]) if len(behind) else None
    # A lead that is lost again is no crossing: only what comes after the last point behind counts.
    kept = twice[twice > (-1 if last is None else last)]
    first = int(kept[0]) if len(kept) else None
    crossed = first is not None and last is not None
    return Crossing(
        status="crossed" if crossed else "not reached" if first is None else "always ahead",
        axis=axis,
        best_so_far=best_so_far,
        low=float(grid_G[last]) if crossed else None,
        high=float(grid_G[first]) if crossed else None,
        root=_root(grid_G, lead_G, last) if crossed and last is not None else None,
        ci=_root_interval(grid_G, lead_KG) if crossed else None,
        c_max=float(grid_G[-1]),
        lead_bits=float(lead_G[-1]),
        lead_bits_ci=_interval(lead_KG[:, -1]),
        leads_at_end_only=bool(first is None and ahead_G[-1]),
        lost_again=bool(first is None and len(twice)),
        seeds=min(len(holder), len(challenger)),
        points=len(grid_G),
        grid=tuple(grid_G.tolist()),
        lead_bits_by_point=tuple(lead_G.tolist()),
        lower_bound_bits_by_point=tuple(lower_G.tolist()),
    )


def by_seed(holder: Sequence[Curve], challenger: Sequence[Curve]) -> tuple[list[Curve], list[Curve], bool]:
    """Order the curves of two arms by seed.

    Args:
        holder: Curves of one arm.
        challenger: Curves of the other.

    Returns:
        Both, and whether they have the same seeds, so that curves can be paired.
    """
    first, second = (sorted(group, key=lambda curve: curve.seed) for group in (holder, challenger))
    return first, second, [curve.seed for curve in first] == [curve.seed for curve in second]


def _leads(
    holder: Sequence[Curve],
    challenger: Sequence[Curve],
    grid_G: NDArray[np.float64],
    axis: Axis,
    best_so_far: bool,
    draws: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the challenger's lead at each grid point, as measured and in each bootstrap draw."""
    holder, challenger, paired = by_seed(holder, challenger)
    rng = stream(seed, "bootstrap")
    documents = len(holder[0].bytes_D)
    weights_KD = rng.multinomial(documents, np.full(documents, 1 / documents), size=draws).astype(float)
    weights_KD = np.concatenate([np.ones((1, documents)), weights_KD])
    pick_KS = resample_seeds(rng, len(holder), draws)
    other_KS = pick_KS if paired else resample_seeds(rng, len(challenger), draws)
    sides = []
    for group, share_KS in ((holder, pick_KS), (challenger, other_KS)):
        loss_KSG = np.stack([_loss_at(curve, weights_KD, grid_G, axis, best_so_far) for curve in group], axis=1)
        sides.append((loss_KSG * share_KS[:, :, None]).sum(1))
    lead_KG = sides[0] - sides[1]
    return lead_KG[0], lead_KG[1:]


def resample_seeds(rng: np.random.Generator, seeds: int, draws: int) -> NDArray[np.float64]:
    """Draw the weights of seeds for a bootstrap; the first row is the sample itself.

    A bootstrap of n seeds shows only (n-1)/n of their variance, half of it for two seeds; the deviations are
    stretched by sqrt(n/(n-1)) to mend that (Rao and Wu's rescaling). One seed shows no variance at all.

    Args:
        rng: Source of the draws.
        seeds: Number of seeds, S.
        draws: Number of draws, K.

    Returns:
        Weights of shape (K+1, S); each row sums to 1.
    """
    if seeds == 1:
        return np.ones((draws + 1, 1))
    counts_KS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    stretched_KS = 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (counts_KS - 1 / seeds)
    return np.concatenate([np.full((1, seeds), 1 / seeds), stretched_KS])


def _loss_at(
    curve: Curve, weights_KD: NDArray[np.float64], grid_G: NDArray[np.float64], axis: Axis, best_so_far: bool
) -> NDArray[np.float64]:
    """Give bits per byte at each grid point under each weighting of the documents, shape (K, G)."""
    loss_KE = (weights_KD @ curve.nats_ED.T) / (np.log(2) * (weights_KD @ curve.bytes_D))[:, None]
    return losses_at(curve, loss_KE, grid_G, axis, best_so_far)


def _lower_bounds(
    lead_G: NDArray[np.float64], lead_KG: NDArray[np.float64], error_G: NDArray[np.float64]
) -> NDArray[np.float64]:
    # Rounding must not count as a lead; identical curves have an error of exactly 0.
    floor_G = np.maximum(error_G, 1e-12)
    highest_K = ((lead_KG - lead_G) / floor_G).max(1)
    return lead_G - max(0.0, float(np.quantile(highest_K, CONFIDENCE))) * floor_G - 1e-12


def _root(grid_G: NDArray[np.float64], lead_G: NDArray[np.float64], last: int) -> float:
    """Interpolate the zero of the lead between a point where it is not positive and the next, in the logarithm."""
    low, high = lead_G[last], lead_G[last + 1]
    part = 0.5 if high == low else -low / (high - low)
    logs = np.log(grid_G)
    return float(np.exp(logs[last] + part * (logs[last + 1] - logs[last])))


def _root_interval(grid_G: NDArray[np.float64], lead_KG: NDArray[np.float64]) -> tuple[float, float]:
    """Find the crossing of every draw; one beyond the grid counts as its edge."""
    roots = []
    for lead in lead_KG:
        behind = np.flatnonzero(lead <= 0)
        if not len(behind):
            roots.append(float(grid_G[0]))
        elif behind[-1] == len(grid_G) - 1:
            roots.append(float(grid_G[-1]))
        else:
            roots.append(_root(grid_G, lead, int(behind[-1])))
    return _interval(np.array(roots))


def _interval(draws_K: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws_K, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sentence(crossing: Crossing, challenger: str, holder: str) -> str:
    """Say in words what was found.

    Args:
        crossing: The result.
        challenger: Name of the arm that may pass.
        holder: Name of the arm that may be passed.

    Returns:
        One sentence.
    """
    kind = "best-so-far " if crossing.best_so_far else ""
    unit = {"flops": "FLOPs", "flops_6nd": "FLOPs (6ND)", "epochs": "epochs"}[crossing.axis]

    def amount(value: float) -> str:
        return f"{value:.3g} {unit}" if crossing.axis == "epochs" else f"{value:.2e} {unit}"

    if crossing.status == "crossed" and crossing.root is not None and crossing.ci is not None:
        low, high = (f"{value:.3g}" if crossing.axis == "epochs" else f"{value:.2e}" for value in crossing.ci)
        return f"{kind}{challenger} passes {holder} at {amount(crossing.root)} [{low}, {high}]"
    if crossing.status == "always ahead":
        return f"{kind}{challenger} is ahead of {holder} from the first common measurement on"
    if crossing.unconfirmed_bound is not None:
        return (
            f"{kind}{challenger} is ahead of {holder} at {amount(crossing.c_max)} on average, but {crossing.seeds} "
            f"seeds do not establish that (95% bound {crossing.unconfirmed_bound:+.3f}), so no crossing is claimed"
        )
    if crossing.leads_at_end_only:
        return (
            f"{kind}{challenger} is ahead of {holder} at the last measurement ({amount(crossing.c_max)}) only; "
            f"a crossing needs two in a row, so none is claimed"
        )
    if crossing.lost_again:
        return f"{kind}{challenger} leads {holder} for a while and is behind again by {amount(crossing.c_max)}"
    return f"{kind}{challenger} does not pass {holder} by {amount(crossing.c_max)}"
