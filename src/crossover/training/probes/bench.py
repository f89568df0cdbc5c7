"""What all probes work with: the text, the step, the prices, and a model that is left as it was found.

Suffixes: U tokens of a text, W windows, B sequences, T data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.data.loader import Loader
from crossover.data.shards import PreparedText
from crossover.errors import DataError, RecipeError
from crossover.model.backbone import Backbone
from crossover.model.layers import Pieces
from crossover.model.shapes import Shape, forward_flops, training_flops
from crossover.objectives.windows import Objective
from crossover.records import Vocabulary, Watching
from crossover.registry import component_of
from crossover.training.step import Stepper

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Now:
    """What a probe may know of the moment.

    Args:
        step: Optimizer steps taken; addresses the random numbers.
        mix: Objectives that are trained now.
        losses: Newest held-out loss by mode; empty before the first.
    """

    step: int
    mix: tuple[str, ...]
    losses: Mapping[str, float]


class Probe(Protocol):
    """One kind of measurement; its price is known before it is made."""

    @property
    def kind(self) -> str:
        """Name of the probe on its rows."""
        ...

    @property
    def every_tokens(self) -> float:
        """Fewest data tokens between two rows of this kind."""
        ...

    def cost(self, now: Now) -> float:
        """Count the FLOPs of the next measurement.

        Args:
            now: The moment.

        Returns:
            FLOPs.
        """
        ...

    def measure(self, now: Now) -> dict[str, Any]:
        """Measure once.

        Args:
            now: The moment.

        Returns:
            The row, without its clock, FLOPs and seconds.
        """
        ...


@dataclass(frozen=True)
class Bench:
    """What probes work with.

    Args:
        text: The prepared text, whose control part is the held-out text.
        shape: The model's shape, for counting FLOPs.
        stepper: The run's step.
        watching: What the controller wants to be told.
        flops_per_token: Useful training FLOPs of a data token under each gear.
    """

    text: PreparedText
    shape: Shape
    stepper: Stepper
    watching: Watching
    flops_per_token: Mapping[str, float]

    @property
    def loader(self) -> Loader:
        """The training text."""
        return self.stepper.loader

    @property
    def context(self) -> int:
        """T, data tokens of a window."""
        return self.stepper.loader.context

    @property
    def model(self) -> Backbone:
        """The model in training."""
        return self.stepper.model

    @property
    def precision(self) -> str:
        """Compute in "float32" or "bfloat16"."""
        return self.stepper.precision

    @property
    def vocabulary(self) -> Vocabulary:
        """Special ids."""
        return self.stepper.vocabulary

    @cached_property
    def control_U(self) -> Ints:
        """The held-out text, packed.

        Raises:
            DataError: There is none.
        """
        parts = [document.tokens for document in self.text.control_documents()]
        if not parts:
            raise DataError("data.control_share: there is no held-out text for the controller; raise it")
        return np.concatenate(parts)

    @cached_property
    def eager_stepper(self) -> Stepper:
        """The step with the model itself as its forward: a compiled one would be compiled anew for every probe."""
        return replace(self.stepper, forward=self.model, optimizers=())

    @cached_property
    def modes(self) -> dict[str, str]:
        """Procedure that measures each mode of the target: see `modes_of_target`."""
        return modes_of_target(self.watching.target, self.watching.gears, self.context)

    def objective(self, name: str) -> Objective:
        """Give the objective of a gear, in use or not."""
        return self.stepper.objectives.get(name) or component_of("objective", name)

    def price(self, objective: Objective) -> float:
        """Count the useful training FLOPs of a data token under any objective."""
        work = objective.workload(self.context)
        return training_flops(self.shape, work, head_rows=self.vocabulary.predictable) / self.context

    def forward_price(self, objective: Objective) -> float:
        """Count the useful FLOPs of a data token's forward pass under any objective."""
        work = objective.workload(self.context)
        return forward_flops(self.shape, work, head_rows=self.vocabulary.predictable) / self.context


def modes_of_target(target: str, gears: Sequence[str], context: int) -> dict[str, str]:
    """Say which held-out losses a target needs, and which procedure measures each of them.

    The bound of a run without `masked` is that of the last gear that has one: gears stand in order of their reach.

    Args:
        target: "ar", "l2r", "nelbo", or "best" of "ar" and "nelbo".
        gears: Objectives by name.
        context: T.

    Returns:
        Procedure by mode: the same name, but for the mode "nelbo", which may be a block model's "nelbo(16)".

    Raises:
        RecipeError: No gear can be scored so.
    """
    offered = [mode for gear in reversed(gears) for mode in component_of("objective", gear).modes(context)]
    bounds = [mode for mode in offered if mode.startswith("nelbo")]
    known = {mode: mode for mode in ("ar", "l2r") if mode in offered}
    if bounds:
        known["nelbo"] = "nelbo" if "nelbo" in bounds else bounds[0]
    wanted = ("ar", "nelbo") if target == "best" else (target,)
    modes = {mode: known[mode] for mode in wanted if mode in known}
    if not modes:
        have = ", ".join(known) or "none"
        raise RecipeError(
            f"controller.target: no gear of {', '.join(gears)} can be scored by '{target}' (modes: {have})"
        )
    return modes


def draw_windows(tokens_U: NDArray[np.integer], count: int, context: int, rng: np.random.Generator) -> Ints:
    """Draw windows of packed text, disjoint as far as the text reaches, from a cyclic cut at a random place.

    Args:
        tokens_U: The packed text.
        count: Windows to draw.
        context: T.
        rng: Random numbers.

    Returns:
        Token ids [count, T].
    """
    offset, whole = int(rng.integers(len(tokens_U))), max(1, len(tokens_U) // context)
    number_W = rng.choice(whole, count, replace=count > whole)
    index_WT = (offset + number_W[:, None] * context + np.arange(context)) % len(tokens_U)
    return tokens_U[index_WT].astype(np.int64)


@contextmanager
def undisturbed(model: Backbone) -> Iterator[None]:
    """Lend the model without dropout, compiled pieces and gradients, and put everything back.

    Evaluation mode would make compiled pieces compile again, so probes run the plain ones.

    Args:
        model: The model in training.

    Yields:
        Nothing.
    """
    training, pieces = model.training, model.pieces
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    model.eval()
    if pieces is not None:
        model.pieces = Pieces(checkpointed=pieces.checkpointed)
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        model.train(training)
        model.pieces = pieces
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
