"""What every sampler does, whatever it reveals first."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from crossover.model.backbone import Backbone
from crossover.sampling.canvas import Row, evaluating, lay
from crossover.sampling.reading import Reading
from crossover.sampling.record import Generation, OnChange


class Sampler(ABC):
    """Draws texts from a model: lays them out, has a kind of sampler reveal what is hidden, and says what it cost."""

    @property
    def fills_holes(self) -> bool:
        """Whether given text may stand behind a place that is drawn."""
        return True

    def window(self, model: Backbone) -> int:
        """Give T, the window that texts are laid into.

        Args:
            model: The model.

        Returns:
            T.

        Raises:
            RecipeError: The sampler and the model do not go together.
        """
        return model.context

    @abstractmethod
    def draw(self, model: Backbone, rows: list[Row], reading: Reading | None, on_change: OnChange | None) -> None:
        """Reveal what is hidden, and charge each text for its passes.

        Args:
            model: The model, in evaluation mode.
            rows: The texts.
            reading: How ids read, for stop strings.
            on_change: Told of each text as it is revealed.
        """
        ...

    @torch.inference_mode()
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
        begin, context = time.perf_counter(), self.window(model)
        rows = lay(model, prompts, n_tokens, seed, context=context, first=first, holes=self.fills_holes)
        with evaluating(model):
            self.draw(model, rows, reading, on_change)
        seconds = time.perf_counter() - begin
        return tuple(row.generation(reading, seconds) for row in rows)

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
