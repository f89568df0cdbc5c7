"""Requests to stop: a signal becomes a flag that the loop reads between two steps.

Nothing here imports torch, so that the command line can listen before it does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A scheduler's warning, a system that shuts down, a cluster that takes the machine away, and ^C.
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
# Programs that pass signals on (`timeout`, `srun`, `torchrun`) often deliver one request twice within an instant.
SAME_SECONDS = 0.5


class Stopped(KeyboardInterrupt):
    """A run ends before its budget because it was asked to; everything up to the present step is saved."""


class Stopping:
    """Whether someone has asked this process to stop.

    While steps are taken, the first signal only leaves word, and the loop that reads it saves before it ends. At any
    other time there is nothing to save, so the first signal ends the run at once; so does a second one at all times.
    A process of several ranks reads its own flag; which step they stop at is for them to agree on.
    """

    def __init__(self) -> None:
        self._asked: str | None = None
        self._asked_at = 0.0
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}

    def requested(self) -> str | None:
        """Name the signal that asked for the end, or None while nobody has."""
        return self._asked

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal leave word while the block runs, instead of ending it at once.

        Raises:
            Stopped: Word was left and the block has ended without reading it.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._asked is not None:
            raise Stopped(f"{self._asked} asked it to stop; all steps are taken and saved, the final scores are not")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals while the block runs; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # What ignores ^C, such as a script's background job, goes on ignoring it.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                # On its way out a process that was asked has nothing left to lose, and an error message to spare.
                signal.signal(number, signal.SIG_IGN if self._asked else handler)  # type: ignore[arg-type]
            self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._asked is None:
            self._asked, self._asked_at = name, now
            if not self._deferred:
                raise KeyboardInterrupt
            self._answer(f"\n{name}: saving after this step, then stopping; once more to stop at once\n")
        elif now - self._asked_at >= SAME_SECONDS:
            for each in self._before:
                # The next one needs no Python to be obeyed.
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt

    def _answer(self, text: str) -> None:
        # For a person only; a handler may interrupt a print, so it writes past the buffers.
        if sys.stdout is not None and sys.stdout.isatty():
            os.write(sys.stdout.fileno(), text.encode())
