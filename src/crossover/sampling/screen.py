"""A text on a terminal while it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

HIDDEN = "\N{FULL BLOCK}"


class Screen:
    """Shows texts as they are revealed, hidden tokens as blocks, and clears them away at the end.

    Args:
        decode: Turns ids into text.
        mask_id: Id of a hidden token.
        console: Where it is shown; standard output by default. Nothing is shown where that is no terminal.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], mask_id: int, *, console: Console | None = None) -> None:
        self._decode, self._mask_id = decode, mask_id
        self._console = console or Console()
        self._texts: dict[int, tuple[int, ...]] = {}
        self._live = Live(get_renderable=self._draw, console=self._console, transient=True, auto_refresh=True)

    @property
    def visible(self) -> bool:
        """Whether there is a terminal to show anything on."""
        return self._console.is_terminal

    def __enter__(self) -> Screen:
        if self.visible:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, number: int, window_ids: Sequence[int]) -> None:
        """Take a text's present state; it is drawn a few times a second.

        Args:
            number: The prompt's number.
            window_ids: Ids without BOS.
        """
        self._texts[number] = tuple(window_ids)

    def line(self, window_ids: Sequence[int]) -> str:
        """Write ids as text, a block for each hidden one."""
        parts = []
        for hidden, ids in groupby(window_ids, lambda token: token == self._mask_id):
            group = list(ids)
            parts.append(HIDDEN * len(group) if hidden else self._decode(group))
        return "".join(parts)

    def _draw(self) -> Text:
        # The sampler may add a text while this thread draws.
        return Text("\n".join(self.line(ids) for ids in list(self._texts.values())))
