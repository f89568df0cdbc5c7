"""Probes in turn, as far as their credit reaches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from crossover.data.shards import PreparedText
from crossover.errors import RecipeError, nearest
from crossover.model.shapes import Shape
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.mixing import micro_batches
from crossover.records import Example, Watching
from crossover.training.probes.bench import Bench, Now, Probe
from crossover.training.probes.clip import ClipProbe, takes_clip
from crossover.training.probes.gradients import GradientProbe
from crossover.training.probes.losses import LossProbe, means
from crossover.training.probes.novelty import Novelty
from crossover.training.step import Stepper

KINDS = ("loss", "gradient", "novelty", "clip")
# Parts of an epoch between two rows of a kind, at least; every so many turns are for clip windows.
LOSS_EPOCHS, NOVELTY_EPOCHS = 1 / 4, 1 / 2
CLIP_TURNS = 8
# Loss probes from one gradient probe to the next.
LOSSES_BETWEEN = 2
# Loss probes of which one scores training text and all modes of the target.
LOSSES_PER_WHOLE = 6
# How many probes there were, the data tokens at the last row of each kind, the newest held-out loss of each mode.
Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Prober:
    """Measures what signals read, one probe at a time.

    Args:
        stepper: The run's step.
        cycle: Probes that take turns.
        clips: Probes of clip windows, which take every eighth turn.
        novelty: Contexts seen so far, or None when nobody asks.
    """

    stepper: Stepper
    cycle: tuple[Probe, ...]
    clips: tuple[Probe, ...]
    novelty: Novelty | None

    def observe(
        self, step: int, kinds: tuple[str, ...], examples: Mapping[tuple[int, ...], Example] | None = None
    ) -> None:
        """Note the contexts in which a step's tokens were targets.

        Args:
            step: The step, as it was given to `Stepper.run`.
            kinds: Objective of each slice.
            examples: Example of each micro-batch by its slices, where they are at hand; else they are made again.
        """
        if self.novelty is None:
            return
        stepper, mask_id = self.stepper, self.stepper.vocabulary.mask_id
        for kind, slices in micro_batches(kinds, stepper.micro_batch_slices):
            if isinstance(stepper.objectives[kind], Autoregressive):
                # All tokens are targets from the left, whatever inputs are hidden.
                example = None
            else:
                example = stepper.example(step, kind, slices) if examples is None else examples[slices]
            index_BT = np.concatenate([stepper.loader.batch_indices(step, index) for index in slices])
            self.novelty.mark(index_BT, example, mask_id)

    def take(
        self, turn: Turn, credit_flops: float, clock: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
        """Make at most one probe, the next in turn, if it is due and can be paid.

        Args:
            turn: Where the round stands, {} at the start of a run.
            credit_flops: What may be spent now.
            clock: The run's clock; "step", "data_tokens" and "mix" of it are read.

        Returns:
            Rows without their clock, where the round stands now (JSON values), and the FLOPs spent.
        """
        tokens = clock["data_tokens"]
        number, last, losses = turn.get("number", 0), dict(turn.get("last", {})), dict(turn.get("losses", {}))
        rows: list[dict[str, Any]] = []
        probe, spent = self._next(number), 0.0
        now = Now(clock["step"], tuple(clock["mix"]), losses)
        due = probe is not None and (probe.kind not in last or tokens - last[probe.kind] >= probe.every_tokens)
        if probe is not None and due and probe.cost(now) <= credit_flops:
            rows.append(_measure(probe, now))
            spent = rows[0]["flops"]
            number, last[probe.kind] = number + 1, tokens
            losses = {**losses, **means(rows[0])} if probe.kind == "loss" else losses
        waited = tokens - last.get("novelty", 0) >= NOVELTY_EPOCHS * len(self.stepper.loader.tokens_U)
        if self.novelty is not None and (waited or any(row["probe"] == "loss" for row in rows)):
            rows.append(self.novelty.row())
            last["novelty"] = tokens
        return rows, {"number": number, "last": last, "losses": losses}, spent

    def tensors(self) -> dict[str, Tensor]:
        """Give what a checkpoint must hold besides the turn; empty when novelty is not looked at."""
        return {} if self.novelty is None else self.novelty.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what a checkpoint holds.

        Args:
            tensors: What `tensors` gave.

        Raises:
            CheckpointError: They are of another text.
        """
        if self.novelty is not None:
            self.novelty.restore(tensors)

    def _next(self, number: int) -> Probe | None:
        """Name the probe of a turn: every eighth is for clip windows, the others go round."""
        rounds, place = divmod(number, CLIP_TURNS)
        if self.clips and (place == CLIP_TURNS - 1 or not self.cycle):
            return self.clips[(rounds if self.cycle else number) % len(self.clips)]
        others = number - rounds if self.clips else number
        return self.cycle[others % len(self.cycle)] if self.cycle else None


def _measure(probe: Probe, now: Now) -> dict[str, Any]:
    began = time.monotonic()
    measured = probe.measure(now)
    seconds = round(time.monotonic() - began, 3)
    return {"probe": probe.kind, **measured, "flops": probe.cost(now), "seconds_spent": seconds}


def build_prober(
    text: PreparedText,
    shape: Shape,
    stepper: Stepper,
    flops_per_token: Mapping[str, float],
    watching: Watching,
    kinds: frozenset[str],
) -> Prober:
    """Build the probes that a controller's signals need.

    Args:
        text: The run's text.
        shape: Its model's shape.
        stepper: Its step.
        flops_per_token: Useful training FLOPs of a data token under every gear.
        watching: What the controller wants to be told.
        kinds: Kinds of probes that its signals read: "loss", "gradient", "novelty", "clip".

    Returns:
        The prober.

    Raises:
        RecipeError: A kind of probe does not exist, or no gear can be scored by the target.
        DataError: There is too little control text.
    """
    for kind in sorted(kinds - set(KINDS)):
        raise RecipeError(f"controller: a signal needs a probe '{kind}', which does not exist; {nearest(kind, KINDS)}")
    bench = Bench(text, shape, stepper, watching, flops_per_token)
    wait_tokens = LOSS_EPOCHS * len(stepper.loader.tokens_U)
    losses = [LossProbe(bench, wait_tokens), LossProbe(bench, wait_tokens, whole=False)] if "loss" in kinds else []
    gradients = [GradientProbe(bench, gear) for gear in watching.gears] if "gradient" in kinds else []
    for probe in (*losses, *gradients):
        # Too little text is known before the first step, not after it.
        probe.cost(Now(0, watching.gears, {}))
    blocks = [gear for gear in watching.gears if takes_clip(bench.objective(gear), bench.context)]
    clips = [ClipProbe(bench, gear, wait_tokens) for gear in blocks] if "clip" in kinds else []
    cycle = _cycle(losses, gradients)
    novelty = Novelty(stepper.loader, stepper.vocabulary.size) if "novelty" in kinds else None
    return Prober(stepper, cycle, tuple(clips), novelty)


def _cycle(losses: Sequence[Probe], gradients: Sequence[Probe]) -> tuple[Probe, ...]:
    """Put the probes in turn: two losses between gradients, one loss in six whole, since a slope needs many rows."""
    if not losses:
        return tuple(gradients)
    whole, light = losses
    turns = [whole if index % LOSSES_PER_WHOLE == 0 else light for index in range(_turns(len(gradients)))]
    cycle: list[Probe] = []
    for index, probe in enumerate(turns):
        cycle.append(probe)
        if gradients and index % LOSSES_BETWEEN == LOSSES_BETWEEN - 1:
            cycle.append(gradients[index // LOSSES_BETWEEN % len(gradients)])
    return tuple(cycle)


def _turns(gradients: int) -> int:
    """Count the loss probes of a cycle: every gradient has its turn, and so has the whole row, equally often."""
    return math.lcm(LOSSES_PER_WHOLE, LOSSES_BETWEEN * max(1, gradients))
