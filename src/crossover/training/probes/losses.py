"""Held-out loss and the loss of training text, unit by unit, on the same windows and masks every time.

Suffixes: U tokens of a text, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import DataError
from crossover.scoring.cost import score_flops
from crossover.scoring.likelihood import window_nats
from crossover.scoring.procedures import Procedure, Rows, procedure_of
from crossover.scoring.windows import ScoringWindows, cut
from crossover.streams import stream
from crossover.training.probes.bench import Bench, Now

WINDOWS = 64
DRAWS, POSITIONS = 2, 4


@dataclass(frozen=True)
class LossProbe:
    """Scores control text and as much training text, in the modes that the target needs.

    Both are cut alike, document by document. The training text is a stretch as long as the control part, or longer
    until it has as many windows, from a place drawn once: the control part too is one stretch.

    Args:
        bench: What probes work with.
        every_tokens: Fewest data tokens between two rows: the same weights twice would be a waste.
        whole: Whether training text and all modes of the target are scored, or control text alone in the modes that
            are trained now: the slope of a loss needs many rows, the gap and the other modes few.
    """

    bench: Bench
    every_tokens: float
    whole: bool = True
    kind = "loss"

    @cached_property
    def control(self) -> ScoringWindows:
        """Windows of the control text.

        Raises:
            DataError: There are fewer than two.
        """
        documents = [document.tokens for document in self.bench.text.control_documents()]
        try:
            return self._cut(documents, WINDOWS, "control")
        except DataError as error:
            raise DataError(f"data.control_share: {error}; raise it, give more text, or lower data.context") from None

    @cached_property
    def train(self) -> ScoringWindows:
        """Windows of the training text, as many as the control text's where there are so many."""
        tokens_U, wanted = self.bench.loader.tokens_U, len(self.control)
        start = int(stream(0, "probe train windows").integers(len(tokens_U)))
        length = len(self.bench.control_U)
        while True:
            length = min(length, len(tokens_U))
            # The stretch begins anew at the start of the text, so that every place is drawn alike.
            index_U = (start + np.arange(length)) % len(tokens_U)
            documents = self._documents(tokens_U[index_U].astype(np.int64))
            pieces = sum(-(-len(document) // self.bench.context) for document in documents)
            if pieces >= wanted or length == len(tokens_U):
                return self._cut(documents, wanted, "train")
            length *= 2

    def cost(self, now: Now) -> float:
        """Count the FLOPs of a row in closed form."""
        rows, context = self.bench.vocabulary.predictable, self.bench.context
        return sum(
            score_flops(self.bench.shape, rows, windows.lengths_W, context, name, DRAWS, POSITIONS)
            for name in (self.bench.modes[mode] for mode in self.modes(now.mix))
            for windows in ((self.control, self.train) if self.whole else (self.control,))
        )

    def modes(self, mix: Sequence[str]) -> tuple[str, ...]:
        """List the modes of the target that a row has under a mix."""
        if self.whole:
            return tuple(self.bench.modes)
        trained = {mode for name in mix for mode in self.bench.objective(name).modes(self.bench.context)}
        used = tuple(mode for mode, procedure in self.bench.modes.items() if procedure in trained)
        return used or tuple(self.bench.modes)

    def measure(self, now: Now) -> dict[str, Any]:
        """Score every window in every mode."""
        parts = {"control": self.control, "train": self.train} if self.whole else {"control": self.control}
        measured: dict[str, dict[str, list[float]]] = {part: {} for part in parts}
        for mode in self.modes(now.mix):
            for part, windows in parts.items():
                procedure, rows = self._rows[mode, part]
                nats_W = window_nats(self.bench.model, windows, procedure, precision=self.bench.precision, rows=rows)
                measured[part][mode] = (nats_W / windows.lengths_W).tolist()
        return {
            "units": [f"w{index}" for index in range(len(self.control))],
            "unit_tokens": self.control.lengths_W.tolist(),
            **({"train_unit_tokens": self.train.lengths_W.tolist()} if self.whole else {}),
            **measured,
        }

    @cached_property
    def _rows(self) -> dict[tuple[str, str], tuple[Procedure, list[Rows]]]:
        made = {}
        for mode, name in self.bench.modes.items():
            procedure = procedure_of(name, draws=DRAWS, positions=POSITIONS)
            for part, windows in (("control", self.control), ("train", self.train)):
                made[mode, part] = procedure, list(procedure.rows(windows, self.bench.vocabulary))
        return made

    def _cut(self, documents: list[NDArray[np.int64]], limit: int, split: str) -> ScoringWindows:
        return cut(documents, self.bench.text.tokenizer.document_bytes, self.bench.context, limit, split)

    def _documents(self, tokens_U: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        ends = np.flatnonzero(tokens_U == self.bench.vocabulary.eos_id) + 1
        return [document for document in np.split(tokens_U, ends) if len(document)]


def means(row: Mapping[str, Any]) -> dict[str, float]:
    """Give the held-out loss of each mode of a row, nats per token."""
    return {mode: float(np.average(values, weights=row["unit_tokens"])) for mode, values in row["control"].items()}
