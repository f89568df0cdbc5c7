"""One model over several processes: who they are, and which part of each weight lies where.

FSDP2 (`torch.distributed.fsdp.fully_shard`) keeps a part of the rows of every weight in each process and brings a layer
together while it is computed. Everything else in the program asks here which part is its own.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes that train one model together.

    Args:
        size: How many there are.
        rank: Which of them this one is; 0 leads: it alone writes to the run folder.
        mesh: Of two dimensions, copies of the model and parts of a copy; None in a world of one.
        talk: A group over CPU memory, by which they tell one another things that are no tensors of the model.
        background: Another one, for what a thread writes while training goes on.
    """

    size: int = 1
    rank: int = 0
    mesh: Any = None
    talk: Any = None
    background: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes to the run folder."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Take this process's share of a list: neighbours, the first processes one more where it does not come out."""
        each, more = divmod(len(items), self.size)
        start = self.rank * each + min(self.rank, more)
        return items[start : start + each + (self.rank < more)]

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_up_parts(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the parts of one copy of the model, in place."""
        if self.mesh is not None:
            dist.all_reduce(tensor, group=self.mesh.get_group("shard"))
        return self.alike(tensor)

    @property
    def copies(self) -> int:
        """How many copies of the model there are."""
        return 1 if self.mesh is None else self.mesh.size(0)

    def alike(self, tensor: Tensor) -> Tensor:
        """Give every copy of the model the number that the first one came to, in place."""
        if self.copies > 1:
            dist.broadcast(tensor, group=self.mesh.get_group("replicate"), group_src=0)
        return tensor

    def agree(self, value: Any) -> Any:
        """Give every process what the leader has."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.talk)
        return told[0]

    def gather(self, value: Item) -> list[Item]:
        """Give every process what each has, in the order of ranks."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, value, group=self.talk)
        return told

    def largest(self, value: int) -> int:
        """Give every process the largest number that one has."""
        if self.size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.talk)
        return int(number)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.talk)


ALONE = World()


def shard(model: Any, world: World) -> Any:
    """Spread a backbone's weights over the processes: layer by layer, and what is left as one.

    Gradients are summed, not averaged: a process's loss is its part of the whole step's.

    Args:
        model: A `Backbone` with the same weights in every process; changed in place.
        world: The processes.

    Returns:
        The model.
    """
    model.world = world
    if world.size == 1:
        return model
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = world.mesh if world.copies > 1 else world.mesh["shard"]
    for layer in model.inner.model.layers:
        fully_shard(layer, mesh=mesh)
        layer.driven = types.MethodType(_drive, layer)
        register_fsdp_forward_method(layer, "driven")
    # The root, too, is taken apart after each pass: whoever looks at a weight between two passes finds its own part.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for name in ("nll", "states", "read_states", "logits"):
        register_fsdp_forward_method(model, name)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # A plain sum: gloo knows no other, and there is nothing to divide by.
            module.set_force_sum_reduction_for_comms(True)
    return model


def _drive(layer: nn.Module, run: Callable[..., Any], *arguments: Any) -> Any:
    return run(layer, *arguments)


def within(layer: Any, run: Callable[..., Any], *arguments: Any) -> Any:
    """Compute something with a layer's weights, which are brought together for it if they are spread out.

    Args:
        layer: A decoder layer.
        run: Called with the layer and the arguments.
        arguments: What it takes besides.

    Returns:
        What it gives.
    """
    driven = getattr(layer, "driven", None)
    return run(layer, *arguments) if driven is None else driven(run, *arguments)


def local(tensor: Tensor) -> Tensor:
    """Give the part of a tensor that lies in this process, in the same memory; all of one that is not spread out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Bring a tensor together; every process must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Cut out of a whole tensor what this process has of another of its shape.

    Args:
        full: The same in every process.
        like: A weight, spread out or not.

    Returns:
        Its part, on the device and of the type of `like`.
    """
    if not isinstance(like, DTensor):
        return full.to(like.device, like.dtype)
    # Without a source, every process cuts what it has; nothing is sent.
    spread = distribute_tensor(full.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local()


def gathered(tensors: Any, world: World) -> dict[str, Tensor]:
    """Bring tensors together in the leader's CPU memory, one after the other.

    Args:
        tensors: Tensors by name, the same names in every process.
        world: The processes.

    Returns:
        Whole tensors by name; nothing in processes that do not lead.
    """
    found = {}
    for name, value in tensors.items():
        full = whole(value.detach())
        if world.leads:
            found[name] = full.cpu() if isinstance(value, DTensor) else full
    return found
