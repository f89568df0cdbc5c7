"""Damage done to valid files: to their bytes, and to what they say, so that a reader's later checks are reached too.

A mutation is a function of a random source alone: the same seed damages a file in the same way.
"""

from __future__ import annotations

import copy
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

# Stands for a literal that `json.dumps` cannot write; replaced in the text afterwards.
_MARK = "\ue000literal\ue001"
LITERALS = ("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1" * 5000, "9" * 400, "[" * 3000 + "]" * 3000,
            '{"a":' * 1500 + "1" + "}" * 1500, '{"step": 1, "step": 2}')  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.5, 1e300, 1e-300, "", " ", "0", "x" * 5000,
    "\ud800", "\x1b[31m", "a\x00b", "é漢\U0001f600", "../../elsewhere", "/etc/passwd", "1e3", "nan", "block(16)", "~",
    [], [[]], [None], {}, {"": 1}, {"name": "masked"}, [1, 2], ["a", 1, None],
)  # fmt: skip
WORDS = (
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']", b"!!set {a, b}", b"!!binary aGk=", b"- ",
    b": ", b"? ", b"|\n", b"%YAML 9.9\n", b"---\n", b"\t", b"{", b"}", b"[", b"]", b'"', b"'", b"\\", b"\x00", b"\r",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"#", b",", b"2001-99-99", b"0x", b"1_0", b".inf", b".nan", b"NaN",
    b"Infinity", b"-1", b"1e999", b"99999999999999999999", b"\xed\xa0\x80", b"\\ud800", b"=", b"(", b")", b"**",
    b"lambda: 0",
)  # fmt: skip
NUMBERS = (0, 1, -1, 7, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**60, 2**63 - 1)
Mutation = Callable[[Random, bytes], bytes]


def flip(rng: Random, data: bytes) -> bytes:
    """Change a few bits."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def truncate(rng: Random, data: bytes) -> bytes:
    """Cut the end or the beginning off."""
    place = rng.randrange(len(data) + 1)
    return data[:place] if rng.random() < 0.8 else data[place:]


def splice(rng: Random, data: bytes) -> bytes:
    """Put a piece of the file, or a word that means something to a parser, at another place."""
    start = rng.randrange(len(data) + 1)
    piece = rng.choice(WORDS) if rng.random() < 0.6 else data[start : start + rng.choice((1, 4, 30, 400))]
    place = rng.randrange(len(data) + 1)
    replaced = rng.choice((0, 0, len(piece), rng.randrange(40)))
    return data[:place] + piece * rng.choice((1, 1, 1, 2, 50)) + data[place + replaced :]


def remove(rng: Random, data: bytes) -> bytes:
    """Take a piece out."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 8, 60, 500)) :]


def number(rng: Random, data: bytes) -> bytes:
    """Write an extreme whole number over some bytes."""
    form = rng.choice(("<b", "<h", "<i", "<q", ">i"))
    bits = 8 * struct.calcsize(form) - 1
    value = (rng.choice(NUMBERS) + (1 << bits)) % (1 << (bits + 1)) - (1 << bits)
    written = struct.pack(form, value)
    place = rng.randrange(len(data) + 1) if rng.random() < 0.5 else min(len(data), 4 * rng.randrange(16))
    return data[:place] + written + data[place + len(written) :]


def lines(rng: Random, data: bytes) -> bytes:
    """Drop, double, swap, join or indent lines."""
    parts = data.splitlines(keepends=True)
    if not parts:
        return data
    one, two = rng.randrange(len(parts)), rng.randrange(len(parts))
    what = rng.randrange(5)
    if what == 0:
        del parts[one]
    elif what == 1:
        parts.insert(two, parts[one])
    elif what == 2:
        parts[one], parts[two] = parts[two], parts[one]
    elif what == 3:
        parts[one] = parts[one].rstrip(b"\r\n")
    else:
        parts[one] = b"  " + parts[one] if rng.random() < 0.5 else parts[one].lstrip()
    return b"".join(parts)


def nothing(rng: Random, data: bytes) -> bytes:
    """Leave nothing, or the file as it is."""
    return rng.choice((b"", b"\n", data, data, b"null", b"[]", b"{}", b"\x00" * 100))


BYTES: tuple[Mutation, ...] = (flip, flip, truncate, splice, splice, remove, number, nothing)
TEXT: tuple[Mutation, ...] = (flip, truncate, splice, splice, splice, remove, lines, lines, nothing)


def _value(rng: Random) -> Any:
    # A copy: a value that is put into a tree may itself be changed next.
    return copy.deepcopy(rng.choice(_VALUES))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """List all places of a tree as pairs of a container and a key of it."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        pending += [node[key] for key in keys]
    return found


def change_tree(rng: Random, tree: Any) -> tuple[Any, str | None]:
    """Change what a JSON tree says, in place.

    Args:
        rng: The random source.
        tree: JSON values.

    Returns:
        The tree, and the literal that its marks stand for.
    """
    places = _places(tree)
    if not places:
        return _value(rng), None
    # Long lists of numbers would take most of the draws, and a key of the top is as good a place as any.
    top = [place for place in places if place[0] is tree]
    node, key = rng.choice(top if rng.random() < 0.35 else places)
    what, value = rng.random(), node[key]
    if what < 0.2:
        del node[key]
    elif what < 0.5:
        node[key] = _value(rng)
    elif what < 0.62:
        node[key] = _MARK
        return tree, rng.choice(LITERALS)
    elif what < 0.72:
        other, name = rng.choice(places)
        # A copy: a tree that holds itself cannot be written.
        node[key] = json.loads(json.dumps(other[name]))
    elif what < 0.82 and isinstance(node, dict) and isinstance(key, str):
        node[rng.choice((key + "x", key[:-1], key.upper(), "", "\ud800", "name", key.swapcase()))] = node.pop(key)
    elif what < 0.92:
        kinds = (str(value), [value], {"a": value}, [value, copy.deepcopy(value)], bool(value), None)
        node[key] = rng.choice(kinds)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        node[key] = rng.choice((-value, value + 1, value * 1e10, value * 0.5, float(value), 0))
    else:
        node[key] = _value(rng)
    return tree, None


def json_tree(rng: Random, data: bytes) -> bytes:
    """Change what a JSON file says; a file that is none is changed as text."""
    try:
        tree = json.loads(data)
    except ValueError:
        return rng.choice(TEXT)(rng, data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree, literal = change_tree(rng, tree)
        if literal is not None:
            break
    else:
        literal = None
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, None, 1)))
    mark = json.dumps(_MARK)
    text = text.replace(mark, literal or "0").replace(json.dumps(_MARK, ensure_ascii=False), literal or "0")
    return text.encode("utf-8", "surrogatepass")


def json_rows(rng: Random, data: bytes) -> bytes:
    """Change what a line of a JSON-lines file says."""
    rows = data.splitlines(keepends=True)
    if not rows or rng.random() < 0.3:
        return rng.choice(TEXT)(rng, data)
    for _ in range(rng.choice((1, 1, 2, len(rows)))):
        place = rng.randrange(len(rows))
        rows[place] = json_tree(rng, rows[place]).replace(b"\n", b" ") + b"\n"
    return b"".join(rows)


def cells(rng: Random, data: bytes) -> bytes:
    """Change cells of a CSV file."""
    rows = [line.split(b",") for line in data.split(b"\n")]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        values = (b"", b"nan", b"inf", b"-1", b"1e999", b'"', b"x" * 200_000, "\u200b".encode(), b"0", b"1e308", b"#",
                  b"9" * 5000, b"1_0", b"\xff", b" ", b"True")  # fmt: skip
        row[rng.randrange(len(row))] = rng.choice(values) if rng.random() < 0.7 else rng.choice(rng.choice(rows))
    return b"\n".join(b",".join(row) for row in rows)


def safetensors_header(rng: Random, data: bytes) -> bytes:
    """Change what the header of a safetensors file says, and keep its length true."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json_tree(rng, data[8 : 8 + size])
    stated = len(header) if rng.random() < 0.8 else rng.choice((0, 1, 2**60, 2**63, len(data), size))
    return struct.pack("<Q", stated) + header + data[8 + size :]


def compressed(inner: Mutation) -> Mutation:
    """Damage a gzip or zstandard file, or what is inside it."""

    def mutate(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.4:
            return rng.choice(BYTES)(rng, data)
        import zstandard

        if data[:2] == b"\x1f\x8b":
            return gzip.compress(inner(rng, gzip.decompress(data)), 1, mtime=0)
        return zstandard.compress(inner(rng, zstandard.decompress(data)), 1)

    return mutate


def any_of(*choices: Mutation) -> Mutation:
    """Take one of several mutations each time."""
    return lambda rng, data: rng.choice(choices)(rng, data)


MUTATIONS: dict[str, Mutation] = {
    "bytes": any_of(*BYTES),
    "text": any_of(*TEXT),
    "yaml": any_of(json_tree, json_tree, *TEXT),
    "json": any_of(*[json_tree] * 12, *TEXT),
    "rows": any_of(*[json_rows] * 12, *TEXT),
    "csv": any_of(cells, cells, cells, *TEXT),
    "safetensors": any_of(*[safetensors_header] * 6, *BYTES),
    "compressed rows": compressed(any_of(json_rows, *TEXT)),
    "compressed text": compressed(any_of(*TEXT)),
}


def mutate(rng: Random, data: bytes, kind: str) -> bytes:
    """Damage a valid file once or a few times.

    Args:
        rng: The random source.
        data: The file.
        kind: What it is, a key of `MUTATIONS`.

    Returns:
        The damaged file.
    """
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        try:
            data = MUTATIONS[kind](rng, data)
        except (ValueError, OverflowError, struct.error, zlib.error, OSError, EOFError, RecursionError, MemoryError):
            # It was damaged before so that it has no structure any more.
            data = rng.choice(BYTES)(rng, data)
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            data = rng.choice(BYTES)(rng, data)
    return data
