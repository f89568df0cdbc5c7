"""What every sampler does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from crossover.model.backbone import Backbone
from crossover.sampling.reading import Reading
from crossover.sampling.record import Generation, OnChange


class Sampler(ABC):
    """Draws texts from a model."""

    @abstractmethod
    def sample(
        self,
        model: Backbone,
        prompts: Sequence[Sequence[int]],
        n_tokens: int | Sequence[int],
        seed: int,
        *,
        first: int = 0,
        reading: Reading | None = None,
        on_change: OnChange | None = None,
    ) -> tuple[Generation, ...]:
        """Continue prompts of any lengths, or fill the holes in them, in one batch.

        Args:
            model: The model.
            prompts: Token ids of each without BOS; an empty one begins a document; the mask's id marks a hole, where
                the sampler can fill them.
            n_tokens: Most tokens to draw behind the prompts, for all or for each; 0 fills holes only.
            seed: The same seed gives the same texts.
            first: Number of the first prompt. A text depends on seed, number and prompt, not on the batch (but for
                float32 rounding, which can tip a draw that lies within 1e-6 of a border).
            reading: How ids read, for texts, and strings that end them.
            on_change: Told of each text as it is revealed.

        Returns:
            A text per prompt.

        Raises:
            RecipeError: Prompt and wanted tokens do not fit into the window, ids are none, logits are not finite, or
                the sampler and the model do not go together.
        """
        ...

    def generate(self, model: Backbone, prompt: Sequence[int], n_tokens: int, seed: int) -> list[int]:
        """Continue one prompt.

        Args:
            model: The model.
            prompt: Token ids without BOS; may be empty.
            n_tokens: Most tokens to draw.
            seed: The same seed gives the same text.

        Returns:
            The drawn ids, up to and without the first end-of-document token.
        """
        return list(self.sample(model, [prompt], n_tokens, seed)[0].ids)
