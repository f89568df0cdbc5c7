"""Plain recipe trees: read from YAML, laid over one another, overridden, compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from crossover.errors import RecipeError
from crossover.parsing import LARGEST_YAML_BYTES, parse_yaml, read_bounded
from crossover.registry import component_of, dump, names

# Parts of a recipe that are merged key by key; everything else (a component, a mix, a budget) is replaced whole.
SECTIONS = ("data", "model", "mix", "training", "scoring")
# The components that stand where a recipe names none: what an override of one of their settings reaches into.
COMPONENTS = {
    "data.source": "stdlib",
    "data.tokenizer": "bpe(4096)",
    "training.optimizer": "adamw",
    "training.learning_rate": "wsd",
    "controller": "constant(autoregressive)",
}
# What decides where a run is shown and nothing of what it trains.
VIEWS = ("sinks",)


def read_tree(path: str | Path, *, extending: bool = True) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a YAML file into a plain mapping, with the line of each key.

    Args:
        path: The file.
        extending: Whether `extends` may be used in it.

    Returns:
        The mapping (with `extends` resolved) and line numbers by dotted path.

    Raises:
        RecipeError: The file cannot be read or is no mapping.
    """
    path = Path(path)
    lines: dict[str, int] = {}
    try:
        text = read_bounded(path, LARGEST_YAML_BYTES).decode("utf-8")
        tree = parse_yaml(text, lambda node: lines.update(_line_numbers(node))) or {}
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, not a {type(tree).__name__}")
    base = tree.pop("extends", None)
    if base is None:
        return tree, lines
    if not extending:
        raise RecipeError(f"{path}, line {lines.get('extends', 1)}: extends: only one level; extend the root instead")
    try:
        below, _ = read_tree(path.parent / str(base), extending=False)
    except RecipeError as error:
        raise RecipeError(f"{path}, line {lines.get('extends', 1)}: extends: {error}") from None
    return merge(below, tree), lines


def _line_numbers(node: Any, path: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            if name in lines:
                raise yaml.MarkedYAMLError(problem=f"'{name}' is given twice", problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
            lines.update(_line_numbers(value, name))
    return lines


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree over another; components (mappings with `name`, or mixes) are replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if key in SECTIONS and isinstance(under, Mapping) and isinstance(value, Mapping):
            value = merge(under, value)
        merged[key] = value
    return merged


def apply(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a tree, in place.

    Args:
        tree: The tree.
        override: The setting; a key may lead into a component that is written as a call, or left at its default.

    Raises:
        RecipeError: The text has no `=`, an empty part, or a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{_quoted(override)}: expected key=value, such as training.batch_tokens=4096")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise RecipeError(f"{_quoted(key)[1:-1]}: {_quoted(text)} is not a YAML value") from None
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        under = tree.get(part, COMPONENTS.get(".".join(parents[: depth + 1])))
        if isinstance(under, str):
            under = _component_tree([*parents[: depth + 1]], under)
        tree[part] = dict(under) if isinstance(under, Mapping) else {}
        tree = tree[part]
    if parents == ["budget"]:
        tree.clear()
    tree[last] = value


def _quoted(text: str) -> str:
    """Quote what was given on one line, however long it is."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _component_tree(path: Sequence[str], text: str) -> dict[str, Any]:
    """Open a component written as a call, so that one setting of it can be overridden."""
    kind = {"source": "corpus"}.get(path[-1], path[-1])
    if not names(kind):
        raise RecipeError(f"{'.'.join(path)}: {_quoted(text)} has no settings of its own")
    try:
        return dump(component_of(kind, text))
    except RecipeError as error:
        raise RecipeError(f"{'.'.join(path)}: {error}") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write a nested mapping as dotted keys; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """List the dotted keys in which two trees differ, with both values."""
    one, two = flatten(first), flatten(second)
    keys = dict.fromkeys([*one, *two])
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def without_views(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a resolved recipe where its run is shown: two that differ in that alone make the same run."""
    return {key: value for key, value in tree.items() if key not in VIEWS}


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Hash a plain mapping to 16 hexadecimal digits, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
