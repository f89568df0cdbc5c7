"""The recipe: one typed, frozen tree that says everything about a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter

from crossover.errors import RecipeError
from crossover.registry import Component, explain, trust_imports
from crossover.sections import (
    BudgetRecipe,
    Count,
    DataRecipe,
    MixRecipe,
    ModelRecipe,
    Name,
    ScoringRecipe,
    TrainingRecipe,
)
from crossover.trees import apply, read_tree


def _listed(value: Any) -> Any:
    """Take one component as a list of one."""
    return [value] if isinstance(value, str | Mapping) else value


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
        sinks: Where the run is shown besides its folder: `tensorboard`, `wandb`, `trackio`; changes nothing of the run.
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
    sinks: Annotated[tuple[Annotated[Any, Component("sink")], ...], BeforeValidator(_listed)] = ()


for _section in (DataRecipe, ModelRecipe, BudgetRecipe, MixRecipe, TrainingRecipe, ScoringRecipe, Recipe):
    # A section that a recipe leaves out is a ready-made default; it too has to have its components built.
    _section.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", validate_default=True, revalidate_instances="always"
    )


@cache
def _adapter() -> TypeAdapter[Recipe]:
    """Give what validates a recipe; building it takes ten times longer than using it."""
    return TypeAdapter(Recipe)


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
        recipe = _adapter().validate_python(dict(tree))
    except pydantic.ValidationError as error:
        raise RecipeError("\n".join(_sentence(item, origin, lines or {}) for item in error.errors())) from None
    except UnicodeEncodeError as error:
        raise RecipeError(f"{origin}: {error.object[:80]!r} holds half a surrogate pair, which is no text") from None
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
    return _adapter().dump_python(recipe, mode="json")


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe as YAML in which every setting stands."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, allow_unicode=True)
