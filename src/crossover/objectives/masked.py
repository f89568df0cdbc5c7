"""Masked diffusion: any subset of a window predicts the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from crossover.model.shapes import Workload, live_entries
from crossover.objectives.schedules import FrequencyInformed, Linear
from crossover.objectives.windows import (
    Floats,
    Ints,
    Mask,
    Masks,
    documents_of,
    exact_masks,
    pad_reads,
    strata,
    with_bos,
)
from crossover.records import Example, Pattern, Vocabulary
from crossover.registry import Component, register
from crossover.streams import stream

# Reads of a Bernoulli mask are padded up to a multiple of this share of the tokens, so that shapes recur.
BUCKETS = 16


@register("objective", "masked")
@dataclass(frozen=True)
class Masked:
    """Masked diffusion with full attention (MDLM, arXiv 2406.07524); a bound for `is_bound` schedules.

    State i predicts token i + 1; BOS is never masked. With `count: exact`, l is uniform on 1..T, exactly l tokens are
    hidden and weigh T / l, which has the expectation of `bernoulli` with any bound schedule and less variance.

    Args:
        count: "exact" draws the number of masked tokens, "bernoulli" draws time t and masks each token alone.
        noise: Schedule of `bernoulli`; must stay `linear` with `exact`.
        eps: Smallest t of `bernoulli`; t is stratified over (eps, 1].
        suffix_share: Share of windows whose mask is a suffix, so that left-to-right scoring is in distribution.
        attention: "full", or "causal" for the ablation that only changes the inputs.
        masks: 0 draws a fresh mask each time. k keeps k fixed masks of the whole text, and a window gets one of them by
            lot each time (the ablation of "fresh masks are augmentation"). A fixed mask cuts the text into pieces of T
            tokens, draws l for each piece and hides l of its tokens with weight T / l; a token is hidden or not by
            its place in the text alone, wherever an epoch's windows begin. A window thus holds parts of two pieces
            with counts of their own, and tokens that no mask hides are never a target: training-only, no bound.
    """

    count: Literal["exact", "bernoulli"] = "exact"
    noise: Annotated[Any, Component("noise")] = Linear()
    eps: float = 1e-3
    suffix_share: float = 0.0
    attention: Literal["full", "causal"] = "full"
    masks: int = 0

    def __post_init__(self) -> None:
        if self.masks < 0 or (self.masks and (self.count != "exact" or self.suffix_share)):
            raise ValueError("masks must not be negative, and fixed masks need count=exact and suffix_share=0")
        if self.count == "exact" and (self.noise != Linear() or self.eps != 1e-3):
            raise ValueError("noise and eps have no effect with count=exact; set count=bernoulli")
        if not 0 <= self.eps < 1 or not 0 <= self.suffix_share <= 1:
            raise ValueError("eps must lie in [0, 1) and suffix_share in [0, 1]")

    @property
    def is_bound(self) -> bool:
        """Whether the expected loss bounds the negative log-likelihood."""
        # A visible prefix predicts all hidden tokens alike, which no order of unmasking adds up to.
        fresh = self.suffix_share == 0 and self.masks == 0
        return fresh and (self.count == "exact" or (self.noise.is_bound and self.eps == 0))

    @property
    def needs_places(self) -> bool:
        """Whether a step must say where in the text its tokens lie: `corrupt_at` is called, not `corrupt`."""
        return self.masks > 0

    def corrupt(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Hide tokens and read the states just before them.

        Args:
            tokens_BT: Data tokens; where they lie is not known, so that fixed masks are drawn fresh here.
            rng: The slice's stream.
            vocabulary: Special ids and rarity.

        Returns:
            T + 1 inputs a window, the states before hidden tokens read.
        """
        masks = self._masks(tokens_BT, rng, vocabulary)
        hidden = self._as_suffixes(masks.hidden_KS, rng)
        weights_BT = np.broadcast_to(masks.weights_K[:, None], hidden.shape)
        return pad_reads(self._example(tokens_BT, hidden, weights_BT, vocabulary), masks.reads)

    def corrupt_at(self, tokens_BT: Ints, places_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Hide the tokens that one of the fixed masks hides; which one is drawn for each window.

        Args:
            tokens_BT: Data tokens.
            places_BT: Where in the training text they lie.
            rng: The slice's stream.
            vocabulary: Special ids.

        Returns:
            T + 1 inputs a window, the states before hidden tokens read.
        """
        hidden, weights = np.zeros(tokens_BT.shape, bool), np.zeros(tokens_BT.shape)
        for row, index in enumerate(rng.integers(0, self.masks, len(tokens_BT))):
            hidden[row], weights[row] = fixed_mask(int(index), places_BT[row])
        bucket = max(1, tokens_BT.size // BUCKETS)
        example = self._example(tokens_BT, hidden, weights, vocabulary)
        return pad_reads(example, max(1, -(-int(hidden.sum()) // bucket)) * bucket)

    def _example(self, tokens_BT: Ints, hidden: Mask, weights_BT: Floats, vocabulary: Vocabulary) -> Example:
        context = tokens_BT.shape[1]
        whole = with_bos(tokens_BT, vocabulary)
        inputs = np.where(np.pad(hidden, ((0, 0), (1, 0))), vocabulary.mask_id, whole)
        row, column = np.nonzero(hidden)
        return Example(
            inputs_BN=inputs,
            positions_BN=np.broadcast_to(np.arange(context + 1), inputs.shape),
            pattern=Pattern("causal" if self.attention == "causal" else "full"),
            reads_R=row * (context + 1) + column,
            targets_R=tokens_BT[row, column],
            weights_R=weights_BT[row, column].astype(np.float32),
            data_tokens=tokens_BT.size,
            documents_BN=documents_of(inputs, vocabulary),
        )

    def workload(self, context: int) -> Workload:
        """Say what one window asks of the model: T + 1 inputs, the expected number of hidden tokens read."""
        pattern = Pattern("causal" if self.attention == "causal" else "full")
        reads = (context + 1) / 2
        if self.count == "bernoulli":
            times = (np.arange(10_000) + 0.5) / 10_000 * (1 - self.eps) + self.eps
            reads = float(context * np.mean(1 - self.noise.alpha(times)))
        # States 0 to T - 1 are read alike often; the last one, which predicts nothing, never.
        entries, inputs = live_entries(pattern, context + 1), context + 1
        return Workload(inputs, reads, entries, reads / context * (entries - inputs))

    def modes(self, context: int) -> tuple[str, ...]:
        """Name the procedures that a model trained so can be scored by."""
        return ("nelbo", "l2r") if self.attention == "full" else ("ar",)

    def _masks(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Masks:
        windows, context = tokens_BT.shape
        if self.count == "exact":
            return exact_masks(windows, context, rng)
        t_B = self.eps + (1 - self.eps) * strata(windows, rng)
        rates = np.broadcast_to(1 - self.noise.alpha(t_B)[:, None], tokens_BT.shape)
        if isinstance(self.noise, FrequencyInformed):
            if vocabulary.rarity_V is None:
                raise ValueError("noise 'frequency' needs token counts, and this text has none")
            rates = self.noise.rates_BT(t_B, vocabulary.rarity_V[tokens_BT])
        hidden = rng.random(tokens_BT.shape) < rates
        bucket = max(1, tokens_BT.size // BUCKETS)
        return Masks(hidden, self.noise.weight(t_B), max(1, -(-int(hidden.sum()) // bucket)) * bucket)

    def _as_suffixes(self, hidden_BT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.suffix_share == 0:
            return hidden_BT
        suffix = rng.random(len(hidden_BT)) < self.suffix_share
        # The same number of hidden tokens, moved to the end: weights and reads stay as they are.
        return np.where(suffix[:, None], np.sort(hidden_BT, axis=1), hidden_BT)


def fixed_mask(index: int, places_T: Ints) -> tuple[Mask, Floats]:
    """Say which tokens of a window a fixed mask of the text hides, and what they weigh.

    Args:
        index: Which of the fixed masks.
        places_T: Where in the training text the window's tokens lie, in the order of the window.

    Returns:
        True for hidden tokens [T], and T / l of the piece that each token lies in [T].
    """
    size = len(places_T)
    hidden_T, weights_T = np.zeros(size, bool), np.ones(size)
    piece_T, inside_T = np.divmod(places_T, size)
    for piece in np.unique(piece_T):
        # Fixed for all runs, as fixed orders are: a mask is part of the objective, not of a run's randomness.
        rng = stream(0, "fixed mask", size, index, int(piece))
        count, order_T = int(rng.integers(1, size + 1)), rng.permutation(size)
        here_T = piece_T == piece
        hidden_T[here_T] = order_T[inside_T[here_T]] < count
        weights_T[here_T] = size / count
    return hidden_T, weights_T
