"""Several processes train what one does: the same losses, mixes, decisions and scores, on any number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossover.errors import RecipeError, RunError
from crossover.model.sharding import World
from crossover.training.parallel import Place, check_slices, place, together
from tiny_runs import read, rows, write_recipe, write_text

# A run that goes through every gear, and asks every probe on the way.
ONLINE = {
    "name": "online", "start": {"autoregressive": 1}, "gears": ["block(4)", "masked"], "choice": "listed",
    "gear_epochs": 1.5, "ramp_epochs": 0.75, "dwell_epochs": 0.5, "probe_share": 0.1, "remainder": "floor",
    "thresholds": {"most_ar_exposures": 2.0, "critical_compute_factor": 0.0},
}  # fmt: skip
SPARSE = {
    "preset": "250k", "family": "qwen3_moe", "width": 32, "depth": 2, "heads": 2, "head_width": 16,
    "experts": 4, "experts_per_token": 2, "expert_width": 32,
}  # fmt: skip


def recipe(folder: Path, **changes: Any) -> Path:
    source = write_text(folder / "text.jsonl", 240)
    small: dict[str, Any] = {
        "controller": ONLINE, "budget": {"tokens": 40_000}, "mix": {"slice_tokens": 64, "micro_batch_slices": 2},
        "data__control_share": 0.2, "scoring__every_tokens": 20_000, "training__ema_decay": 0.9,
    }  # fmt: skip
    return write_recipe(folder / "recipe.yaml", source, **{**small, **changes})


def start(path: Path, run: Path, processes: int, *more: str) -> subprocess.Popen[str]:
    here = {**os.environ, "OMP_NUM_THREADS": "1", "CROSSOVER_CACHE": str(path.parent / "cache")}
    # A restarted worker must not read what its predecessor left with the launcher (pytorch issue 135712).
    here["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts"]
    alone = [sys.executable, "-m", "crossover", "train", str(path), "--run-dir", str(run)]
    several = [sys.executable, *launcher, more[0] if more else "0", *alone[1:], *more[1:]]
    line = alone if processes == 1 else several
    return subprocess.Popen(line, env=here, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(path: Path, run: Path, processes: int, *more: str) -> str:
    process = start(path, run, processes, *more)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert read(run / "status.json")["state"] == "finished"
    return said


def stop_at(path: Path, run: Path, processes: int, steps: int) -> None:
    """Ask a run to stop once it has recorded so many steps."""
    process = start(path, run, processes)
    await_steps(process, run, steps)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0, said
    status = read(run / "status.json")
    assert status["state"] == "interrupted", (status, said)


def await_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        if (run / "steps.jsonl").exists() and len((run / "steps.jsonl").read_bytes().splitlines()) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended before step {steps}: {process.communicate()[0]}")


def alike(first: Path, second: Path, tolerance: float = 2e-5) -> None:
    """Both runs did the same: every choice exactly, every loss within float32 rounding."""
    for stream, values in (("steps", ("loss_nats",)), ("evals", ("bits_per_byte",))):
        left, right = rows(first, stream), rows(second, stream)
        assert [row["step"] for row in left] == [row["step"] for row in right]
        assert [row["mix"] for row in left] == [row["mix"] for row in right]
        for key in values:
            np.testing.assert_allclose([row[key] for row in left], [row[key] for row in right], rtol=tolerance)
    told = [[(row["step"], row["mix"], row.get("mark")) for row in rows(run, "decisions")] for run in (first, second)]
    assert told[0] == told[1]
    for name in sorted(path.name for path in (first / "scores").iterdir()):
        if name != "summary.json":
            cards = [read(run / "scores" / name) for run in (first, second)]
            assert cards[0]["bits_per_byte"] == pytest.approx(cards[1]["bits_per_byte"], rel=tolerance)


def test_a_run_goes_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    finish(path, tmp_path / "alone", 1)
    moved = tmp_path / "moved"
    stop_at(path, moved, 1, 16)
    stop_at(path, moved, 2, 42)
    newest = sorted((moved / "checkpoints").iterdir())[-1]
    assert len(list((newest / "optimizer").glob("*.safetensors"))) == 2, "each process writes its part"
    finish(path, moved, 1)
    assert len(rows(moved)) == len({row["step"] for row in rows(moved)}), "no step is recorded twice"
    alike(tmp_path / "alone", moved)
    gears = [row["details"]["gear"] for row in rows(moved, "decisions") if "gear" in row["details"]]
    assert gears == ["block(4)", "masked"], "the run was to go through every gear"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {}),
        (3, {}),
        (2, {"model": SPARSE}),
        (2, {"model__family": "qwen3", "training__optimizer": "muon(learning_rate=3e-3)"}),
        (2, {"model__parameter_noise": 0.1, "training__activation_checkpointing": True}),
        (2, {"budget": {"flops": 4e9}}),
    ],
    ids=["dense", "three", "sparse", "muon", "noise", "flops"],
)
def test_any_number_of_processes_trains_the_same(tmp_path: Path, processes: int, changes: dict[str, Any]) -> None:
    path = recipe(tmp_path, **changes)
    finish(path, tmp_path / "alone", 1)
    finish(path, tmp_path / "several", processes)
    # Muon works in bfloat16, where a matrix in parts rounds otherwise than a whole one; and between two experts that a
    # router likes nearly as well, rounding decides.
    looser = "muon" in str(changes) or "experts" in str(changes)
    alike(tmp_path / "alone", tmp_path / "several", 5e-3 if looser else 2e-5)


@pytest.mark.slow
def test_copies_of_a_spread_model_train_the_same(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    finish(path, tmp_path / "alone", 1)
    finish(path, tmp_path / "copies", 4, "0", "--copies", "2")
    alike(tmp_path / "alone", tmp_path / "copies")


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_run_goes_on(tmp_path: Path) -> None:
    path, run = recipe(tmp_path), tmp_path / "killed"
    finish(path, tmp_path / "alone", 1)
    process = start(path, run, 2, "2")
    await_steps(process, run, 20)
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    alike(tmp_path / "alone", run)


def test_what_a_launcher_says_is_read(tmp_path: Path) -> None:
    assert place({}) == Place(0, 1, 0)
    assert place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(3, 8, 1)
    for wrong in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "2"}):
        with pytest.raises(RunError, match="RANK"):
            place(wrong)


def test_a_step_that_cannot_be_shared_out_is_refused() -> None:
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"mix.slice_tokens: a step has 1 slice"):
        check_slices(2, 1, said.append)
    check_slices(2, 4, said.append)
    assert said == []
    check_slices(2, 5, said.append)
    assert "5 slices" in said[0]
    with pytest.raises(RecipeError, match="--copies 2"), together(Place(0, 3, 0), copies=2):
        pass


def test_every_item_is_in_exactly_one_share() -> None:
    for size in range(1, 6):
        for count in range(12):
            shares = [World(size, rank).share(range(count)) for rank in range(size)]
            assert [item for share in shares for item in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_several_processes_say_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    path = recipe(tmp_path, mix={"slice_tokens": 512, "micro_batch_slices": 1})
    process = start(path, tmp_path / "run", 2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    # The launcher has a traceback of its own, about its children.
    assert "error: mix.slice_tokens: a step has 1 slice(s)" in said and said.count("Traceback") == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text("utf-8"))["state"] == "failed"
