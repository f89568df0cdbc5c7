"""From a finished run to a folder for others: the weights that are wanted, their card, and nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from crossover.errors import CheckpointError, RunError
from crossover.folders import damaged, read_sums
from crossover.hub.adopt import open_model, put_weights
from crossover.hub.card import Story, title_of, write_card
from crossover.hub.export import export, facts_of
from crossover.model.shapes import parameters

FINAL = "final"


def publish(run: Path, out: Path, *, weights: str | None = None, mode: str | None = None) -> dict[str, Any]:
    """Write the model of a run as a folder that transformers loads without remote code.

    Args:
        run: A run folder, or a model folder that a run left.
        out: Where to; what is there is replaced only if it is such a folder.
        weights: "final", those in the run's `model/`, or "best/MODE", those that were best on dev under a mode.
        mode: The mode that the folder declares as its best; its best weights are taken unless `weights` says others.

    Returns:
        The section `crossover` of the folder's config.json.

    Raises:
        CheckpointError: The run has no such weights or mode, or they are damaged.
        RunError: There is no model, or `out` holds something else.
    """
    folder = run / "model" if (run / "model" / "config.json").exists() else run
    if not (folder / "config.json").exists():
        raise RunError(f"{run}: holds no finished model; `crossover train` leaves one in <run>/model")
    _refuse_others(out, folder)
    model, tokenizer, facts = open_model(folder)
    if "modes" not in facts:
        raise CheckpointError(f"{folder}: config.json does not say its modes; it was not left by a run")
    if mode is not None and mode not in facts["modes"]:
        raise CheckpointError(f"{folder}: was not trained for mode '{mode}'; it has {', '.join(facts['modes'])}")
    chosen = weights or (FINAL if mode is None or mode == facts["best_mode"] else f"best/{mode}")
    digest = None
    if chosen != FINAL:
        digest = _take(model, run, chosen)
    best = mode or (chosen.removeprefix("best/") if chosen != FINAL else facts["best_mode"])
    manifest, ledger = _read(run / "manifest.json"), _read(run / "ledger.json")
    objectives = ledger.get("exposures") or facts.get("objectives") or ()
    context = int(facts.get("window", model.context))
    facts = {**facts, **facts_of(facts["modes"], best, model.vocabulary, context, objectives)}
    if adopted := manifest.get("adopted") or facts.get("adopted"):
        # Without the folder: where it lay on one machine says nothing elsewhere.
        known = ("source", "source_sha256", "sha256")
        facts["adopted"] = {key: adopted[key] for key in known if key in adopted}
    cards = _cards(run)
    if digest is None:
        digest = _headline(cards)
        if digest is not None:
            _require_scored(model, run, folder, digest)
    family = type(model.inner).__name__
    name = str(run.resolve().name if run != folder else out.name)
    story = Story(title_of(name), family, parameters(model.shape), facts, cards, digest, manifest, ledger)
    named = dict(model.inner.named_parameters())
    export(out, model.inner.config, named, tokenizer, facts, {"README.md": write_card(story)})
    return facts


def _refuse_others(out: Path, model: Path) -> None:
    """Replace nothing but an export, and never the run's own model."""
    if out.resolve() == model.resolve():
        raise RunError(f"{out}: is where the run keeps its model; name another folder")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not ((out / "README.md").is_file() and "crossover" in _read(out / "config.json")):
        raise RunError(
            f"{out}: holds something that is no export of Crossover's; it is left alone, name another folder"
        )


def _take(model: Any, run: Path, chosen: str) -> str:
    """Put other weights of the run into its model; returns their sha256."""
    known = sorted(path.name for path in (run / "best").glob("*/") if not path.name.startswith("."))
    name = chosen.removeprefix("best/")
    if not chosen.startswith("best/") or name not in known:
        listed = ", ".join(["final", *(f"best/{mode}" for mode in known)])
        raise CheckpointError(f"{run}: has no weights '{chosen}'; it has {listed}")
    folder = run / "best" / name
    try:
        if damaged(folder, ["model.safetensors"]):
            raise CheckpointError(f"{folder}: model.safetensors is not what was written (truncated or altered)")
        put_weights(model, load_file(folder / "model.safetensors"), folder)
        return read_sums(folder)["model.safetensors"]
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: model.safetensors cannot be read: {error}") from None


def _require_scored(model: Any, run: Path, folder: Path, digest: str) -> None:
    """Hold the run's model against the weights that its scores name, which have a sum; the model itself has none."""
    for best in sorted((run / "best").glob("[!.]*/")):
        try:
            if read_sums(best).get("model.safetensors") != digest or damaged(best, ["model.safetensors"]):
                continue
            scored = load_file(best / "model.safetensors")
        except (OSError, ValueError, SafetensorError):
            continue
        named = model.inner.named_parameters()
        if any(name in scored and not torch.equal(scored[name].to(value), value) for name, value in named):
            raise CheckpointError(
                f"{folder}: its weights are not those in {best}, which were scored; one was altered since. Take the "
                f"scored ones: --weights best/{best.name}"
            )
        return


def _cards(run: Path) -> list[Mapping[str, Any]]:
    cards = [_read(path) for path in sorted((run / "scores").glob("[!.]*.json"))]
    return [card for card in cards if isinstance(card.get("conditions"), dict) and "bits_per_byte" in card]


def _headline(cards: Sequence[Mapping[str, Any]]) -> str | None:
    digests = {card["conditions"].get("checkpoint_sha256") for card in cards if card.get("headline")}
    return digests.pop() if len(digests) == 1 else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}") from None
    return tree if isinstance(tree, dict) else {}
