"""What forward passes of samplers cost, in useful FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from crossover.model.backbone import Backbone
from crossover.model.shapes import Shape, Workload, forward_flops, live_entries
from crossover.records import Pattern


@dataclass(frozen=True)
class Prices:
    """FLOPs of a model's passes; the head counts predictable ids at the places that are read.

    Args:
        shape: The backbone.
        head_rows: Rows of the head.
    """

    shape: Shape
    head_rows: int

    @classmethod
    def of(cls, model: Backbone) -> Prices:
        """Take a model's shape and the rows of its head."""
        return cls(model.shape, model.vocabulary.predictable)

    def window(self, inputs: int, reads: int) -> float:
        """Count a pass over a whole window in which every input sees every input.

        Args:
            inputs: N.
            reads: States that the head reads.

        Returns:
            FLOPs.
        """
        return self._flops(Workload(inputs, reads, inputs * inputs, reads * inputs))

    def next_tokens(self, new: int, before: int, reads: int = 1) -> float:
        """Count a pass over new inputs of a causal stream whose keys and values before them are kept.

        Args:
            new: Inputs.
            before: Inputs before them.
            reads: States that the head reads, the last ones.

        Returns:
            FLOPs.
        """
        entries = new * before + live_entries(Pattern("causal"), new)
        return self._flops(Workload(new, reads, entries, reads * (before + new) - reads * (reads - 1) / 2))

    def block(self, clean: Pattern, new: int, before: int, noisy: int, reads: int) -> float:
        """Count a pass over new clean inputs and a noisy block behind kept keys and values.

        Args:
            clean: How the clean stream sees itself.
            new: New clean inputs, whole blocks.
            before: Clean inputs before them.
            noisy: Inputs of the noisy block, which see everything.
            reads: Its states that the head reads.

        Returns:
            FLOPs.
        """
        seen = before + new + noisy
        entries = new * before + live_entries(clean, new) + noisy * seen
        return self._flops(Workload(new + noisy, reads, entries, reads * seen))

    def _flops(self, work: Workload) -> float:
        return forward_flops(self.shape, work, head_rows=self.head_rows)
