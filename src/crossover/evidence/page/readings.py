"""What a run's signals read as it went: its recorded probes, folded once more, for the strips under its curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.control.signals.fold import fold_of
from crossover.control.signals.scene import Scene
from crossover.errors import CrossoverError
from crossover.evidence.stage import Stage, read_stage
from crossover.records import Mix, Reading

# Shape suffix: N moments. No strip shows more moments than this, and a fold is asked no more often.
MOMENTS = 200
# Families of readings that are drawn, in this order: title, the threshold that belongs to it, logarithmic or not.
STRIPS: dict[str, tuple[str, str, bool]] = {
    "gap": ("generalisation gap, nats", "gap_nats", False),
    "curvature.rising": ("held-out loss rises: probability", "rising_probability", False),
    "coverage.novelty": ("novelty", "novelty_floor", False),
    "alignment": ("alignment, gain per FLOP", "", False),
    "variance.noise_scale": ("noise scale, tokens", "", True),
}
# Families of the signals that ship; readings of anyone else's signals get strips too, as far as there is room.
SHIPPED = ("coverage.", "variance.", "curvature.", "alignment.", "evaluations")
MOST_STRIPS = 7


@dataclass(frozen=True)
class Trace:
    """One reading over time.

    Args:
        name: The reading, such as "gap:ar".
        epochs_N: When it was read.
        value_N: What it said.
        error_N: Its standard error; 0 where none is known.
        ready_N: Whether it had seen enough to be used.
    """

    name: str
    epochs_N: NDArray[np.float64]
    value_N: NDArray[np.float64]
    error_N: NDArray[np.float64]
    ready_N: NDArray[np.bool_]

    @property
    def family(self) -> str:
        """The name without the gear or the mode that it is of."""
        return self.name.partition(":")[0]

    @property
    def member(self) -> str:
        """The gear or the mode that it is of, or nothing."""
        return self.name.partition(":")[2]


def traces_of(run: Path) -> tuple[dict[str, Trace], str]:
    """Fold a run's recorded probes and read the signals along the way.

    Args:
        run: The run folder.

    Returns:
        Traces by reading, none where nothing was probed; and why they cannot be had, empty if they can.
    """
    if not (run / "signals.jsonl").exists():
        return {}, ""
    try:
        stage = read_stage(run)
        return (_fold(stage) if stage.watching is not None else {}), ""
    except CrossoverError as error:
        return {}, str(error)
    except (KeyError, TypeError, ValueError) as error:
        # Rows of a version whose probes said something else; the rest of the report does not hang on them.
        return {}, f"the recorded probes cannot be folded by this version ({type(error).__name__}: {error})"


def _fold(stage: Stage) -> dict[str, Trace]:
    watching = stage.watching
    assert watching is not None
    probes = [row for row in stage.rows if "probe" in row]
    fold, state = fold_of(watching.signals), {}
    asked = set(np.linspace(0, len(probes) - 1, min(MOMENTS, len(probes))).round().astype(int).tolist())
    rows: dict[str, list[tuple[float, Reading]]] = {}
    for place, row in enumerate(probes):
        state = fold.update(state, row)
        if place in asked:
            mix = Mix(tuple((row.get("mix") or {"autoregressive": 1.0}).items()))
            scene = Scene(stage.recipe.data.context, stage.train_tokens, watching.gears, stage.prices, mix)
            for name, reading in fold.readings(state, scene).items():
                rows.setdefault(name, []).append((float(row["epochs"]), reading))
    return {name: _trace(name, _told(said)) for name, said in rows.items() if any(item.ready for _, item in said)}


def _told(said: list[tuple[float, Reading]]) -> list[tuple[float, Reading]]:
    """Leave out what only repeats the reading before it: probes of one kind do not change the readings of another."""
    last = len(said) - 1
    return [item for place, item in enumerate(said) if place in (0, last) or item[1] != said[place - 1][1]]


def _trace(name: str, said: list[tuple[float, Reading]]) -> Trace:
    values = np.array([_finite(item.value) for _, item in said], float)
    return Trace(
        name,
        np.array([epochs for epochs, _ in said], float),
        values,
        np.nan_to_num([_finite(item.standard_error) for _, item in said]),
        np.array([item.ready for _, item in said], bool) & np.isfinite(values),
    )


def _finite(amount: Any) -> float:
    return float(amount) if isinstance(amount, int | float) and np.isfinite(amount) else float("nan")


def strips_of(traces: Mapping[str, Trace]) -> dict[str, list[Trace]]:
    """Group readings into the strips that are drawn.

    Args:
        traces: Traces by reading.

    Returns:
        By family, in the order in which they are drawn: at most `MOST_STRIPS`.
    """
    families: dict[str, list[Trace]] = {}
    for trace in traces.values():
        families.setdefault(trace.family, []).append(trace)
    known = [family for family in STRIPS if family in families]
    foreign = [family for family in families if family not in STRIPS and not family.startswith(SHIPPED)]
    return {family: families[family] for family in [*known, *foreign][:MOST_STRIPS]}
