"""The end of a run: the final scores of every mode, and the model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from crossover.folders import read_sums
from crossover.hub.export import export, facts_of
from crossover.model.sharding import gathered
from crossover.records import Recorder
from crossover.training import machine
from crossover.training.build import Workshop
from crossover.training.saving import check, fill


def finish(workshop: Workshop, folder: Path, recorder: Recorder, best: Mapping[str, Any]) -> None:
    """Score every mode with its best weights, choose the headline on dev, leave the model folder.

    Args:
        workshop: The run's parts.
        folder: Its folder, with the best weights of each mode in `best/`.
        recorder: Where the scores go.
        best: Modes that were scored on the way.
    """
    cards, world = {}, workshop.model.world
    # The best weights are there when their writer is here.
    world.wait()
    for name in workshop.evaluator.modes:
        kept = folder / "best" / (name if name in best else _stand_in(best, name))
        facts = {**_load_weights(workshop, kept), "versions": machine.facts()["versions"]}
        for split in ("dev", "test"):
            cards[split, name] = workshop.evaluator.final(workshop.model, split, name, facts)
    headline = min(workshop.evaluator.modes, key=lambda name: cards["dev", name].bits_per_byte)
    for (split, name), card in cards.items():
        row = {**asdict(card), "perplexity": card.perplexity, "split": split, "headline": name == headline}
        recorder.scores(f"{split}-{name}", {**row, "checkpoint_step": card.conditions["checkpoint_step"]})
    _load_weights(workshop, folder / "best" / (headline if headline in best else _stand_in(best, headline)))
    modes, words = workshop.evaluator.modes, workshop.text.vocabulary
    context, trained = workshop.recipe.data.context, tuple(workshop.stepper.objectives)
    facts = facts_of(modes, headline, words, context, trained)
    if workshop.adopted:
        facts["adopted"] = dict(workshop.adopted)
    inner = workshop.model.inner
    weights = gathered(dict(inner.named_parameters()), world)
    if world.leads:
        export(folder / "model", inner.config, weights, workshop.text.tokenizer, facts)
    # Last, because it says that the run is complete.
    recorder.scores("summary", {"headline": headline, "chosen_on": "dev", "modes": list(workshop.evaluator.modes)})


def _stand_in(best: Mapping[str, Any], name: str) -> str:
    """Name the mode whose best weights serve a mode that was not scored on the way (l2r without dev positions)."""
    return "nelbo" if name == "l2r" and "nelbo" in best else next(iter(best))


@torch.no_grad()
def _load_weights(workshop: Workshop, folder: Path) -> dict[str, Any]:
    """Load the weights that were best under a mode; returns what identifies them."""
    tree = check(folder, ["model"], workshop.model.world)
    fill(folder, "model", dict(workshop.model.inner.named_parameters()))
    return {
        "checkpoint": f"best/{folder.name}",
        "checkpoint_step": int(tree["step"]),
        "checkpoint_sha256": read_sums(folder)["model.safetensors"],
    }
