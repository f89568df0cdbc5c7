"""What finished studies say about when to leave next-token training: the watched run, and what each time was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.control.controllers.memory import target_mode
from crossover.control.signals.scene import Scene, Signal
from crossover.errors import RunError
from crossover.evidence.compare import source_name
from crossover.evidence.files import read_rows
from crossover.evidence.record import RunRecord
from crossover.evidence.view import read_view
from crossover.records import Mix
from crossover.registry import component_of

Row = Mapping[str, Any]
AUTOREGRESSIVE = {"autoregressive": 1.0}
# Controllers that follow a plan; the best of their runs is what a rule is measured against.
STATIC = ("constant", "switch", "ramp", "block_growth", "static_dual")
# Where a plan that leaves next-token training says when.
TIMES = {"switch": "at_epochs", "ramp": "from_epochs"}
# What the online controller wants to have before it moves: the text seen once, and room for a ramp of 1.5 epochs and a
# dwell of 1 before the learning rate decays.
LEAST_EPOCHS, LEAST_LEFT_EPOCHS = 1.0, 2.5


@dataclass(frozen=True)
class Arm:
    """A static run of a case.

    Args:
        arm: Its name in the study.
        epochs: When it leaves next-token training; None where it never does or never was there.
        procedure: Its headline mode, chosen on dev.
        worth_bits: Bits per byte on dev in that mode.
    """

    arm: str
    epochs: float | None
    procedure: str
    worth_bits: float


@dataclass(frozen=True)
class Case:
    """One seed of a study: a watched run that stayed with next-token training, and static runs beside it.

    Args:
        study: The study's name.
        seed: The seed.
        corpus: The text and how much of it there is.
        target: The held-out loss that the watched run minimises: "ar", "l2r", "nelbo", or "best".
        watched: The run that never left.
        arms: All static runs, the watched one among them; at least one leaves next-token training.
        rows: Rows of the watched run's signals.jsonl.
        scene: What its signals are told.
        warmup_tokens: Data tokens of the learning rate's warm-up.
        decay_from: Part of the budget after which the mix is frozen.
    """

    study: str
    seed: int
    corpus: str
    target: str
    watched: Arm
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    scene: Scene
    warmup_tokens: int
    decay_from: float

    @property
    def times(self) -> tuple[float, ...]:
        """Epochs at which real runs left next-token training, in order."""
        return tuple(sorted({arm.epochs for arm in self.arms if arm.epochs is not None}))

    @property
    def best_static(self) -> float:
        """Bits per byte of the best static run."""
        return min(arm.worth_bits for arm in self.arms)

    def worth_at(self, epochs: float | None) -> float:
        """Value a time by the real run whose own is nearest in ln(epochs), the later of two equally near.

        Args:
            epochs: When next-token training is left; None for never.

        Returns:
            Bits per byte; the mean where several runs left at that time, to different mixes.
        """
        if epochs is None:
            return self.watched.worth_bits
        nearest = min(self.times, key=lambda time: (round(abs(math.log(time / epochs)), 9), -time))
        found = [arm.worth_bits for arm in self.arms if arm.epochs == nearest]
        return sum(found) / len(found)


@dataclass(frozen=True)
class Rising:
    """What the controller of a watched run knew when it was asked.

    Args:
        epochs: Times that next-token training had seen the text.
        evaluations: Held-out losses so far.
        probability: That the loss is rising, by the newest of them; 0 while that cannot be said.
        may_move: Whether the text has been seen once, the learning rate is up, and there is room for a shift.
    """

    epochs: float
    evaluations: int
    probability: float
    may_move: bool


def read_cases(studies: Sequence[Path]) -> tuple[list[Case], list[str]]:
    """Read the cases of finished studies.

    Args:
        studies: Study folders.

    Returns:
        The cases, and a sentence for each run or seed that is left out.

    Raises:
        RunError: A folder is no study that varies the controller, or has no seed with a watched run and a switch.
    """
    cases: list[Case] = []
    left_out: list[str] = []
    for folder in studies:
        if not (folder / "study.yaml").exists():
            raise RunError(f"{folder}: is no study's folder (it has no study.yaml); expected what `study` leaves")
        view = read_view(folder)
        if view.vary != "controller":
            raise RunError(f"{folder}: its arms differ in {view.vary}; expected a study that varies the controller")
        notes = [f"{view.name}: {name} is left out: {why}" for name, why in view.missing.items()]
        found: list[Case] = []
        for seed in sorted({_seed(run) for run in view.runs}):
            runs = {arm: run for arm, runs in view.arms.items() for run in runs if run.finished and _seed(run) == seed}
            case = _case(view.name, seed, runs)
            if isinstance(case, Case):
                found.append(case)
            else:
                notes.append(f"{view.name}: seed {seed} is left out: {case}")
        if not found:
            raise RunError(f"{folder}: nothing in it to calibrate on:\n" + "\n".join(f"  {note}" for note in notes))
        cases += found
        left_out += notes
    return cases, left_out


def recorded_rising(case: Case, signal: Signal) -> list[Rising]:
    """Fold the recorded held-out losses of a watched run.

    Args:
        case: The case.
        signal: Reads the slope; `curvature`.

    Returns:
        What was known each time the controller was asked.
    """
    state: Mapping[str, Any] = {}
    moments: list[Rising] = []
    evaluations, probability = 0, 0.0
    for row in case.rows:
        if row.get("probe") == "loss":
            state = signal.update(state, row)
            readings = signal.readings(state, case.scene)
            rising = readings.get(f"curvature.rising:{target_mode(readings, case.target)}")
            probability = rising.value if rising is not None and rising.ready else 0.0
            evaluations += 1
        if row.get("asked"):
            left = (case.decay_from - row["budget_fraction"]) * row["planned_epochs"]
            ready = row["epochs"] >= LEAST_EPOCHS and row["data_tokens"] >= case.warmup_tokens
            moments.append(Rising(float(row["epochs"]), evaluations, probability, ready and left >= LEAST_LEFT_EPOCHS))
    return moments


def _seed(run: RunRecord) -> int:
    return int(run.recipe.get("seed", 0))


def _case(study: str, seed: int, runs: Mapping[str, RunRecord]) -> Case | str:
    """Build the case of one seed, or say why there is none."""
    streams = {arm: rows for arm, run in runs.items() if (rows := _watched_rows(run))}
    if not streams:
        return "no finished run that stayed with next-token training has recorded its held-out loss; add an arm "\
            "with controller: watch(constant(autoregressive))"  # fmt: skip
    # A run that was made to be watched comes before an online one that happened to stay.
    name = min(streams, key=lambda arm: _controller(runs[arm]).get("name") != "watch")
    arms = [_arm(arm, run) for arm, run in runs.items() if arm == name or _plan(run).get("name") in STATIC]
    if all(arm.epochs is None for arm in arms):
        return "no finished run leaves next-token training at a planned time; add arms with controller: switch(...)"
    run = runs[name]
    data, training = run.recipe.get("data") or {}, run.recipe.get("training") or {}
    rate = component_of("learning_rate", training.get("learning_rate", "wsd"))
    tokens = int(data.get("unique_tokens") or run.manifest["unique_tokens"])
    scene = Scene(
        context=int(data.get("context", 0)),
        unique_tokens=int(run.manifest.get("train_tokens", tokens)),
        gears=tuple(AUTOREGRESSIVE),
        flops_per_token=run.manifest.get("flops_per_token") or {},
        mix=Mix(tuple(AUTOREGRESSIVE.items())),
    )
    return Case(
        study=study,
        seed=seed,
        corpus=f"{source_name(run.manifest.get('data_source'), run.recipe)}, {tokens:,} tokens",
        target=str(_controller(run).get("target", "best")),
        watched=next(arm for arm in arms if arm.arm == name),
        arms=tuple(arms),
        rows=streams[name],
        scene=scene,
        warmup_tokens=rate.warmup_tokens,
        decay_from=rate.decay_from,
    )


def _watched_rows(run: RunRecord) -> tuple[Row, ...]:
    """Give what was recorded of a run that stayed with next-token training; nothing for every other run."""
    stayed = [row.get("mix") == AUTOREGRESSIVE for row in run.decisions]
    if not stayed or not all(stayed):
        return ()
    rows = read_rows(run.path / "signals.jsonl")
    both = any(row.get("probe") == "loss" for row in rows) and any(row.get("asked") for row in rows)
    return rows if both else ()


def _controller(run: RunRecord) -> Row:
    """Read the controller of a resolved recipe; one that is written as a call has its name alone."""
    value = run.recipe.get("controller") or {}
    return value if isinstance(value, Mapping) else {"name": str(value).split("(")[0]}


def _plan(run: RunRecord) -> Row:
    """Read the controller that decides, which a watched run wraps."""
    value = _controller(run)
    return value["controller"] if value.get("name") == "watch" else value


def _arm(name: str, run: RunRecord) -> Arm:
    plan, headline = _plan(run), run.scores.get("summary", {}).get("headline")
    card = run.scores.get(f"dev-{headline}")
    if card is None:
        raise RunError(f"{run.path}: is finished but has no dev score in its headline mode; restore scores/")
    time = plan.get(TIMES.get(str(plan.get("name")), ""))
    leaves = plan.get("before") == AUTOREGRESSIVE and time is not None and float(time) > 0
    return Arm(name, float(time) if leaves and time is not None else None, str(headline), float(card["bits_per_byte"]))
