"""Sampling from a model folder on the command line."""

from __future__ import annotations

import math
import time
from pathlib import Path

from crossover.data.tokenizer import Tokenizer
from crossover.errors import RecipeError
from crossover.hub.adopt import open_model
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking

TOKENS = 64


def sample_folder(
    folder: Path, prompt: str, n_tokens: int | None, *, mode: str, temperature: float, seed: int
) -> tuple[str, str]:
    """Continue a prompt with the model in a folder.

    Args:
        folder: A model folder that a run left.
        prompt: Text to go on from; may be empty.
        n_tokens: Tokens to draw; None draws as many as the window holds, at most `TOKENS`.
        mode: "ar", "masked", or "best" for the mode that scored best on dev.
        temperature: 0 takes the likeliest token.
        seed: The same seed gives the same text.

    Returns:
        The drawn text, and a line that says how it was drawn.

    Raises:
        RecipeError: The model has no such mode, or the text does not fit into its window.
    """
    if not math.isfinite(temperature):
        raise RecipeError(f"temperature must be a finite number, not {temperature}")
    model, tokenizer, facts = open_model(folder)
    context = int(model.inner.config.max_position_embeddings) - 1
    modes = {"ar": "ar", "nelbo": "masked", "l2r": "masked"}
    have = list(dict.fromkeys(modes[name] for name in facts["modes"] if name in modes))
    wanted = modes.get(str(facts["best_mode"]), "") if mode == "best" else mode
    if wanted not in have:
        raise RecipeError(
            f"{folder}: cannot sample in mode '{wanted or mode}'; this model has: {', '.join(have) or '-'}"
        )
    ids = _encoded(tokenizer, prompt)
    if n_tokens is None:
        n_tokens = max(1, min(TOKENS, context - len(ids)))
    if len(ids) + n_tokens > context:
        raise RecipeError(
            f"{folder}: the prompt's {len(ids)} tokens and {n_tokens} new ones exceed the model's window of {context} "
            f"tokens; draw at most {max(0, context - len(ids))}, or shorten the prompt"
        )
    picking = Picking(temperature=temperature)
    sampler = AutoregressiveSampler(picking) if wanted == "ar" else MaskedSampler(context, picking)
    start = time.perf_counter()
    drawn = sampler.generate(model, ids, n_tokens, seed)
    seconds = time.perf_counter() - start
    passes = min(n_tokens, len(drawn) + 1) if wanted == "ar" else n_tokens
    note = f"[{wanted}, {len(drawn)} tokens, {passes} forward passes, {len(drawn) / seconds:.0f} tokens/s, seed {seed}]"
    return tokenizer.decode(drawn), note


def _encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        # Python hands bytes of the command line that are no text over as halves of surrogate pairs.
        raise RecipeError("the prompt is not UTF-8 text; convert it first") from None
    return tokenizer.encode(prompt).tolist()
