"""How an evaluation harness's settings for generation become a sampler of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from crossover.errors import RecipeError, nearest
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import policy_of
from crossover.sampling.sampler import Sampler
from crossover.scoring.procedures import Procedure

LONGEST_ANSWER = 256


def sampler_of(procedure: Procedure, picking: Picking, context: int) -> Sampler:
    """Choose the sampler that writes in the order in which a procedure scores.

    Args:
        procedure: How the model is scored. A bound stands for all orders: it is written in random order where tokens
            are drawn, and the most certain ones first where the likeliest are taken.
        picking: How a token is drawn.
        context: T.

    Returns:
        The sampler.
    """
    block = int(getattr(procedure, "block", 0))
    if procedure.name == "ar" or block == 1:
        return AutoregressiveSampler(picking)
    bound = "random" if picking.temperature > 0 else "confidence"
    order = getattr(procedure, "policy", "left_to_right" if procedure.exact else bound)
    policy = policy_of(f"{order}({getattr(procedure, 'tokens_per_step', 1)})")
    if block in (0, context):
        return MaskedSampler(picking, policy)
    return BlockSampler(block, picking, policy, getattr(procedure, "clean", "block_causal"))


def split_settings(settings: Mapping[str, Any], picking: type[Picking]) -> tuple[list[str], int, Picking]:
    """Read the settings of a request to generate text.

    Args:
        settings: `until` (a string or several), `max_gen_toks`, `do_sample`, `temperature` and fields of the picking.
        picking: The class whose fields may be set.

    Returns:
        Stop strings, most tokens, and how tokens are drawn; without `do_sample` the likeliest is taken.

    Raises:
        RecipeError: A setting would have no effect.
    """
    left = dict(settings)
    until = left.pop("until", None) or []
    stops = [until] if isinstance(until, str) else [str(stop) for stop in until]
    lengths = [left.pop(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in left]
    asked = left.pop("temperature", None)
    draws = bool(left.pop("do_sample", bool(asked)))
    temperature = (1.0 if asked is None else float(asked)) if draws else 0.0
    known = {field.name for field in fields(picking)} - {"temperature"}
    chosen = {name: left.pop(name) for name in sorted(known & set(left))}
    if left:
        name = sorted(left)[0]
        choices = ("until", "max_gen_toks", "do_sample", "temperature", *known)
        raise RecipeError(f"generation_kwargs: '{name}' would have no effect; {nearest(name, choices)}")
    # What narrows a choice has nothing to narrow where the likeliest token is taken.
    made = picking(temperature=temperature, **(chosen if temperature > 0 else {}))
    return [stop for stop in stops if stop], int(lengths[0]) if lengths else LONGEST_ANSWER, made
