"""Sampling from a model folder on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossover.hub.adopt import open_model
from crossover.sampling.reading import Reading
from crossover.sampling.record import Generation
from crossover.sampling.request import Request, mode_of, wanted_tokens
from crossover.sampling.screen import Screen


@dataclass(frozen=True)
class Sample:
    """A text as it is printed.

    Args:
        text: The whole of it, given and drawn.
        note: A line that says how it was drawn and what that cost.
        generation: The record.
        prompt: What was given, holes as they were written.
        mode: How it was drawn.
    """

    text: str
    note: str
    generation: Generation
    prompt: str
    mode: str


def sample_folder(folder: Path, request: Request, *, screen: bool = False) -> Iterator[Sample]:
    """Write texts with the model in a folder.

    Args:
        folder: A model folder that a run left.
        request: What should be written, and how.
        screen: Whether texts are shown on standard output as they are revealed, if that is a terminal.

    Yields:
        The texts, prompt by prompt, as their batches are done.

    Raises:
        RecipeError: The model has no such mode, or a text does not fit into its window.
    """
    model, tokenizer, facts = open_model(folder)
    context = model.context
    mode, clean = mode_of(folder, facts, request, context)
    sampler = request.sampler(mode, clean)
    # A file of prompts may be a pipe, which can be read once.
    texts = request.prompts()
    prompts = request.ids(tokenizer, texts)
    counts = wanted_tokens(folder, prompts, request, context)
    reading = Reading(tokenizer.decode, tuple(request.stop))
    given = [None] * len(prompts) if request.infill is not None else texts
    jobs = [job for job in zip(given, prompts, counts, strict=True) for _ in range(request.samples)]
    for first in range(0, len(jobs), request.batch):
        part = jobs[first : first + request.batch]
        with Screen(tokenizer.decode, tokenizer.vocabulary.mask_id) as shown:
            made = sampler.sample(
                model,
                [ids for _, ids, _ in part],
                [count for _, _, count in part],
                request.seed,
                first=first,
                reading=reading,
                on_change=shown.show if screen and shown.visible else None,
            )
        for (prompt, _, _), item in zip(part, made, strict=True):
            # A prompt is printed as it was written, even where the tokenizer spells it otherwise.
            text = item.text if prompt is None else prompt + "".join(item.pieces)
            given = prompt if prompt is not None else request.infill or ""
            yield Sample(text, f"[{mode}, {item.describe()}, seed {request.seed}]", item, given, mode)
