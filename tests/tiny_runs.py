"""Runs that take a second or two: their text, their recipes, and what they leave; shared by several test files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossover import cli

# One step, scored coarsely: enough to see that a command works.
SHORT = {"budget": {"tokens": 512}}
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def write_text(path: Path, documents: int = 80) -> Path:
    """Write documents whose words follow a rule, so that a small model learns something of them at once."""
    rows = []
    for i in range(documents):
        text = " ".join(WORDS[(i * i + j * 7 + i * j) % 8] for j in range(120))
        rows.append(json.dumps({"text": f"{text} {i}."}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def tree(source: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of forty steps; `training__clip_norm=2` changes a setting, `controller=...` a whole part."""
    made: dict[str, Any] = {
        "name": "tiny",
        "data": {"source": str(source), "unique_tokens": 6000, "tokenizer": "bpe(300)", "context": 32},
        "model": {"preset": "250k", "width": 32, "depth": 2, "mlp_width": 64, "head_width": 16, "heads": 2},
        "budget": {"tokens": 20_480},
        "mix": {"slice_tokens": 128, "micro_batch_slices": 4},
        "training": {
            "batch_tokens": 512,
            "threads": 1,
            "precision": "float32",
            "compile": "off",
            "checkpoint_every_tokens": 5000,
            "optimizer": "adamw(learning_rate=3e-3)",
            "learning_rate": "wsd(warmup_tokens=2000, decay_fraction=0.2)",
        },
        "controller": "constant(autoregressive)",
        "scoring": {
            "every_tokens": 6000,
            "dev_windows": 4,
            "dev_draws": 2,
            "dev_positions": 0,
            "test_windows": 4,
            "test_draws": 2,
            "test_positions": 2,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            made[section][name] = value
        else:
            made[section] = value
    return made


def write_recipe(path: Path, source: Path, **changes: Any) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(tree(source, **changes), sort_keys=False), "utf-8")
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Give a command in this process, which has torch already; returns the exit code."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["crossover", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def rows(run: Path, stream: str = "steps") -> list[dict[str, Any]]:
    """Read a stream of a run folder."""
    return [json.loads(line) for line in (run / f"{stream}.jsonl").read_text("utf-8").splitlines()]


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory on a folder, where that is possible, else skip the test."""
    folder.mkdir(exist_ok=True)
    order = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    able = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
    if not able or subprocess.run(order, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here (needs Linux, root and mount)")
    try:
        yield
    finally:
        # Lazily: tensors that were read from it are mapped until they are collected.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leftovers(folder: Path) -> list[str]:
    """Files that a write in the middle of which something failed would leave."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def works(train: Callable[..., tuple[int, str, str]], *more: object) -> None:
    code, out, said = train(*more)
    assert code == 0, said
    assert "finished" in out and said == ""
    assert read(Path("run/status.json"))["state"] == "finished" and Path("run/model/config.json").exists()
    assert leftovers(Path("run")) == []


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its status and its log."""
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("status.json", ".lock", "log.txt")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Notes:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.steps: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.signals: list[dict[str, Any]] = []
        self.ledgers: list[dict[str, Any]] = []
        self.cards: dict[str, dict[str, Any]] = {}

    def manifest(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)

    def step(self, row: Mapping[str, Any]) -> None:
        self.steps.append(dict(row))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self.evaluations.append(dict(row))

    def decision(self, row: Mapping[str, Any]) -> None:
        self.decisions.append(dict(row))

    def signal(self, row: Mapping[str, Any]) -> None:
        self.signals.append(dict(row))

    def ledger(self, row: Mapping[str, Any]) -> None:
        self.ledgers.append(dict(row))

    def progress(self, row: Mapping[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def scores(self, name: str, mapping: Mapping[str, Any]) -> None:
        self.cards[name] = dict(mapping)

    def cut_back(self, step: int) -> None:
        for stream in (self.steps, self.evaluations, self.signals, self.decisions):
            stream[:] = [row for row in stream if row["step"] <= step]
