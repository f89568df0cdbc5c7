"""A run in progress: its parts, its clock, and the tensors that a checkpoint keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossover.errors import CheckpointError, RunError
from crossover.model.sharding import World
from crossover.recipe import to_tree
from crossover.records import Recorder
from crossover.training import checkpoint
from crossover.training.build import Workshop
from crossover.training.compilation import WarmUp
from crossover.training.probes.prober import Prober
from crossover.training.saving import Saver, check, fill, fill_optimizers
from crossover.training.state import State
from crossover.training.step import StepResult
from crossover.trees import fingerprint, without_views


@dataclass
class Run:
    """A run in progress.

    Args:
        workshop: Its parts.
        folder: Its folder.
        recorder: Where it writes.
        state: Where it stands.
        averaged: Averaged weights by name, or None.
        warm: What was compiled before the first step.
        saver: Who writes its folders of tensors.
        prober: Its probes, whose tensors a checkpoint keeps too, or None.
        pending: Steps whose device values have not been read yet.
        bad_steps: Steps in a row whose loss or gradient was not finite.
        started: When its seconds were last counted.
        flushed: Seconds and data tokens at the last reading.
    """

    workshop: Workshop
    folder: Path
    recorder: Recorder
    state: State
    averaged: dict[str, Tensor] | None
    warm: WarmUp
    saver: Saver
    prober: Prober | None = None
    pending: list[tuple[dict[str, Any], StepResult]] = field(default_factory=list)
    bad_steps: int = 0
    started: float = field(default_factory=time.monotonic)
    flushed: tuple[float, int] = (0.0, 0)

    @property
    def world(self) -> World:
        """The processes that train it together."""
        return self.workshop.model.world


def first_average(workshop: Workshop) -> dict[str, Tensor] | None:
    """Begin the averaged weights at the first ones, if the recipe asks for averages."""
    if workshop.recipe.training.ema_decay is None:
        return None
    return {name: value.detach().clone() for name, value in workshop.model.inner.named_parameters()}


def tensors(run: Run) -> dict[str, dict[str, Tensor]]:
    """Group what is trained by the file that it goes into."""
    groups = {
        "model": dict(run.workshop.model.inner.named_parameters()),
        "optimizer": checkpoint.optimizer_tensors(run.workshop.stepper.optimizers),
    }
    return groups if run.averaged is None else {**groups, "ema": run.averaged}


def settle_clock(run: Run) -> None:
    """Add the seconds since the last time to the run's state."""
    now = time.monotonic()
    run.state = replace(run.state, seconds=run.state.seconds + now - run.started)
    run.started, run.flushed = now, (0.0, run.state.data_tokens)


def snapshot(run: Run) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Give all that a run goes on from: tensors by file, and the tree beside them.

    Args:
        run: The run; its last steps have been read and its clock is settled.

    Returns:
        What `checkpoint.write_folder` takes.
    """
    groups = tensors(run)
    if run.prober is not None and (bits := run.prober.tensors()):
        groups["probes"] = bits
    return groups, {"state": run.state.to_tree(), "recipe": _trained(run), "bad_steps": run.bad_steps}


def _trained(run: Run) -> str:
    """Identify what is trained; how far, the folder's own recipe says, so that a shorter run may begin at a fork."""
    return fingerprint({**without_views(to_tree(run.workshop.recipe)), "name": None, "budget": None})


def resume(run: Run) -> None:
    """Take a run up at its newest checkpoint, and forget what was recorded after it.

    Raises:
        CheckpointError: The checkpoint is of another recipe or version, or damaged.
    """
    newest = newest_checkpoint(run)
    if newest is None:
        run.recorder.cut_back(0)
        return
    # First whose it is: the tensors of another recipe would not fit, and would not say why.
    if checkpoint.load_state(newest).get("recipe") != _trained(run):
        raise CheckpointError(f"{newest}: is a checkpoint of another recipe; use another --run-dir")
    tree = restore(run, newest)
    if run.prober is not None and run.prober.tensors():
        run.prober.restore(checkpoint.load(newest, ["probes"])[0]["probes"])
    run.state = State.from_tree(tree.get("state", {}))
    if run.state.residual_dropout is not None:
        run.workshop.model.residual_dropout = run.state.residual_dropout
    run.bad_steps = int(tree["bad_steps"])
    run.flushed = (0.0, run.state.data_tokens)
    run.recorder.cut_back(run.state.step)


@torch.no_grad()
def restore(run: Run, folder: Path) -> dict[str, Any]:
    """Put weights, optimizer and averages back to a folder's; returns what the folder says."""
    tree = check(folder, ["model", "optimizer"] + ([] if run.averaged is None else ["ema"]), run.world)
    fill(folder, "model", dict(run.workshop.model.inner.named_parameters()))
    fill_optimizers(folder, run.workshop.stepper.optimizers, run.world)
    if run.averaged is not None:
        fill(folder, "ema", run.averaged)
    return tree


def newest_checkpoint(run: Run) -> Path | None:
    """Find the checkpoint that the run goes on from, the same in all processes; None before the first."""
    run.saver.wait()
    found = checkpoint.existing(run.folder / "checkpoints")
    return run.world.agree(found[-1] if found else None)


def check_agreement(run: Run) -> None:
    """Make sure that all processes think alike of the run; if they did not, each would train a run of its own.

    Raises:
        RunError: They do not.
    """
    tree = {key: value for key, value in run.state.to_tree().items() if not key.endswith("seconds")}
    if len(set(run.world.gather(fingerprint(tree)))) > 1:
        raise RunError(
            f"{run.folder}: the processes no longer agree on where the run stands (step {run.state.step}); "
            "this is a defect of the program or of a machine; start it again, and report it if it comes back"
        )


def clock(run: Run) -> dict[str, Any]:
    """Say where the run stands, for a row of a log."""
    state = run.state
    return {
        "step": state.step,
        "data_tokens": state.data_tokens,
        "epochs": state.data_tokens / run.workshop.train_tokens,
        "flops": state.flops,
        "flops_6nd": state.flops_6nd,
        "seconds": round(state.seconds + time.monotonic() - run.started, 3),
        "mix": dict(state.mix),
    }
