"""Kept checkpoints of a run as model folders, so that they can be scored like a finished model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.errors import CheckpointError, RunError
from crossover.folders import damaged, read_sums, steps_in
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded


@dataclass(frozen=True)
class Kept:
    """A checkpoint that a run kept.

    Args:
        folder: Where it lies.
        step: Optimizer steps taken.
        data_tokens: Tokens of text seen, repeats counted.
        flops: Useful training FLOPs spent.
        flops_6nd: The same by 6 x parameters x data tokens.
    """

    folder: Path
    step: int
    data_tokens: int
    flops: float
    flops_6nd: float


def kept_checkpoints(run: Path, steps: Sequence[int] | None = None) -> tuple[Kept, ...]:
    """Find the checkpoints of a run, oldest first.

    Args:
        run: The run folder.
        steps: Which ones, by their optimizer steps; None for all that were kept.

    Returns:
        The checkpoints.

    Raises:
        RunError: The run kept none, or not one of those that were asked for.
        CheckpointError: A checkpoint does not say where it stands.
    """
    there = steps_in(run / "checkpoints")
    if not there:
        raise RunError(f"{run}: kept no checkpoints; raise training.keep_checkpoints and train again")
    for step in steps or ():
        if step not in there:
            known = ", ".join(map(str, there))
            raise RunError(f"{run}: kept no checkpoint of step {step}; there are those of {known}")
    return tuple(_read(folder) for step, folder in there.items() if steps is None or step in steps)


def checksum_of(kept: Kept, weights: str = "raw") -> str:
    """Say which weights a checkpoint holds, without reading them.

    Args:
        kept: The checkpoint.
        weights: "raw", or "ema" for the averaged ones.

    Returns:
        The sha256 that was written beside them.

    Raises:
        CheckpointError: The checkpoint does not say, or has no such weights.
    """
    name = _file_of(weights)
    try:
        return read_sums(kept.folder)[name]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{kept.folder}: {name} cannot be read ({error}); delete that folder") from None


def _file_of(weights: str) -> str:
    return "ema.safetensors" if weights == "ema" else "model.safetensors"


def _read(folder: Path) -> Kept:
    try:
        state = parse_json(read_bounded(folder / "state.json", LARGEST_JSON_BYTES), strict=False)["state"]
        spent = float(state["flops"]), float(state["flops_6nd"])
        return Kept(folder, int(state["step"]), int(state["data_tokens"]), *spent)
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder}: state.json cannot be read ({error}); delete that folder") from None


@contextmanager
def as_model(kept: Kept, model: Path, weights: str = "raw") -> Iterator[Path]:
    """Lay a checkpoint's weights beside the configuration and the tokenizer of its run's model.

    Args:
        kept: The checkpoint.
        model: The model folder that its run left.
        weights: "raw", or "ema" for the averaged ones.

    Yields:
        A model folder that is gone afterwards.

    Raises:
        CheckpointError: The weights are missing or are not what was written.
    """
    name = _file_of(weights)
    _check(kept.folder, name)
    with tempfile.TemporaryDirectory(prefix="crossover-checkpoint-") as place:
        folder = Path(place)
        for path in model.iterdir():
            if path.is_file() and path.name != "model.safetensors":
                shutil.copyfile(path, folder / path.name)
        os.symlink((kept.folder / name).absolute(), folder / "model.safetensors")
        yield folder


def _check(folder: Path, name: str) -> None:
    try:
        is_damaged = bool(damaged(folder, [name]))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {name} cannot be read ({error}); delete that folder") from None
    if is_damaged:
        raise CheckpointError(f"{folder}: {name} is not what was written (truncated or altered); delete that folder")


def modes_of(model: Path, procedure: str) -> tuple[str, ...]:
    """Say which procedures are meant by a name.

    Args:
        model: A model folder that a run left.
        procedure: A procedure's name, "all" that the model has, or "best", the mode that scored best on dev.

    Returns:
        Names of procedures.

    Raises:
        CheckpointError: The folder does not say.
    """
    if procedure not in ("all", "best"):
        return (procedure,)
    try:
        facts: dict[str, Any] = parse_json(read_bounded(model / "config.json", LARGEST_JSON_BYTES))["crossover"]
        return tuple(map(str, facts["modes"])) if procedure == "all" else (str(facts["best_mode"]),)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{model}: config.json does not say its modes ({error})") from None
