"""Drawn ids as text, and the strings that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossover.errors import RecipeError


@dataclass(frozen=True)
class Reading:
    """How drawn ids read, and where a reader stops.

    Args:
        decode: Turns ids into text.
        stops: Strings that end a text, and are no part of it. They are looked for in drawn text alone: a string that
            begins in the prompt ends nothing.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise RecipeError("a stop string must not be empty; every text begins with an empty string")

    def piece(self, window: Sequence[int], start: int, end: int) -> str:
        """Read a part of a window as it stands behind what comes before it.

        Some tokenizers drop the space in front of the first word; a part that is not the first keeps it.

        Args:
            window: Ids.
            start: First id of the part.
            end: One past its last id.

        Returns:
            The part's text.
        """
        before, whole = self.decode(window[:start]), self.decode(window[:end])
        # Bytes of one character on both sides of the border read differently together.
        return whole[len(before) :] if whole.startswith(before) else self.decode(window[start:end])

    def stop(self, window: Sequence[int], start: int, end: int) -> tuple[int, str] | None:
        """Look for the first stop string in a drawn part.

        Args:
            window: Ids.
            start: First id of the part.
            end: One past its last id.

        Returns:
            One past the last id that is needed to spell the text before the stop string, and that text; or None.
        """
        if not self.stops:
            return None
        text = self.piece(window, start, end)
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if not found:
            return None
        kept = text[: min(found)]
        needed = next(last for last in range(start, end + 1) if self.piece(window, start, last).startswith(kept))
        return needed, kept

    def may_stop(self, window: Sequence[int], start: int, end: int) -> bool:
        """Say whether the last id may have completed a stop string, from the last few ids alone.

        Args:
            window: Ids.
            start: First id of the drawn part.
            end: One past its last id.

        Returns:
            False if there is no stop string among the last ids; `stop` is asked otherwise.
        """
        if not self.stops:
            return False
        # Nearly every id spells a byte at least; a few more make up for those that spell none.
        reach = max(len(stop.encode("utf-8")) for stop in self.stops) + 8
        if end - start <= reach:
            return self.stop(window, start, end) is not None
        tail = self.decode(window[end - reach : end])
        return any(stop in tail for stop in self.stops)
