"""Block diffusion: left to right over blocks, any order inside a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from crossover.model.shapes import Workload, live_entries
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.masked import Masked
from crossover.objectives.schedules import Linear
from crossover.objectives.windows import (
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


@dataclass(frozen=True)
class Layout:
    """Where everything lies when the clean stream and the noisy copies stand side by side.

    Args:
        inputs_BN: Token ids of both streams.
        positions_N: Rotary position of each input.
        read_T: Input whose state predicts each data token.
        documents_BN: Document number of each input, or None.
    """

    inputs_BN: Ints
    positions_N: Ints
    read_T: Ints
    documents_BN: Ints | None


def lay_out(tokens_BT: Ints, hidden_BT: Mask, size: int, clean: int, vocabulary: Vocabulary) -> Layout:
    """Lay the clean stream and a noisy copy of every block side by side.

    Args:
        tokens_BT: Data tokens.
        hidden_BT: True where the noisy copy shows a mask.
        size: S, data tokens in a block.
        clean: C, inputs of the clean stream (BOS and the first C - 1 tokens).
        vocabulary: Special ids.

    Returns:
        The layout: C + (T / S) (S + 1) inputs.
    """
    context = tokens_BT.shape[1]
    whole = with_bos(tokens_BT, vocabulary)
    index = (np.arange(context // size) * size)[:, None] + np.arange(size + 1)
    masked = np.where(hidden_BT, vocabulary.mask_id, tokens_BT)
    copies = np.concatenate([whole[:, :1], masked], axis=1)[:, index]
    copies[:, :, 0] = whole[:, index[:, 0]]
    token = np.arange(context)
    return Layout(
        inputs_BN=np.concatenate([whole[:, :clean], copies.reshape(len(tokens_BT), -1)], axis=1),
        positions_N=np.concatenate([np.arange(clean), index.ravel()]),
        read_T=clean + (token // size) * (size + 1) + token % size,
        documents_BN=_documents(whole, copies, clean, vocabulary),
    )


def _documents(whole_BN: Ints, copies_BKN: Ints, clean: int, vocabulary: Vocabulary) -> Ints | None:
    documents = documents_of(whole_BN, vocabulary)
    if documents is None:
        return None
    # A copy knows the borders up to its first input, which is clean, and from there on only those that it shows.
    known = documents[:, : whole_BN.shape[1] - 1 : copies_BKN.shape[2] - 1, None]
    ends = copies_BKN == vocabulary.eos_id
    numbers = known + np.cumsum(ends, axis=2) - ends[:, :, :1]
    return np.concatenate([documents[:, :clean], numbers.reshape(len(whole_BN), -1)], axis=1)


@register("objective", "block")
@dataclass(frozen=True)
class Block:
    """Block diffusion (BD3-LM, arXiv 2503.09573, eq. 8) in one pass over a clean and a noisy stream.

    The noisy copy of a block has S + 1 inputs: the clean token before it, whose state predicts the block's first
    token, then the block's S tokens (the last one only as key and value). It sees itself and the clean stream strictly
    before its first input. S = 1 is `autoregressive` and S = T is `masked`, by dispatch: a visible MASK key would
    break the first, and the second has no clean stream.

    Args:
        size: S, data tokens in a block; divides the context.
        count: "exact" draws the number of masked tokens per block, "bernoulli" draws a time per block.
        noise: Schedule of `bernoulli`; must stay `linear` with `exact`.
        eps: Smallest t of `bernoulli`.
        clean: How the clean stream sees itself: "block" (blocks left to right) or "causal" (shares AR's cache).
        autoregressive_weight: With `clean=causal`, weight of the next-token loss that the clean stream gives.
    """

    size: int
    count: Literal["exact", "bernoulli"] = "exact"
    noise: Annotated[Any, Component("noise")] = Linear()
    eps: float = 1e-3
    clean: Literal["block", "causal"] = "block"
    autoregressive_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.autoregressive_weight and self.clean != "causal":
            raise ValueError("autoregressive_weight needs clean=causal: a block-causal state has seen its target")
        if self.autoregressive_weight < 0:
            raise ValueError(f"autoregressive_weight must not be negative, not {self.autoregressive_weight}")
        if self.count == "exact" and (self.noise != Linear() or self.eps != 1e-3):
            raise ValueError("noise and eps have no effect with count=exact; set count=bernoulli")
        if getattr(type(self.noise), "component_name", "") == "frequency":
            raise ValueError("noise 'frequency' works on whole windows; use it with masked")

    @property
    def is_bound(self) -> bool:
        """Whether the expected loss bounds the negative log-likelihood."""
        exact = self.count == "exact" or self.size == 1
        return self.autoregressive_weight == 0 and (exact or (self.noise.is_bound and self.eps == 0))

    def corrupt(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Lay the clean stream and the noisy copies of all blocks side by side.

        Args:
            tokens_BT: Data tokens.
            rng: The slice's stream.
            vocabulary: Special ids.

        Returns:
            C + (T / S) (S + 1) inputs a window, the states before hidden tokens read.
        """
        windows, context = tokens_BT.shape
        same = self._dispatch(context)
        if same is not None:
            return same.corrupt(tokens_BT, rng, vocabulary)
        clean = self._clean(context)
        masks = self._masks(windows * (context // self.size), rng)
        layout = lay_out(tokens_BT, masks.hidden_KS.reshape(windows, context), self.size, clean, vocabulary)
        example = Example(
            inputs_BN=layout.inputs_BN,
            positions_BN=np.broadcast_to(layout.positions_N, layout.inputs_BN.shape),
            pattern=self._pattern(context),
            **self._reads(tokens_BT, masks, layout),
            data_tokens=tokens_BT.size,
            documents_BN=layout.documents_BN,
        )
        return pad_reads(example, masks.reads + (windows * context if self.autoregressive_weight else 0))

    def workload(self, context: int) -> Workload:
        """Say what one window asks of the model: both streams' inputs, the hidden tokens' states read."""
        same = self._dispatch(context)
        if same is not None:
            return same.workload(context)
        blocks, clean = context // self.size, self._clean(context)
        inputs = clean + blocks * (self.size + 1)
        reads = blocks * (self.size + 1) / 2
        if self.count == "bernoulli":
            reads = Masked(count="bernoulli", noise=self.noise, eps=self.eps).workload(context).reads
        # A read state of block number b sees the b S clean tokens before its copy and the S + 1 inputs of the copy.
        read_entries = reads * (self.size * (blocks - 1) / 2 + self.size + 1)
        if self.autoregressive_weight:
            reads, read_entries = reads + context, read_entries + live_entries(Pattern("causal"), context)
        return Workload(inputs, reads, live_entries(self._pattern(context), inputs), read_entries)

    def modes(self, context: int) -> tuple[str, ...]:
        """Name the procedures that a model trained so can be scored by."""
        same = self._dispatch(context)
        if same is not None:
            return same.modes(context)
        bound = f"nelbo({self.size}, causal)" if self.clean == "causal" else f"nelbo({self.size})"
        return (bound, "ar") if self.autoregressive_weight else (bound,)

    def _dispatch(self, context: int) -> Autoregressive | Masked | None:
        if context % self.size:
            raise ValueError(f"block size {self.size} does not divide the context {context}")
        if self.autoregressive_weight and self.size in (1, context):
            raise ValueError(f"autoregressive_weight needs a clean stream, and block size {self.size} has none")
        if self.size == 1:
            return Autoregressive()
        return Masked(self.count, self.noise, self.eps) if self.size == context else None

    def _clean(self, context: int) -> int:
        # The last block is nobody's prefix, unless the clean stream has a loss of its own.
        return context if self.autoregressive_weight else context - self.size

    def _pattern(self, context: int) -> Pattern:
        return Pattern(
            "two_stream", self.size, self._clean(context), {"block": "block_causal"}.get(self.clean, "causal")
        )

    def _masks(self, groups: int, rng: np.random.Generator) -> Masks:
        if self.count == "exact":
            return exact_masks(groups, self.size, rng)
        t_K = self.eps + (1 - self.eps) * strata(groups, rng)
        hidden = rng.random((groups, self.size)) < 1 - self.noise.alpha(t_K)[:, None]
        bucket = max(1, hidden.size // 16)
        return Masks(hidden, self.noise.weight(t_K), max(1, -(-int(hidden.sum()) // bucket)) * bucket)

    def _reads(self, tokens_BT: Ints, masks: Masks, layout: Layout) -> dict[str, np.ndarray]:
        windows, context = tokens_BT.shape
        row, token = np.nonzero(masks.hidden_KS.reshape(windows, context))
        inputs = layout.inputs_BN.shape[1]
        reads, targets = row * inputs + layout.read_T[token], tokens_BT[row, token]
        weights = masks.weights_K[row * (context // self.size) + token // self.size]
        if self.autoregressive_weight:
            own = (np.arange(windows)[:, None] * inputs + np.arange(context)).ravel()
            reads, targets = np.concatenate([own, reads]), np.concatenate([tokens_BT.ravel(), targets])
            weights = np.concatenate([np.full(own.size, self.autoregressive_weight), weights])
        return {"reads_R": reads, "targets_R": targets, "weights_R": weights.astype(np.float32)}
