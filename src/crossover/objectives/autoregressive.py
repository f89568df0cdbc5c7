"""Next-token prediction, with the regularisers and ablations that a fair comparison needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossover.model.shapes import Workload, live_entries
from crossover.objectives.windows import Ints, documents_of, with_bos
from crossover.records import Example, Pattern, Vocabulary
from crossover.registry import register
from crossover.streams import stream


@register("objective", "autoregressive")
@dataclass(frozen=True)
class Autoregressive:
    """Causal attention, clean targets: the exact negative log-likelihood when no option is set.

    Args:
        input_mask_rate: Share of input tokens hidden from the model; targets stay all tokens.
        rate: "fixed" uses that share, "uniform" draws it per window from [0, input_mask_rate].
        masked_input_weight: Weight of a second pass with masked inputs beside the clean one (MIR, arXiv 2606.06888:
            0.4 with rates U[0, 0.5]); 0 puts the masks on the only pass.
        orders: Train on this many fixed token orders, the first of them left to right (arXiv 2507.15857, section 5):
            order i sorts positions after adding normal noise of standard deviation i; positions stay with tokens.
    """

    input_mask_rate: float = 0.0
    rate: Literal["fixed", "uniform"] = "fixed"
    masked_input_weight: float = 0.0
    orders: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.input_mask_rate < 1:
            raise ValueError(f"input_mask_rate must lie in [0, 1), not {self.input_mask_rate}")
        if self.input_mask_rate == 0 and (self.masked_input_weight or self.rate != "fixed"):
            raise ValueError("rate and masked_input_weight have no effect without input_mask_rate")
        if self.masked_input_weight < 0:
            raise ValueError(f"masked_input_weight must not be negative, not {self.masked_input_weight}")
        if self.orders < 1:
            raise ValueError(f"orders must be at least 1, not {self.orders}")

    def corrupt(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Shift by one, hide inputs and permute as the options say.

        Args:
            tokens_BT: Data tokens.
            rng: The slice's stream.
            vocabulary: Special ids.

        Returns:
            T inputs a window, every state read.
        """
        windows, context = tokens_BT.shape
        whole = with_bos(tokens_BT, vocabulary)
        order_BN = self._orders(context, rng, windows)
        permuted = np.take_along_axis(whole, order_BN, 1)
        inputs, targets, positions = permuted[:, :-1], permuted[:, 1:], order_BN[:, :-1]
        documents = documents_of(whole, vocabulary)
        if documents is not None and self.orders > 1:
            raise ValueError("orders above 1 need data.attend_across_documents; borders show what is not read yet")
        if documents is not None:
            documents = np.take_along_axis(documents, order_BN, 1)[:, :-1]
        weights = np.ones(targets.shape, np.float32)
        noisy = self._hide(inputs, rng, vocabulary)
        if self.masked_input_weight > 0:
            inputs, weights = np.concatenate([inputs, noisy]), np.concatenate([weights, weights])
            weights[windows:] *= self.masked_input_weight
            targets, positions = np.concatenate([targets, targets]), np.concatenate([positions, positions])
            documents = None if documents is None else np.concatenate([documents, documents])
        else:
            inputs = noisy
        return Example(
            inputs, positions, Pattern("causal"), None, targets.ravel(), weights.ravel(), tokens_BT.size, documents
        )

    def workload(self, context: int) -> Workload:
        """Say what one window asks of the model: T inputs, all read; twice that with a second pass."""
        passes = 2 if self.masked_input_weight > 0 else 1
        entries = live_entries(Pattern("causal"), context)
        return Workload(passes * context, passes * context, passes * entries)

    def modes(self, context: int) -> tuple[str, ...]:
        """Name the procedures that a model trained so can be scored by."""
        return ("ar",)

    def _hide(self, inputs_BN: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Ints:
        if self.input_mask_rate == 0:
            return inputs_BN
        rates = np.full((len(inputs_BN), 1), self.input_mask_rate)
        if self.rate == "uniform":
            rates = rates * rng.random((len(inputs_BN), 1))
        hidden = (rng.random(inputs_BN.shape) < rates) & (inputs_BN != vocabulary.bos_id)
        return np.where(hidden, vocabulary.mask_id, inputs_BN)

    def _orders(self, context: int, rng: np.random.Generator, windows: int) -> Ints:
        natural = np.arange(context + 1)
        if self.orders == 1:
            return np.broadcast_to(natural, (windows, context + 1))
        fixed = [natural]
        for index in range(1, self.orders):
            # Fixed for all runs: an order is part of the objective, not of a run's randomness.
            noise = stream(0, "orders", context, index).normal(0.0, index, context)
            fixed.append(np.concatenate([[0], 1 + np.argsort(np.arange(context) + noise, kind="stable")]))
        return np.stack(fixed)[rng.integers(0, self.orders, windows)]
