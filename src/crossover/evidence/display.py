"""Where a run stands, for eyes on a terminal and for programs that read its output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossover.evidence.files import dumps, room_on_disk, write_text


def mix_text(mix: Any) -> str:
    """Write a mix as a person would, such as `masked 95%, autoregressive 5%`; text passes as it is."""
    if not isinstance(mix, Mapping):
        return str(mix) if mix else "-"
    ordered = sorted(mix.items(), key=lambda pair: -float(pair[1]))
    return ", ".join(str(name) if share == 1 else f"{name} {100 * float(share):.3g}%" for name, share in ordered)


def duration(seconds: Any) -> str:
    """Write seconds as `1h02m`, `3m20s` or `12s`; what is not known is a dash."""
    if not isinstance(seconds, int | float):
        return "-"
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def line_of(row: Mapping[str, Any]) -> str:
    """Write a progress row as one line of `key=value`, without a space inside a value."""
    parts = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            value = ",".join(f"{name}:{float(share):.4g}" for name, share in value.items())
        elif isinstance(value, float):
            value = f"{value:.5g}"
        parts.append(f"{key}={str(value).replace(' ', '')}")
    return " ".join(parts)


class ProgressDisplay:
    """Shows progress rows: live on a terminal, else a line now and then; always in `log.txt`.

    Args:
        folder: The run folder.
        interval_seconds: Least time between two lines of the log.
        terminal: Whether to draw live; None asks standard output.
        clock: Returns seconds; only differences count.
    """

    def __init__(
        self,
        folder: Path,
        *,
        interval_seconds: float = 10.0,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._interval, self._clock = folder, interval_seconds, clock
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._next_line, self._next_draw, self._live = -1e18, -1e18, None

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a row, as often as eyes and logs can use it."""
        now = self._clock()
        if now >= self._next_draw:
            self._next_draw = now + 0.5
            write_text(self._folder / "progress.json", dumps(row) + "\n", durable=False)
            if self._terminal:
                self._draw(row)
        if now >= self._next_line:
            self._next_line = now + self._interval
            self.say(line_of(row), quiet=self._terminal)

    def say(self, text: str, *, quiet: bool = False) -> None:
        """Append a line to `log.txt`, and print it unless it is quiet."""
        path = self._folder / "log.txt"
        with room_on_disk(path), open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        if not quiet:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, row: Mapping[str, Any]) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._live.update(_panel(self._folder.name, row), refresh=True)


def _panel(name: str, row: Mapping[str, Any]) -> Any:
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def number(key: str, form: str) -> str:
        value = row.get(key)
        return format(value, form) if isinstance(value, int | float) else "-"

    table = Table.grid(padding=(0, 3))
    table.add_row(
        f"loss {number('loss_nats', '.4f')} nats",
        f"epoch {number('epochs', '.2f')} of the unique text",
        f"{number('tokens_per_second', ',.0f')} tokens/s",
        f"{number('budget_fraction', '.1%')} of the budget, {duration(row.get('seconds_left'))} left",
    )
    table.add_row(f"step {number('step', ',')}", f"{number('data_tokens', ',')} tokens", Text(mix_text(row.get("mix"))))
    grid = Table.grid(expand=True)
    grid.add_row(table)
    grid.add_row(ProgressBar(total=1.0, completed=float(row.get("budget_fraction") or 0.0)))
    return Panel(grid, title=Text(name), title_align="left")
