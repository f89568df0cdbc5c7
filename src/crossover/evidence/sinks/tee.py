"""One recorder in front of the run folder and of the sinks that show it.

The folder is told first, and what it refuses no sink hears. A sink never breaks a run: one that fails is named once and
switched off. What a sink has for sure is kept in `sinks/<name>.json` at each checkpoint; a run that is
resumed tells it the rest from the folder's own rows, so a sink may also be added to a run that has begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crossover.errors import RecipeError
from crossover.evidence.display import mix_text
from crossover.evidence.files import dumps, read_json, read_rows, write_text
from crossover.evidence.sinks.naming import evaluation_numbers, score_numbers, signal_numbers, step_numbers
from crossover.evidence.sinks.view import Place, Sink, View
from crossover.records import Recorder
from crossover.trees import without_views

Row = Mapping[str, Any]


def require_sinks(sinks: Sequence[Any]) -> None:
    """Refuse sinks that could not show a run; called before anything is written.

    Args:
        sinks: The recipe's sinks.

    Raises:
        RecipeError: Two sinks have one name.
        RunError: A package, or what a service needs from its user, is missing.
    """
    named = [sink.component_name for sink in sinks]
    for sink, name in zip(sinks, named, strict=True):
        if named.count(name) > 1:
            raise RecipeError(f"sinks: '{name}' is named {named.count(name)} times; name each sink once")
        sink.require()


@dataclass
class _Channel:
    """An open sink, and up to which step it has everything for sure."""

    name: str
    identity: str
    view: View
    told_step: int
    # When it was flushed, and the step then: sure once the sink's lag has passed.
    flushes: list[tuple[float, int]] = field(default_factory=list)

    def flush(self, step: int) -> None:
        """Flush the view, and count what has certainly arrived."""
        self.view.flush()
        now = time.monotonic()
        self.flushes.append((now, step))
        while self.flushes and now - self.flushes[0][0] >= self.view.lag_seconds:
            self.told_step = self.flushes.pop(0)[1]


class Tee:
    """Forwards every record to a run folder, and then to the sinks; it implements `crossover.records.Recorder`.

    Args:
        recorder: The run folder.
        folder: Its path.
        recipe: The resolved recipe as a plain mapping.
        sinks: The recipe's sinks.
        notify: Where a sentence for the user goes.
    """

    def __init__(
        self,
        recorder: Recorder,
        folder: Path,
        recipe: Mapping[str, Any],
        sinks: Sequence[Any],
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._recorder, self._folder, self._recipe, self._notify = recorder, folder, recipe, notify
        self._closed: dict[str, Sink] = {sink.component_name: sink for sink in sinks}
        self._open: dict[str, _Channel] = {}
        self._objectives: tuple[str, ...] = ()
        self._step = 0

    def manifest(self, facts: Row) -> None:
        """Record what holds for the whole run, and open the sinks."""
        self._recorder.manifest(facts)
        self._objectives = tuple(facts.get("flops_per_token") or ())
        while self._closed:
            name, sink = next(iter(self._closed.items()))
            del self._closed[name]
            self._guard(name, lambda name=name, sink=sink: self._begin(name, sink, facts))

    def _begin(self, name: str, sink: Sink, facts: Row) -> None:
        kept = self._state(name)
        before: Row = read_json(kept) if kept.exists() else {}
        if before.get("identity") != sink.identity:
            before = {}
        run, memory = str(self._recipe.get("name", self._folder.name)), before.get("memory", {})
        place = Place(self._folder / "sinks", run, without_views(self._recipe), facts, memory)
        channel = _Channel(name, sink.identity, sink.open(place), int(before.get("told_step", 0)))
        self._open[name] = channel
        # At once: a run that is killed before its first checkpoint must find its view again.
        self._keep(channel)
        self._notify(f"{name}: {channel.view.where}")

    def step(self, row: Row) -> None:
        """Record one optimizer step."""
        self._recorder.step(row)
        self._step = int(row.get("step", self._step))
        self._tell("steps", row)

    def evaluation(self, row: Row) -> None:
        """Record one evaluation."""
        self._recorder.evaluation(row)
        self._tell("evals", row)

    def decision(self, row: Row) -> None:
        """Record one decision."""
        self._recorder.decision(row)
        self._tell("decisions", row)

    def signal(self, row: Row) -> None:
        """Record a probe, or where the run stood when its controller was asked."""
        self._recorder.signal(row)
        self._tell("signals", row)

    def ledger(self, row: Row) -> None:
        """Replace the data ledger; sinks show what is in it with every step."""
        self._recorder.ledger(row)

    def progress(self, row: Row) -> None:
        """Show where the run stands; sinks have eyes of their own."""
        self._recorder.progress(row)

    def scores(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Keep a final score with its card."""
        self._recorder.scores(name, mapping)
        numbers = score_numbers(name, mapping)
        if numbers:
            self._each(lambda channel: channel.view.numbers(self._step, numbers))

    def flush(self) -> None:
        """Make everything recorded so far durable, and note how far the sinks have been told."""
        self._recorder.flush()
        self._each(self._flush)

    def _flush(self, channel: _Channel) -> None:
        channel.flush(self._step)
        self._keep(channel)

    def cut_back(self, step: int) -> None:
        """Forget the rows recorded after a step, and tell each sink those up to it that it has not heard of."""
        self._recorder.cut_back(step)
        self._step = step
        self._each(lambda channel: self._catch_up(channel, step))

    def _catch_up(self, channel: _Channel, step: int) -> None:
        channel.told_step = min(channel.told_step, step)
        channel.flushes.clear()
        channel.view.cut_back(channel.told_step)
        for stream, row in _rows(self._folder, channel.told_step, step):
            self._show(channel, stream, row)
        self._flush(channel)

    def _tell(self, stream: str, row: Row) -> None:
        self._each(lambda channel: self._show(channel, stream, row))

    def _show(self, channel: _Channel, stream: str, row: Row) -> None:
        step = int(row.get("step", self._step))
        if stream == "decisions":
            text = f"{row.get('reason') or 'no reason given'} (mix: {mix_text(row.get('mix'))})"
            channel.view.text(step, "decisions", text)
        elif stream == "steps":
            channel.view.numbers(step, step_numbers(row, self._objectives))
        else:
            numbers = evaluation_numbers(row) if stream == "evals" else signal_numbers(row)
            if numbers:
                channel.view.numbers(step, numbers)

    def _each(self, act: Callable[[_Channel], None]) -> None:
        for name, channel in list(self._open.items()):
            self._guard(name, lambda channel=channel: act(channel))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """Do something with a sink; if it fails, say so once and go on without it."""
        try:
            act()
        except Exception as error:
            channel = self._open.pop(name, None)
            first = (str(error).splitlines() or [""])[0]
            self._notify(
                f"warning: sink {name} failed and is switched off, the run goes on: {type(error).__name__}: {first}"
            )
            if channel is not None:
                with suppress(Exception):
                    channel.view.close(True)

    def _state(self, name: str) -> Path:
        return self._folder / "sinks" / f"{name}.json"

    def _keep(self, channel: _Channel) -> None:
        kept = {"identity": channel.identity, "told_step": channel.told_step, "memory": channel.view.memory}
        write_text(self._state(channel.name), dumps(kept) + "\n")

    def __enter__(self) -> Self:
        """Use it in a `with` block inside that of the run folder."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the sinks; how the run ended is the folder's to say."""
        self._each(lambda channel: self._end(channel, kind is not None))
        self._open.clear()

    def _end(self, channel: _Channel, failed: bool) -> None:
        channel.view.close(failed)
        channel.told_step = self._step
        self._keep(channel)


def _rows(folder: Path, after: int, upto: int) -> list[tuple[str, Row]]:
    """List a run's rows of the steps in (after, upto], by step."""
    streams = ("decisions", "signals", "steps", "evals")
    found = [(stream, row) for stream in streams for row in read_rows(folder / f"{stream}.jsonl")]
    kept = [(stream, row) for stream, row in found if after < int(row["step"]) <= upto]
    return sorted(kept, key=lambda pair: int(pair[1]["step"]))
