"""YAML and JSON of strangers, read within bounds: what is too large, too deep or no text is refused, never expanded."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

# Far above what any recipe or run has, far below what a machine cannot hold.
LARGEST_YAML_BYTES = 1 << 20
LARGEST_JSON_BYTES = 1 << 28
LARGEST_LOG_BYTES = 1 << 33
MOST_NODES = 100_000
DEEPEST = 64


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a file that must be a regular one of a bounded size.

    Args:
        path: The file; a pipe or a device could go on for ever, so neither is read.
        most_bytes: Its largest size.

    Returns:
        Its content.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    # Before it is opened: opening a pipe waits for whoever writes into it.
    facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    if facts.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"is larger than {most_bytes:,} bytes", str(path))
    with open(path, "rb") as file:
        return file.read(facts.st_size)


def parse_yaml(text: str, look: Callable[[Any], object] | None = None) -> Any:
    """Read YAML of plain values; tags that make objects of Python are refused.

    Aliases are shared, not copied, but everything that is made from the values walks through each of them, so they
    count as often as they are used: a few lines of aliases of aliases would stand for billions of values.

    Args:
        text: The text.
        look: Called with the composed nodes, which know their lines, before values are made of them.

    Returns:
        The values; None of an empty text.

    Raises:
        yaml.YAMLError: It is not YAML, or larger or deeper than any recipe.
    """
    if len(text) > LARGEST_YAML_BYTES:
        raise _refused(f"it is longer than {LARGEST_YAML_BYTES:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _weigh(node, {}, 0)
            if look is not None:
                look(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise _refused(f"it is nested deeper than {DEEPEST} levels") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # Such as `2001-99-99`, `!!int ""`, `!!bool maybe` and their like.
        raise _refused(f"a value cannot be read ({error})") from None


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops at the first value that lies too deep: its work grows with the square of depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read a value and all that is in it."""
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {DEEPEST} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _refused(problem: str, node: Any = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark if node is not None else None)


def _weigh(node: Any, weights: dict[int, int], depth: int) -> int:
    """Count the values that a node stands for, each alias in full."""
    if depth > DEEPEST:
        raise _refused(f"it is nested deeper than {DEEPEST} levels", node)
    if id(node) in weights:
        if weights[id(node)] == 0:
            raise _refused("an alias stands inside what it names", node)
        return weights[id(node)]
    weights[id(node)] = 0
    if isinstance(node, yaml.ScalarNode):
        weight = 1
    else:
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
        weight = 1 + sum(_weigh(part, weights, depth + 1) for pair in pairs for part in pair)
    if weight > MOST_NODES:
        raise _refused(f"its aliases stand for more than {MOST_NODES:,} values", node)
    weights[id(node)] = weight
    return weight


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_STRICT = json.JSONDecoder(parse_constant=_no_number)
_LAX = json.JSONDecoder()


def parse_json(content: bytes | str, *, strict: bool = True) -> Any:
    """Read JSON whose values can be walked through, reckoned with and written again.

    Args:
        content: The text.
        strict: Whether NaN and Infinity, which are no JSON, are refused.

    Returns:
        The values.

    Raises:
        ValueError: It is not JSON, is nested deeper than anything written here, or has numbers too long to read.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        # Its own error would carry the whole file along.
        raise ValueError(f"byte {error.start} is no UTF-8") from None
    try:
        value = (_STRICT if strict else _LAX).decode(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _refuse_depth(value)
    return value


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            held = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            inner += [part for part in held if isinstance(part, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")
