"""Checkpoints: safetensors and JSON, written beside their place, checksummed, moved into it whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossover.errors import CheckpointError, RunError

PREFIX = "step-"


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], tree: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint, then forget the oldest ones.

    Args:
        folder: `checkpoints/` of a run.
        step: Optimizer steps taken.
        tensors: Files by name ("model", "optimizer", "ema"), each a mapping of tensors.
        tree: JSON values: the run's state.
        keep: How many checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    final = folder / f"{PREFIX}{step:09d}"
    write_folder(final, tensors, tree)
    for old in existing(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def write_folder(final: Path, tensors: Mapping[str, Mapping[str, Tensor]], tree: Mapping[str, Any]) -> None:
    """Write tensors and a tree into a folder that appears whole or not at all.

    Args:
        final: The folder; one of the same name is replaced.
        tensors: Files by name, each a mapping of tensors.
        tree: JSON values, written to `state.json`.

    Raises:
        RunError: Writing failed.
    """
    temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        _forget_unfinished(final.parent)
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            save_file(
                {key: value.detach().contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors"
            )
        (temporary / "state.json").write_text(json.dumps(tree, indent=1), "utf-8")
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "checksums.json").write_text(json.dumps(sums, indent=1), "utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _synchronise(path)
        _move(temporary, final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{final}: cannot be written: {reason}; free some space or mend the folder, then start again"
        ) from None
    finally:
        # Also when it was interrupted; after a rename there is nothing left to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, final: Path) -> None:
    if final.exists():
        # Rename cannot replace a folder that holds files; the old one steps aside first.
        aside = final.parent / f".{final.name}.{os.getpid()}.old"
        final.rename(aside)
        try:
            temporary.rename(final)
        except OSError:
            aside.rename(final)
            raise
        shutil.rmtree(aside)
    else:
        temporary.rename(final)
    _synchronise(final.parent)


def _forget_unfinished(folder: Path) -> None:
    """Tidy up what processes that were killed in the middle of a write left; a run has one writer at a time."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.old"):
        # `.name.pid.old` stepped aside for a new folder; if that one never came, it is still the one that counts.
        final = folder / path.name[1:].rsplit(".", 2)[0]
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)


def existing(folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def load_state(folder: Path) -> dict[str, Any]:
    """Read only what a checkpoint says, so that its origin can be judged before its tensors are read.

    Args:
        folder: The checkpoint's folder.

    Returns:
        The state.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    return load(folder, ())[1]


def load(folder: Path, names: Sequence[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint after checking every byte of it.

    Args:
        folder: The checkpoint's folder.
        names: Files that must be in it.

    Returns:
        Tensors by file, and the state.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    try:
        sums = json.loads((folder / "checksums.json").read_text("utf-8"))
        for name in [*(f"{name}.safetensors" for name in names), "state.json"]:
            if _sha256(folder / name) != sums.get(name):
                raise CheckpointError(_advice(folder, f"{name} is not what was written (truncated or altered)"))
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in names}
        return tensors, json.loads((folder / "state.json").read_text("utf-8"))
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise CheckpointError(_advice(folder, str(error))) from None


def _advice(folder: Path, problem: str) -> str:
    others = [path.name for path in existing(folder.parent) if path != folder]
    before = f"to go on from {others[-1]}" if others else "to start the run anew"
    return f"{folder}: {problem}; delete that folder {before}"


def optimizer_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Flatten the optimizers' states into named tensors."""
    flat: dict[str, Tensor] = {}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                flat[f"{number}.{index}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return flat


def restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], flat: Mapping[str, Tensor]) -> None:
    """Put flattened states back into optimizers that were built by the same recipe."""
    for number, optimizer in enumerate(optimizers):
        tree = optimizer.state_dict()
        tree["state"] = {}
        for name, value in flat.items():
            owner, index, key = name.split(".")
            if int(owner) == number:
                tree["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(tree)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
