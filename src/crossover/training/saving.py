"""Checkpoints of a run in progress: written at once, or beside the training where that takes long.

Weights lie whole in a checkpoint, so that anyone can read them; several processes bring them together first. What only
a resumed run reads, the optimizer's state, stays spread out: torch's distributed checkpoint writes each process's part
as safetensors, and brings the parts together again for any other number of processes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from crossover.errors import CheckpointError, RunError
from crossover.folders import SUMS, appearing, read_sums, write_sums
from crossover.model.sharding import World, gathered, local, part_of
from crossover.training import checkpoint

# The file, or the folder of files, that only a resumed run reads.
OPTIMIZER = "optimizer"
SETTLE_SECONDS = 120.0
Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Saver:
    """Writes a run's folders of tensors.

    Args:
        world: The processes of the run; all of them call every method together.
        beside: Whether to write beside the training.
    """

    world: World
    beside: bool = False
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _busy: list[Future[Any]] = field(default_factory=list)

    def save(self, final: Path, groups: Groups, tree: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Write a folder that appears whole or not at all.

        Args:
            final: The folder; one of the same name is replaced.
            groups: Files by name, each a mapping of tensors.
            tree: JSON values, written to `state.json`.
            then: What to do when it is there; only the leader does it.

        Raises:
            RunError: This, or what was written beside the training before, cannot be written.
        """
        self.wait()
        if self.world.size > 1:
            self._save_spread(final, groups, tree, then)
        elif self.beside:
            self._busy.append(self._thread.submit(_write, final, _copied(groups), tree, then))
        else:
            _write(final, groups, tree, then)

    def wait(self) -> None:
        """Go on when everything is written.

        Raises:
            RunError: It cannot be written.
        """
        while self._busy:
            _result(self._busy.pop())

    def settle(self) -> None:
        """Let what is being written get there before an error ends the run, if it does so within minutes."""
        with suppress(RunError, TimeoutError):
            while self._busy:
                _result(self._busy.pop(), SETTLE_SECONDS)

    def _save_spread(self, final: Path, groups: Groups, tree: Mapping[str, Any], then: Callable[[], None]) -> None:
        plain = {name: gathered(group, self.world) for name, group in groups.items() if name != OPTIMIZER}
        opened = ExitStack()
        with checkpoint.told(final):
            place = opened.enter_context(appearing(final, owned=True)) if self.world.leads else final
        place = self.world.agree(place)
        parts: list[Future[Any]] = []
        if OPTIMIZER in groups:
            writer = HuggingFaceStorageWriter(str(place / OPTIMIZER), save_distributed=True)
            spread = {name: value.detach() for name, value in groups[OPTIMIZER].items()}
            parts = [_future(async_save(spread, storage_writer=writer, process_group=self.world.background))]
        if self.world.leads:
            parts = [self._thread.submit(_finish, opened, final, place, plain, tree, parts, then)]
        self._busy += parts
        if not self.beside:
            self.wait()


def _copied(groups: Groups) -> Groups:
    """Copy what training will change while it is written."""
    return {
        name: {key: value.detach().to("cpu", copy=True) for key, value in group.items()}
        for name, group in groups.items()
    }


def _future(begun: Any) -> Future[Any]:
    """Take the future that `async_save` gives, alone or with another that says when tensors have been copied."""
    return begun if isinstance(begun, Future) else begun.upload_completion


def _write(final: Path, groups: Groups, tree: Mapping[str, Any], then: Callable[[], None]) -> None:
    checkpoint.write_folder(final, groups, tree)
    then()


def _finish(
    opened: ExitStack,
    final: Path,
    place: Path,
    plain: Groups,
    tree: Mapping[str, Any],
    parts: Sequence[Future[Any]],
    then: Callable[[], None],
) -> None:
    with checkpoint.told(final), opened:
        try:
            checkpoint.write_files(place, plain, tree)
        finally:
            # Not before the others have ended: they would write into a folder that is gone.
            for part in parts:
                _result(part)
        write_sums(place)
    then()


def _result(part: Future[Any], seconds: float | None = None) -> Any:
    try:
        return part.result(seconds)
    except CheckpointException as error:
        raise RunError(f"a checkpoint cannot be written: {_first(error)}; free some space, then start again") from None


def _first(error: CheckpointException) -> str:
    """Say what went wrong first, of all that torch's checkpoint tells of each process."""
    for rank, (failure, _) in sorted(error.failures.items()):
        cause = failure.__cause__ or failure
        return f"process {rank}: {getattr(cause, 'strerror', None) or cause}"
    return str(error)


def check(folder: Path, names: Sequence[str], world: World) -> dict[str, Any]:
    """Look at every byte of a checkpoint, each process at its share of the files.

    Args:
        folder: The checkpoint's folder.
        names: Groups that must be in it.
        world: The processes.

    Returns:
        What the checkpoint says.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    files = [name for group in names for name in _files(folder, group)]
    why = ""
    try:
        checkpoint.check(folder, list(world.share(files)))
    except CheckpointError as error:
        why = str(error)
    for said in world.gather(why):
        if said:
            raise CheckpointError(said)
    return checkpoint.load_state(folder)


def _files(folder: Path, group: str) -> list[str]:
    if not (folder / group).is_dir():
        return [f"{group}.safetensors"]
    try:
        return sorted(name for name in read_sums(folder) if name.startswith(f"{group}/"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / SUMS}: {error}; delete the checkpoint's folder") from None


@torch.no_grad()
def fill(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of a file where they belong, one after the other, or this process's parts of them.

    Args:
        folder: A checkpoint's folder, checked.
        group: The file's name, such as "model".
        tensors: Tensors by name, changed in place.

    Raises:
        CheckpointError: One is missing, or of another shape.
    """
    path = folder / f"{group}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            for name, tensor in tensors.items():
                found = file.get_tensor(name)
                if found.shape != tensor.shape:
                    raise CheckpointError(
                        f"{path}: '{name}' is of shape {tuple(found.shape)}, not {tuple(tensor.shape)}"
                    )
                local(tensor).copy_(part_of(found, tensor))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def fill_optimizers(folder: Path, optimizers: Sequence[torch.optim.Optimizer], world: World) -> None:
    """Put the optimizers' states back, whatever number of processes left them.

    Args:
        folder: A checkpoint's folder, checked.
        optimizers: Built by the same recipe.
        world: The processes of this run.

    Raises:
        CheckpointError: A tensor is missing, or of another shape.
    """
    shapes = _shapes(folder)
    targets = {name: _room(name, shape, optimizers) for name, shape in shapes.items()}
    if (folder / OPTIMIZER).is_dir():
        with warnings.catch_warnings():
            # It says that it works alone where it is told to.
            warnings.simplefilter("ignore", UserWarning)
            reader = HuggingFaceStorageReader(str(folder / OPTIMIZER))
            try:
                load(targets, storage_reader=reader, no_dist=world.size == 1, process_group=world.talk)
            except CheckpointException as error:
                raise CheckpointError(f"{folder / OPTIMIZER}: {_first(error)}") from None
    else:
        fill(folder, OPTIMIZER, targets)
    checkpoint.restore_optimizers(optimizers, targets)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        if (folder / OPTIMIZER).is_dir():
            stored = HuggingFaceStorageReader(str(folder / OPTIMIZER)).read_metadata().state_dict_metadata
            return {name: tuple(found.size) for name, found in stored.items()}  # type: ignore[union-attr]
        with safe_open(folder / f"{OPTIMIZER}.safetensors", "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder / OPTIMIZER}: {error}") from None


def _room(name: str, shape: tuple[int, ...], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
    """Make room for a tensor of an optimizer, spread out as its weight is if it is of its shape."""
    number, index, _ = re.fullmatch(r"(\d+)\.(\d+)\.(\w+)", name).groups()  # type: ignore[union-attr]
    weights = [weight for group in optimizers[int(number)].param_groups for weight in group["params"]]
    weight = weights[int(index)]
    return torch.zeros_like(weight) if tuple(weight.shape) == shape else torch.zeros(shape)
