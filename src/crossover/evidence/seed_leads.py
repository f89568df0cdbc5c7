"""What two or more seeds say of a lead: t tests that hold for few seeds, where a bootstrap is too sure of itself.

Suffixes: S seeds, G points of the grid, E evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.common_grid import Axis, losses_at
from crossover.evidence.crossing import CONFIDENCE, Crossing, by_seed, find_crossing
from crossover.evidence.curves import Curve

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedLeads:
    """The challenger's lead on a grid, and what seeds say of its error.

    Args:
        grid_G: Amounts of compute.
        lead_G: The holder's mean loss minus the challenger's.
        error_G: Its standard error over seeds.
        freedom_G: Degrees of freedom of that error.
    """

    grid_G: Floats
    lead_G: Floats
    error_G: Floats
    freedom_G: Floats

    def band(self, level: float) -> tuple[Floats, Floats]:
        """Give the two ends of the t interval at each point, each of which is passed with probability 1 - level."""
        from scipy.special import stdtrit

        width_G = stdtrit(self.freedom_G, level) * self.error_G
        return self.lead_G - width_G, self.lead_G + width_G

    def around(self, root: float) -> Interval:
        """Give the stretch around a root in which the lead cannot be told from 0."""
        low_G, high_G = self.band((1 + CONFIDENCE) / 2)
        behind = np.flatnonzero((high_G < 0) & (self.grid_G <= root))
        ahead = np.flatnonzero((low_G > 0) & (self.grid_G >= root))
        begin = self._zero(high_G, int(behind[-1])) if len(behind) else float(self.grid_G[0])
        end = self._zero(low_G, int(ahead[0]) - 1) if len(ahead) and ahead[0] else float(self.grid_G[-1])
        return min(begin, root), max(end, root)

    def _zero(self, values_G: Floats, at: int) -> float:
        """Interpolate the zero of an end between a point and the next, in the logarithm of the compute."""
        low, high = values_G[at], values_G[at + 1]
        logs = np.log(self.grid_G)
        return float(np.exp(logs[at] + np.clip(-low / (high - low), 0, 1) * (logs[at + 1] - logs[at])))


def seed_leads(held: Sequence[Curve], others: Sequence[Curve], found: Crossing) -> SeedLeads:
    """Take the leads of a crossing's grid seed by seed where the arms have the same seeds, else by Welch's test.

    Args:
        held: Curves of the arm that may be passed, two or more.
        others: Curves of the arm that may pass, two or more.
        found: The crossing that they gave.

    Returns:
        The leads.
    """
    grid_G = np.array(found.grid)

    def loss_SG(group: Sequence[Curve]) -> Floats:
        return np.concatenate(
            [losses_at(one, one.bits_E[None], grid_G, found.axis, found.best_so_far) for one in group]
        )

    first, second, paired = by_seed(held, others)
    held_SG, others_SG = loss_SG(first), loss_SG(second)
    if paired:
        lead_SG, seeds = held_SG - others_SG, len(held_SG)
        error_G = lead_SG.std(0, ddof=1) / np.sqrt(seeds)
        return SeedLeads(grid_G, lead_SG.mean(0), error_G, np.full(len(grid_G), seeds - 1.0))
    # Welch's test: two groups of seeds with variances of their own.
    parts = [group.var(0, ddof=1) / len(group) for group in (held_SG, others_SG)]
    whole_G = np.maximum(parts[0] + parts[1], 1e-300)
    ways = [part**2 / (len(group) - 1) for part, group in zip(parts, (held_SG, others_SG), strict=True)]
    freedom_G = np.maximum(whole_G**2 / np.maximum(ways[0] + ways[1], 1e-300), 1.0)
    return SeedLeads(grid_G, held_SG.mean(0) - others_SG.mean(0), np.sqrt(whole_G), freedom_G)


def confirmed(found: Crossing, held: Sequence[Curve], others: Sequence[Curve]) -> Crossing:
    """Widen a crossing's intervals by what few seeds leave open, and take back a claim that the seeds do not bear.

    `find_crossing` resamples documents and seeds, and a bootstrap of two or three seeds is too sure of itself. So the
    lead at c_max must also be shown by a one-sided 95% t test over seeds, which is no search: at most one in twenty
    pairs of equal arms can pass it. The root's interval is widened by the stretch in which a two-sided test cannot
    tell the lead from 0 (Fieller's construction).

    Args:
        found: What `find_crossing` gave.
        held: Curves of the arm that may be passed.
        others: Curves of the arm that may pass.

    Returns:
        The crossing; unchanged where an arm has one seed.
    """
    if min(len(held), len(others)) < 2:
        return found
    leads = seed_leads(held, others, found)
    low_G, high_G = leads.band((1 + CONFIDENCE) / 2)
    low, high = found.lead_bits_ci
    made = replace(found, lead_bits_ci=(min(low, float(low_G[-1])), max(high, float(high_G[-1]))))
    bound = float(leads.band(CONFIDENCE)[0][-1])
    if made.status != "not reached" and bound <= 0:
        nowhere = {"low": None, "high": None, "root": None, "ci": None}
        return replace(made, status="not reached", unconfirmed_bound=bound, **nowhere)  # type: ignore[arg-type]
    if made.root is not None and made.ci is not None:
        begin, end = leads.around(made.root)
        return replace(made, ci=(min(made.ci[0], begin), max(made.ci[1], end)))
    return made


def claimed_crossing(
    held: Sequence[Curve], others: Sequence[Curve], axis: Axis, best_so_far: bool, draws: int = 1000, seed: int = 0
) -> Crossing:
    """Find where one arm passes another, and claim no more than its documents and its seeds bear.

    The one way to a claim: `find_crossing`, then `confirmed`.

    Args:
        held: Curves of the arm that may be passed.
        others: Curves of the arm that may pass.
        axis: What is matched.
        best_so_far: Compare the best evaluation so far, else the latest.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The crossing.

    Raises:
        RunError: The curves have no compute in common or other documents.
    """
    found = find_crossing(held, others, axis=axis, best_so_far=best_so_far, draws=draws, seed=seed)
    return confirmed(found, held, others)
