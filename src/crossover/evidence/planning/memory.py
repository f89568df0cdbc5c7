"""Memory of a GPU that trains a model under FSDP2, in closed form.

It is an estimate. Left out: fragmentation of the allocator, the CUDA context, buffers of the communication library and
of compilation, for all of which `MARGIN` of the memory is kept free. The step's gradients are taken to be scattered
after every micro-batch. Compilation keeps fewer activations than counted here. Scoring averaged weights sets the raw
ones aside between two steps, when there are no gradients: it takes their room and needs no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from crossover.model.shapes import Shape, Workload, layer_matrix_parameters, parameters

GIB = 2**30
MARGIN = 0.1
# FSDP2 fetches the next layer while one computes.
LAYERS_GATHERED = 2
# As in model/loss.py, which decides by it how many states have their logits at a time on a GPU.
CHUNK_LOGITS, FEWEST_STATES = 2**27, 256


@dataclass(frozen=True)
class Parts:
    """What fills the memory of one GPU, in bytes.

    Args:
        weights: Float32, sharded over the GPUs.
        gradients: Float32, sharded.
        optimizer: Its states, float32, sharded.
        averaged: Averaged weights, float32, sharded; 0 without `training.ema_decay`.
        noise: The layers' matrices as they are without `model.parameter_noise`, float32, sharded.
        probes: Gradients that a controller's probes hold beside the step's, float32, taken to be sharded like these.
        gathered: Bfloat16 copies of weights that are computed with, and the gradients of one layer before they are
            scattered; not sharded.
        activations: What the backward pass needs of the micro-batch, and one layer's gradients.
        loss: Logits of a chunk, the head's gradient and the states that are read.
    """

    weights: float
    gradients: float
    optimizer: float
    averaged: float
    noise: float
    probes: float
    gathered: float
    activations: float
    loss: float

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class Demand:
    """What memory depends on, beside the number of GPUs and the micro-batch.

    Args:
        shape: The backbone.
        predictable: Vocabulary rows that the head computes.
        optimizer: "adamw" or "muon".
        averaged: Whether averaged weights are kept.
        checkpointed: Whether layers keep their inputs alone and compute the rest again.
        workloads: What a window asks for under each objective; the dearest counts.
        noisy: Whether a step sets the layers' matrices aside, for noise on the weights.
        probe_gradients: Gradients that probes hold beside the step's.
    """

    shape: Shape
    predictable: int
    optimizer: str
    averaged: bool
    checkpointed: bool
    workloads: Sequence[Workload]
    noisy: bool = False
    probe_gradients: int = 0

    def on(self, gpus: int, windows: int) -> Parts:
        """Give the memory of one of so many GPUs.

        Args:
            gpus: GPUs that share weights, gradients and optimizer states.
            windows: Windows of a micro-batch.

        Returns:
            The parts.
        """
        whole, shape = parameters(self.shape), self.shape
        dear = max(self.workloads, key=lambda work: self._working(work, windows))
        noise = 4 * shape.depth * layer_matrix_parameters(shape) / gpus if self.noisy else 0.0
        return Parts(
            weights=4 * whole / gpus,
            gradients=4 * whole / gpus,
            optimizer=optimizer_bytes(shape, self.optimizer) / gpus,
            averaged=4 * whole / gpus if self.averaged else 0.0,
            noise=noise,
            # Steps with noise are not looked at: probes run after them, in the room of what noise had set aside.
            probes=max(0.0, 4 * whole * self.probe_gradients / gpus - noise),
            gathered=gathered_bytes(shape, gpus),
            activations=activation_bytes(shape, windows * dear.inputs, checkpointed=self.checkpointed),
            loss=loss_bytes(shape, windows * dear.reads, self.predictable),
        )

    def _working(self, work: Workload, windows: int) -> float:
        activations = activation_bytes(self.shape, windows * work.inputs, checkpointed=self.checkpointed)
        return activations + loss_bytes(self.shape, windows * work.reads, self.predictable)

    def fits(self, gpus: int, windows: int, memory_gib: float) -> bool:
        """Say whether one of so many GPUs has room for so many windows, the margin left free."""
        return self.on(gpus, windows).total <= (1 - MARGIN) * memory_gib * GIB

    def most_windows(self, gpus: int, memory_gib: float, *, limit: int = 2**20) -> int:
        """Find the largest micro-batch that fits.

        Args:
            gpus: How many GPUs.
            memory_gib: Memory of each.
            limit: Where to stop looking.

        Returns:
            Windows; 0 where not even one fits.
        """
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(gpus, middle, memory_gib) else (low, middle - 1)
        return low

    def fewest_gpus(self, counts: Iterable[int], windows: Callable[[int], int], memory_gib: float) -> int | None:
        """Find the smallest number of GPUs that has room.

        Args:
            counts: Numbers that may be used.
            windows: Windows of a micro-batch on so many GPUs.
            memory_gib: Memory of each GPU.

        Returns:
            The number, or None where no number is enough.
        """
        return next((count for count in sorted(counts) if self.fits(count, windows(count), memory_gib)), None)


def optimizer_bytes(shape: Shape, optimizer: str) -> float:
    """Count the bytes of an optimizer's states, unsharded.

    AdamW keeps two float32 numbers for a parameter, Muon one for each weight of the layers' matrices and AdamW the two
    for all else; experts are kept as three-dimensional weights, which Muon does not take.

    Args:
        shape: The backbone.
        optimizer: "adamw" or "muon".

    Returns:
        Bytes.
    """
    by_muon = shape.depth * _flat_matrices(shape) if optimizer == "muon" else 0
    return 8 * parameters(shape) - 4 * by_muon


def _flat_matrices(shape: Shape) -> int:
    """Count the weights of a layer's two-dimensional matrices."""
    attention = 2 * shape.width * (shape.heads + shape.kv_heads) * shape.head_width
    if shape.experts:
        return attention + shape.width * shape.experts
    return attention + 3 * shape.width * shape.mlp_width


def gathered_bytes(shape: Shape, gpus: int) -> float:
    """Count the bytes of weights that are computed with, and of gradients before they are scattered.

    On one GPU, autocast keeps a bfloat16 copy of every weight. On several, FSDP2 gathers embedding and head for the
    whole pass and layers one after the other, and sums the gradients of one group in float32 from bfloat16 ones.

    Args:
        shape: The backbone.
        gpus: How many GPUs.

    Returns:
        Bytes on each of them.
    """
    whole = parameters(shape)
    if gpus == 1:
        return 2 * whole
    outside = shape.vocabulary * shape.width * (1 if shape.tied else 2) + shape.width
    layer = (whole - outside) / shape.depth
    return 2 * outside + 2 * layer * min(LAYERS_GATHERED, shape.depth) + 6 * max(layer, outside)


def layer_activation_bytes(shape: Shape) -> float:
    """Count the bytes that one layer keeps for one input until its backward pass.

    Korthikanti et al. (arXiv 2205.05198, equation 1) count s b h (34 + 5 a s / h) for a GPT layer in 16 bits. Here, for
    a layer with two RMS norms, rotary positions and a gated MLP, under autocast from float32 weights, and attention
    that keeps no matrix of scores (width D, query heads' width A, key and value heads' width K, MLP width M, H heads):
    5 float32 and 5 bfloat16 copies of the stream, 30 D; queries, attention's output and the output projection's
    input, 6 A; keys and values, 4 K; gate, its activation, the other half and their product, 8 M; the sums of attention
    and norms, 4 H + 8. A norm of queries and keys adds 6 (A + K) and its sums. The tensors that autograd keeps for a
    dense layer agree within a few percent (a test counts them).

    Args:
        shape: The backbone.

    Returns:
        Bytes per input position.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    kept = 30 * shape.width + 6 * queries + 4 * keys + 4 * shape.heads + 8
    if shape.family.startswith("qwen3"):
        kept += 6 * (queries + keys) + 4 * (shape.heads + shape.kv_heads)
    if not shape.experts:
        return kept + 8 * shape.mlp_width
    # A chosen expert has its own copy of the input, in bfloat16, and of the output, in float32; the router is float32.
    return kept + shape.experts_per_token * (8 * shape.expert_width + 6 * shape.width) + 8 * shape.experts


def activation_bytes(shape: Shape, inputs: float, *, checkpointed: bool) -> float:
    """Count the bytes of activations at their highest.

    Every layer keeps its activations; checkpointed, it keeps its float32 input alone, and one layer at a time is
    computed again. While one layer goes backward, its gradients take as much again.

    Args:
        shape: The backbone.
        inputs: Input positions of the micro-batch.
        checkpointed: Whether layers compute again.

    Returns:
        Bytes.
    """
    layer = layer_activation_bytes(shape)
    kept = 4 * shape.width * shape.depth + layer if checkpointed else layer * shape.depth
    return inputs * (kept + layer)


def loss_bytes(shape: Shape, reads: float, predictable: int) -> float:
    """Count the bytes of the final norm, the loss and its gradients, whose logits exist chunk by chunk.

    Args:
        shape: The backbone.
        reads: States of the micro-batch that are read.
        predictable: Vocabulary rows that the head computes.

    Returns:
        Bytes.
    """
    chunk = min(reads, max(FEWEST_STATES, CHUNK_LOGITS // predictable))
    # Logits in bfloat16, in float32, and their gradient in bfloat16; the head's gradient in float32, its bfloat16 copy
    # and the product that is added; of a state, two float32 copies in the norm, its gradient, and a bfloat16 copy.
    return 8 * chunk * predictable + 8 * predictable * shape.width + 14 * reads * shape.width
