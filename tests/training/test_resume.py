"""A killed run, started again with the same command, is the run that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from crossover.recipe import load

REPO = Path(__file__).parents[2]


def write_text_corpus(folder: Path) -> Path:
    """Write a small corpus whose preparation takes no time."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rows = [
        json.dumps({"text": " ".join(words[(i * i + j * 7 + i * j) % 8] for j in range(120)) + f" {i}."})
        for i in range(80)
    ]
    path = folder / "text.jsonl"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def recipe(folder: Path, **changes: object) -> Path:
    """Write a recipe in which everything that a resume has to restore is in use."""
    tree: dict[str, object] = {
        "name": "resume",
        "data": {"source": str(write_text_corpus(folder)), "unique_tokens": 6000, "tokenizer": "bpe(300)",
                 "context": 32},
        "model": {"preset": "250k", "width": 32, "depth": 2, "mlp_width": 64, "head_width": 16, "heads": 2,
                  "residual_dropout": 0.1, "attention_dropout": 0.1},
        "budget": {"tokens": 40_000},
        "mix": {"slice_tokens": 128, "micro_batch_slices": 2},
        "training": {"batch_tokens": 512, "threads": 1, "ema_decay": 0.9, "checkpoint_every_tokens": 3000,
                     "optimizer": "adamw(learning_rate=3e-3, weight_decay=0.3)",
                     "learning_rate": "wsd(warmup_tokens=2000, decay_fraction=0.2)"},
        "controller": {"name": "ramp", "from_epochs": 1, "to_epochs": 4, "before": "autoregressive",
                       "after": {"masked": 0.5, "block(8)": 0.25, "autoregressive": 0.25}},
        "scoring": {"every_tokens": 6000, "dev_windows": 8, "dev_draws": 2, "dev_positions": 2, "test_windows": 8,
                    "test_draws": 2, "test_positions": 2, "weights": "ema"},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value  # type: ignore[index]
        else:
            tree[section] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
    return path


def command(path: Path, run: Path) -> list[str]:
    """The same command for the first start and for every other one."""
    return [sys.executable, "-m", "crossover", "train", str(path), "--run-dir", str(run)]


def environment(folder: Path) -> dict[str, str]:
    """One thread a process, and a cache of the test's own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CROSSOVER_CACHE": str(folder / "cache")}


def records(run: Path, stream: str) -> list[tuple[object, ...]]:
    """Everything of a stream that must be equal bit for bit: all but the clock on the wall."""
    rows = [json.loads(line) for line in (run / f"{stream}.jsonl").read_text("utf-8").splitlines()]
    return [tuple((key, json.dumps(row[key])) for key in sorted(row) if not key.startswith("seconds")) for row in rows]


def scores(run: Path) -> dict[str, object]:
    """The final numbers."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted((run / "scores").glob("*.json"))}


def finish(path: Path, run: Path, folder: Path) -> None:
    """Run to the end."""
    done = subprocess.run(command(path, run), env=environment(folder), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


def kill_at(path: Path, run: Path, folder: Path, *, size: int) -> bool:
    """SIGKILL the run once steps.jsonl has grown to a size; say whether it was still running."""
    process = subprocess.Popen(
        command(path, run), env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    steps = run / "steps.jsonl"
    while process.poll() is None:
        if steps.exists() and steps.stat().st_size >= size:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("kills", [(2_000, 14_000, 21_000)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, kills: tuple[int, ...]) -> None:
    path = recipe(tmp_path)
    finish(path, tmp_path / "whole", tmp_path)
    killed = [kill_at(path, tmp_path / "killed", tmp_path, size=size) for size in kills]
    assert any(killed), "the run was too short to be killed"
    finish(path, tmp_path / "killed", tmp_path)
    for stream in ("steps", "evals", "decisions"):
        assert records(tmp_path / "killed", stream) == records(tmp_path / "whole", stream)
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second


def kill_in_a_ramp(path: Path, run: Path, folder: Path, gear: str) -> None:
    """SIGKILL the run while its shares move to a gear."""
    process = subprocess.Popen(
        command(path, run), env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    decisions = run / "decisions.jsonl"
    while process.poll() is None:
        rows = decisions.read_text("utf-8").splitlines() if decisions.exists() else []
        if any(f'"gear": "{gear}"' in row for row in rows) and '"phase": "ramp"' in rows[-1]:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.002)
    raise AssertionError("the run ended before it could be killed in a ramp")


def test_an_online_run_killed_in_a_ramp_goes_on_bit_for_bit(tmp_path: Path) -> None:
    controller = {
        "name": "online", "start": {"autoregressive": 1}, "gears": ["block(4)", "block(16)", "masked"],
        "choice": "listed", "gear_epochs": 1.5, "ramp_epochs": 0.75, "dwell_epochs": 0.5, "probe_share": 0.1,
        "remainder": "floor",
        "thresholds": {"most_ar_exposures": 2.0, "critical_compute_factor": 0.0},
    }  # fmt: skip
    path = recipe(
        tmp_path, controller=controller, budget={"tokens": 90_000}, data__control_share=0.2,
        model__attention_dropout=0.0, scoring__every_tokens=20_000,
    )  # fmt: skip
    finish(path, tmp_path / "whole", tmp_path)
    kill_in_a_ramp(path, tmp_path / "killed", tmp_path, "block(16)")
    assert json.loads((tmp_path / "killed" / "status.json").read_text("utf-8"))["state"] == "running"
    finish(path, tmp_path / "killed", tmp_path)
    for stream in ("steps", "evals", "signals", "decisions"):
        assert records(tmp_path / "killed", stream) == records(tmp_path / "whole", stream)
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second
    rows = [json.loads(row) for row in (tmp_path / "whole" / "decisions.jsonl").read_text("utf-8").splitlines()]
    gears = [row["details"]["gear"] for row in rows if "gear" in row["details"]]
    assert gears == ["block(4)", "block(16)", "masked"], "the run was to go through every gear"
    probes = {json.loads(row).get("probe") for row in (tmp_path / "whole" / "signals.jsonl").read_text().splitlines()}
    assert {"loss", "gradient", "novelty"} <= probes


def of_this_size() -> list[Path]:
    """Name the recipes that a test can train; those of a billion tokens are for other machines."""
    found = sorted((REPO / "recipes").glob("*.yaml"))
    return [path for path in found if (load(path).data.unique_tokens or 0) <= 10**7]


@pytest.mark.slow
@pytest.mark.parametrize("recipe_file", of_this_size(), ids=lambda path: path.stem)
def test_every_recipe_goes_on_bit_for_bit(tmp_path: Path, recipe_file: Path) -> None:
    small = ["budget.tokens=60000", "data.unique_tokens=20000", "training.threads=1"]
    small += ["scoring.test_windows=8", "scoring.dev_windows=8"]
    for name, sizes in (("whole", ()), ("killed", (1_000, 3_000, 6_000))):
        run = tmp_path / name
        line = [*command(recipe_file, run), *small, "training.checkpoint_every_tokens=10000"]
        for size in sizes:
            process = subprocess.Popen(line, env=environment(tmp_path), stdout=subprocess.DEVNULL, cwd=tmp_path)
            while process.poll() is None:
                if (run / "steps.jsonl").exists() and (run / "steps.jsonl").stat().st_size >= size:
                    process.kill()
                time.sleep(0.002)
        subprocess.run(line, env=environment(tmp_path), check=True, capture_output=True, cwd=tmp_path)
    assert records(tmp_path / "killed", "steps") == records(tmp_path / "whole", "steps")
