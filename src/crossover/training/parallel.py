"""Several processes that train one run: how they find one another, and what only their leader does.

A launcher such as torchrun starts the same command in each and says by environment variables who is who.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from crossover.errors import CrossoverError, RecipeError, RunError

if TYPE_CHECKING:
    from crossover.model.sharding import World

# The leader prepares text and compiles while the others wait for it.
PATIENCE = timedelta(hours=2)
# How torch and its libraries begin to say that another process is gone.
GONE = ("connection", "gloo", "nccl", "peer", "socket", "timed out", "timeout", "[rank")


@dataclass(frozen=True)
class Place:
    """Where a launcher has put this process.

    Args:
        rank: Its number.
        size: How many processes there are.
        local_rank: Its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether it writes to the run folder."""
        return self.rank == 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """Read what a launcher says.

    Args:
        environment: Variables `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, as torchrun sets them; the process's by default.

    Returns:
        The place; alone where there is no launcher.

    Raises:
        RunError: The variables are no numbers or do not fit together.
    """
    known = os.environ if environment is None else environment
    if "WORLD_SIZE" not in known:
        return Place()
    try:
        found = Place(int(known["RANK"]), int(known["WORLD_SIZE"]), int(known.get("LOCAL_RANK", known["RANK"])))
    except (KeyError, ValueError):
        said = ", ".join(f"{name}={known.get(name)!r}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        raise RunError(
            f"the launcher's variables cannot be read ({said}); start it by torchrun, or unset them"
        ) from None
    if not 0 <= found.rank < found.size:
        raise RunError(
            f"the launcher says RANK={found.rank} of WORLD_SIZE={found.size}; expected 0 <= RANK < WORLD_SIZE"
        )
    return found


@contextmanager
def together(here: Place, copies: int = 1) -> Iterator[World]:
    """Meet the other processes of a run, and part from them at the end.

    Args:
        here: Where this process is.
        copies: Copies of the model (replicate groups); each is spread over `size / copies` processes.

    Yields:
        The world.

    Raises:
        RecipeError: The copies do not divide the processes.
        RunError: Another process has ended, or never came.
    """
    from crossover.model.sharding import ALONE

    if here.size % copies:
        raise RecipeError(f"--copies {copies}: does not divide {here.size} process(es)")
    if here.size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        world = _meet(here, copies)
    except (RuntimeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise RunError(
            f"process {here.rank} of {here.size} cannot meet the others ({said}); start them by torchrun"
        ) from None
    with _told(here):
        yield world
        # Only at a good end: NCCL would wait here for processes that will never come.
        dist.destroy_process_group()


def _meet(here: Place, copies: int) -> World:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from crossover.model.sharding import World

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"process {here.local_rank} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}; start as many processes as there are GPUs (--nproc-per-node)"
            )
        torch.cuda.set_device(here.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    mesh = init_device_mesh(device, (copies, here.size // copies), mesh_dim_names=("replicate", "shard"))
    talk, background = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
    return World(here.size, here.rank, mesh, talk, background)


@contextmanager
def _told(here: Place) -> Iterator[None]:
    """Say in a sentence what torch says in a page: that another process is gone."""
    try:
        yield
    except CrossoverError:
        raise
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0]
        if not any(word in said.lower() for word in GONE):
            raise
        raise RunError(
            f"process {here.rank} of {here.size}: another process of this run has ended or cannot be reached "
            f"({said[:200]}); its own message says why. Started again, the run goes on from its newest checkpoint"
        ) from None


def check_slices(world_size: int, slices_per_step: int, say: Any) -> None:
    """Refuse a step that cannot be shared out, and say when it is shared badly.

    Args:
        world_size: Processes.
        slices_per_step: Slices of a step.
        say: Where a sentence goes.

    Raises:
        RecipeError: There are fewer slices than processes.
    """
    if slices_per_step < world_size:
        raise RecipeError(
            f"mix.slice_tokens: a step has {slices_per_step} slice(s), which {world_size} processes cannot share; set "
            f"mix.slice_tokens to training.batch_tokens / {world_size} or less, or start fewer processes"
        )
    if slices_per_step % world_size:
        say(f"{slices_per_step} slices a step over {world_size} processes: some wait for others in every step")


class Silent:
    """The recorder of a process that does not lead: whatever it is told, the leader writes down."""

    def manifest(self, facts: Mapping[str, Any]) -> None:
        """Write nothing."""

    def step(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def decision(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def signal(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def ledger(self, row: Mapping[str, Any]) -> None:
        """Write nothing."""

    def progress(self, row: Mapping[str, Any]) -> None:
        """Show nothing."""

    def flush(self) -> None:
        """Write nothing."""

    def scores(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Write nothing."""

    def cut_back(self, step: int) -> None:
        """Forget nothing."""
