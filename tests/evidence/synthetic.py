"""Synthetic run folders with known answers: losses are planted, so the evidence room can be held to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from crossover.evidence.run import RunFolder
from crossover.streams import stream

AUTOREGRESSIVE = {"name": "constant", "mix": {"autoregressive": 1.0}}
MASKED = {"name": "constant", "mix": {"masked": 1.0}}
DOCUMENTS = 40


def recipe_of(name: str, seed: int, controller: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "data": {"source": {"name": "stdlib"}, "unique_tokens": 1000, "context": 64},
        "training": {"batch_tokens": 100, "clip_norm": 1.0, "threads": 1},
        "budget": {"tokens": None, "flops": 1e9, "minutes": None},
        "controller": controller,
    }


def manifest_of(seed: int) -> dict[str, Any]:
    return {
        "data_hash": "d1",
        "data_source": "stdlib",
        "unique_tokens": 1000,
        "data_order": f"order-{seed}",
        "tokenizer_hash": "t1",
        "parameters": 5000,
        "budget": {"currency": "flops", "amount": 1e9},
        "choices": {"precision": "float32", "compile": False, "threads": 1, "attention": "sdpa"},
        "versions": {"torch": "2.13.0", "python": "3.11"},
        "machine": {"cores": 2},
    }


def ledger_of() -> dict[str, Any]:
    return {
        "unique_tokens": 1000,
        "data_tokens": 20_000,
        "epochs": 20.0,
        "exposures": {"autoregressive": 20_000},
        "flops": 1e9,
        "flops_by_objective": {"autoregressive": 1e9},
        "evaluation_flops": 1e7,
        "evaluation_seconds": 4.2,
        "seconds": 60.0,
    }


def card_of(nats: Sequence[float], sizes: Sequence[int], procedure: str, exact: bool) -> dict[str, Any]:
    total, text_bytes = float(sum(nats)), sum(sizes)
    tokens = [size // 4 for size in sizes]
    bits = total / math.log(2) / text_bytes
    return {
        "procedure": procedure,
        "exact": exact,
        "loss_nats": total / sum(tokens),
        "standard_error_nats": 0.01,
        "bits_per_byte": bits,
        "standard_error_bits": 0.01,
        "document_nats": list(nats),
        "document_bytes": list(sizes),
        "document_tokens": tokens,
    }


def write_run(
    path: Path,
    *,
    name: str = "run",
    seed: int = 0,
    controller: Any = None,
    modes: Mapping[str, Callable[[float], float]] | None = None,
    noise: float = 0.02,
    finished: bool = True,
    handover_epoch: float | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder whose modes follow `loss(fraction of the budget)` in bits per byte."""
    controller = controller or AUTOREGRESSIVE
    modes = modes or {"ar": lambda fraction: 3.0 - fraction}
    folder = RunFolder(path, terminal=False).create(recipe_of(name, seed, controller))
    folder.manifest({**manifest_of(seed), **(manifest or {})})
    rng = stream(seed, "synthetic")
    sizes = stream(0, "sizes").integers(200, 800, DOCUMENTS).tolist()
    hardness = np.exp(0.2 * stream(0, "hardness").standard_normal(DOCUMENTS))
    steps = range(1, 11 if finished else 6)

    def nats(loss: float) -> list[float]:
        jitter = 1 + noise * rng.standard_normal(DOCUMENTS)
        return (np.array(sizes) * math.log(2) * loss * hardness * jitter).tolist()

    for step in steps:
        where = {"step": step, "data_tokens": 2000 * step, "epochs": 2.0 * step, "flops": 1e8 * step}
        for mode, loss in modes.items():
            card = card_of(nats(loss(step / 10)), sizes, mode, mode != "nelbo")
            folder.evaluation({**where, "flops_6nd": 1.1e8 * step, "seconds": 6.0 * step, "split": "dev", **card})
    if handover_epoch is not None:
        folder.decision(
            {"step": 4, "data_tokens": 8000, "epochs": handover_epoch, "flops": 4e8, "mix": {"masked": 1.0},
             "before": {"autoregressive": 1.0}, "reason": "the plan changes at epoch 8", "details": {}}
        )  # fmt: skip
    folder.ledger(ledger_of())
    if finished:
        _write_scores(folder, modes, nats, sizes)
    folder.finish("finished" if finished else "failed", "" if finished else "the loss was not finite 20 times in a row")
    return path


def _write_scores(
    folder: RunFolder,
    modes: Mapping[str, Callable[[float], float]],
    nats: Callable[[float], list[float]],
    sizes: Sequence[int],
) -> None:
    for split in ("dev", "test"):
        for mode, loss in modes.items():
            card = card_of(nats(loss(1.0)), sizes, mode, mode != "nelbo")
            more = {"split": split, "headline": mode == next(iter(modes)), "checkpoint_step": 10, "documents": 40,
                    "tokens": sum(card["document_tokens"]), "text_bytes": sum(sizes),
                    "conditions": {"draws": 32, "context": 64}}  # fmt: skip
            folder.scores(f"{split}-{mode}", {**card, **more})
    folder.scores("summary", {"headline": next(iter(modes)), "chosen_on": "dev"})


def write_study(
    folder: Path, arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = (0, 1), name: str = "synthetic"
) -> Path:
    """Write a study folder as `run_study` leaves it; arms say what `write_run` takes."""
    folder.mkdir(parents=True)
    values = {arm: {"value": given.get("controller", AUTOREGRESSIVE), "set": {}} for arm, given in arms.items()}
    definition = {"name": name, "vary": "controller", "arms": values, "seeds": list(seeds), "tunable": [], "threads": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(definition), "utf-8")
    for arm, given in arms.items():
        for seed in seeds:
            write_run(folder / arm / f"seed-{seed}", **{"name": f"{arm}-{seed}", "seed": seed, **given})
    return folder
