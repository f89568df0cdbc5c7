"""The end of a run: the final scores of every mode, and the model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from crossover.hub.export import export
from crossover.records import Recorder
from crossover.training import checkpoint, machine
from crossover.training.build import Workshop


def finish(workshop: Workshop, folder: Path, recorder: Recorder, best: Mapping[str, Any]) -> None:
    """Score every mode with its best weights, choose the headline on dev, leave the model folder.

    Args:
        workshop: The run's parts.
        folder: Its folder, with the best weights of each mode in `best/`.
        recorder: Where the scores go.
        best: Modes that were scored on the way.
    """
    cards = {}
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
    facts = {"modes": list(workshop.evaluator.modes), "best_mode": headline, "state_i_predicts": "token i + 1"}
    vocabulary = workshop.text.vocabulary
    facts |= {"mask_token_id": vocabulary.mask_id, "predictable": vocabulary.predictable}
    inner = workshop.model.inner
    export(folder / "model", inner.config, dict(inner.named_parameters()), workshop.text.tokenizer, facts)
    # Last, because it says that the run is complete.
    recorder.scores("summary", {"headline": headline, "chosen_on": "dev", "modes": list(workshop.evaluator.modes)})


def _stand_in(best: Mapping[str, Any], name: str) -> str:
    """Name the mode whose best weights serve a mode that was not scored on the way (l2r without dev positions)."""
    return "nelbo" if name == "l2r" and "nelbo" in best else next(iter(best))


@torch.no_grad()
def _load_weights(workshop: Workshop, folder: Path) -> dict[str, Any]:
    """Load the weights that were best under a mode; returns what identifies them."""
    tensors, tree = checkpoint.load(folder, ["model"])
    for name, parameter in workshop.model.inner.named_parameters():
        parameter.copy_(tensors["model"][name])
    sums = json.loads((folder / "checksums.json").read_text("utf-8"))
    return {
        "checkpoint": f"best/{folder.name}",
        "checkpoint_step": int(tree["step"]),
        "checkpoint_sha256": sums["model.safetensors"],
    }
