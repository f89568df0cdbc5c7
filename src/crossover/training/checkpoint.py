"""Checkpoints: safetensors and JSON, written beside their place, checksummed, moved into it whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossover.errors import CheckpointError, RunError
from crossover.folders import appearing, damaged, steps_in, write_sums
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded


def forget(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest.

    Args:
        folder: `checkpoints/` of a run.
        keep: How many to keep.
    """
    for old in existing(folder)[:-keep]:
        shutil.rmtree(old)


def write_folder(final: Path, tensors: Mapping[str, Mapping[str, Tensor]], tree: Mapping[str, Any]) -> None:
    """Write tensors and a tree into a folder that appears whole or not at all.

    Args:
        final: The folder; one of the same name is replaced.
        tensors: Files by name, each a mapping of tensors.
        tree: JSON values, written to `state.json`.

    Raises:
        RunError: Writing failed.
    """
    # A run has one writer at a time, and the folder around it is the run's.
    with told(final), appearing(final, owned=True) as temporary:
        write_files(temporary, tensors, tree)
        write_sums(temporary)


def write_files(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], tree: Mapping[str, Any]) -> None:
    """Write tensors and a tree into a folder that nobody reads yet."""
    for name, group in tensors.items():
        plain = {key: value.detach().contiguous() for key, value in group.items()}
        save_file(plain, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(tree, indent=1), "utf-8")


@contextmanager
def told(final: Path) -> Iterator[None]:
    """Say what to do when a folder cannot be written.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"{final}: cannot be written: {reason}; free some space or mend the folder, then start again"
        ) from None


def existing(folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return list(steps_in(folder).values())


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
    check(folder, [f"{name}.safetensors" for name in names])
    try:
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in names}
        tree = parse_json(read_bounded(folder / "state.json", LARGEST_JSON_BYTES), strict=False)
        if not isinstance(tree, dict):
            raise ValueError("state.json is no JSON object")
        return tensors, tree
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(_advice(folder, str(error))) from None


def check(folder: Path, files: Sequence[str]) -> None:
    """Look at every byte of some files of a checkpoint, and of its state.

    Args:
        folder: The checkpoint's folder.
        files: Paths inside it.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    try:
        for name in damaged(folder, [*files, "state.json"]):
            raise CheckpointError(_advice(folder, f"{name} is not what was written (truncated or altered)"))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(_advice(folder, str(error))) from None


def _advice(folder: Path, problem: str) -> str:
    if folder.parent.name in ("best", "kept"):
        # Weights of a moment that is past: only steps taken again bring them back.
        return f"{folder}: {problem}; delete {folder.parent.with_name('checkpoints')} to start the run anew"
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
