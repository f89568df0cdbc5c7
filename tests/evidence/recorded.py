"""Run folders as the training loop leaves them, with planted losses and a controller that follows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.control.signals.fold import fold_of
from crossover.control.signals.scene import Scene
from crossover.evidence.run import RunFolder
from crossover.model.shapes import shape_of, training_flops
from crossover.recipe import Recipe, resolve, to_tree
from crossover.records import Decision, Mix, Progress, Reading, Watching
from crossover.registry import component_of, register

AR, MASKED = Mix((("autoregressive", 1.0),)), Mix((("masked", 1.0),))
TOKENS, BATCH, PER_EPOCH = 16_000, 1000, 16


@register("signal", "newest_of_test")
@dataclass(frozen=True)
class Newest:
    """The newest held-out loss."""

    probes = ("loss",)

    def update(self, state: Mapping[str, Any], record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"loss": record["control"]["ar"][0]} if record.get("probe") == "loss" else state

    def readings(self, state: Mapping[str, Any], scene: Scene) -> dict[str, Reading]:
        return {"newest": Reading(state.get("loss", 0.0), scene.mix.share("masked"), "loss" in state)}


@register("controller", "leaves_of_test")
@dataclass(frozen=True)
class Leaves:
    """Masked training from where the loss is above a level, next-token training where it is below."""

    level: float
    uses_control_text = True
    first_change_epochs = 0.0
    watching = Watching(("newest_of_test",), ("autoregressive", "masked"), "ar", 0.05)

    def objectives(self) -> tuple[str, ...]:
        return ("autoregressive", "masked")

    def decide(
        self, state: Mapping[str, Any], readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Mapping[str, Any], Decision]:
        now = readings["newest"]
        asked = state.get("asked", 0) + 1
        above = now.ready and now.value > self.level
        details = {"loss": now.value, "masked_share": now.standard_error, "asked": asked, "step": progress.step,
                   "left": progress.changeable_fraction - progress.budget_fraction,
                   "prices": dict(progress.flops_per_token), "planned": progress.planned_epochs}  # fmt: skip
        mark = "keep" if asked == 20 else ""
        return {"asked": asked}, Decision(MASKED if above else AR, f"question {asked}", details, mark)


def recipe_of(controller: Any) -> Recipe:
    return resolve(
        {
            "name": "recorded",
            "data": {"unique_tokens": 20_000, "context": 100},
            "model": {"preset": "250k"},
            "training": {"batch_tokens": BATCH},
            "controller": controller,
        }
    )


def prices_of(recipe: Recipe, *names: str) -> dict[str, float]:
    shape = shape_of(recipe.model, 300)
    works = {name: component_of("objective", name).workload(100) for name in names}
    return {name: training_flops(shape, work, head_rows=290) / 100 for name, work in works.items()}


class Loop:
    """What the training loop leaves: questions, probes and decisions, written by another hand than the replay's."""

    def __init__(self, path: Path, controller: Any, losses: Sequence[float], *, vocabulary: bool = True) -> None:
        self.recipe = recipe_of(controller)
        watching = self.recipe.controller.watching
        self.gears = watching.gears if watching else ()
        self.fold = fold_of(watching.signals if watching else ())
        names = dict.fromkeys([*self.recipe.controller.objectives(), *self.gears])
        self.prices = prices_of(self.recipe, *names)
        self.budget = len(losses) * BATCH * max(self.prices.values()) / 0.6
        with RunFolder(path, terminal=False).create(to_tree(self.recipe)) as folder:
            vocabulary_row = {"vocabulary": {"size": 300, "predictable": 290}} if vocabulary else {}
            budget = {"currency": "flops", "amount": self.budget}
            facts = {"train_tokens": TOKENS, "flops_per_token": self.prices, "budget": budget}
            folder.manifest({**facts, **vocabulary_row})
            self.run(folder, losses)

    def run(self, folder: RunFolder, losses: Sequence[float]) -> None:
        mix: dict[str, float] = {}
        memory, folded = {}, {}
        exposures: dict[str, int] = {}
        spent = 0.0
        for step, loss in enumerate(losses):
            shown = Mix(tuple(mix.items())) if mix else AR
            price = sum(share * self.prices[name] for name, share in mix.items()) if mix else None
            planned = self.budget / (price or max(self.prices.values())) / TOKENS
            clock = {"step": step + 1, "data_tokens": step * BATCH, "epochs": step * BATCH / TOKENS}
            asked = {"budget_fraction": spent / self.budget, "planned_epochs": planned, "exposures": dict(exposures)}
            folder.signal({**clock, "mix": mix, "asked": True, **asked})
            readings = self.fold.readings(folded, Scene(100, TOKENS, self.gears, self.prices, shown))
            progress = Progress(
                step * BATCH, TOKENS, **asked, step=step, budget_flops=self.budget, changeable_fraction=0.7,
                warmup_tokens=self.recipe.training.learning_rate.warmup_tokens, batch_tokens=BATCH, context=100,
                flops_per_token=self.prices,
            )  # fmt: skip
            memory, decision = self.recipe.controller.decide(memory, readings, progress)
            after = dict(decision.mix.shares)
            if after != mix or decision.mark:
                told = {"before": mix, "mix": after, "reason": decision.reason, "details": decision.details}
                folder.decision({**clock, **told, "mark": decision.mark})
            mix = after
            for name, share in mix.items():
                exposures[name] = exposures.get(name, 0) + round(share * BATCH)
                spent += share * BATCH * self.prices[name]
            probe = {**clock, "data_tokens": (step + 1) * BATCH, "probe": "loss", "units": ["a", "b"],
                     "unit_tokens": [10, 10], "control": {"ar": [loss, loss]}, "train": {"ar": [loss, loss]},
                     "flops": 1.0}  # fmt: skip
            if self.gears:
                folder.signal(probe)
                folded = self.fold.update(folded, probe)
