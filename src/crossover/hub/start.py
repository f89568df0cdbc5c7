"""The recipe that training of an adopted model begins with: shape and tokenizer fixed, all else open to settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from crossover.errors import RecipeError
from crossover.folders import sha256_of
from crossover.hub.adopt import adopt
from crossover.hub.foreign import Build
from crossover.model.shapes import shape_of
from crossover.recipe import resolve
from crossover.trees import apply, merge, read_tree

RECIPE = "recipe.yaml"
LONGEST_CONTEXT = 256
_STEP = 2048
_POWERS = [1 << power for power in range(12)]
# What the shape of the backbone is made of, and what says where its weights come from.
_FIXED = (
    "preset", "family", "width", "depth", "heads", "kv_heads", "head_width", "mlp_width", "tied", "rope_theta",
    "norm_eps", "experts", "experts_per_token", "expert_width", "adopt", "adopt_sha256",
)  # fmt: skip


def plain_tree(name: str) -> dict[str, Any]:
    """Give what an adoption begins with where no recipe says otherwise.

    A quarter of the tokens stays next-token training, so that what was learnt is not lost while masked training comes
    in; a lower rate than from fresh weights, for the same reason.

    Args:
        name: The run's name.

    Returns:
        A recipe's tree without model and tokenizer.
    """
    mix = {"masked": 0.75, "autoregressive": 0.25}
    return {
        "name": name,
        "budget": {"tokens": "2M"},
        "training": {
            "batch_tokens": _STEP,
            "optimizer": "adamw(learning_rate=5e-4, weight_decay=0.1)",
            "learning_rate": "wsd(warmup_tokens=50000, decay_fraction=0.3)",
        },
        "controller": {"name": "ramp", "from_epochs": 0, "to_epochs": 1, "before": "autoregressive", "after": mix},
    }


def adopting(
    folder: Path, build: Build, sha256: str, *, recipe: Path | None = None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Make the recipe of a run that begins from an adopted folder.

    Args:
        folder: What `adopt` wrote.
        build: What its backbone has to be.
        sha256: Hash of its weights.
        recipe: A recipe to go by; its model's shape and its tokenizer give way to the folder's.
        settings: `dotted.key=value`, which come last.

    Returns:
        The recipe as a tree, every setting of it looked at.

    Raises:
        RecipeError: A setting contradicts the folder, or makes no recipe.
    """
    name = folder.resolve().name
    tree = plain_tree(name if re.fullmatch(r"[A-Za-z0-9][\w.+ -]*", name) else "adopted")
    if recipe is not None:
        tree, _ = read_tree(recipe)
        tree = _without_fixed(tree)
    for setting in settings:
        _refuse_fixed(setting, folder)
        apply(tree, setting)
    data = tree.get("data")
    most = build.positions - 1
    section = {**build.section(), "adopt": str(folder), "adopt_sha256": sha256}
    stated = data.get("context") if isinstance(data, Mapping) else None
    context = stated or min(LONGEST_CONTEXT, 1 << (most.bit_length() - 1))
    tokenizer = {"name": "file", "path": str(folder)}
    if recipe is None and "mix" not in tree and context in _POWERS:
        # Each step has its share of both kinds.
        tree["mix"] = {"slice_tokens": context, "micro_batch_slices": min(4, _STEP // context)}
    tree = merge(tree, {"data": {"tokenizer": tokenizer, "context": context}, "model": section})
    made = resolve(tree, origin=str(recipe or folder / RECIPE))
    if made.data.context > most:
        raise RecipeError(f"data.context: {made.data.context} is more than the {most} that the model has positions for")
    shape_of(made.model, build.shape.vocabulary)
    return tree


def _without_fixed(tree: Mapping[str, Any]) -> dict[str, Any]:
    model = tree.get("model")
    kept = {key: value for key, value in model.items() if key not in _FIXED} if isinstance(model, Mapping) else {}
    return {**tree, "model": kept}


def _refuse_fixed(setting: str, folder: Path) -> None:
    asked: dict[str, Any] = {}
    # However it is written: data.tokenizer.path=..., model={width: 3}.
    apply(asked, setting)
    data, model = asked.get("data"), asked.get("model", {})
    fixed = ["data.tokenizer"] if isinstance(data, Mapping) and "tokenizer" in data else []
    fixed += [f"model.{name}" for name in _FIXED if name in model] if isinstance(model, Mapping) else ["model"]
    if fixed:
        raise RecipeError(f"{fixed[0]}: is fixed by the model that is adopted; what it is stands in {folder / RECIPE}")


def make_ready(
    source: str, out: Path, *, tokenizer: Path | None = None, recipe: Path | None = None, settings: Sequence[str] = ()
) -> tuple[Build, dict[str, Any]]:
    """Adopt a model, and write the recipe of its training beside it.

    Args:
        source: See `crossover.hub.adopt.adopt`.
        out: Where to.
        tokenizer: Its tokenizer, where that does not lie beside the weights.
        recipe: A recipe to go by.
        settings: `dotted.key=value`.

    Returns:
        What the backbone has to be, and the section `crossover` of the folder's config.json.

    Raises:
        CrossoverError: The source cannot be adopted, a setting contradicts it, or the folder cannot be written.
    """

    def look(build: Build) -> None:
        adopting(out, build, "0" * 64, recipe=recipe, settings=settings)

    def write(build: Build, weights: Path, name: str) -> dict[str, str]:
        tree = adopting(out, build, sha256_of(weights), recipe=recipe, settings=settings)
        head = f"# Training that begins from {name}.\n"
        return {RECIPE: head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}

    return adopt(source, out, tokenizer=tokenizer, before=look, beside=write)
