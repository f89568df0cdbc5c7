"""The online controller: leaves next-token training when its text is used up, because the signals say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator

from crossover.control.calibration import Thresholds, read_thresholds, shipped_thresholds
from crossover.control.controllers import moves
from crossover.control.controllers.horizon import AUTOREGRESSIVE, starting_mix, staying
from crossover.control.controllers.memory import Memory, State, count_evidence, share_of_autoregressive, target_mode
from crossover.control.controllers.watching import Epochs, Gear, Gears, ProbeShare, SignalNames, Target, names_of
from crossover.control.critical import critical_compute_flops
from crossover.records import Decision, Mix, Progress, Reading, Watching
from crossover.registry import MixField, register

# What a projected loss may lie above the loss at the shift before the shift is taken back.
RETREAT_NATS = 0.02
# A ramp's first step comes with the decision itself, so that the decision stands where the shares begin to move.
FIRST_STEP_EPOCHS = 1 / 16


@register("controller", "online")
@dataclass(frozen=True)
class Online:
    """Shifts from one mix to the next when curvature, alignment, gap or exposures say that it is used up.

    Args:
        start: The mix that the run begins with; null chooses it from the horizon: next-token training alone in a run
            of few epochs, else a mix with the last gear, in which its share falls with the epochs planned.
        start_exponent: How fast it falls: the share is (most exposures / epochs) to this power. 1 is `static_dual`.
        gears: Objectives that it may shift to, in the order in which `listed` takes them.
        target: The held-out loss that is minimised: "ar", "l2r", "nelbo", or "best" of "ar" and "nelbo".
        signals: Which signals are read; each can be left out.
        choice: Which gear is next: "novelty" takes the cheapest whose novelty clears the floor, else the highest
            novelty per FLOP; "listed" takes them in order.
        handover: "ramp" moves the shares, "blocks" does so by way of `ramp_blocks`, "hard" shifts at once.
        ramp_epochs: How long a handover takes.
        ramp_blocks: Block sizes on the way of a "blocks" handover to masked training.
        dwell_epochs: Least time between two moves.
        floor: Least share of next-token training after a shift; a hard switch ruins next-token scores.
        remainder: "spread" spreads the exposures that next-token training has left over the rest of the run, "floor"
            falls to the floor at once.
        rebalance: Whether two agreeing alignment probes may double or halve the next-token share inside a mix.
        least_planned_epochs: With fewer planned epochs it stays with the start and says so.
        gear_epochs: Exposures, in epochs, after which a gear other than next-token training is left for the next.
        retreat: Whether a shift that does not pay is taken back: weights, optimizer and averages.
        retreat_epochs: When that is judged; null means a quarter of the epochs that were left at the shift.
        rewarm_epochs: Over how many epochs the learning rate rises again after a shift; 0 leaves it alone.
        worn: Next-token objective that stands in once half of its exposures are spent, such as `autoregressive(0.15)`.
        worn_dropout: Residual dropout that the recipe's rises to as the exposures are spent; null leaves it alone.
        probe_share: Largest part of the training FLOPs that probes may take; they are charged to the budget.
        thresholds: When a reading is evidence: a mapping, or the path of a calibration.json; shipped ones by default.
    """

    start: MixField | None = None
    start_exponent: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    gears: Gears = ("masked",)
    target: Target = "best"
    signals: SignalNames = ("coverage", "variance", "curvature", "alignment", "gap")
    choice: Literal["novelty", "listed"] = "novelty"
    handover: Literal["ramp", "blocks", "hard"] = "ramp"
    ramp_epochs: Epochs = 1.5
    ramp_blocks: tuple[int, ...] = (4, 16)
    dwell_epochs: Epochs = 1.0
    floor: Annotated[float, pydantic.Field(ge=0, le=0.5)] = 1 / 64
    remainder: Literal["spread", "floor"] = "spread"
    rebalance: bool = True
    least_planned_epochs: Epochs = 2.0
    gear_epochs: Epochs = 128.0
    retreat: bool = True
    retreat_epochs: Epochs | None = None
    rewarm_epochs: Epochs = 0.0
    worn: Gear | None = None
    worn_dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] | None = None
    probe_share: ProbeShare = 0.04
    thresholds: Annotated[Thresholds, BeforeValidator(read_thresholds)] = field(default_factory=shipped_thresholds)
    first_change_epochs, horizon_free = 0.0, False

    def __post_init__(self) -> None:
        if self.handover != "hard" and self.ramp_epochs == 0:
            raise ValueError("ramp_epochs must be above 0; for a shift at once use handover=hard")
        if self.worn is not None and not str(self.worn).startswith(AUTOREGRESSIVE):
            raise ValueError(f"worn must be a next-token objective such as autoregressive(0.15), not {self.worn}")
        start = self.start or Mix(((AUTOREGRESSIVE, 1.0),))
        if set(self.gears) <= set(names_of(start)) and len(start.shares) == 1:
            raise ValueError(f"gears must name another objective than the start, {start.describe()}")
        if self.handover == "blocks" and "masked" not in self.gears:
            raise ValueError("handover=blocks leads to masked training; put masked among the gears")
        if self.handover == "blocks" and (not self.ramp_blocks or min(self.ramp_blocks) < 1):
            raise ValueError(f"ramp_blocks must be block sizes, one or more, not {list(self.ramp_blocks)}")

    @property
    def uses_control_text(self) -> bool:
        """Whether it measures anything; without signals all text is for training."""
        return bool(self.signals)

    @property
    def watching(self) -> Watching:
        """What it reads: the gears in use and those it may shift to."""
        plain = tuple(dict.fromkeys([*self._start_names, *self.gears]))
        delta = self.thresholds.slope_delta_nats
        curvature = f"curvature(delta={delta!r})" if delta else "curvature"
        signals = tuple(curvature if name == "curvature" else name for name in self.signals)
        return Watching(signals, plain, self.target, self.probe_share)

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        blocks = tuple(f"block({size})" for size in self.ramp_blocks) if self.handover == "blocks" else ()
        rest = (AUTOREGRESSIVE,) if self.floor else ()
        worn = (str(self.worn),) if self.worn is not None else ()
        return tuple(dict.fromkeys([*self._start_names, *self.gears, *rest, *blocks, *worn]))

    @property
    def _start_names(self) -> tuple[str, ...]:
        return (AUTOREGRESSIVE,) if self.start is None else names_of(self.start)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Go on with a ramp, take back a shift, shift, or move a share; else hold.

        Args:
            state: What it remembers; empty at the start.
            readings: Signals by name.
            progress: Where the run stands.

        Returns:
            The new state and the decision.
        """
        if not state:
            return self._begin(progress)
        memory, decision = self._undressed(Memory.of(state), readings, progress)
        decision = self._dressed(decision, memory.cap, progress)
        if decision.residual_dropout != memory.residual_dropout:
            # The mix may stay; a change of the dropout is a decision all the same.
            said = f"{decision.reason}; residual dropout {decision.residual_dropout:.3g}"
            decision = replace(decision, mark=decision.mark or "note", reason=said)
        return replace(memory, residual_dropout=decision.residual_dropout).to_state(), decision

    def _undressed(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Memory, Decision]:
        if memory.origin:
            return self._ramp(memory, readings, progress)
        memory = count_evidence(memory, readings, self.target, self.thresholds, self.watching.gears)
        for move in (self._take_back, self._shift, self._lower, self._rebalance):
            moved = move(memory, readings, progress)
            if moved is not None:
                return moved
        return memory, Decision(memory.present, f"nothing speaks for a change: {memory.present.describe()}")

    def _begin(self, progress: Progress) -> tuple[State, Decision]:
        most = self.thresholds.most_ar_exposures
        start, exposures = starting_mix(self.start, self.gears, most, self.start_exponent, progress)
        planned, critical = progress.epochs_under(start), critical_compute_flops(progress.unique_tokens)
        memory = Memory(start=dict(start.shares), cap=max(most, exposures)).arrived(start, progress, {})
        details = {"planned_epochs": planned, "critical_compute_flops": critical, "thresholds": self._thresholds()}
        why = f"next-token training is to see the text {exposures:.1f} times; " if exposures else ""
        stays = self._stays(start, progress)
        why += f"{stays}: staying with it" if stays else f"{planned:.1f} epochs are planned; it may move after one"
        return memory.to_state(), Decision(start, f"starting with {start.describe()}: {why}", details)

    def _stays(self, start: Mix, progress: Progress) -> str:
        return staying(start, progress, self.least_planned_epochs, self.thresholds.critical_compute_factor)

    def _thresholds(self) -> dict[str, Any]:
        return asdict(self.thresholds)

    def _may_move(self, memory: Memory, progress: Progress) -> bool:
        """Not before the text was seen once and the learning rate is up, not within a dwell, not on the last metres."""
        unique = progress.unique_tokens
        rested = progress.data_tokens - memory.since_tokens >= self.dwell_epochs * unique
        warm = progress.data_tokens >= max(unique, progress.warmup_tokens)
        left = (progress.changeable_fraction - progress.budget_fraction) * progress.epochs_under(memory.present)
        enough = left >= (0 if self.handover == "hard" else self.ramp_epochs) + self.dwell_epochs
        return rested and warm and enough and not self._stays(Mix(tuple(memory.start.items())), progress)

    def _open_gears(self, memory: Memory, progress: Progress) -> list[str]:
        """The gears that a shift may go to: none that did not pay, and none that has seen the text too often."""
        gears = self.gears
        if self.choice == "listed" and memory.main in gears:
            gears = gears[gears.index(memory.main) + 1 :]
        fresh = [gear for gear in gears if not moves.used_up(gear, progress, memory.cap, self.gear_epochs)]
        # More of the main gear is a shift too where next-token training has a share to give, one shift at a time.
        gives = share_of_autoregressive(memory.mix) > self.floor + 1e-9 and memory.kept_step < 0
        stays = not gives or memory.main.startswith(AUTOREGRESSIVE)
        return [gear for gear in fresh if gear not in memory.refused and not (stays and gear == memory.main)]

    def _shift(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Memory, Decision] | None:
        open_gears = self._open_gears(memory, progress)
        if not open_gears or not self._may_move(memory, progress):
            return None
        evidence = moves.gather(memory, readings, progress, self.target, self.thresholds, open_gears, self.gear_epochs)
        if not evidence:
            return None
        favoured = [gear for item in evidence for gear in item.gears if gear in open_gears]
        only_favoured = favoured if {item.kind for item in evidence} == {"alignment"} else open_gears
        rows = moves.candidates(readings, progress, only_favoured, self.thresholds.novelty_floor)
        gear = only_favoured[0] if self.choice == "listed" else moves.choose(rows)
        mix = moves.landing(gear, memory, progress, self.floor, self.remainder == "spread")
        if moves.same(mix, memory.present):
            return None
        details = {
            "evidence": [item.kind for item in evidence],
            "readings": {name: [reading.value, reading.standard_error] for name, reading in readings.items()},
            "thresholds": self._thresholds(),
            "alternatives": [*rows, {"gear": memory.main, "stays": True}],
            "gear": gear,
        }
        why, how = moves.sentence_of(evidence, progress), self._how_long(memory.present, mix)
        reason = f"{why}: shifting to {mix.describe()}{how}"
        return self._set_out(memory, readings, progress, gear, mix, reason, details)

    def _set_out(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress, gear: str, mix: Mix, reason: str,
        details: dict[str, Any],
    ) -> tuple[Memory, Decision]:  # fmt: skip
        mode = target_mode(readings, self.target)
        memory = replace(memory, gear=gear, kept_step=-1)
        if self.retreat and mode is not None:
            loss = readings[f"curvature.loss:{mode}"].value
            memory = replace(
                memory, kept_step=progress.step, kept_tokens=progress.data_tokens, kept_loss=loss, kept_mix=memory.mix
            )
        mark = "keep" if memory.kept_step >= 0 else ""
        rewarm = round(self.rewarm_epochs * progress.unique_tokens)
        if self.handover == "hard":
            return memory.arrived(mix, progress, readings), Decision(mix, reason, details, mark, 0, rewarm)
        memory, first = self._ramp(memory.set_out(mix, progress), readings, progress, ahead=FIRST_STEP_EPOCHS)
        return memory, Decision(first.mix, reason, {**details, "to": dict(mix.shares)}, mark, 0, rewarm)

    def _how_long(self, origin: Mix, target: Mix) -> str:
        if self.handover == "hard":
            return ""
        path = f" by way of {', '.join(f'block({size})' for size in self.ramp_blocks)}"
        return f"{path if self._by_blocks(origin, target) else ''} over {self.ramp_epochs:g} epochs"

    def _by_blocks(self, origin: Mix, target: Mix) -> bool:
        return self.handover == "blocks" and target.share("masked") > 0 == origin.share("masked")

    def _ramp(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress, ahead: float = 0.0
    ) -> tuple[Memory, Decision]:
        """Say how far a handover is; its end begins the dwell."""
        gone = (progress.data_tokens - memory.began_tokens) / progress.unique_tokens + ahead
        way = min(1.0, gone / self.ramp_epochs)
        target = memory.present
        if way >= 1 - 1e-9:
            reason = f"the handover is through: {target.describe()}"
            return memory.arrived(target, progress, readings), Decision(target, reason, {"phase": "ramp", "way": 1.0})
        origin = Mix(tuple(memory.origin.items()))
        mix = origin.blend(self._in_blocks(target, way) if self._by_blocks(origin, target) else target, way)
        return memory, Decision(
            mix, f"{100 * way:.0f}% of the handover: {mix.describe()}", {"phase": "ramp", "way": way}
        )

    def _in_blocks(self, target: Mix, way: float) -> Mix:
        """Stand in for masked training with the block size of this part of the way."""
        size = self.ramp_blocks[min(len(self.ramp_blocks) - 1, int(way * len(self.ramp_blocks)))]
        return Mix(tuple((f"block({size})" if name == "masked" else name, share) for name, share in target.shares))

    def _lower(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Memory, Decision] | None:
        """Let the next-token share fall to its floor when its exposures inside the mix are spent."""
        share = share_of_autoregressive(memory.mix)
        if not self.floor + 1e-9 < share < 1 or progress.autoregressive_epochs < memory.cap:
            return None
        if set(memory.refused) & set(memory.mix):
            return None  # The same fall was taken back: what did not pay as a shift does not as a cap.
        if not self._may_move(memory, progress):
            return None
        seen = f"AR has seen each token {progress.autoregressive_epochs:.1f} times inside the mix, its most"
        return self._to_share(memory, readings, progress, self.floor, seen)

    def _rebalance(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Memory, Decision] | None:
        wanted = moves.rebalanced(memory, self.floor, self.thresholds.alignment_probes) if self.rebalance else None
        if wanted is None or not self._may_move(memory, progress):
            return None
        share, leader = wanted
        why = f"{leader}'s gradient leads per FLOP in {self.thresholds.alignment_probes} probes"
        if share > share_of_autoregressive(memory.mix):
            left = memory.cap - progress.autoregressive_epochs
            rest = (1 - progress.budget_fraction) * progress.epochs_under(memory.present)
            if share * rest > left:
                return None
        return self._to_share(memory, readings, progress, share, why)

    def _to_share(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress, share: float, why: str
    ) -> tuple[Memory, Decision]:
        """Move the next-token share alone."""
        mix = moves.with_share(memory.mix, share)
        details = {
            "readings": {name: [reading.value, reading.standard_error] for name, reading in readings.items()},
            "thresholds": self._thresholds(),
            "alternatives": [{"share": share_of_autoregressive(memory.mix), "stays": True}, {"share": share}],
        }
        reason = f"{why}: moving to {mix.describe()}{self._how_long(memory.present, mix)}"
        # A share is no gear: a shift that waits for its judgement goes on waiting.
        moved = memory.set_out(mix, progress)
        if self.handover == "hard":
            return moved.arrived(mix, progress, readings), Decision(mix, reason, details)
        moved, first = self._ramp(moved, readings, progress, ahead=FIRST_STEP_EPOCHS)
        return moved, Decision(first.mix, reason, {**details, "to": dict(mix.shares)})

    def _take_back(
        self, memory: Memory, readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Memory, Decision] | None:
        """Judge the last shift once, by the loss that its slope promises for the end of the plateau."""
        if memory.kept_step < 0 or not moves.judged_now(memory, progress, self.retreat_epochs):
            return None
        projected = moves.projected_loss(memory, readings, progress, self.target)
        if projected is None:
            return None
        if projected <= memory.kept_loss + RETREAT_NATS:
            return replace(memory, kept_step=-1), Decision(
                memory.present,
                f"the shift to {memory.gear} pays: {projected:.3f} nats in sight, {memory.kept_loss:.3f} at the shift",
                mark="note",
            )
        before = Mix(tuple(memory.kept_mix.items()))
        reason = (
            f"the shift to {memory.gear} does not pay: {projected:.3f} nats in sight, {memory.kept_loss:.3f} at the "
            f"shift; weights, optimizer and averages go back to step {memory.kept_step}: {before.describe()}"
        )
        details = {"projected_nats": projected, "kept_nats": memory.kept_loss, "refused": memory.gear}
        step = memory.kept_step
        memory = replace(memory, refused=(*memory.refused, memory.gear), kept_step=-1)
        return memory.arrived(before, progress, readings), Decision(before, reason, details, "back", step)

    def _dressed(self, decision: Decision, cap: float, progress: Progress) -> Decision:
        """Put worn objectives and dropout on a decision, as the exposures are spent."""
        spent = progress.autoregressive_epochs / cap
        mix = decision.mix
        if self.worn is not None and spent >= 0.5:
            mix = moves.stand_in(mix, AUTOREGRESSIVE, str(self.worn))
        if self.worn_dropout is None:
            return replace(decision, mix=mix)
        # In twentieths, so that the rate changes a few times in a run and not at every question.
        share = min(1.0, round(20 * spent) / 20)
        rate = (1 - share) * progress.residual_dropout + share * self.worn_dropout
        return replace(decision, mix=mix, residual_dropout=rate)
