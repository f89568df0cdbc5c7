"""From run folders to curves: which mode an arm is read in, and its loss against compute with the documents kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.record import RunRecord

# Shape suffixes: E evaluations, D documents.
PROCEDURES = {
    "ar": "left to right, chain rule (exact)",
    "l2r": "left to right with a masked suffix (exact)",
    "nelbo": "any order (an upper bound of the loss)",
}


@dataclass(frozen=True)
class Curve:
    """One run's held-out loss under one procedure, evaluation by evaluation.

    Args:
        arm: Name of the arm.
        seed: The run's seed.
        procedure: How it was scored.
        exact: True for a likelihood, False for a bound.
        flops_E: Training FLOPs spent at each evaluation.
        flops_6nd_E: The same by the rule of thumb 6 x parameters x tokens.
        epochs_E: Times the text had been seen.
        nats_ED: Total nats of each document at each evaluation.
        bytes_D: Bytes of each document.
        is_decayed: Whether each point is a run of its own, its learning rate decayed, and not an evaluation on the way.
    """

    arm: str
    seed: int
    procedure: str
    exact: bool
    flops_E: NDArray[np.float64]
    flops_6nd_E: NDArray[np.float64]
    epochs_E: NDArray[np.float64]
    nats_ED: NDArray[np.float64]
    bytes_D: NDArray[np.float64]
    is_decayed: bool = False

    @property
    def bits_E(self) -> NDArray[np.float64]:
        """Bits per byte at each evaluation, over all documents."""
        return self.nats_ED.sum(1) / (np.log(2) * self.bytes_D.sum())


def best_mode(evals_by_run: Sequence[Iterable[Mapping[str, Any]]]) -> tuple[str, bool]:
    """Choose the mode that an arm is read in: the lowest best loss on dev, a bound being one from above.

    Args:
        evals_by_run: Rows of evals.jsonl of each run of the arm.

    Returns:
        The procedure, and whether it is exact.

    Raises:
        RunError: No procedure was measured in every run.
    """
    best: dict[tuple[str, bool], list[float]] = {}
    for rows in evals_by_run:
        of_run: dict[tuple[str, bool], float] = {}
        for row in rows:
            value = row.get("bits_per_byte")
            if row.get("split", "dev") == "dev" and isinstance(value, int | float):
                key = str(row["procedure"]), bool(row["exact"])
                of_run[key] = min(of_run.get(key, np.inf), float(value))
        for key, value in of_run.items():
            best.setdefault(key, []).append(value)
    common = {key: float(np.mean(values)) for key, values in best.items() if len(values) == len(evals_by_run)}
    if not common:
        raise RunError("no procedure has been measured in every run of the arm; let the runs finish")
    return min(common, key=lambda key: (common[key], not key[1]))


def headline_mode(runs: Sequence[RunRecord]) -> tuple[str, bool]:
    """Give the mode an arm is read in: what its runs declared (chosen on dev), else the best on dev.

    Args:
        runs: The runs of the arm.

    Returns:
        The procedure, and whether it is exact.

    Raises:
        RunError: The runs have no procedure in common.
    """
    declared = Counter(run.scores.get("summary", {}).get("headline") for run in runs)
    measured = {(row["procedure"], bool(row["exact"])) for run in runs for row in run.evals}
    if len(declared) == 1 and (name := next(iter(declared))) is not None:
        for procedure, exact in measured:
            if procedure == name:
                return procedure, exact
    return best_mode([run.evals for run in runs])


def curve(arm: str, run: RunRecord, procedure: str) -> Curve | None:
    """Read one run's curve under one procedure.

    Args:
        arm: Name of the arm.
        run: The run.
        procedure: Which evaluations to read.

    Returns:
        The curve in the order of its FLOPs, or None when nothing was measured so.

    Raises:
        RunError: Documents changed between two evaluations of the run.
    """
    rows = [row for row in run.evals if row["procedure"] == procedure and row.get("bits_per_byte") is not None]
    rows = sorted((row for row in rows if row.get("split", "dev") == "dev"), key=lambda row: row["flops"])
    if not rows:
        return None
    sizes = rows[0]["document_bytes"]
    if any(row["document_bytes"] != sizes for row in rows):
        raise RunError(f"{run.path}: evals.jsonl: documents of '{procedure}' change during the run; cannot be paired")
    return Curve(
        arm=arm,
        seed=int(run.recipe.get("seed", 0)),
        procedure=procedure,
        exact=bool(rows[0]["exact"]),
        flops_E=np.array([row["flops"] for row in rows], float),
        flops_6nd_E=np.array([row.get("flops_6nd", np.nan) for row in rows], float),
        epochs_E=np.array([row["epochs"] for row in rows], float),
        nats_ED=np.array([row["document_nats"] for row in rows], float),
        bytes_D=np.array(sizes, float),
    )


def procedures_of(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """List the procedures that any of the runs was measured under, the usual order first."""
    seen = {str(row["procedure"]) for run in runs for row in run.evals}
    return tuple(sorted(seen, key=lambda name: (list(PROCEDURES).index(name) if name in PROCEDURES else 99, name)))
