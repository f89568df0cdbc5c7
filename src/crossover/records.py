"""The frozen records that cross borders between rooms; no torch, no behaviour beyond what the fields mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: B sequences, T data tokens a window, N input positions, R states that are read, V vocabulary.


@dataclass(frozen=True)
class Vocabulary:
    """What an objective or a scorer has to know of a tokenizer.

    Args:
        size: Rows of the embedding, special pieces and padding included.
        predictable: Ids below this may be predicted; the mask (and any padding) lies at or above it.
        bos_id: Begins every window; never masked, never scored.
        eos_id: Ends every document; scored, counts zero bytes.
        mask_id: Stands for a hidden token; excluded from every loss, score and sample.
        rarity_V: Rank-normalised rarity in [0, 1] of each id in the training text (1 is rarest), or None.
        separate_documents: Whether attention stops at document borders.
    """

    size: int
    predictable: int
    bos_id: int
    eos_id: int
    mask_id: int
    rarity_V: NDArray[np.float32] | None = None
    separate_documents: bool = False


@dataclass(frozen=True)
class Pattern:
    """Which input may see which: one predicate that every attention back end must equal.

    Args:
        kind: "causal", "full", "block_causal" or "two_stream".
        block: Data tokens in a block (block_causal and two_stream only, else 0).
        clean: Inputs of the clean stream, which come first (two_stream only, else 0).
        clean_kind: How the clean stream sees itself, "block_causal" or "causal" (two_stream only).
    """

    kind: str
    block: int = 0
    clean: int = 0
    clean_kind: str = "block_causal"


@dataclass(frozen=True)
class Example:
    """A batch after an objective has transformed it: all that the one model and the one loss need.

    Args:
        inputs_BN: Token ids that go in.
        positions_BN: Rotary position of each input.
        pattern: Who sees whom.
        reads_R: Flat indices into B*N of the states that the head reads, or None for all of them in order.
        targets_R: The id that each read state should predict.
        weights_R: Loss weight of each read state; 0 marks padding that keeps shapes static.
        data_tokens: Tokens of text that this example stands for (the loss's unit).
        documents_BN: Document number of each input, -1 for one that all may see, or None for no borders.
    """

    inputs_BN: NDArray[np.int64]
    positions_BN: NDArray[np.int64]
    pattern: Pattern
    reads_R: NDArray[np.int64] | None
    targets_R: NDArray[np.int64]
    weights_R: NDArray[np.float32]
    data_tokens: int
    documents_BN: NDArray[np.int64] | None = None

    @property
    def first_read(self) -> int:
        """The input before which no state is read, at the grain of streams: 0, or the noisy stream's first input."""
        if self.pattern.kind != "two_stream" or self.reads_R is None:
            return 0
        noisy = self.reads_R % self.inputs_BN.shape[1] >= self.pattern.clean
        return self.pattern.clean if bool(noisy.all()) else 0


@dataclass(frozen=True)
class Mix:
    """Shares over objectives; each share is the part of the data tokens that the objective receives.

    Args:
        shares: Pairs of an objective's canonical name, such as "block(16)", and its share; shares sum to 1.
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        total = sum(share for _, share in self.shares)
        if not self.shares or any(share < 0 for _, share in self.shares) or not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"shares must be non-negative and sum to 1, not {total:g}")
        if len(dict(self.shares)) < len(self.shares):
            raise ValueError("an objective has two shares")

    def share(self, name: str) -> float:
        """Return the share of an objective, 0 when it is not in the mix."""
        return dict(self.shares).get(name, 0.0)

    def blend(self, other: Mix, weight: float) -> Mix:
        """Move linearly towards another mix.

        Args:
            other: The mix at weight 1.
            weight: In [0, 1].

        Returns:
            The mix in between, without the objectives whose share is 0.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], not {weight:g}")
        names = dict.fromkeys([name for name, _ in self.shares] + [name for name, _ in other.shares])
        blended = {name: (1 - weight) * self.share(name) + weight * other.share(name) for name in names}
        kept = {name: share for name, share in blended.items() if share > 0}
        total = sum(kept.values())
        return Mix(tuple((name, share / total) for name, share in kept.items()))

    def describe(self) -> str:
        """Write the mix as a person would, such as `masked 98%, autoregressive 2%`."""
        ordered = sorted(self.shares, key=lambda pair: -pair[1])
        return ", ".join(name if share == 1 else f"{name} {100 * share:.3g}%" for name, share in ordered)


@dataclass(frozen=True)
class Reading:
    """What a signal says now: a value, how uncertain it is, and whether it may be used yet."""

    value: float
    standard_error: float
    ready: bool


@dataclass(frozen=True)
class Progress:
    """Where a run stands when a controller is asked.

    Args:
        data_tokens: Tokens of text seen so far, repeats counted.
        unique_tokens: Distinct tokens of training text.
        budget_fraction: Part of the budget that is spent, in the budget's own currency.
        planned_epochs: Epochs that the whole budget would buy under the present mix.
        exposures: Data tokens that each objective has received.
        step: Optimizer steps taken.
        budget_flops: FLOPs of the whole budget, or None where it is in tokens.
        changeable_fraction: Part of the budget after which the learning rate decays and the mix is frozen.
        warmup_tokens: Data tokens of the learning rate's warm-up.
        batch_tokens: Data tokens of a step.
        context: Data tokens of a window, T.
        residual_dropout: The recipe's residual dropout.
        seed: The recipe's seed, for controllers that draw.
        flops_per_token: Useful training FLOPs of a data token under each objective.
    """

    data_tokens: int
    unique_tokens: int
    budget_fraction: float
    planned_epochs: float
    exposures: Mapping[str, int]
    step: int = 0
    budget_flops: float | None = None
    changeable_fraction: float = 1.0
    warmup_tokens: int = 0
    batch_tokens: int = 0
    context: int = 0
    residual_dropout: float = 0.0
    seed: int = 0
    flops_per_token: Mapping[str, float] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """Times that the text has been seen."""
        return self.data_tokens / self.unique_tokens

    @property
    def autoregressive_epochs(self) -> float:
        """Times that next-token training has seen the text, inside mixes too."""
        seen = sum(count for name, count in self.exposures.items() if name.startswith("autoregressive"))
        return seen / self.unique_tokens

    def epochs_under(self, mix: Mix) -> float:
        """Epochs that the whole budget would buy under a mix.

        Args:
            mix: The mix; its objectives have prices.

        Returns:
            Epochs of the training text.
        """
        if self.budget_flops is None:
            return self.planned_epochs
        price = sum(share * self.flops_per_token[name] for name, share in mix.shares)
        return self.budget_flops / price / self.unique_tokens


@dataclass(frozen=True)
class Watching:
    """What a controller wants to be told: nothing is measured that nobody asked for.

    Args:
        signals: Names of signals.
        gears: Objectives whose gradients and novelty are looked at, in use or not.
        target: The held-out loss that is minimised: "ar", "l2r", "nelbo", or "best" of "ar" and "nelbo".
        share: Largest part of the training FLOPs that probes may take.
    """

    signals: tuple[str, ...]
    gears: tuple[str, ...]
    target: str
    share: float


@dataclass(frozen=True)
class Decision:
    """What a controller wants from now on, and why, in a sentence a person can read.

    Args:
        mix: The shares from now on.
        reason: The sentence.
        details: Readings, thresholds, alternatives: JSON values.
        mark: What the loop does besides: "keep" the weights as they are now under this step, go "back" to the weights
            kept at `to_step`, "note" the sentence though the mix stays, or "" for nothing.
        to_step: With "back": the step at which the weights were kept.
        rewarm_tokens: Data tokens over which the learning rate rises again from a tenth, or 0.
        residual_dropout: Residual dropout from now on, or None for the recipe's.
    """

    mix: Mix
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    mark: str = ""
    to_step: int = 0
    rewarm_tokens: int = 0
    residual_dropout: float | None = None


@dataclass(frozen=True)
class ScoreCard:
    """How good a model is under one declared procedure; a number never travels without its card.

    Args:
        procedure: "ar", "l2r" or "nelbo".
        exact: True for a likelihood, False for an upper bound on the loss.
        loss_nats: Mean loss per scored token (end-of-document tokens included).
        standard_error_nats: Standard error of `loss_nats` over documents.
        bits_per_byte: Total bits over the bytes of exactly the scored text.
        standard_error_bits: Standard error of `bits_per_byte` over documents.
        tokens: Scored tokens.
        text_bytes: UTF-8 bytes of the scored text.
        documents: Scored documents.
        conditions: All that is needed to obtain the number again: draws, positions, context, hashes, versions.
        document_nats: Total nats of each scored document, for paired comparisons.
        document_bytes: Bytes of each scored document.
        document_tokens: Scored tokens of each document.
    """

    procedure: str
    exact: bool
    loss_nats: float
    standard_error_nats: float
    bits_per_byte: float
    standard_error_bits: float
    tokens: int
    text_bytes: int
    documents: int
    conditions: Mapping[str, Any]
    document_nats: tuple[float, ...]
    document_bytes: tuple[int, ...]
    document_tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss per token."""
        return math.exp(self.loss_nats)


class Recorder(Protocol):
    """Where training writes; the run folder is one, a list in a test is another."""

    def manifest(self, facts: Mapping[str, Any]) -> None:
        """Record choices and facts that hold for the whole run."""
        ...

    def step(self, row: Mapping[str, Any]) -> None:
        """Record one optimizer step (one line of steps.jsonl)."""
        ...

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Record one evaluation (one line of evals.jsonl)."""
        ...

    def decision(self, row: Mapping[str, Any]) -> None:
        """Record one decision (one line of decisions.jsonl)."""
        ...

    def signal(self, row: Mapping[str, Any]) -> None:
        """Record a probe, or the fact that the controller was asked (one line of signals.jsonl)."""
        ...

    def ledger(self, row: Mapping[str, Any]) -> None:
        """Replace the data ledger."""
        ...

    def progress(self, row: Mapping[str, Any]) -> None:
        """Show where the run stands; nothing of it needs to be kept."""
        ...

    def flush(self) -> None:
        """Make everything recorded so far durable."""
        ...

    def scores(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Keep a final score with its card."""
        ...

    def cut_back(self, step: int) -> None:
        """Forget the rows recorded after a step, because the run goes on from that step's checkpoint."""
        ...
