"""Fixtures over `synthetic.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_runs
from crossover.evidence.curves import Curve
from crossover.streams import stream
from evidence import stand_in
from evidence.synthetic import AUTOREGRESSIVE, MASKED, ledger_of, manifest_of, recipe_of, write_run, write_study


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def make_study() -> Callable[..., Path]:
    return write_study


@pytest.fixture
def plain_run() -> Callable[..., dict[str, Any]]:
    """Give a run as `prove_matched` takes it, as plain mappings."""

    def build(arm: str, seed: int) -> dict[str, Any]:
        controller = {"ar": AUTOREGRESSIVE, "masked": MASKED}[arm]
        return {
            "recipe": recipe_of(f"{arm}-{seed}", seed, dict(controller)),
            "manifest": manifest_of(seed),
            "ledger": ledger_of(),
            "tuning": {"trials": 4},
        }

    return build


@pytest.fixture
def make_curve() -> Callable[..., Curve]:
    """Give a curve with planted losses; noise is per document, and one draw per seed for all documents."""

    def build(
        losses_E: Sequence[float], *, seed: int = 0, case: int = 0, arm: str = "a", document_noise: float = 0.0,
        seed_noise: float = 0.0, documents: int = 40, flops_E: Sequence[float] | None = None,
    ) -> Curve:  # fmt: skip
        rng = stream(case, f"curve-{arm}", seed)
        sizes = stream(case, "sizes").integers(200, 800, documents).astype(float)
        hardness = np.exp(0.3 * stream(case, "hardness").standard_normal(documents))
        hardness /= (hardness * sizes).sum() / sizes.sum()
        taste = document_noise * rng.standard_normal(documents)
        level = np.array(losses_E, float)[:, None] + seed_noise * rng.standard_normal()
        wobble = 0.3 * document_noise * rng.standard_normal((len(losses_E), documents))
        grid = np.array(flops_E if flops_E is not None else np.geomspace(1e9, 1e12, len(losses_E)), float)
        nats = math.log(2) * sizes * (level * hardness + taste + wobble)
        return Curve(arm, seed, "ar", True, grid, 1.2 * grid, grid / 1e9, nats, sizes)

    return build


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and with what was prepared of it by the first test that needed it."""
    folder = tmp_path_factory.mktemp("prepared")
    tiny_runs.write_text(folder / "text.jsonl")
    return folder


@pytest.fixture
def setting(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of stand-in runs."""
    monkeypatch.setenv("CROSSOVER_CACHE", str(prepared))
    return stand_in.write_study(tmp_path, prepared / "text.jsonl", monkeypatch)
