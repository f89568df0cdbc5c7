"""Run folders and tables whose losses follow a known law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

from crossover.evidence.run import RunFolder
from crossover.evidence.scaling.laws import Point
from evidence.synthetic import card_of, ledger_of, manifest_of, recipe_of

# Held-out bytes of four documents, at 4 bytes a token.
SIZES = (400, 800, 400, 800)
BOTH = {"autoregressive": 0.5, "masked": 0.5}


def constant(mix: Mapping[str, float]) -> dict[str, Any]:
    return {"name": "constant", "mix": dict(mix)}


def write_point(
    path: Path,
    point: Point,
    *,
    controller: Any = None,
    modes: Mapping[str, float] | None = None,
    before: Sequence[tuple[float, float]] = (),
    manifest: Mapping[str, Any] | None = None,
    finished: bool = True,
    end_tokens: float | None = None,
    decay_fraction: float = 0.3,
) -> Path:
    """Write a run that ends in a point; `before` holds the share of its tokens and the loss of earlier evaluations."""
    recipe = recipe_of(path.name, point.seed, controller or constant({point.family: 1.0}))
    recipe["training"]["learning_rate"] = {"name": "wsd", "warmup_tokens": 100, "decay_fraction": decay_fraction}
    folder = RunFolder(path, terminal=False).create(recipe)
    sizes = {"parameters": int(point.parameters), "unique_tokens": int(point.unique_tokens)}
    folder.manifest({**manifest_of(point.seed), **sizes, **(manifest or {})})
    for mode, factor in (modes or {"ar": 1.0}).items():
        for share, loss in [*before, (1.0, point.loss_nats)]:
            nats = [factor * loss * (size // 4) for size in SIZES]
            row = {"step": 1, "data_tokens": int(share * point.tokens), "flops": share, "epochs": share, "split": "dev"}
            # No two runs end at the same second of their clocks; copies of one do.
            row["seconds"] = float(crc32(str(path).encode()))
            folder.evaluation({**row, **card_of(nats, SIZES, mode, mode != "nelbo")})
    folder.ledger({**ledger_of(), "data_tokens": int(end_tokens or point.tokens)})
    folder.finish("finished" if finished else "interrupted")
    return path


def write_runs(folder: Path, points: Sequence[Point]) -> Path:
    """Write one run for each point."""
    for number, point in enumerate(points):
        mode = {"ar": 1.0} if point.family == "autoregressive" else {"nelbo": 1.0, "l2r": 1.02}
        write_point(folder / f"{point.family}-{number}", point, modes=mode)
    return folder


def write_small_study(folder: Path, arms: Mapping[str, Mapping[str, Any]], **definition: Any) -> Path:
    """Write a study folder; arms say what `write_point` takes, by place below the arm."""
    folder.mkdir(parents=True)
    text = {"name": folder.name, "arms": dict.fromkeys(arms), "seeds": [0], **definition}
    (folder / "study.yaml").write_text(yaml.safe_dump(text), "utf-8")
    for arm, runs in arms.items():
        for place, given in runs.items():
            write_point(folder / arm / place, **given)
    return folder


def write_table(path: Path, points: Sequence[Point]) -> Path:
    """Write points as CSV."""
    rows = [
        f"{p.parameters:.9g},{p.unique_tokens:.9g},{p.tokens:.9g},{float(p.loss_nats)!r},{p.family}" for p in points
    ]
    path.write_text("\n".join(["parameters,unique_tokens,tokens,loss_nats,family", *rows]) + "\n", "utf-8")
    return path
