"""What the online controller remembers between two decisions: JSON values, and how evidence adds up in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from crossover.control.calibration import Thresholds
from crossover.records import Mix, Progress, Reading

State = Mapping[str, Any]
# Rows that a slope is fitted to; after a shift it needs as many of the new mix.
FITTED_ROWS = 6
# Errors that a lead must exceed: Student's t with the three degrees of freedom of four parts, one-sided 95%.
LEADS_ERRORS = 2.353


@dataclass(frozen=True)
class Memory:
    """What the online controller remembers.

    Args:
        mix: The mix that holds, or that a ramp leads to.
        origin: The mix that a ramp began from; empty when there is no ramp.
        began_tokens: Data tokens at which the ramp began.
        since_tokens: Data tokens since which the mix holds; dwell is counted from here.
        streaks: How many readings in a row were evidence, by kind of evidence ("rising", "leads:<gear>").
        counted: How many readings of each kind have been taken in.
        refused: Gears that did not pay.
        kept_step: Step at which the weights before the last shift were kept, or -1.
        kept_tokens: Data tokens there.
        kept_loss: The target's held-out loss there.
        kept_mix: The mix there.
        gear: The gear that the last shift went to.
        arrived_evaluations: Evaluations that there were when the mix began to hold.
        residual_dropout: The rate that was asked for last, or None.
        start: The mix that the run began with.
        cap: Most exposures of next-token training, in epochs; a start that was chosen from the horizon may plan more
            of them than the threshold.
    """

    mix: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, float] = field(default_factory=dict)
    began_tokens: int = 0
    since_tokens: int = 0
    streaks: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    kept_step: int = -1
    kept_tokens: int = 0
    kept_loss: float = 0.0
    kept_mix: Mapping[str, float] = field(default_factory=dict)
    gear: str = ""
    arrived_evaluations: float = 0.0
    residual_dropout: float | None = None
    start: Mapping[str, float] = field(default_factory=dict)
    cap: float = 0.0

    @classmethod
    def of(cls, state: State) -> Memory:
        """Read it from a state."""
        return cls(**{**state, "refused": tuple(state.get("refused", ()))})

    def to_state(self) -> dict[str, Any]:
        """Write it as JSON values."""
        return {**asdict(self), "refused": list(self.refused)}

    @property
    def present(self) -> Mix:
        """The mix that holds, or that a ramp leads to."""
        return Mix(tuple(self.mix.items()))

    @property
    def main(self) -> str:
        """The objective with the largest share."""
        return max(self.mix, key=lambda name: self.mix[name])

    def rival(self, gear: str) -> str:
        """The objective that a gear is compared with: the main one, and for that one the next in the mix, or ""."""
        others = {name: share for name, share in self.mix.items() if name != gear}
        return self.main if gear != self.main else max(others, key=lambda name: others[name], default="")

    def arrived(self, mix: Mix, progress: Progress, readings: Mapping[str, Reading]) -> Memory:
        """Hold a mix from now on; evidence begins anew."""
        evaluations = readings.get("evaluations")
        return replace(
            self,
            mix=dict(mix.shares),
            origin={},
            since_tokens=progress.data_tokens,
            streaks={},
            arrived_evaluations=evaluations.value if evaluations is not None else 0.0,
        )

    def set_out(self, mix: Mix, progress: Progress) -> Memory:
        """Begin to move from the mix that holds to another one."""
        now = progress.data_tokens
        return replace(
            self, origin=dict(self.mix), mix=dict(mix.shares), began_tokens=now, since_tokens=now, streaks={}
        )


def share_of_autoregressive(mix: Mapping[str, float]) -> float:
    """Add up the shares of next-token training, whatever its options."""
    return sum(share for name, share in mix.items() if name.startswith("autoregressive"))


def target_mode(readings: Mapping[str, Reading], target: str) -> str | None:
    """Name the mode whose held-out loss counts now: the target, or with "best" the one that is lower."""
    losses = {
        name.split(":", 1)[1]: reading.value
        for name, reading in readings.items()
        if name.startswith("curvature.loss:") and reading.ready
    }
    if target != "best":
        return target if target in losses else None
    return min(losses, key=lambda mode: losses[mode]) if losses else None


def count_evidence(
    memory: Memory, readings: Mapping[str, Reading], target: str, thresholds: Thresholds, gears: tuple[str, ...]
) -> Memory:
    """Add new readings to the streaks; a reading that is looked at twice counts once.

    Args:
        memory: What is remembered.
        readings: Signals by name.
        target: The held-out loss that is minimised.
        thresholds: When a reading is evidence.
        gears: Gears that may lead.

    Returns:
        The memory with new streaks.
    """
    streaks, counted = dict(memory.streaks), dict(memory.counted)
    if _is_new(readings, "evaluations", counted):
        mode = target_mode(readings, target)
        rising = readings.get(f"curvature.rising:{mode}")
        known = rising is not None and rising.ready and fresh(memory, readings)
        fires = rising is not None and known and rising.value > thresholds.rising_probability
        streaks["rising"] = streaks.get("rising", 0) + 1 if fires else 0
    for gear in gears:
        rival, probes = memory.rival(gear), f"alignment.probes:{gear}"
        if any(f"alignment:{name}" not in readings for name in (gear, rival)):
            # Not measured yet, or anew because another loss counts now: what was counted is of other numbers.
            streaks.pop(f"leads:{gear}", None)
            counted.pop(probes, None)
        elif _is_new(readings, probes, counted):
            leads = _leads(readings, gear, rival, thresholds.alignment_ratio)
            streaks[f"leads:{gear}"] = streaks.get(f"leads:{gear}", 0) + 1 if leads else 0
    return replace(memory, streaks=streaks, counted=counted)


def fresh(memory: Memory, readings: Mapping[str, Reading]) -> bool:
    """Whether slopes are of the present mix alone: a fit that reaches back sees the handover's jump, not a trend."""
    if memory.arrived_evaluations == 0:
        return True
    evaluations = readings.get("evaluations")
    return evaluations is not None and evaluations.value >= memory.arrived_evaluations + FITTED_ROWS


def _is_new(readings: Mapping[str, Reading], name: str, counted: dict[str, float]) -> bool:
    reading = readings.get(name)
    if reading is None or reading.value == counted.get(name, 0.0):
        return False
    counted[name] = reading.value
    return True


def _leads(readings: Mapping[str, Reading], gear: str, other: str, ratio: float) -> bool:
    """Whether a gear's gradient helps the held-out loss more per FLOP, beyond chance."""
    mine, theirs = readings.get(f"alignment:{gear}"), readings.get(f"alignment:{other}")
    if mine is None or theirs is None or not mine.ready or not theirs.ready:
        return False
    ahead = mine.value - ratio * max(theirs.value, 0.0)
    error = (mine.standard_error**2 + (ratio * theirs.standard_error) ** 2) ** 0.5
    return mine.value > 0 and ahead > LEADS_ERRORS * error
