"""Curves of decayed points: what each arm reaches at each budget of a grid.

Shape suffixes: B budgets, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from crossover.evidence.curves import Curve, curve
from crossover.evidence.record import RunRecord


def ladder(arm: str, runs: Sequence[RunRecord], procedure: str) -> Curve | None:
    """Make one curve of the ends of runs of rising budgets.

    Each point is a run whose learning rate has decayed: what a user would get who had that much to spend. (A point in
    the middle of a run at constant rate is worse than that, by an amount that differs between objectives.)

    Args:
        arm: Name of the arm.
        runs: Runs of one seed and one recipe but for the budget.
        procedure: Which evaluations to read.

    Returns:
        The curve with B points in the order of their FLOPs, or None where fewer than two runs have ended.

    Raises:
        RunError: Documents changed between two evaluations.
    """
    found = [one for run in runs if run.finished and (one := curve(arm, run, procedure)) is not None]
    first = found[0] if found else None
    ends = [one for one in found if first is not None and np.array_equal(one.bytes_D, first.bytes_D)]
    if first is None or len(ends) < 2:
        return None
    order_B = np.argsort([one.flops_E[-1] for one in ends])
    return Curve(
        arm=arm,
        seed=first.seed,
        procedure=procedure,
        exact=first.exact,
        flops_E=np.array([ends[index].flops_E[-1] for index in order_B]),
        flops_6nd_E=np.array([ends[index].flops_6nd_E[-1] for index in order_B]),
        epochs_E=np.array([ends[index].epochs_E[-1] for index in order_B]),
        nats_ED=np.stack([ends[index].nats_ED[-1] for index in order_B]),
        bytes_D=first.bytes_D,
        is_decayed=True,
    )


def ladders(arm: str, trunks: Sequence[RunRecord], branches: Sequence[RunRecord], procedure: str) -> tuple[Curve, ...]:
    """Make the decayed curves of an arm, one per seed.

    Args:
        arm: Name of the arm.
        trunks: Runs of the largest budget.
        branches: Runs of the smaller ones.
        procedure: Which evaluations to read.

    Returns:
        A curve for each seed that has two points or more.
    """
    by_seed: Mapping[int, list[RunRecord]] = {int(run.recipe.get("seed", 0)): [run] for run in trunks}
    for run in branches:
        by_seed.get(int(run.recipe.get("seed", 0)), []).append(run)
    return tuple(one for runs in by_seed.values() if (one := ladder(arm, runs, procedure)) is not None)
