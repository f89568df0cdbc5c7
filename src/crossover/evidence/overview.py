"""How all runs of a study stand: a live table on a terminal, one line per finished run otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crossover.evidence.checked import read_progress
from crossover.evidence.display import duration, mix_text
from crossover.evidence.record import read_status
from crossover.evidence.workers import Fleet, Job, tail


class Overview:
    """Shows the runs of a study.

    Args:
        folder: The study's folder.
        names: Runs, such as "masked/seed-0".
        notify: Where lines for people go.
        terminal: Whether to draw live; None asks standard output.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], notify: Callable[[str], None], *, terminal: bool | None = None
    ) -> None:
        self._folder, self._names, self._notify = folder, names, notify
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._live: Any = None
        self._next_draw = -1e18

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._terminal:
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def watch(self, fleet: Fleet) -> None:
        """Draw how it goes, twice a second at most."""
        if self._live is not None and time.monotonic() >= self._next_draw:
            self._next_draw = time.monotonic() + 0.5
            self._live.update(self._table(fleet), refresh=True)

    def ended(self, job: Job, code: int) -> None:
        """Say how a run ended, with the end of its log when it failed."""
        status = read_status(job.folder)
        if code == 0 and status["state"] == "finished":
            row = read_progress(job.folder)
            loss = f", loss {row['loss_nats']:.4f} nats" if isinstance(row.get("loss_nats"), int | float) else ""
            self._notify(f"{job.name}: finished{loss}")
            return
        why = f": {status['why']}" if status.get("why") else ""
        self._notify(f"{job.name}: {status['state']} (exit code {code}){why}; the end of {job.log}:\n{tail(job.log)}")

    def _table(self, fleet: Fleet) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        for title in ("run", "state", "done", "loss (nats)", "mix", "time left"):
            table.add_column(title)
        waiting = {job.name for job in fleet.waiting}
        for name in self._names:
            folder = self._folder / name
            state = "running" if name in fleet.running else read_status(folder)["state"]
            state = "waiting" if name in waiting else state
            row = read_progress(folder)
            done = 1.0 if state == "finished" else row.get("budget_fraction")
            shown = f"{done:.0%}" if isinstance(done, int | float) else "-"
            loss = f"{row['loss_nats']:.4f}" if isinstance(row.get("loss_nats"), int | float) else "-"
            left = duration(row.get("seconds_left")) if state == "running" else "-"
            # `Text`, so that a name in square brackets is not taken for markup.
            table.add_row(*(Text(item) for item in (name, state, shown, loss, mix_text(row.get("mix")), left)))
        return table
