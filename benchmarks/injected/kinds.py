"""All kinds of faults by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from injected import damage, ends
from injected.scene import Scene, can_mount

Kind = Callable[[Scene], int]
KINDS: dict[str, Kind] = {
    "SIGKILL at a random instant": ends.killed,
    "SIGKILL inside a write": ends.killed_in_write,
    "SIGKILL in `prepare`": ends.killed_in_prepare,
    "asked to stop at a write": ends.asked_to_stop,
    "asked to stop at a random instant": ends.asked_at_an_instant,
    "asked twice": ends.asked_twice,
    "second writer": ends.second_writer,
    "lock of a dead process": ends.stale_lock,
    "clocks jump": ends.clocks_jump,
    "writes refused": damage.write_refused,
    "files limited": damage.file_too_large,
    "disk full": damage.disk_full,
    "folder read-only": damage.sealed,
    "checkpoint damaged": damage.checkpoint_damaged,
    "best weights damaged": damage.best_damaged,
    "shard damaged": damage.shard_damaged,
    "NaN batch": damage.nan_batch,
    "run of NaN batches": damage.nan_batches,
    "recipe changed": damage.recipe_changed,
    "text changed": damage.text_changed,
    "tokenizer changed": damage.tokenizer_changed,
    "rank killed": ends.rank_killed,
}
MOUNTS = ("disk full", "folder read-only")


def kinds_here() -> tuple[dict[str, Kind], dict[str, str]]:
    """Choose the kinds that are possible here.

    Returns:
        Kinds by name, and why each of the others is left out.
    """
    left: dict[str, str] = {}
    if not can_mount():
        left |= dict.fromkeys(MOUNTS, "needs Linux, root and the right to mount")
    if importlib.util.find_spec("crossover.training.parallel") is None:
        left["rank killed"] = "this version trains in one process"
    return {name: kind for name, kind in KINDS.items() if name not in left}, left
