"""Controllers that follow published static rules, a placebo, and one that only looks: baselines of the online one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from crossover.control.controllers.fixed import State
from crossover.control.controllers.horizon import AUTOREGRESSIVE, planned_share
from crossover.control.controllers.watching import Gear, Gears, ProbeShare, SignalNames, Target, names_of
from crossover.records import Decision, Mix, Progress, Reading, Watching
from crossover.registry import Component, MixField, register
from crossover.streams import stream


@register("controller", "static_dual")
@dataclass(frozen=True)
class StaticDual:
    """A constant mix whose next-token share is chosen by how often the text will be repeated.

    The share is min(most_share, (autoregressive_epochs / R)^exponent) with R the epochs of the whole run. By default
    it is the rule of arXiv 2512.14549, 63/64 and about 16: next-token training sees the text about 16 times however
    long the run is. Exponent 1/2 is what `online` starts with, here without its signals and what they cost.

    Args:
        other: The objective that receives the rest.
        autoregressive_epochs: Times that next-token training should see the text.
        most_share: Largest share of next-token training.
        exponent: How fast the share falls with the repeats, in (0, 1].
    """

    other: Gear = "masked"
    autoregressive_epochs: float = 16.0
    most_share: float = 63 / 64
    exponent: float = 1.0
    uses_control_text = False
    watching = None
    first_change_epochs = 0.0
    horizon_free = False

    def __post_init__(self) -> None:
        if not 0 < self.most_share < 1 or self.autoregressive_epochs <= 0:
            raise ValueError("most_share must lie in (0, 1) and autoregressive_epochs above 0")
        if not 0 < self.exponent <= 1:
            raise ValueError("exponent must lie in (0, 1]")
        if self.other == AUTOREGRESSIVE:
            raise ValueError("other must be another objective than autoregressive; for that one alone use constant")

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return (AUTOREGRESSIVE, self.other)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Choose the share once, when the run begins, and keep it."""
        share = float(state["share"]) if "share" in state else self._share(progress)
        mix = Mix(((AUTOREGRESSIVE, share), (self.other, 1 - share)))
        repeats = progress.epochs_under(mix)
        reason = (
            f"the budget buys {repeats:.1f} epochs, so next-token training sees the text {share * repeats:.1f} times: "
            f"{mix.describe()} throughout"
        )
        return {"share": share}, Decision(mix, reason)

    def _share(self, progress: Progress) -> float:
        return planned_share(progress, self.other, self.autoregressive_epochs, self.exponent, self.most_share)


@register("controller", "random_time")
@dataclass(frozen=True)
class RandomTime:
    """The placebo of a controller that chooses its time: the time is drawn by lot.

    The time is log-uniform between `earliest_epochs` and the place where the learning rate begins to decay, a function
    of the recipe's seed.

    Args:
        before: The mix up to there.
        after: The mix after the ramp.
        earliest_epochs: The text has been seen so often at least.
        ramp_epochs: Over how many epochs the shares move.
    """

    before: MixField
    after: MixField
    earliest_epochs: float = 1.0
    ramp_epochs: float = 1.5
    uses_control_text = False
    watching = None
    horizon_free = False

    def __post_init__(self) -> None:
        if self.earliest_epochs <= 0 or self.ramp_epochs <= 0:
            raise ValueError("earliest_epochs and ramp_epochs must be above 0")

    @property
    def first_change_epochs(self) -> float:
        """The earliest that the lot can fall on."""
        return self.earliest_epochs

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return names_of(self.before, self.after)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Draw the time once; then the shares move linearly from it on."""
        at = float(state["at_epochs"]) if "at_epochs" in state else self._draw(progress)
        way = min(1.0, max(0.0, (progress.epochs - at) / self.ramp_epochs))
        mix = self.before.blend(self.after, way)
        reason = (
            f"the text has been seen {progress.epochs:.2f} times; the lot fell on {at:.2f} epochs: {mix.describe()}"
        )
        return {"at_epochs": at}, Decision(mix, reason, {"phase": "ramp", "way": way} if 0 < way < 1 else {})

    def _draw(self, progress: Progress) -> float:
        last = progress.changeable_fraction * progress.epochs_under(self.before) - self.ramp_epochs
        low, high = math.log(self.earliest_epochs), math.log(max(self.earliest_epochs, last))
        return math.exp(stream(progress.seed, "random time").uniform(low, high))


@register("controller", "watch")
@dataclass(frozen=True)
class Watch:
    """Another controller, unchanged, whose run is probed: what `replay` and `calibrate` need of a baseline.

    Args:
        controller: What decides.
        gears: Objectives that are looked at, in use or not.
        target: The held-out loss: "ar", "l2r", "nelbo", or "best" of "ar" and "nelbo".
        signals: Which signals are recorded.
        probe_share: Largest part of the training FLOPs that probes may take.
    """

    controller: Annotated[Any, Component("controller")]
    gears: Gears = (AUTOREGRESSIVE, "masked")
    target: Target = "best"
    signals: SignalNames = ("coverage", "variance", "curvature", "alignment", "gap")
    probe_share: ProbeShare = 0.04

    def __post_init__(self) -> None:
        if self.controller.watching is not None:
            raise ValueError(f"controller: {type(self.controller).component_name} is probed by itself; name it alone")

    @property
    def uses_control_text(self) -> bool:
        """Whether anything is measured; without signals all text is for training."""
        return bool(self.signals)

    @property
    def watching(self) -> Watching:
        """What is recorded."""
        return Watching(self.signals, self.gears, self.target, self.probe_share)

    @property
    def first_change_epochs(self) -> float:
        """The inner controller's."""
        return self.controller.first_change_epochs

    @property
    def horizon_free(self) -> bool:
        """The inner controller's: probes are paid from what has been spent, not from what will be."""
        return self.controller.horizon_free

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that the inner controller may ask for."""
        return self.controller.objectives()

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Leave the decision to the inner controller, which sees no readings."""
        return self.controller.decide(state, {}, progress)
