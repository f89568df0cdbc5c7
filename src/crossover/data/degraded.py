"""Text of lower quality: another corpus whose training documents have lost part of their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from crossover.data.corpus import at_revision, newest_of, parts_of
from crossover.data.files import Document
from crossover.registry import Component, register
from crossover.streams import stream

# Shape suffixes: D tokens of a document.


@register("corpus", "degraded")
@dataclass(frozen=True)
class Degraded:
    """Another corpus, a share of whose training tokens is shuffled, so that quality is the only difference.

    Of every training document of n tokens, round(share * n) places are drawn and the tokens that stand there change
    places with one another at random; the rest stays. The document keeps its length, its bytes and how often each of
    its pieces occurs; what is lost is which piece follows which. Dev and test text stay clean, and the tokenizer is
    trained on the clean text, so two degrees are measured on the same tokens. Documents, their split, their order
    and the token budget are those of the clean corpus; of a document that the budget cuts, what is left is shuffled.
    The control part is training text and degraded as such. Which places are drawn depends on the document's own text,
    its length in tokens, the share and the seed alone.

    Args:
        source: The corpus below.
        share: Part of a training document's tokens that is shuffled, in (0, 1].
        seed: Another one draws other places.
    """

    source: Annotated[Any, Component("corpus")] = "stdlib"
    share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], not {self.share}; name the source alone for clean text")
        if isinstance(self.source, Degraded):
            raise ValueError("source is degraded already; give one share")

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield the clean documents of the source: what is trained on is degraded once it is tokens.

        Raises:
            DataError: The source's text is missing, empty or damaged.
        """
        yield from self.source.documents(document_bytes)

    def parts(self, document_bytes: int) -> Iterator[Iterator[Document]]:
        """Give the parts of the source."""
        return parts_of(self.source, document_bytes)

    def newest(self) -> str | None:
        """Ask for the source's revision."""
        return newest_of(self.source)

    def pinned(self, revision: str | None) -> Degraded:
        """Give the same text of the source at a revision."""
        return replace(self, source=at_revision(self.source, revision))

    def describe(self) -> str:
        """Name the source and how much of it is shuffled."""
        return f"{self.source.describe()} with {100 * self.share:g}% of the training tokens shuffled"

    def signature(self) -> dict[str, Any]:
        """Identify the text by the source's signature; share and seed stand in the recipe."""
        # The method counts up when other tokens would move: text that an older one prepared is not taken for this.
        return {"corpus": "degraded", "method": 2, "source": self.source.signature()}

    def spoil(self, tokens_D: NDArray[np.int64], digest: bytes) -> NDArray[np.int64]:
        """Shuffle the share of a training document's tokens.

        Args:
            tokens_D: Its tokens, without EOS.
            digest: Hash of its text.

        Returns:
            As many tokens, of the same kinds.
        """
        rng = stream(self.seed, "degraded", int.from_bytes(digest, "big"))
        places = rng.permutation(len(tokens_D))[: round(self.share * len(tokens_D))]
        spoiled_D = tokens_D.copy()
        # The places come in random order, so their sorted tokens laid along them are a uniform shuffle.
        spoiled_D[places] = tokens_D[np.sort(places)]
        return spoiled_D
