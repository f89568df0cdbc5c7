"""Streams of planted readings that a controller is driven with; shared by several test files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from crossover.control.calibration import Thresholds
from crossover.control.controllers.memory import share_of_autoregressive
from crossover.control.controllers.online import Online
from crossover.records import Decision, Mix, Progress, Reading

UNIQUE = 16_000
ASKS = 16
PRICES = {"autoregressive": 1.0, "autoregressive(0.15)": 1.0, "masked": 0.9, "block(4)": 1.8, "block(16)": 1.8}
AR = Mix((("autoregressive", 1.0),))
Readings = dict[str, Reading]


def thresholds(**changed: Any) -> Thresholds:
    """Thresholds that no calibration can change under these tests."""
    plain = {"rising_probability": 0.9, "rising_evaluations": 2, "alignment_probes": 2, "novelty_floor": 0.1}
    return Thresholds(**{**plain, "most_ar_exposures": 16.0, "critical_compute_factor": 0.0, **changed})


def online(*, planted: Mapping[str, Any] | None = None, **fields: Any) -> Online:
    """Make a controller that starts in next-token training; `planted` changes thresholds, the rest are its settings."""
    return Online(**{"start": AR, "thresholds": thresholds(**(planted or {})), **fields})


@dataclass(frozen=True)
class Asked:
    """One question: where the run stood, what was said, what is remembered."""

    progress: Progress
    decision: Decision
    state: dict[str, Any]

    @property
    def share(self) -> float:
        return share_of_autoregressive(dict(self.decision.mix.shares))


def drive(
    controller: Online, readings_at: Callable[[Progress], Readings] = lambda progress: {}, *, planned: float = 60.0,
    decay_from: float = 0.75, flops: bool = False, **facts: Any,
) -> list[Asked]:  # fmt: skip
    """Ask 16 times an epoch until the mix is frozen, obey, and check what holds at every question."""
    asked: list[Asked] = []
    state: dict[str, Any] = {}
    exposures: dict[str, int] = {}
    tokens, spent, budget = 0, 0.0, planned * UNIQUE
    facts = {"warmup_tokens": 0, "batch_tokens": 100, "flops_per_token": PRICES, **facts}
    mix = AR
    while not asked or spent / budget < decay_from:
        price = sum(share * PRICES[name] for name, share in mix.shares) if flops else 1.0
        progress = Progress(
            tokens, UNIQUE, spent / budget, budget / price / UNIQUE, dict(exposures), step=tokens // 100,
            budget_flops=budget if flops else None, changeable_fraction=decay_from, **facts,
        )  # fmt: skip
        state, decision = ask(controller, state, readings_at(progress), progress)
        asked.append(Asked(progress, decision, state))
        mix = decision.mix
        for name, share in mix.shares:
            exposures[name] = exposures.get(name, 0) + round(share * UNIQUE / ASKS)
            spent += share * UNIQUE / ASKS * (PRICES[name] if flops else 1.0)
        tokens += UNIQUE // ASKS
    return asked


def ask(
    controller: Online, state: dict[str, Any], readings: Readings, progress: Progress
) -> tuple[dict[str, Any], Decision]:
    """Ask once: pure, a function of JSON values, and within the objectives that were announced."""
    before = json.dumps(state)
    after, decision = controller.decide(state, readings, progress)
    assert controller.decide(json.loads(before), readings, progress) == (after, decision)
    assert json.dumps(state) == before
    told = json.loads(json.dumps(after))
    assert told == after
    assert {name for name, _ in decision.mix.shares} <= set(controller.objectives())
    assert sum(share for _, share in decision.mix.shares) == pytest.approx(1)
    json.dumps(dict(decision.details))
    return told, decision


def moves(asked: list[Asked]) -> list[Asked]:
    """The questions at which a shift, a new share or a retreat was decided."""
    return [item for item in asked if "alternatives" in item.decision.details or item.decision.mark == "back"]


def losses(
    rising: Callable[[float], float], loss: Callable[[float], float] = lambda count: 4.0
) -> Callable[[Progress], Readings]:
    """One evaluation an epoch: the loss, and from the fifth on the probability that it rises, by epoch."""

    def readings_at(progress: Progress) -> Readings:
        count = int(progress.epochs)
        found = {"evaluations": Reading(count, 0, True), "curvature.loss:ar": Reading(loss(count), 0.01, count > 0)}
        if count >= 5:
            found["curvature.rising:ar"] = Reading(rising(count), 0, True)
            found["curvature.slope:ar"] = Reading(0.0, 0.01, True)
        return found

    return readings_at


def aligned(values: Callable[[float], Mapping[str, float]], every: float = 1.0) -> Callable[[Progress], Readings]:
    """A probe of each gear every so many epochs."""

    def readings_at(progress: Progress) -> Readings:
        count = int(progress.epochs / every)
        found = values(count * every) if count else {}
        rows = {f"alignment:{gear}": Reading(value, 0.01, True) for gear, value in found.items()}
        return rows | {f"alignment.probes:{gear}": Reading(count, 0, True) for gear in found}

    return readings_at
