"""What a sampler returns: a text, how it ended, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Ending = Literal["length", "document", "stop"]
# Called with a prompt's number and its text so far: ids without BOS, the mask's where nothing has been drawn yet.
OnChange = Callable[[int, Sequence[int]], None]


@dataclass(frozen=True)
class Generation:
    """A generated text and what it cost: quality is never shown without its price.

    Args:
        number: The prompt's number, which its random numbers depend on.
        window_ids: The whole text without BOS: given and drawn tokens, up to its end.
        ids: Drawn tokens in the order of their places, without the end of the document. Where a stop string ended the
            text, the fewest that spell what stands before it.
        pieces: Text of each run of drawn tokens (one behind a prompt, one per hole); empty without a `Reading`.
        text: The whole text, given and drawn; empty without a `Reading`.
        ended: "length" if all wanted tokens were drawn, "document" at an end of document, "stop" at a stop string.
        passes: Forward passes that computed something for this text (NFE); guidance takes two.
        flops: Useful FLOPs of these passes (`model.shapes.forward_flops`), padding and other texts left out.
        seconds: Wall-clock time of the call that drew it, shared by the texts of a batch.
    """

    number: int
    window_ids: tuple[int, ...]
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    ended: Ending
    passes: int
    flops: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this text per second of the call that drew it."""
        return len(self.ids) / self.seconds if self.seconds > 0 else 0.0

    def describe(self) -> str:
        """Write size and price as a person would: `12 tokens, 12 forward passes, 3.1 MFLOPs, 85 tokens/s`."""
        return (
            f"{len(self.ids)} tokens, {self.passes} forward passes, {flops_text(self.flops)}, "
            f"{self.tokens_per_second:.0f} tokens/s"
        )


def flops_text(flops: float) -> str:
    """Write FLOPs with a prefix, such as `3.14 GFLOPs`."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if flops >= 10**power:
            return f"{flops / 10**power:.3g} {prefix}FLOPs"
    return f"{flops:.0f} FLOPs"
