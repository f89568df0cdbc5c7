"""The sections of a recipe: typed, frozen, every setting with its unit and its default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator

from crossover.registry import Component

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _count(value: Any) -> Any:
    """Read `200k`, `1.5M` or `2e6` as a whole number; leave everything else to the type check."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    match = re.fullmatch(r"\s*([0-9._]+(?:e[0-9]{1,2})?)\s*([kMBT]?)\s*", value) if isinstance(value, str) else None
    if match:
        exact = Fraction(match[1]) * _UNITS[match[2]]
        return int(exact) if exact.denominator == 1 else float(exact)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    """Read YAML's `on` and `off`, which are booleans there, as the words that they were written as."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Count = Annotated[int, BeforeValidator(_count), pydantic.Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_count), pydantic.Field(gt=0)]
Threads = Annotated[int, BeforeValidator(_count), pydantic.Field(gt=0, le=4096)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Similarity = Annotated[float, pydantic.Field(ge=0.5, lt=1)]
Amount = Annotated[float, BeforeValidator(_count), pydantic.Field(gt=0, allow_inf_nan=False)]
Size = Annotated[float, pydantic.Field(gt=0)]
Coefficient = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
# A name becomes a folder; a stranger's recipe must not choose where on the disk.
Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][\w.+ -]*$")]


@dataclass(frozen=True)
class DataRecipe:
    """Which text, how much of it, cut how.

    Args:
        source: A corpus: `stdlib`, `installed`, or `files(path)`; a bare path means files.
        unique_tokens: Budget of distinct training tokens (control text included), or null for all there is.
        tokenizer: `bpe(4096)`, `bytes`, or `file(tokenizer.json)`.
        context: Data tokens in a window, T.
        dev_share: Part of the documents held out for choosing.
        test_share: Part of the documents held out for reading the result once.
        control_share: Part of the training tokens that only an online controller may hold out.
        document_bytes: Plain-text files longer than this are cut into documents at blank lines.
        attend_across_documents: Whether a window's documents see each other.
        near_duplicates: Jaccard similarity of two documents' runs of five words from which on the later one is dropped,
            from 0.5 to below 1; null keeps them. Exact duplicates are dropped always.
    """

    source: Annotated[Any, Component("corpus")] = "stdlib"
    unique_tokens: Positive | None = None
    tokenizer: Annotated[Any, Component("tokenizer")] = "bpe(4096)"
    context: Positive = 128
    dev_share: Share = 0.05
    test_share: Share = 0.05
    control_share: Share = 0.05
    document_bytes: Positive = 20_000
    attend_across_documents: bool = True
    near_duplicates: Similarity | None = None


@dataclass(frozen=True)
class ModelRecipe:
    """The backbone; fields that are null come from the preset.

    Args:
        preset: A named shape, see `crossover.model.shapes`.
        family: "llama", "qwen3" (adds qk-norm) or "qwen3_moe" (qwen3 whose MLPs are experts behind a router).
        width: Residual width.
        depth: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_width: Width of a head.
        mlp_width: Hidden width of the gated MLP.
        tied: Whether the head shares the embedding's weights.
        rope_theta: Base of the rotary positions.
        norm_eps: Epsilon of the norms.
        adopt: A folder of `crossover adopt` (or the model folder of a run) whose weights training begins from, or null
            for fresh ones; all of the shape must be the folder's, as the recipe in it says.
        adopt_sha256: Hash that the folder's weights must have when the run begins, or null for whatever is there.
        residual_dropout: Dropout at the two output projections of a layer; of experts, at their sum.
        attention_dropout: Dropout of attention probabilities.
        parameter_noise: Standard deviation of the factors 1 + noise that a training step multiplies each weight matrix
            of the layers with, see `crossover.model.noise`.
        experts: Experts of a layer, of family qwen3_moe.
        experts_per_token: How many of them a token goes through.
        expert_width: Hidden width of an expert.
        balance_coefficient: Factor on the load-balancing loss; null is 0.01 where there are experts.
        router_z_coefficient: Factor on the router z-loss; null is 0.001 where there are experts.
    """

    preset: str = "1m"
    family: Literal["llama", "qwen3", "qwen3_moe"] = "llama"
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    head_width: Positive | None = None
    mlp_width: Positive | None = None
    tied: bool | None = None
    rope_theta: Size = 10_000.0
    norm_eps: Size = 1e-5
    adopt: str | None = None
    adopt_sha256: str | None = None
    residual_dropout: Share = 0.0
    attention_dropout: Share = 0.0
    parameter_noise: Share = 0.0
    experts: Positive | None = None
    experts_per_token: Positive | None = None
    expert_width: Positive | None = None
    balance_coefficient: Coefficient | None = None
    router_z_coefficient: Coefficient | None = None

    def __post_init__(self) -> None:
        if self.adopt_sha256 is not None and self.adopt is None:
            raise ValueError("adopt_sha256 has no effect without adopt")


@dataclass(frozen=True)
class BudgetRecipe:
    """What a run may spend, in exactly one currency.

    Args:
        tokens: Data tokens, repeats counted.
        flops: Analytic useful training FLOPs.
        minutes: Wall-clock minutes, converted once into FLOPs when the run starts.
    """

    tokens: Amount | None = None
    flops: Amount | None = None
    minutes: Amount | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("tokens", "flops", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            stated = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of tokens, flops, minutes; {stated} given")

    @property
    def currency(self) -> str:
        """The one currency that is given."""
        return next(name for name in ("tokens", "flops", "minutes") if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """How much of the currency may be spent."""
        return float(getattr(self, self.currency))


def budget_label(amount: float) -> str:
    """Write an amount of a budget as names of folders have it, such as 2e+11."""
    return f"{amount:.6g}"


@dataclass(frozen=True)
class MixRecipe:
    """How objectives share a step.

    Args:
        slice_tokens: Data tokens of one slice; all its windows are of one objective. Null means the whole step.
        micro_batch_slices: Slices of one objective that run through the model together, at most.
    """

    slice_tokens: Positive | None = None
    micro_batch_slices: Positive = 1


@dataclass(frozen=True)
class TrainingRecipe:
    """The step and the loop.

    Args:
        batch_tokens: Data tokens of one optimizer step.
        optimizer: `adamw(...)` or `muon(...)`.
        learning_rate: Schedule of the learning rate: `wsd(...)` or `cosine(...)`.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay per step of the averaged weights, or null for none.
        precision: "auto" computes in bfloat16 where the machine is fast at it; weights are float32 always.
        compile: "auto" compiles when the run is long enough to repay it.
        activation_checkpointing: Keep the inputs of each layer alone and compute the rest again in the backward pass:
            a third more work for a fraction of the memory.
        threads: CPU threads of the process, or null for all cores.
        checkpoint_every_tokens: Null means 20 times over the budget.
        keep_checkpoints: How many of the newest to keep.
    """

    batch_tokens: Positive = 2048
    optimizer: Annotated[Any, Component("optimizer")] = "adamw"
    learning_rate: Annotated[Any, Component("learning_rate")] = "wsd"
    clip_norm: Size = 1.0
    ema_decay: Share | None = None
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    activation_checkpointing: bool = False
    threads: Threads | None = None
    checkpoint_every_tokens: Positive | None = None
    keep_checkpoints: Positive = 2


@dataclass(frozen=True)
class ScoringRecipe:
    """How often and how finely held-out text is scored.

    Args:
        every_tokens: Data tokens between evaluations; null means the fewest whole epochs that keep evaluations below a
            tenth of the run's time, the same for all arms of a study.
        dev_windows: Windows of the dev text in each evaluation.
        dev_draws: Mask draws per window for `nelbo` in each evaluation.
        dev_positions: Positions per window for `l2r` in each evaluation; 0 leaves `l2r` to the end of the run.
        test_windows: Windows of the dev and test text for the final scores.
        test_draws: Mask draws per window for the final `nelbo`.
        test_positions: Positions per window for the final `l2r`.
        weights: Which weights are scored, "raw" or "ema".
    """

    every_tokens: Positive | None = None
    dev_windows: Positive = 64
    dev_draws: Positive = 8
    dev_positions: Count = 4
    test_windows: Positive = 256
    test_draws: Positive = 32
    test_positions: Positive = 16
    weights: Literal["raw", "ema"] = "raw"
