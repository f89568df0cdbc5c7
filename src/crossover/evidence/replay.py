"""A run's signals folded again: the same controller decides the same, another one is followed to where it parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from crossover.control.signals.fold import Fold, fold_of
from crossover.control.signals.scene import Scene
from crossover.errors import RunError
from crossover.evidence.checked import read_decisions
from crossover.evidence.files import dumps
from crossover.evidence.stage import Row, Stage, read_stage, shortcomings
from crossover.records import Decision, Mix, Progress, Reading
from crossover.registry import label

COMPARED = ("step", "before", "mix", "reason", "details", "mark")
# How the training loop words the rescue of a run whose loss was not finite: no controller decided that.
RESCUE = "weights and optimizer go back"


@dataclass(frozen=True)
class Replayed:
    """One decision of a replay.

    Args:
        step: The step that it takes effect in.
        data_tokens: Tokens of text seen when it was made.
        epochs: Times that the text had been seen.
        before: The mix before it; empty at the start.
        mix: The mix from there on.
        reason: The controller's sentence.
        details: Its readings, thresholds and alternatives, as JSON values.
        mark: What it wants done besides: "keep" or take "back" weights, "note", or "".
        standing: "as recorded", "differs", "same mix" (another controller that agrees), "parts" (where it leaves the
            recorded run), or "counterfactual": what it would have said had the numbers been the same.
    """

    step: int
    data_tokens: int
    epochs: float
    before: Mapping[str, float]
    mix: Mapping[str, float]
    reason: str
    details: Mapping[str, Any]
    mark: str
    standing: str


@dataclass(frozen=True)
class Parting:
    """Where another controller leaves the recorded run.

    Args:
        step: The first step in which the two do not do the same.
        data_tokens: Tokens of text seen before it.
        epochs: Times that the text had been seen.
        recorded: The mix that the run went on with.
        mix: The mix that the other controller wants.
        reason: Its sentence.
    """

    step: int
    data_tokens: int
    epochs: float
    recorded: Mapping[str, float]
    mix: Mapping[str, float]
    reason: str


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Args:
        run: The run folder.
        controller: The controller that was replayed, as its shortest call.
        same: Whether it is the run's own.
        asked: How often it was asked.
        decisions: What it decided, in order.
        difference: The first decision that is not as recorded: its step, and by field what is recorded and what is
            replayed; empty when all are equal, and for another controller.
        parting: Where another controller leaves the run; None where it never does, and for the run's own.
        notes: What a reader should know, such as signals that were never recorded.
    """

    run: str
    controller: str
    same: bool
    asked: int
    decisions: tuple[Replayed, ...]
    difference: Mapping[str, Any]
    parting: Parting | None
    notes: tuple[str, ...]


def replay(run: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Replay:
    """Fold the recorded stream of a run again; nothing is written.

    Args:
        run: The run folder.
        overrides: `controller=...` or `controller.key=...` to replay another controller, as on the train command line.
        trust: Whether the recipe's `imports` may run.

    Returns:
        What was decided, and how that compares with what was recorded.

    Raises:
        RunError: It is no run folder, recorded no signals, or lacks a price that the controller needs.
        RecipeError: An override is not of the controller, or is wrong.
    """
    stage = read_stage(Path(run), overrides, trust=trust)
    recorded = [row for row in read_decisions(stage.path / "decisions.jsonl") if not _is_rescue(row)]
    decisions, parting = _refolded(stage, recorded)
    difference: Mapping[str, Any] = {}
    if not stage.foreign:
        decisions, difference = _compare(decisions, recorded)
    return Replay(
        run=str(run),
        controller=label(stage.controller),
        same=not stage.foreign,
        asked=sum(bool(row.get("asked")) for row in stage.rows),
        decisions=tuple(decisions),
        difference=difference,
        parting=parting,
        notes=shortcomings(stage),
    )


def _refolded(stage: Stage, recorded: Sequence[Row]) -> tuple[list[Replayed], Parting | None]:
    try:
        return _follow(stage, recorded)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Each kind of probe has a shape of its own, which its signal alone knows.
        found = f"{type(error).__name__}: {error}"
        raise RunError(
            f"{stage.path / 'signals.jsonl'}: cannot be folded again, a row is of another shape than probes have "
            f"({found[:200]}); restore the file"
        ) from error


def decide_again(stage: Stage) -> Iterator[tuple[Row, Decision]]:
    """Ask a controller again wherever the run asked its own.

    Args:
        stage: The controller, the run around it, and the recorded rows.

    Yields:
        Each row at which the controller was asked, and its decision.

    Raises:
        RunError: The controller needs a price that is not recorded.
    """
    watching = stage.watching
    eyes = [] if watching is None else [_Eye(Fold((signal,))) for signal in fold_of(watching.signals).signals]
    memory: Mapping[str, Any] = {}
    mix: Mix | None = None
    for row in stage.rows:
        if "probe" in row:
            for eye in eyes:
                eye.see(row)
        if not row.get("asked"):
            continue
        scene = _scene(stage, () if watching is None else watching.gears, mix)
        readings = {name: reading for eye in eyes for name, reading in eye.say(scene).items()}
        try:
            memory, decision = stage.controller.decide(memory, readings, _progress(stage, row, mix))
        except KeyError as error:
            if error.args[0] not in stage.unpriced:
                raise
            needs = f"{label(stage.controller)} needs the price of a token of {error.args[0]}"
            raise RunError(f"{stage.path}: {needs}, which is not recorded; train again to replay it") from None
        mix = decision.mix
        yield row, decision


@dataclass
class _Eye:
    """One signal; what it says is a function of its state and of the mix, so most questions need no new answer."""

    fold: Fold
    state: Mapping[str, Any] = field(default_factory=dict)
    said: dict[str, Reading] | None = None
    mix: Mix | None = None

    def see(self, row: Row) -> None:
        """Take in a probe."""
        state = self.fold.update(self.state, row)
        # A row of another kind leaves the very same state.
        if any(state[name] is not self.state.get(name) for name in state):
            self.said = None
        self.state = state

    def say(self, scene: Scene) -> dict[str, Reading]:
        """Give its readings."""
        if self.said is None or self.mix != scene.mix:
            self.said, self.mix = self.fold.readings(self.state, scene), scene.mix
        return self.said


def _scene(stage: Stage, gears: tuple[str, ...], mix: Mix | None) -> Scene:
    # Before the first decision the training loop, too, shows next-token training.
    shown = mix or Mix((("autoregressive", 1.0),))
    return Scene(stage.recipe.data.context, stage.train_tokens, gears, stage.prices, shown)


def _progress(stage: Stage, row: Row, mix: Mix | None) -> Progress:
    """Say where the run stood, as the training loop did; a row bears the step that its answer takes effect in."""
    recipe, planned = stage.recipe, float(row["planned_epochs"])
    if stage.foreign and mix is None and stage.budget_flops is not None:
        # Before there is a mix, a run plans with the dearest of its objectives, and this controller has others.
        prices = [stage.prices[name] for name in stage.controller.objectives() if name in stage.prices]
        planned = stage.budget_flops / max(prices) / stage.train_tokens if prices else planned
    return Progress(
        data_tokens=int(row["data_tokens"]),
        unique_tokens=stage.train_tokens,
        budget_fraction=float(row["budget_fraction"]),
        planned_epochs=planned,
        exposures=row["exposures"],
        step=int(row["step"]) - 1,
        budget_flops=stage.budget_flops,
        changeable_fraction=recipe.training.learning_rate.decay_from,
        warmup_tokens=recipe.training.learning_rate.warmup_tokens,
        batch_tokens=recipe.training.batch_tokens,
        context=recipe.data.context,
        residual_dropout=recipe.model.residual_dropout,
        seed=recipe.seed,
        flops_per_token=stage.prices,
    )


def _follow(stage: Stage, recorded: Sequence[Row]) -> tuple[list[Replayed], Parting | None]:
    """List what a controller decides, and find where it leaves the recorded run."""
    decisions: list[Replayed] = []
    parting: Parting | None = None
    before: dict[str, float] = {}
    in_force: Mapping[str, float] = {}
    pending = list(reversed(recorded))
    for row, decision in decide_again(stage):
        mix, step, at = dict(decision.mix.shares), int(row["step"]), (int(row["data_tokens"]), float(row["epochs"]))
        went_back = False
        while pending and int(pending[-1]["step"]) <= step:
            taken = pending.pop()
            in_force, went_back = taken["mix"], taken.get("mark") == "back"
        # Weights that go back, or do not, part two runs as surely as two mixes do.
        other = mix != in_force or (decision.mark == "back") != went_back
        parts = stage.foreign and parting is None and other
        if parts:
            parting = Parting(step, *at, dict(in_force), mix, decision.reason)
        if parts or mix != before or decision.mark:
            standing = "parts" if parts else "counterfactual" if parting else "same mix"
            details = json.loads(dumps(decision.details))
            decisions.append(Replayed(step, *at, before, mix, decision.reason, details, decision.mark, standing))
        before = mix
    return decisions, parting


def _is_rescue(row: Row) -> bool:
    return RESCUE in str(row.get("reason")) and row.get("details") == {}


def _compare(decisions: Sequence[Replayed], recorded: Sequence[Row]) -> tuple[list[Replayed], dict[str, Any]]:
    """Set each decision beside its recorded line; the first that is not equal is told by field."""
    marked: list[Replayed] = []
    first: dict[str, Any] = {}
    for now, then in zip_longest(decisions, recorded):
        there, here = ({key: _field(item, key) for key in COMPARED} for item in (then, now))
        unequal = {key: [there[key], here[key]] for key in COMPARED if there[key] != here[key]}
        if unequal and not first:
            first = {"step": here["step"] or there["step"], "recorded_and_replayed": unequal}
        if now is not None:
            marked.append(replace(now, standing="differs" if unequal else "as recorded"))
    return marked, first


def _field(item: Replayed | Row | None, key: str) -> Any:
    if isinstance(item, Mapping):
        return item.get(key, "" if key == "mark" else None)
    return getattr(item, key, None)


def lines_of(found: Replay) -> list[str]:
    """Tell a replay to a person.

    Args:
        found: What was found.

    Returns:
        Lines: what was replayed, how it compares, notes, and a line per decision.
    """
    lines = [f"{found.run}: {found.controller}, asked {found.asked:,} times", *_outcome(found)]
    lines += [f"note: {note}" for note in found.notes]
    lines += _difference(found.difference)
    lines += ["", f"{'step':>8}  {'epochs':>8}  {'tokens':>13}  {'':<14}  decision"]
    for item in found.decisions:
        where = f"{item.step:>8}  {item.epochs:>8.3f}  {item.data_tokens:>13,}"
        lines.append(f"{where}  {item.standing:<14}  {item.reason}")
    return lines


def _outcome(found: Replay) -> list[str]:
    count = f"{len(found.decisions)} decision{'' if len(found.decisions) == 1 else 's'}"
    if found.same:
        return [f"{count}, {'not as recorded' if found.difference else 'all as recorded'}"]
    if found.parting is None:
        return [f"{count}; its mix is the recorded one wherever it was asked, so the run would have been the same"]
    at = found.parting
    later = sum(item.standing == "counterfactual" for item in found.decisions)
    told = (
        f"it parts from the run at step {at.step}, {at.epochs:.3f} epochs, {at.data_tokens:,} tokens: the run went on "
        f"with {_mix(at.recorded)}, it wants {_mix(at.mix)}: {at.reason}"
    )
    note = f"{later} later decision(s) are counterfactual: what it would have said had the numbers been the same"
    return [told, note] if later else [told]


def _mix(shares: Mapping[str, float]) -> str:
    return Mix(tuple(shares.items())).describe() if shares else "nothing"


def _difference(difference: Mapping[str, Any]) -> list[str]:
    if not difference:
        return []
    lines = [f"the first that differs, step {difference['step']}:"]
    for key, (there, here) in difference["recorded_and_replayed"].items():
        lines += [f"  {key}: recorded {dumps(there)}", f"  {' ' * len(key)}  replayed {dumps(here)}"]
    return lines


def json_rows_of(found: Replay) -> list[str]:
    """Write a replay as JSON rows: the outcome first, then a row per decision."""
    outcome = asdict(found)
    decisions = outcome.pop("decisions")
    return [dumps(row) for row in (outcome, *decisions)]
