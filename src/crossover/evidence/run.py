"""The run folder: everything that one run says about itself, written so that a kill at any instant loses nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import yaml

from crossover.errors import RunError
from crossover.evidence.display import ProgressDisplay
from crossover.evidence.files import cut_rows, drop_torn_line, dumps, plain, read_json, room_on_disk, write_text
from crossover.evidence.lock import take_lock
from crossover.evidence.record import read_recipe
from crossover.trees import differences, without_views

STREAMS = ("steps", "evals", "signals", "decisions")
STATES = ("running", "finished", "failed", "interrupted")
# What only the run itself replaces, as its temporary files are called.
WRITTEN = (".recipe.yaml", ".manifest.json", ".ledger.json", ".status.json", ".progress.json", "scores/.*.json",
           "sinks/.*.json", *(f".{stream}.jsonl" for stream in STREAMS))  # fmt: skip
# What must be the same after a resume, or the two halves are not one run.
IDENTITY = ("data_hash", "data_order", "unique_tokens", "tokenizer_hash", "parameters", "budget")


class RunFolder:
    """Where training writes; it implements `crossover.records.Recorder`.

    Args:
        path: The folder; `create` makes it, `open` takes up one that exists.
        interval_seconds: Least time between two progress lines.
        terminal: Whether to draw progress live; None asks standard output.
    """

    def __init__(self, path: str | Path, *, interval_seconds: float = 10.0, terminal: bool | None = None) -> None:
        self.path = Path(path)
        self._display = ProgressDisplay(self.path, interval_seconds=interval_seconds, terminal=terminal)
        self._lock: IO[bytes] | None = None
        self._files: dict[str, IO[str]] = {}

    def create(self, recipe: Mapping[str, Any]) -> Self:
        """Make the folder for a recipe, or take it up again if it was made for the same one.

        Args:
            recipe: The resolved recipe as a plain mapping.

        Returns:
            The folder, locked for this process, its status `running`.

        Raises:
            RunError: The folder belongs to another recipe, is not a run folder, or another process writes in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; name a folder for the run")
        found = self.path / "recipe.yaml"
        foreign = self.path.is_dir() and any(not item.name.startswith(".") for item in self.path.iterdir())
        if foreign and not found.exists():
            raise RunError(f"{self.path}: holds files but no recipe.yaml, so it is no run folder; name another folder")
        with room_on_disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.path)
        try:
            if found.exists():
                self._refuse_other(recipe)
            else:
                write_text(found, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
            return self._begin()
        except BaseException:
            self._release()
            raise

    def open(self) -> Self:
        """Take up a folder that exists, whatever its recipe.

        Returns:
            The folder, locked for this process, its status `running`.

        Raises:
            RunError: There is no run in it, or another process writes in it.
        """
        read_recipe(self.path)
        self._lock = take_lock(self.path)
        return self._begin()

    def _begin(self) -> Self:
        for stream in STREAMS:
            drop_torn_line(self.path / f"{stream}.jsonl")
        # What a process was writing when it was killed; nobody else writes these while the lock is ours.
        for torn in (path for name in WRITTEN for path in self.path.glob(f"{name}.*.tmp")):
            torn.unlink(missing_ok=True)
        self._status("running", "")
        return self

    def _refuse_other(self, recipe: Mapping[str, Any]) -> None:
        changed = differences(without_views(read_recipe(self.path)), without_views(recipe))
        if changed:
            lines = [f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()]
            raise RunError(
                f"{self.path}: belongs to a run of another recipe; {len(changed)} setting(s) differ:\n"
                + "\n".join(lines)
                + "\nName another folder (--run-dir), undo the change, or delete the folder if its run is not needed"
            )

    def manifest(self, facts: Mapping[str, Any]) -> None:
        """Record choices and facts that hold for the whole run.

        Args:
            facts: Data hash, unique tokens, versions, machine, choices and the like.

        Raises:
            RunError: The folder has a manifest and it tells of other data, another order or another model.
        """
        path, now = self.path / "manifest.json", plain(facts)
        if path.exists():
            before = read_json(path)
            for key in IDENTITY:
                if key in before and key in now and before[key] != now[key]:
                    raise RunError(
                        f"{path}: {key} was {before[key]!r} when this run began and is {now[key]!r} now; the run "
                        f"cannot go on. Restore the data (or the version of the program), or name another folder"
                    )
            now["resumed"] = list(before.get("resumed", ()))
            now |= {"branch": before["branch"]} if "branch" in before else {}
            drift = differences({"versions": before.get("versions", {})}, {"versions": now.get("versions", {})})
            # A branch that is made from the start begins with a manifest that tells of its trunk's choices alone.
            if drift and "versions" in before:
                now["resumed"].append({"versions": now.get("versions"), "machine": now.get("machine")})
                now["versions"], now["machine"] = before.get("versions"), before.get("machine")
        write_text(path, dumps(now, indent=2) + "\n")

    def step(self, row: Mapping[str, Any]) -> None:
        """Record one optimizer step."""
        self._append("steps", row)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Record one evaluation under one procedure."""
        self._append("evals", row)

    def decision(self, row: Mapping[str, Any]) -> None:
        """Record one decision, in the log too."""
        self._append("decisions", row)
        details = row.get("details") or {}
        # The steps of a handover are recorded; a person is told of its beginning and its end.
        if row.get("reason") and not (details.get("phase") == "ramp" and details.get("way", 1.0) < 1):
            self._display.say(f"decision step={row.get('step')} {row['reason']}")

    def signal(self, row: Mapping[str, Any]) -> None:
        """Record a probe, or where the run stood when its controller was asked."""
        self._append("signals", row)

    def ledger(self, row: Mapping[str, Any]) -> None:
        """Replace the data ledger."""
        write_text(self.path / "ledger.json", dumps(row, indent=2) + "\n")

    def scores(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Write `scores/<name>.json`."""
        write_text(self.path / "scores" / f"{name}.json", dumps(mapping, indent=2) + "\n")

    def progress(self, row: Mapping[str, Any]) -> None:
        """Show where the run stands: live on a terminal, else one parsable line per interval."""
        self._display.show(row)

    def flush(self) -> None:
        """Make everything recorded so far durable."""
        for name, file in self._files.items():
            with room_on_disk(self.path / f"{name}.jsonl"):
                file.flush()
                os.fsync(file.fileno())

    def cut_back(self, step: int) -> None:
        """Forget what was recorded after a step, because the run goes on from that step's checkpoint.

        Args:
            step: The checkpoint's step; rows up to it are kept.

        Raises:
            RunError: A row that must be kept is broken.
        """
        self._close_files()
        for stream in STREAMS:
            cut_rows(self.path / f"{stream}.jsonl", step)

    def finish(self, state: str, why: str = "") -> None:
        """Say how the run ended and let the folder go.

        Args:
            state: "finished", "failed" or "interrupted".
            why: One sentence; empty when it finished as planned.
        """
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, not {state!r}")
        self._display.close()
        self.flush()
        self._close_files()
        self._status(state, why)
        self._release()

    def __enter__(self) -> Self:
        """Use the folder in a `with` block: what leaves the block is what the status says."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Write the status unless `finish` has been called."""
        if self._lock is None:
            return
        state, why = "finished", ""
        if kind is not None:
            stopped = issubclass(kind, KeyboardInterrupt | SystemExit)
            state = "interrupted" if stopped else "failed"
            said = "stopped from outside" if issubclass(kind, SystemExit) else str(error) or "stopped from outside"
            why = f"{said}; the same command goes on" if stopped else f"{kind.__name__}: {error}"
        try:
            self.finish(state, why)
        except RunError:
            # On a full disk the status cannot be written either; the first error is the one to tell.
            for file in self._files.values():
                with suppress(OSError):
                    file.close()
            self._files.clear()
            self._release()
            if kind is None:
                raise

    def _append(self, stream: str, row: Mapping[str, Any]) -> None:
        if self._lock is None:
            raise RunError(f"{self.path}: is not open for writing; call create or open first")
        path = self.path / f"{stream}.jsonl"
        with room_on_disk(path):
            if stream not in self._files:
                # Line buffering: a person may `tail -f` it; durability comes with `flush`.
                self._files[stream] = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            self._files[stream].write(dumps(row) + "\n")

    def _status(self, state: str, why: str) -> None:
        write_text(self.path / "status.json", dumps({"state": state, "why": why, "pid": os.getpid()}) + "\n")

    def _close_files(self) -> None:
        while self._files:
            name, file = self._files.popitem()
            with room_on_disk(self.path / f"{name}.jsonl"):
                file.close()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
