"""Generation by unmasking in plain transformers; a copy of this file is `custom_generate/generate.py` of an export.

It needs torch and transformers alone: `model.generate(ids, custom_generate=FOLDER, trust_remote_code=True, ...)`.
What it computes is what Crossover's own samplers compute (MDLM, arXiv 2406.07524; BD3-LM, arXiv 2503.09573).

Suffixes: B texts, N new inputs, C kept inputs, K = C + N, S tokens of a block, R places, P predictable ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

ORDERS = ("confidence", "left_to_right", "random", "ancestral")
# Places whose probabilities differ by less than this part of the largest count as equal; the leftmost goes first.
TIE = 1e-5
# What a generation configuration may say beside the number of tokens: the model's own, and what steers nothing.
SAID = {"max_new_tokens", "suppress_tokens", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    mode: str | None = None,
    order: str = "confidence",
    steps: int | None = None,
    tokens_per_pass: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    **others: Any,
) -> Tensor:
    """Continue texts, or fill the holes in them, by unmasking block after block; masked mode is one block.

    Args:
        model: A causal language model of transformers whose configuration has the section `crossover`.
        inputs: Ids [B, N]; the mask's id marks a place to be drawn. BOS in front may be left out.
        generation_config: Says how many tokens to draw, where `max_new_tokens` does not.
        input_ids: The same as `inputs`.
        attention_mask: 0 at padding, on either side.
        max_new_tokens: Places to be drawn behind each text; 0 fills holes alone.
        mode: "masked" or "block(16)"; by default the best one that the model was trained for.
        order: "confidence" (LLaDA, arXiv 2502.09992), "left_to_right", "random", or "ancestral": with `steps`, every
            place by a coin of its own.
        steps: Denoising steps of a block.
        tokens_per_pass: Tokens that a pass reveals, in place of `steps`; 1 by default.
        temperature: 0 takes the likeliest token.
        top_k: Draws from this many likeliest tokens; 0 is off.
        seed: The same seed gives the same texts of the same batch.
        others: What `generate` passes on; a setting that would have no effect is refused.

    Returns:
        Ids [B, longest]: each text as it was given, and what was drawn; the end of a document ends a text and is
        followed by padding.

    Raises:
        ValueError: A setting makes no sense for this model, or a text does not fit its window.
    """
    given = inputs if inputs is not None else input_ids
    idle = _idle(generation_config, others)
    if given is None or idle:
        raise ValueError(f"these settings have no effect here: {', '.join(idle)}" if idle else "give input ids")
    if max_new_tokens is None:
        wanted = getattr(generation_config, "max_new_tokens", None)
        max_new_tokens = 64 if wanted is None else int(wanted)
    facts = _facts(model)
    size, clean = _block(facts, mode)
    picker = _Picker(order, size, steps, tokens_per_pass, temperature, top_k, seed)
    kept = torch.ones_like(given) if attention_mask is None else attention_mask
    prompts = [row[mask.bool()].tolist() for row, mask in zip(given.cpu(), kept.cpu(), strict=True)]
    texts = [_Text(prompt, max_new_tokens, facts) for prompt in prompts]
    groups: dict[int, list[_Text]] = {}
    for text in texts:
        if text.holes:
            groups.setdefault(text.holes[0] // size, []).append(text)
    with torch.inference_mode():
        for number, group in groups.items():
            _draw(model, facts, group, number * size, size, clean, picker)
    return _joined(texts, facts).to(given.device)


def _idle(generation_config: Any, others: dict[str, Any]) -> list[str]:
    """List settings that ask for something which is not done here; tokenizers hand their token types over."""
    asked = {name: value for name, value in others.items() if name != "token_type_ids"}
    if generation_config is not None:
        said = generation_config.to_diff_dict().items()
        asked |= {name: value for name, value in said if name not in SAID and not name.startswith("_")}
    empty = (str, int, float, list, tuple, dict)
    return [name for name, value in asked.items() if value is not None and (not isinstance(value, empty) or value)]


def _facts(model: Any) -> dict[str, Any]:
    facts = getattr(model.config, "crossover", None)
    if not isinstance(facts, dict) or "mask_token_id" not in facts or "window" not in facts:
        raise ValueError("this model's config.json has no section 'crossover' that says its mask token and its window")
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError("unmasking needs masks of its own: load the model with attn_implementation='sdpa'")
    config = model.config
    pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    return {**facts, "bos": config.bos_token_id, "eos": config.eos_token_id, "pad": pad}


def _block(facts: dict[str, Any], mode: str | None) -> tuple[int, str]:
    """Choose the block: its size, and how the clean stream before it sees itself."""
    window = int(facts["window"])
    have = {f"block({block['size']})": (int(block["size"]), str(block["clean"])) for block in facts.get("blocks", ())}
    if facts.get("masked"):
        have["masked"] = (window, "block_causal")
    best = str(facts.get("best_mode", ""))
    found = re.match(r"(?:nelbo|block)\((\d+)", best)
    preferred = f"block({found[1]})" if found else "masked"
    chosen = (preferred if preferred in have else next(iter(have), "")) if mode is None else mode.replace(" ", "")
    if chosen not in have:
        known = ", ".join(have) or "none: it was trained left to right alone; use generate without custom_generate"
        raise ValueError(f"this model has no mode of unmasking '{mode or chosen}'; it has {known}")
    return have[chosen]


class _Text:
    """One text while it is drawn: ids without BOS, the mask's at places to be drawn."""

    def __init__(self, prompt: list[int], new: int, facts: dict[str, Any]) -> None:
        self.mask, self.ends = int(facts["mask_token_id"]), {facts["bos"], facts["eos"]}
        self.begun = prompt[:1] == [facts["bos"]]
        self.window = prompt[self.begun :] + [self.mask] * new
        if len(self.window) > facts["window"]:
            raise ValueError(f"{len(self.window)} tokens are more than the model's window of {facts['window']}")
        if any(not 0 <= token < facts["predictable"] and token != self.mask for token in self.window):
            raise ValueError(f"ids must lie below {facts['predictable']}, or be the mask's, {self.mask}")
        self.holes = [place for place, token in enumerate(self.window) if token == self.mask]
        # Behind the last given token a document may end; before it the text goes on.
        self.open = 1 + max((place for place, token in enumerate(self.window) if token != self.mask), default=-1)

    def hidden(self, start: int, stop: int) -> list[int]:
        """List the places of a block that are still to be drawn; none once the text has ended before them."""
        left = [place for place in self.holes if start <= place < stop and self.window[place] == self.mask]
        return [] if left and self.ends & set(self.window[self.open : left[0]]) else left

    def end(self) -> int:
        """Give the place where the text has ended, or its length."""
        ends = (place for place in range(self.open, len(self.window)) if self.window[place] in self.ends)
        return next(ends, len(self.window))


class _Picker:
    """Which places are revealed in a pass, and with which tokens."""

    def __init__(
        self, order: str, size: int, steps: int | None, each: int | None, temperature: float, top_k: int, seed: int
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"no order called '{order}'; choose one of {', '.join(ORDERS)}")
        if order == "ancestral" and steps is None:
            raise ValueError("order 'ancestral' needs steps=...")
        if each is not None and steps is not None:
            raise ValueError("give steps or tokens_per_pass, not both")
        counts = min(1 if steps is None else steps, 1 if each is None else each)
        if counts < 1 or top_k < 0 or not 0 <= temperature < float("inf"):
            raise ValueError("steps and tokens_per_pass are at least 1, temperature and top_k not negative")
        self.order, self.steps, self.each = order, steps, each or 1
        self.temperature, self.top_k = temperature, top_k
        self.random = torch.Generator().manual_seed(seed)

    def places(self, logits_RP: Tensor, step: int) -> list[int]:
        """Choose among the hidden places of a text, by rank from the left."""
        hidden = len(logits_RP)
        if self.order == "ancestral":
            # From time t to s a token is revealed with probability (t - s) / t; the last step takes all.
            chance = 1 / max(1, (self.steps or 1) - step)
            return torch.nonzero(torch.rand(hidden, generator=self.random) < chance)[:, 0].tolist()
        left = None if self.steps is None else max(1, self.steps - step)
        count = min(hidden, self.each if left is None else -(-hidden // left))
        if self.order == "left_to_right":
            return list(range(count))
        if self.order == "random":
            return sorted(torch.randperm(hidden, generator=self.random)[:count].tolist())
        score_R = torch.softmax(logits_RP.double(), -1).amax(-1)
        slack, chosen = TIE * float(score_R.max()), []
        for _ in range(count):
            chosen.append(int((score_R >= score_R.max() - slack).nonzero()[0, 0]))
            score_R[chosen[-1]] = -torch.inf
        return sorted(chosen)

    def tokens(self, logits_RP: Tensor) -> list[int]:
        """Draw a token for each place."""
        if self.temperature == 0:
            return logits_RP.argmax(-1).tolist()
        scaled_RP = logits_RP.double() / self.temperature
        if 0 < self.top_k < scaled_RP.shape[-1]:
            least_R1 = scaled_RP.topk(self.top_k, -1).values[:, -1:]
            scaled_RP = scaled_RP.masked_fill(scaled_RP < least_R1, -torch.inf)
        return torch.multinomial(torch.softmax(scaled_RP, -1), 1, generator=self.random)[:, 0].tolist()


def _draw(
    model: Any, facts: dict[str, Any], texts: list[_Text], start: int, size: int, clean: str, picker: _Picker
) -> None:
    """Draw texts that stand at the same block, and go on to the next block with those that have not ended."""
    cache = DynamicCache(config=model.config)
    while texts:
        stop, step = start + size, 0
        while any(text.hidden(start, stop) for text in texts):
            logits_BSP = _predict(model, facts, texts, start, size, clean, cache)
            for text, logits_SP in zip(texts, logits_BSP, strict=True):
                hidden = text.hidden(start, stop)
                if hidden:
                    _reveal(text, hidden, logits_SP[[place - start for place in hidden]], picker, step)
            step += 1
        going = [
            index
            for index, text in enumerate(texts)
            if text.holes[-1] >= stop and text.end() >= min(stop, len(text.window))
        ]
        if 0 < len(going) < len(texts) and cache.get_seq_length():
            cache.batch_select_indices(torch.tensor(going, device=model.device))
        texts, start = [texts[index] for index in going], stop


def _reveal(text: _Text, hidden: Sequence[int], logits_RP: Tensor, picker: _Picker, step: int) -> None:
    for rank, place in enumerate(hidden):
        if place < text.open:
            # Behind a hole the text goes on, so no document ends in it.
            logits_RP[rank, [end for end in text.ends if end < logits_RP.shape[1]]] = -torch.inf
    ranks = picker.places(logits_RP, step)
    if ranks:
        for rank, token in zip(ranks, picker.tokens(logits_RP[ranks]), strict=True):
            text.window[hidden[rank]] = token


def _predict(
    model: Any, facts: dict[str, Any], texts: list[_Text], start: int, size: int, clean: str, cache: DynamicCache
) -> Tensor:
    """Run the noisy copy of a block behind the clean stream.

    The copy has S + 1 inputs, the clean token before the block first: state i predicts token i + 1. It sees itself and
    the clean inputs strictly before that token, whose keys and values are kept; its own are cut off again. Where the
    model was trained so, nothing is seen across the end of a document.

    Returns:
        [B, S, P] float32 logits on the CPU.
    """
    stop, kept = start + size, cache.get_seq_length()
    windows = [text.window[:stop] + [text.mask] * (stop - len(text.window)) for text in texts]
    whole_BK = torch.tensor([[facts["bos"], *window] for window in windows])
    query_N1, key_K = torch.arange(kept, stop + 1)[:, None], torch.arange(stop + 1)
    own = key_K <= query_N1 if clean == "causal" else key_K // size <= query_N1 // size
    seen_BNK = ((query_N1 >= start) | (own & (key_K < start))).expand(len(texts), -1, -1)
    if not facts.get("documents_see_each_other", True):
        number_BK = (whole_BK == facts["eos"]).cumsum(1)
        seen_BNK = seen_BNK & (number_BK[:, kept:, None] == number_BK[:, None, :])
    mask_BNK = torch.zeros(seen_BNK.shape, dtype=model.dtype).masked_fill_(~seen_BNK, torch.finfo(model.dtype).min)
    outputs = model(
        input_ids=whole_BK[:, kept:].to(model.device),
        attention_mask=mask_BNK[:, None].to(model.device),
        position_ids=torch.arange(kept, stop + 1, device=model.device)[None].expand(len(texts), -1),
        past_key_values=cache if start else None,
        use_cache=start > 0,
        logits_to_keep=size + 1,
    )
    if start:
        cache.crop(-(size + 1))
    logits_BSP = outputs.logits[:, :size, : facts["predictable"]].float().cpu()
    if not torch.isfinite(logits_BSP).all():
        raise ValueError("the model gives logits that are not finite; load it in float32, or take other weights")
    return logits_BSP


def _joined(texts: Sequence[_Text], facts: dict[str, Any]) -> Tensor:
    rows = []
    for text in texts:
        end = text.end()
        closed = [*text.window[:end], facts["eos"]] if end < len(text.window) else text.window
        rows.append([facts["bos"]] * text.begun + closed)
    longest = max(map(len, rows))
    return torch.tensor([row + [facts["pad"]] * (longest - len(row)) for row in rows])
