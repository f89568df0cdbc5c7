"""The one step: kinds of the slices, batch transform, forward, backward, update.

Suffixes: B sequences, T data tokens, N inputs, R read states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossover.data.loader import Loader
from crossover.model.backbone import Backbone
from crossover.model.noise import perturbed
from crossover.objectives.mixing import join, micro_batches
from crossover.records import Example, Vocabulary
from crossover.streams import stream, torch_seed
from crossover.training.spread import Spread


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
        micro_batch_slices: Slices that run together, at most.
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
        sums: dict[str, Tensor] = {}
        batches = micro_batches(kinds, self.micro_batch_slices)
        # One micro-batch of a kind has nothing to differ from.
        spread = Spread(self.model, kinds) if measure and len(batches) > len(set(kinds)) else None
        routing = self.model.routing
        if routing is not None:
            routing.forget()
        with perturbed(self.model.inner, self.parameter_noise, self.seed, step):
            for kind, slices in batches:
                torch.manual_seed(torch_seed(self.seed, "dropout", step, slices[0]))
                loss = self.loss(self.example(step, kind, slices), step_tokens)
                loss.backward()
                if spread is not None:
                    spread.note(kind, len(slices))
                sums[kind] = sums[kind] + loss.detach() if kind in sums else loss.detach()
        total = torch.stack(list(sums.values())).sum()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
        finite = torch.isfinite(total) & torch.isfinite(norm)
        self._update(finite, learning_rate_factor)
        share = {kind: kinds.count(kind) / len(kinds) for kind in sums}
        parts = spread.parts() if spread is not None else {}
        losses = {kind: value / share[kind] for kind, value in sums.items()}
        return StepResult(losses, total, norm, finite, parts, None if routing is None else routing.take())

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
