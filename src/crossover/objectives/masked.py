"""Masked diffusion: any subset of a window predicts the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from crossover.model.shapes import Workload, live_entries
from crossover.objectives.schedules import FrequencyInformed, Linear
from crossover.objectives.windows import Ints, Masks, documents_of, exact_masks, pad_reads, strata, with_bos
from crossover.records import Example, Pattern, Vocabulary
from crossover.registry import Component, register

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
    """

    count: Literal["exact", "bernoulli"] = "exact"
    noise: Annotated[Any, Component("noise")] = Linear()
    eps: float = 1e-3
    suffix_share: float = 0.0
    attention: Literal["full", "causal"] = "full"

    def __post_init__(self) -> None:
        if self.count == "exact" and (self.noise != Linear() or self.eps != 1e-3):
            raise ValueError("noise and eps have no effect with count=exact; set count=bernoulli")
        if not 0 <= self.eps < 1 or not 0 <= self.suffix_share <= 1:
            raise ValueError("eps must lie in [0, 1) and suffix_share in [0, 1]")

    @property
    def is_bound(self) -> bool:
        """Whether the expected loss bounds the negative log-likelihood."""
        # A visible prefix predicts all hidden tokens alike, which no order of unmasking adds up to.
        return self.suffix_share == 0 and (self.count == "exact" or (self.noise.is_bound and self.eps == 0))

    def corrupt(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Hide tokens and read the states just before them.

        Args:
            tokens_BT: Data tokens.
            rng: The slice's stream.
            vocabulary: Special ids and rarity.

        Returns:
            T + 1 inputs a window, the states before hidden tokens read.
        """
        context = tokens_BT.shape[1]
        masks = self._masks(tokens_BT, rng, vocabulary)
        hidden = self._as_suffixes(masks.hidden_KS, rng)
        whole = with_bos(tokens_BT, vocabulary)
        inputs = np.where(np.pad(hidden, ((0, 0), (1, 0))), vocabulary.mask_id, whole)
        row, column = np.nonzero(hidden)
        example = Example(
            inputs_BN=inputs,
            positions_BN=np.broadcast_to(np.arange(context + 1), inputs.shape),
            pattern=Pattern("causal" if self.attention == "causal" else "full"),
            reads_R=row * (context + 1) + column,
            targets_R=tokens_BT[row, column],
            weights_R=masks.weights_K[row].astype(np.float32),
            data_tokens=tokens_BT.size,
            documents_BN=documents_of(inputs, vocabulary),
        )
        return pad_reads(example, masks.reads)

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
