"""Whether a run that met a fault left what it would have left without: nothing lost, nothing different."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from injected.subject import read

STREAMS = ("steps", "evals", "signals", "decisions")
# The clock on the wall, and what a process counts from its own start.
UNEQUAL = ("seconds", "graphs")
# What each start writes anew, for whoever watches it.
ANEW = (".lock", "status.json", "log.txt", "progress.json")


@dataclass(frozen=True)
class Verdict:
    """What a run lacks and what it has instead.

    Args:
        lost_bytes: Of rows and files that the undisturbed run has and this one has not.
        wrong: Rows and files that differ, or that only this run has.
    """

    lost_bytes: int
    wrong: tuple[str, ...]


def timeless(value: Any) -> Any:
    """Leave out what a clock on the wall has a hand in."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not _is_clock(key)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _is_clock(key: str) -> bool:
    return key in UNEQUAL or key.startswith("seconds") or key.endswith("_seconds")


def compare(run: Path, whole: Path) -> Verdict:
    """Compare a run with the one that nothing happened to.

    Args:
        run: The run that met a fault.
        whole: The same recipe, undisturbed.

    Returns:
        The differences; the clock on the wall is no part of either.
    """
    lost, wrong = 0, []
    for stream in STREAMS:
        there, here = _rows(whole / f"{stream}.jsonl"), _rows(run / f"{stream}.jsonl")
        if there != here:
            missing, extra = Counter(there) - Counter(here), Counter(here) - Counter(there)
            lost += sum(len(row) * count for row, count in missing.items() if not extra)
            wrong.append(f"{stream}.jsonl: {missing.total()} rows missing, {extra.total()} others")
    expected, found = _files(whole), _files(run)
    for name in sorted(expected.keys() - found.keys()):
        lost += len(expected[name])
        wrong.append(f"{name} is missing")
    wrong += [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]
    wrong += [f"{name} differs" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    return Verdict(lost, tuple(wrong))


def _rows(path: Path) -> list[str]:
    lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.exists() else []
    return [json.dumps(timeless(json.loads(line)), sort_keys=True) for line in lines]


def _files(run: Path) -> dict[str, bytes]:
    """Every file of a run whose content does not depend on when it was made."""
    found = {}
    # Of checkpoints the newest: a run that was asked to stop has made one more, and kept one less of the others.
    older = tuple(sorted(str(path.relative_to(run)) for path in run.glob("checkpoints/step-*"))[:-1])
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if not path.is_file() or name.endswith(".jsonl") or name in ANEW or name.startswith(older):
            continue
        # Sums are of files that are compared themselves, and of state.json, which tells seconds.
        if path.name in ("checksums.json", "manifest.json"):
            found[name] = b""
        elif path.name.startswith("shard-"):
            # Which process writes a tensor that all of them hold is not settled: the parts are compared together.
            parts = f"{path.parent.relative_to(run)}/shards"
            found[parts] = b"".join(sorted([*found.get(parts, b"").splitlines(True), *_tensors(path)]))
        elif path.suffix == ".json":
            found[name] = json.dumps(timeless(read(path)), sort_keys=True).encode()
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(path: Path) -> list[bytes]:
    """Give a line for each tensor in a safetensors file: name, form, where it lies in the whole, and its hash."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    places = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
    lines = []
    for name, facts in header.items():
        first, last = facts.pop("data_offsets")
        digest = hashlib.sha256(content[start + first : start + last]).hexdigest()
        lines.append(json.dumps([name, facts, places.get(name), digest], sort_keys=True).encode() + b"\n")
    return lines
