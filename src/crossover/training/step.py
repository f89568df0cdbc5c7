"""The one step: kinds of the slices, batch transform, forward, backward, update.

Suffixes: B sequences, T data tokens, N inputs, R read states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossover.data.loader import Loader
from crossover.model.backbone import Backbone
from crossover.model.noise import perturbed
from crossover.model.sharding import World, local, whole
from crossover.objectives.mixing import join, micro_batches
from crossover.records import Example, Vocabulary
from crossover.streams import stream, torch_seed
from crossover.training.spread import Spread, part_slices


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the log, still on the device: reading it is a host sync.

    Args:
        losses: Nats per data token of each objective that took part.
        loss: Nats per data token of the step.
        gradient_norm: Before clipping.
        finite: Whether loss and gradient were finite; if not, nothing was updated.
        parts: For objectives with two micro-batches or more, when asked for: slices of each and the squared norms of
            their gradients [M], each as the gradient of its own mean loss, then that of their mean [1].
        routing: What routers did, see `crossover.model.routing.Routing.take`; None without experts.
    """

    losses: Mapping[str, Tensor]
    loss: Tensor
    gradient_norm: Tensor
    finite: Tensor
    parts: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    routing: Tensor | None = None


@dataclass(frozen=True)
class Stepper:
    """All that one optimizer step needs; it holds no state but the model's and the optimizers'.

    Args:
        model: The backbone.
        forward: `model`, possibly compiled.
        objectives: Objective by canonical name.
        loader: Text.
        vocabulary: Special ids.
        optimizers: One or two.
        seed: The recipe's seed.
        micro_batch_slices: Slices that run together in one process, at most.
        clip_norm: Largest gradient norm.
        precision: "float32" or "bfloat16" compute.
        parameter_noise: Relative standard deviation of noise on the layers' weights, see `crossover.model.noise`.
    """

    model: Backbone
    forward: Callable[..., Tensor]
    objectives: Mapping[str, Any]
    loader: Loader
    vocabulary: Vocabulary
    optimizers: tuple[torch.optim.Optimizer, ...]
    seed: int
    micro_batch_slices: int
    clip_norm: float
    precision: str
    parameter_noise: float = 0.0

    def example(self, step: int, kind: str, slices: tuple[int, ...]) -> Example:
        """Make the example of a micro-batch: a function of (seed, step, global slice) and nothing else.

        Args:
            step: Optimizer step.
            kind: Objective.
            slices: Slice indices inside the step.

        Returns:
            The example.
        """
        return join([self._corrupted(step, self.objectives[kind], index) for index in slices])

    def _corrupted(self, step: int, objective: Any, index: int) -> Example:
        tokens_BT, rng = self.loader.batch(step, index), stream(self.seed, "mask", step, index)
        if getattr(objective, "needs_places", False):
            places_BT = self.loader.batch_indices(step, index)
            return objective.corrupt_at(tokens_BT, places_BT, rng, self.vocabulary)
        return objective.corrupt(tokens_BT, rng, self.vocabulary)

    @property
    def world(self) -> World:
        """The processes that take the step together."""
        return self.model.world

    def run(
        self, step: int, kinds: tuple[str, ...], learning_rate_factor: float, *, measure: bool = False
    ) -> StepResult:
        """Take one optimizer step.

        Args:
            step: Steps taken before.
            kinds: Objective of each slice.
            learning_rate_factor: Factor on the peak learning rates.
            measure: Whether to note how much the gradients of the step's micro-batches differ; it changes nothing.

        Returns:
            What happened, on the device.
        """
        slice_tokens = self.loader.windows_per_slice * self.loader.context
        step_tokens = float(slice_tokens * len(kinds))
        batches = self._batches(kinds, measure)
        # One micro-batch of a kind has nothing to differ from.
        spread = Spread(self.model, kinds, self.world) if measure and len(batches) > len(set(kinds)) else None
        sums: dict[str, Tensor] = {}
        routing = self.model.routing
        if routing is not None:
            routing.forget()
        with perturbed(self.model.inner, self.parameter_noise, self.seed, step):
            for kind, slices in batches:
                for mine, first in self._passes(slices):
                    torch.manual_seed(torch_seed(self.seed, "dropout", step, first))
                    loss = self.loss(self._mine(step, kind, mine, first), step_tokens)
                    loss.backward()
                    sums[kind] = sums[kind] + loss.detach() if kind in sums else loss.detach()
                if spread is not None:
                    spread.note(kind, len(slices))
        parts = self.world.add_up(torch.stack(list(sums.values())))
        total = parts.sum()
        norm = self._clip()
        finite = torch.isfinite(total) & torch.isfinite(norm)
        self._update(finite, learning_rate_factor)
        losses = {kind: part / (kinds.count(kind) / len(kinds)) for kind, part in zip(sums, parts, strict=True)}
        noise = spread.parts() if spread is not None else {}
        return StepResult(losses, total, norm, finite, noise, None if routing is None else routing.take(self.world))

    def _clip(self) -> Tensor:
        """Scale the gradient down to the largest norm that is allowed; gives the norm before."""
        if self.world.copies == 1:
            return whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True))
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        # Copies add up in an order of their own; one number for all keeps them copies.
        norm = self.world.alike(whole(torch.nn.utils.get_total_norm(gradients, foreach=True)))
        factor = torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
        for gradient in gradients:
            local(gradient).mul_(factor)
        return norm

    def _batches(self, kinds: tuple[str, ...], measure: bool) -> list[tuple[str, tuple[int, ...]]]:
        """Group a step's slices; what is measured is cut alike however many processes there are."""
        if not measure:
            return micro_batches(kinds, self.micro_batch_slices * self.world.size)
        return micro_batches(kinds, {kind: part_slices(kinds.count(kind), self.micro_batch_slices) for kind in kinds})

    def _passes(self, slices: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
        """Cut a group into passes: this process's slices of each, and the first of them, or of all if it has none."""
        each = self.micro_batch_slices * self.world.size
        for start in range(0, len(slices), each):
            together = slices[start : start + each]
            mine = tuple(self.world.share(together))
            yield mine, (mine or together)[0]

    def _mine(self, step: int, kind: str, mine: tuple[int, ...], first: int) -> Example:
        if mine:
            return self.example(step, kind, mine)
        # All processes bring a layer's weights together at the same time, so none may sit a pass out.
        idle = self.example(step, kind, (first,))
        return replace(idle, weights_R=np.zeros_like(idle.weights_R), data_tokens=0)

    def loss(self, example: Example, step_tokens: float) -> Tensor:
        """Compute a micro-batch's part of the step's loss.

        Args:
            example: The micro-batch.
            step_tokens: Data tokens of the whole step.

        Returns:
            Scalar, nats per data token of the step.
        """
        device = self.model.device

        def place(array: np.ndarray) -> Tensor:
            # Broadcast arrays are read-only views, which torch cannot share.
            return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device, non_blocking=True)

        documents = None if example.documents_BN is None else place(example.documents_BN)
        positions = example.positions_BN
        if (positions == positions[0]).all():
            # One row of rotary angles serves all sequences.
            positions = positions[:1]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.forward(
                place(example.inputs_BN),
                place(positions),
                self.model.plan(example.pattern, example.inputs_BN.shape[1], documents, example.first_read),
                None if example.reads_R is None else place(example.reads_R),
                place(example.targets_R),
                place(example.weights_R),
                step_tokens,
                example.data_tokens / step_tokens,
            )

    def _update(self, finite: Tensor, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            if isinstance(optimizer, torch.optim.AdamW):
                # The fused kernel skips the update on the device when this is 1, without a host sync.
                optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
                optimizer.step()
            elif bool(finite):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
