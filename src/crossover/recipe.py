"""The recipe: one typed, frozen tree that says everything about a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter

from crossover.errors import RecipeError
from crossover.registry import Component, explain, trust_imports
from crossover.trees import apply, read_tree

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
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Amount = Annotated[float, BeforeValidator(_count), pydantic.Field(gt=0, allow_inf_nan=False)]
Size = Annotated[float, pydantic.Field(gt=0)]
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


@dataclass(frozen=True)
class ModelRecipe:
    """The backbone; fields that are null come from the preset.

    Args:
        preset: A named shape, see `crossover.model.shapes`.
        family: "llama" or "qwen3" (adds qk-norm).
        width: Residual width.
        depth: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_width: Width of a head.
        mlp_width: Hidden width of the gated MLP.
        tied: Whether the head shares the embedding's weights.
        rope_theta: Base of the rotary positions.
        residual_dropout: Dropout at the two output projections of a layer.
        attention_dropout: Dropout of attention probabilities.
    """

    preset: str = "1m"
    family: Literal["llama", "qwen3"] = "llama"
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    head_width: Positive | None = None
    mlp_width: Positive | None = None
    tied: bool | None = None
    rope_theta: Size = 10_000.0
    residual_dropout: Share = 0.0
    attention_dropout: Share = 0.0


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
    threads: Positive | None = None
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


@dataclass(frozen=True)
class Recipe:
    """Everything about one run.

    Args:
        name: The run's name; its folder is `runs/<name>` unless another is given.
        seed: Seed of every random stream.
        imports: Modules with components of your own; they run only with `--trust`.
        data: The text.
        model: The backbone.
        budget: What may be spent.
        mix: How objectives share a step.
        training: The step and the loop.
        controller: What decides the mix: `constant`, `switch`, `ramp`.
        scoring: The measurements.
    """

    name: Name = "run"
    seed: Count = 0
    imports: tuple[str, ...] = ()
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    budget: BudgetRecipe = field(default_factory=lambda: BudgetRecipe(tokens=1_000_000))
    mix: MixRecipe = field(default_factory=MixRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    controller: Annotated[Any, Component("controller")] = "constant(autoregressive)"
    scoring: ScoringRecipe = field(default_factory=ScoringRecipe)


for _section in (DataRecipe, ModelRecipe, BudgetRecipe, MixRecipe, TrainingRecipe, ScoringRecipe, Recipe):
    # A section that a recipe leaves out is a ready-made default; it too has to have its components built.
    _section.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", validate_default=True, revalidate_instances="always"
    )


def resolve(tree: Mapping[str, Any], *, origin: str = "recipe", lines: Mapping[str, int] | None = None) -> Recipe:
    """Validate a plain mapping into a recipe.

    Args:
        tree: Nested mapping as read from YAML, without `extends`.
        origin: The file (or other source) that errors name.
        lines: Line number in that file by dotted path.

    Returns:
        The recipe with every default filled in.

    Raises:
        RecipeError: A key is unknown, a value is of the wrong type or two settings contradict each other.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(dict(tree))
    except pydantic.ValidationError as error:
        raise RecipeError("\n".join(_sentence(item, origin, lines or {}) for item in error.errors())) from None
    _refuse_contradictions(recipe, origin)
    return recipe


def _sentence(error: Any, origin: str, lines: Mapping[str, int]) -> str:
    location = [str(part) for part in error["loc"]]
    message = explain(error, _keys_at(location[:-1]))
    while error["type"] == "component" and re.match(r"[a-z_.0-9]+: ", message):
        setting, message = message.split(": ", 1)
        location.append(setting)
    path = ".".join(location)
    candidates = [".".join(location[:size]) for size in range(len(location), 0, -1)]
    line = next((lines[name] for name in candidates if name in lines), None)
    return f"{origin}{f', line {line}' if line else ''}: {path}: {message}" if path else f"{origin}: {message}"


def _keys_at(path: Sequence[str]) -> list[str]:
    """List the settings of a section, for the hint after a mistyped one."""
    cls: Any = Recipe
    for part in path:
        cls = get_type_hints(cls).get(part, cls)
    return [item.name for item in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _refuse_contradictions(recipe: Recipe, origin: str) -> None:
    """A setting that cannot take effect is an error, not a surprise."""
    training, mix, context = recipe.training, recipe.mix, recipe.data.context
    slice_tokens = mix.slice_tokens or training.batch_tokens
    if training.batch_tokens % context:
        raise RecipeError(
            f"{origin}: training.batch_tokens: {training.batch_tokens} is no multiple of data.context {context}; "
            f"try {max(1, round(training.batch_tokens / context)) * context}"
        )
    if slice_tokens % context or training.batch_tokens % slice_tokens:
        raise RecipeError(
            f"{origin}: mix.slice_tokens: {slice_tokens} must be a multiple of data.context {context} "
            f"and divide training.batch_tokens {training.batch_tokens}"
        )
    if mix.micro_batch_slices > training.batch_tokens // slice_tokens:
        raise RecipeError(
            f"{origin}: mix.micro_batch_slices: {mix.micro_batch_slices} has no effect, "
            f"a step has {training.batch_tokens // slice_tokens} slice(s); lower it or lower mix.slice_tokens"
        )
    if recipe.scoring.weights == "ema" and training.ema_decay is None:
        raise RecipeError(f"{origin}: scoring.weights: 'ema' needs training.ema_decay")
    if recipe.data.dev_share == 0 or recipe.data.test_share == 0:
        raise RecipeError(f"{origin}: data.dev_share and data.test_share must be above 0, or nothing can be measured")


def load(path: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """Read a recipe file.

    Args:
        path: A YAML file; its `extends: other.yaml` (one level, beside it) is read first.
        overrides: `key=value` settings that come last, dotted keys, YAML values.
        trust: Whether the recipe's `imports` may run.

    Returns:
        The resolved recipe.

    Raises:
        RecipeError: The file is missing, is not YAML, extends a recipe that extends, or a setting is wrong.
    """
    tree, lines = read_tree(path)
    for override in overrides:
        apply(tree, override)
        # What comes from the command line stands in no line of the file.
        parts = override.split("=")[0].split(".")
        lines.update({".".join(parts[:size]): 0 for size in range(1, len(parts) + 1)})
    trust_imports(tree.get("imports") or (), trust=trust, origin=str(path))
    return resolve(tree, origin=str(path), lines=lines)


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as a plain mapping in which every setting stands."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json")


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe as YAML in which every setting stands."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, allow_unicode=True)
