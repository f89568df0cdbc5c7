"""Scoring during a run and at its end: dev text for choosing, test text for reading the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from crossover.data.shards import PreparedText
from crossover.model.backbone import Backbone
from crossover.model.shapes import Shape, Workload, forward_flops, live_entries
from crossover.recipe import Recipe
from crossover.records import ScoreCard
from crossover.scoring.cost import cost_of
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import Procedure, Rows, procedure_of
from crossover.scoring.windows import ScoringWindows, held_out


@dataclass
class Evaluator:
    """Scores a run's model; rows of an evaluation are made once and used every time.

    Args:
        recipe: The run's recipe.
        text: Its prepared text.
        shape: Its model's shape, for counting FLOPs.
        modes: Procedures that the run can be scored by.
        precision: Compute precision.
    """

    recipe: Recipe
    text: PreparedText
    shape: Shape
    modes: tuple[str, ...]
    precision: str
    _rows: dict[str, list[Rows]] = field(default_factory=dict)
    _windows: dict[tuple[str, int], ScoringWindows] = field(default_factory=dict)

    @cached_property
    def every_tokens(self) -> int:
        """Data tokens between evaluations: what the recipe says, else what the run can afford."""
        return self.recipe.scoring.every_tokens or cost_of(self.recipe, self.text).interval_tokens

    def dev(self, model: Backbone) -> tuple[dict[str, ScoreCard], float]:
        """Score the dev text by every mode that is affordable during training.

        Args:
            model: The model as it is.

        Returns:
            Cards by procedure, and the FLOPs that this took.
        """
        scoring = self.recipe.scoring
        windows = self._cut("dev", scoring.dev_windows)
        cards, flops = {}, 0.0
        for name in self.modes:
            if name == "l2r" and scoring.dev_positions == 0:
                continue
            procedure = procedure_of(name, draws=scoring.dev_draws, positions=scoring.dev_positions)
            if name not in self._rows:
                self._rows[name] = list(procedure.rows(windows, model.vocabulary))
            cards[name] = score(
                model, windows, procedure, precision=self.precision, rows=self._rows[name], conditions=self._facts()
            )
            flops += sum(self._flops(rows) for rows in self._rows[name])
        return cards, flops

    def check(self) -> None:
        """Cut all text that will be scored, so that too little of it is known before training and not after it.

        Raises:
            DataError: There is too little dev or test text.
        """
        scoring = self.recipe.scoring
        self._cut("dev", scoring.dev_windows)
        self._cut("dev", scoring.test_windows)
        self._cut("test", scoring.test_windows)

    def final(
        self, model: Backbone, split: Literal["dev", "test"], name: str, checkpoint: Mapping[str, Any]
    ) -> ScoreCard:
        """Score a text finely, once.

        Args:
            model: The weights to score.
            split: "dev" or "test".
            name: Procedure.
            checkpoint: What identifies the weights, for the card.

        Returns:
            The card.
        """
        scoring = self.recipe.scoring
        procedure: Procedure = procedure_of(name, draws=scoring.test_draws, positions=scoring.test_positions)
        return score(
            model,
            self._cut(split, scoring.test_windows),
            procedure,
            precision=self.precision,
            conditions={**self._facts(), **checkpoint, "split": split},
        )

    def _cut(self, split: Literal["dev", "test"], limit: int) -> ScoringWindows:
        if (split, limit) not in self._windows:
            self._windows[split, limit] = held_out(self.text, split, self.recipe.data.context, limit)
        return self._windows[split, limit]

    def _facts(self) -> dict[str, Any]:
        return {
            "weights": self.recipe.scoring.weights,
            "tokenizer_hash": self.text.tokenizer.hash,
            "data_hash": self.text.data_hash,
        }

    def _flops(self, rows: Rows) -> float:
        count, inputs = rows.inputs_QN.shape
        work = Workload(inputs, len(rows.reads_R) / count, live_entries(rows.pattern, inputs))
        return count * forward_flops(self.shape, work, head_rows=self.text.vocabulary.predictable)


def eval_row(card: ScoreCard, clock: Mapping[str, Any]) -> dict[str, Any]:
    """Write a dev card as one line of evals.jsonl."""
    return {**clock, "split": "dev", **{key: value for key, value in asdict(card).items() if key != "conditions"}}


@contextmanager
def swapped(model: Backbone, averaged: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Score with averaged weights, when that is declared, and put the raw ones back.

    Args:
        model: The model.
        averaged: Averaged weights by parameter name, or None to score the raw ones.

    Yields:
        Nothing.
    """
    if averaged is None:
        yield
        return
    named = dict(model.inner.named_parameters())
    raw = {name: parameter.detach().clone() for name, parameter in named.items()}
    _copy(named, averaged)
    try:
        yield
    finally:
        _copy(named, raw)


@torch.no_grad()
def _copy(named: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in named.items():
        parameter.copy_(values[name])


def improves(best: Mapping[str, Mapping[str, float]], name: str, card: ScoreCard) -> bool:
    """Say whether a dev score is the best so far under its procedure."""
    return name not in best or card.bits_per_byte < best[name]["bits_per_byte"]
