"""What the tests of probes share: a run with its control text apart, and its probes."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossover.model.shapes import training_flops
from crossover.records import Watching
from crossover.registry import component_of
from crossover.training.probes.bench import Now
from crossover.training.probes.losses import LossProbe
from crossover.training.probes.prober import Prober, build_prober

GEARS = ("autoregressive", "block(8)", "masked")
ALL = frozenset({"loss", "gradient", "novelty", "clip"})
MIX = {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}


def at(step: int = 0, losses: Any = None, mix: tuple[str, ...] = GEARS) -> Now:
    return Now(step, mix, losses or {})


def held_out(shop: Any) -> Any:
    """Cut the control part off a run's training text."""
    loader = shop.stepper.loader
    loader.tokens_U = np.asarray(shop.text.train_tokens(with_control=False))
    return shop


def trained(shop: Any, steps: int = 3) -> Any:
    for step in range(steps):
        shop.stepper.run(step, ("autoregressive", "masked") * 2, 1.0)
    return shop


def make(shop: Any, kinds: frozenset[str] = ALL, target: str = "best", gears: tuple[str, ...] = GEARS) -> Prober:
    work, rows = shop.recipe.data.context, shop.text.vocabulary.predictable
    prices = {
        gear: training_flops(shop.shape, component_of("objective", gear).workload(work), head_rows=rows) / work
        for gear in gears
    }
    return build_prober(shop.text, shop.shape, shop.stepper, prices, Watching((), gears, target, 0.05), kinds)


def probe_of(prober: Prober, kind: type, gear: str = "") -> Any:
    return next(
        probe
        for probe in (*prober.cycle, *prober.clips)
        if isinstance(probe, kind) and getattr(probe, "gear", gear) in (gear, "" if kind is LossProbe else gear)
    )
