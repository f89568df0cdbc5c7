"""What is asked of a sampler on the command line, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.data.tokenizer import Tokenizer
from crossover.errors import RecipeError
from crossover.parsing import parse_json
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import FirstHitting, policy_of
from crossover.sampling.sampler import Sampler

# Tokens that are drawn where nobody says how many, if the window holds them.
TOKENS = 64
# Stands before a text where a tokenizer would put a space; no piece joins it to letters.
ANCHOR = "\n"
HOLE = re.compile(r"<mask:(\d+)>")


@dataclass(frozen=True)
class Request:
    """What should be written, and how.

    Args:
        prompt: Text to go on from; empty begins a document.
        prompts_file: A file of prompts in place of `prompt`: a line each, or `.jsonl` rows with a key "prompt".
        infill: Text with holes in place of a prompt, such as "a <mask:8> b".
        tokens: Most tokens to draw; None draws as many as the window holds, at most `TOKENS`.
        mode: "ar", "masked", "block" or "block(16)", or "best" for the mode that scored best on dev.
        unmasking: How masked and block modes reveal tokens, see `policies.policy_of`; None for one at a time in random
            order, "first_hitting".
        temperature: 0 takes the likeliest token.
        top_k: See `Picking`; 0 keeps all.
        top_p: See `Picking`.
        min_p: See `Picking`.
        guidance: Weight w of classifier-free guidance, masked mode alone; 0 is off.
        stop: Strings that end a text.
        samples: Texts per prompt.
        seed: The same seed gives the same texts.
        batch: Texts that are drawn together; it has no say in what is written.
    """

    prompt: str = ""
    prompts_file: Path | None = None
    infill: str | None = None
    tokens: int | None = None
    mode: str = "best"
    unmasking: str | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 0.0
    stop: tuple[str, ...] = ()
    samples: int = 1
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        if (self.prompt != "") + (self.prompts_file is not None) + (self.infill is not None) > 1:
            raise RecipeError("give one of a prompt, a file of prompts, or a text to be filled in")
        if self.infill is not None:
            holes = [int(count) for count in HOLE.findall(self.infill)]
            if not holes or 0 in holes:
                raise RecipeError(
                    "the text to be filled in has no hole, or an empty one; write <mask:8> for a hole of 8 tokens"
                )
            if self.stop and HOLE.split(self.infill)[-1]:
                raise RecipeError("a stop string has no effect where given text stands behind the last hole")
            if self.tokens is not None:
                raise RecipeError("tokens has no effect on a text to be filled in; its holes say how many")
        if self.samples < 1 or self.batch < 1 or (self.tokens is not None and self.tokens < 1):
            raise RecipeError("samples, batch and tokens must be at least 1")
        # What cannot be is said before a model is opened.
        self.picking()
        if self.unmasking is not None:
            policy_of(self.unmasking)

    def picking(self) -> Picking:
        """How a token is drawn."""
        return Picking(self.temperature, self.top_k, self.top_p, self.min_p)

    def prompts(self) -> list[str]:
        """List the texts to go on from.

        Returns:
            At least one.

        Raises:
            RecipeError: The file is missing, empty or of another kind.
        """
        if self.prompts_file is None:
            return [self.prompt]
        path = self.prompts_file
        try:
            # The caller's own file, which may well be a pipe.
            text = path.read_text("utf-8")
            # Other characters that end a line for Python may stand inside a prompt.
            lines = text.removesuffix("\n").split("\n") if text else []
            if path.suffix == ".jsonl":
                lines = [_prompt_of(parse_json(line)) for line in lines if line.strip()]
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise RecipeError(f"{path}: cannot be read as prompts, a line each: {error}") from None
        if not lines:
            raise RecipeError(f"{path}: holds no prompt; write one on each line")
        return lines

    def ids(self, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
        """Turn what is given into ids, the mask's at holes.

        Args:
            tokenizer: The model's.
            prompts: What `prompts` gave; a text to be filled in stands in their place.

        Returns:
            Ids of each prompt, without BOS.
        """
        if self.infill is None:
            return [_encoded(tokenizer, prompt, "the prompt") for prompt in prompts]
        filled: list[int] = []
        # Every second part is the number in a hole.
        for index, part in enumerate(HOLE.split(self.infill)):
            if index % 2:
                filled += [tokenizer.vocabulary.mask_id] * int(part)
            else:
                filled += _encoded(tokenizer, part, "the text to be filled in", behind=index > 0)
        return [filled]

    def sampler(self, mode: str, clean: str) -> Sampler:
        """Make the sampler of a mode.

        Args:
            mode: "ar", "masked" or "block(16)".
            clean: How a block model's clean stream sees itself.

        Returns:
            The sampler.

        Raises:
            RecipeError: A setting has no effect in this mode.
        """
        if mode == "ar" and self.unmasking is not None:
            raise RecipeError("unmasking has no effect in mode 'ar', which draws from left to right")
        if mode != "masked" and self.guidance:
            raise RecipeError(f"guidance has no effect in mode '{mode}'; it needs mode 'masked'")
        if mode == "ar":
            return AutoregressiveSampler(self.picking())
        policy = policy_of(self.unmasking) if self.unmasking else FirstHitting()
        if mode == "masked":
            return MaskedSampler(self.picking(), policy, self.guidance)
        return BlockSampler(int(mode[6:-1]), self.picking(), policy, clean)


def mode_of(folder: Path, facts: dict[str, Any], request: Request, context: int) -> tuple[str, str]:
    """Choose the mode that a model is sampled in.

    Args:
        folder: The model's folder, for errors.
        facts: What it says about itself: `modes` that it was trained for, and `best_mode` on dev.
        request: What is asked.
        context: T.

    Returns:
        "ar", "masked" or "block(16)", and how the clean stream sees itself.

    Raises:
        RecipeError: The model has no such mode.
    """
    have = dict(pair for pair in (_sampled(name) for name in facts["modes"]) if pair is not None)
    wanted = request.mode.replace(" ", "")
    if wanted == "best":
        best = _sampled(str(facts["best_mode"]))
        wanted = best[0] if best else ""
        if request.infill is not None and wanted == "ar":
            # Next-token sampling sees nothing behind a hole.
            wanted = next((mode for mode in have if mode != "ar"), "ar")
    elif wanted == "block":
        wanted = next((mode for mode in have if mode.startswith("block")), wanted)
    size = re.fullmatch(r"block\((\d+)\)", wanted)
    if size and (int(size[1]) == 0 or context % int(size[1])):
        sizes = ", ".join(str(count) for count in range(1, context + 1) if context % count == 0)
        raise RecipeError(
            f"{folder}: '{wanted}': the block does not divide the window of {context} tokens; use {sizes}"
        )
    # Blocks of one token are next-token sampling, a block as long as the window is masked sampling.
    wanted = {"block(1)": "ar", f"block({context})": "masked"}.get(wanted, wanted)
    if wanted not in have:
        raise RecipeError(f"{folder}: cannot sample in mode '{request.mode}'; this model has: {', '.join(have) or '-'}")
    if request.infill is not None and wanted == "ar":
        others = ", ".join(mode for mode in have if mode != "ar") or "no other mode"
        raise RecipeError(
            f"{folder}: mode 'ar' sees nothing behind a hole and cannot fill it in; this model has {others}"
        )
    return wanted, have[wanted]


def _sampled(procedure: str) -> tuple[str, str] | None:
    """Name the sampling mode that a scoring procedure speaks of, and its clean stream."""
    clean = "causal" if "causal" in procedure else "block_causal"
    found = re.match(r"(?:nelbo|block)\((\d+)", procedure)
    if found:
        return f"block({found[1]})", clean
    whole = {"ar": "ar", "l2r": "masked", "nelbo": "masked", "order": "masked"}.get(procedure.split("(")[0])
    return (whole, clean) if whole else None


def _prompt_of(row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError('expected rows such as {"prompt": "Once"}')
    return row["prompt"]


def _encoded(tokenizer: Tokenizer, text: str, what: str, *, behind: bool = False) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Python hands bytes of the command line that are no text over as halves of surrogate pairs.
        raise RecipeError(f"{what} is not UTF-8 text; convert it first") from None
    ids = tokenizer.encode(text).tolist()
    if behind and ids and tokenizer.adds_space:
        # Such a tokenizer puts a space before a text, which must not come between a hole and what stands behind it.
        before, whole = tokenizer.encode(ANCHOR).tolist(), tokenizer.encode(ANCHOR + text).tolist()
        return whole[len(before) :] if whole[: len(before)] == before else ids
    return ids


def wanted_tokens(folder: Path, prompts: Sequence[Sequence[int]], request: Request, context: int) -> list[int]:
    """Say how many tokens are drawn behind each prompt.

    Args:
        folder: The model's folder, for errors.
        prompts: Their ids.
        request: What is asked.
        context: T.

    Returns:
        A number for each.

    Raises:
        RecipeError: A prompt leaves no room for them.
    """
    counts = []
    for index, ids in enumerate(prompts):
        count = 0 if request.infill is not None else request.tokens or max(1, min(TOKENS, context - len(ids)))
        if request.infill is not None and len(ids) > context:
            raise RecipeError(
                f"{folder}: the text to be filled in has {len(ids)} tokens with its holes, more than the model's "
                f"window of {context}; shorten it, or make the holes smaller"
            )
        if len(ids) + count > context:
            which = "the prompt" if request.prompts_file is None else f"{request.prompts_file}: prompt {index + 1}"
            raise RecipeError(
                f"{folder}: {which}'s {len(ids)} tokens and {count} new ones exceed the model's window of {context} "
                f"tokens; draw at most {max(0, context - len(ids))}, or shorten the prompt"
            )
        counts.append(count)
    return counts
