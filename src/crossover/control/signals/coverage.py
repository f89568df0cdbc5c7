"""Ordering coverage: how evenly a mix looks to both sides, and how much unseen supervision each gear still has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crossover.control.signals.ordering import (
    BUCKETS,
    context_probabilities,
    counterfactual_novelty,
    direction_balance,
    ordering_entropy,
)
from crossover.control.signals.scene import Row, Scene, State
from crossover.errors import RunError
from crossover.records import Reading
from crossover.registry import register


@register("signal", "coverage")
@dataclass(frozen=True)
class Coverage:
    """Direction balance and ordering entropy of the mix, and the novelty of each gear (papers.md 2b S1).

    Novelty is the share of exposures in which a token instance was a target in a bucket of contexts for the first
    time: realised since the last row, and counterfactual, what one pass of a gear would find given what was seen.
    """

    probes = ("novelty",)

    def update(self, state: State, record: Row) -> State:
        """Take in one novelty row.

        Args:
            state: The last row's shares, and counts of the last row that had exposures.
            record: Any row; with probe "novelty" it has seen_K, new and exposures, weighted by token frequency.

        Returns:
            The new state.

        Raises:
            RunError: The row does not have a share for each bucket.
        """
        if record.get("probe") != "novelty":
            return state
        seen_K = [float(share) for share in record["seen_K"]]
        if len(seen_K) != BUCKETS:
            raise RunError(
                f"signals.jsonl: step {record.get('step', '?')}: novelty: expected {BUCKETS} shares in seen_K, found "
                f"{len(seen_K)}; the row is damaged or of another version, resume from a checkpoint before it"
            )
        # Nothing was exposed: the last realised novelty is still the newest there is.
        newest = record if float(record["exposures"]) > 0 else state
        counts = {key: float(newest[key]) for key in ("new", "exposures") if key in newest}
        return {"seen_K": seen_K, **counts}

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Say how evenly the mix looks, and how much is new.

        Args:
            state: The state after the last row.
            scene: Gives the mix, the gears and the context.

        Returns:
            "coverage.balance", "coverage.entropy", "coverage.novelty", and "coverage.novelty:<gear>" of each gear.
            All but the realised novelty are closed forms without error. Before the first row nothing has been seen
            and all novelty is 1, not ready.
        """
        found = {
            "coverage.balance": Reading(direction_balance(scene.mix, scene.context), 0.0, True),
            "coverage.entropy": Reading(ordering_entropy(scene.mix, scene.context), 0.0, True),
            "coverage.novelty": _realised(state),
        }
        seen_K = np.array(state.get("seen_K", [0.0] * BUCKETS))
        for gear in scene.gears:
            novelty = counterfactual_novelty(context_probabilities(gear, scene.context), seen_K)
            found[f"coverage.novelty:{gear}"] = Reading(novelty, 0.0, "seen_K" in state)
        return found


def _realised(state: State) -> Reading:
    """The Good-Turing share of new exposures, and its error.

    The error sqrt(n (1 - n) / exposures) takes exposures for independent draws of like weight, of mean 1. It is a lower
    end: weights differ, and the targets of a window share its number of hidden tokens, hence their buckets.
    """
    if "exposures" not in state:
        return Reading(1.0, 0.0, False)
    share = min(1.0, max(0.0, state["new"] / state["exposures"]))
    return Reading(share, math.sqrt(share * (1 - share) / state["exposures"]), True)
