"""The model card of an exported folder: what the model is, every number with how it was obtained, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Card = Mapping[str, Any]
# Conditions that are said once for the model, not for each number.
_SHARED = ("versions", "tokenizer_hash", "data_hash", "checkpoint", "checkpoint_step", "weights_sha256")
FILL_IN = "**Fill in**"


@dataclass(frozen=True)
class Story:
    """What is told of a model.

    Args:
        title: Its name.
        family: The architecture's class in transformers.
        parameters: All of them, a tied head once.
        facts: The section `crossover` of its config.json.
        cards: Score cards of its run.
        weights_sha256: Hash of the weights as the run kept them, or None where it is not known.
        manifest: The run's manifest; empty where there is none.
        ledger: The run's ledger; empty where there is none.
    """

    title: str
    family: str
    parameters: int
    facts: Mapping[str, Any]
    cards: Sequence[Card] = ()
    weights_sha256: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)


def write_card(story: Story) -> str:
    """Write README.md.

    Args:
        story: What is told.

    Returns:
        Markdown with the front matter that the hub reads.
    """
    parts = [_head(story), _training(story), _scores(story), _conditions(story), _use(story.facts), _rest(story)]
    return "\n".join(part for part in parts if part)


def _head(story: Story) -> str:
    facts = story.facts
    ways = ["left to right"] if "ar" in facts["modes"] else []
    ways += ["by unmasking a window in any order"] if facts.get("masked") else []
    ways += [f"by unmasking blocks of {block['size']}" for block in facts.get("blocks", ())]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: other  # fill in: it depends on the text that the model was trained on
tags: [crossover, {"diffusion, " if len(ways) > 1 or "ar" not in facts["modes"] else ""}causal-lm]
---

# {story.title}

A language model of {story.parameters:,} parameters, `{story.family}` of transformers, that writes {", or ".join(ways)}.
No remote code is needed to load it. Trained with Crossover.
"""


def _training(story: Story) -> str:
    ledger, manifest, facts = story.ledger, story.manifest, story.facts
    lines = ["## Training", ""]
    exposures = ledger.get("exposures") or {}
    if exposures:
        seen = ", ".join(f"{name} {count:,}" for name, count in exposures.items())
        lines.append(f"- Tokens seen by each objective: {seen}: {ledger['epochs']:.2f} epochs in all.")
    elif facts.get("objectives"):
        lines.append(f"- Objectives: {', '.join(facts['objectives'])}.")
    if "unique_tokens" in manifest:
        lines.append(f"- Distinct training tokens: {manifest['unique_tokens']:,}; data hash `{manifest['data_hash']}`.")
    if "flops" in ledger:
        lines.append(f"- Useful training FLOPs: {ledger['flops']:.4g} ({ledger['flops_6nd']:.4g} by 6ND).")
    if adopted := facts.get("adopted"):
        digest = adopted.get("source_sha256", adopted.get("sha256"))
        lines.append(f"- Began from `{adopted.get('source', 'another run')}`, sha256 `{digest}`.")
    lines.append(f"- Window: {facts.get('window', '?')} tokens behind BOS.")
    lines.append(f"- Text and its licence: {FILL_IN}.")
    return "\n".join(lines) + "\n"


def _scores(story: Story) -> str:
    if not story.cards:
        return "## Scores\n\nNone were kept beside these weights.\n"
    lines = [
        "## Scores",
        "",
        f"{_chosen(story)} `exact` is a likelihood, `bound` an upper bound on the loss; ± is one standard error over "
        "documents.",
        "",
        "| split | procedure | kind | bits per byte | nats per token | perplexity | tokens | documents | weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(card, story.weights_sha256) for card in story.cards]
    return "\n".join(lines) + "\n"


def _chosen(story: Story) -> str:
    """Say which mode won on dev, and which one the folder is for where a person chose another."""
    headline = next((card["procedure"] for card in story.cards if card.get("headline")), None)
    mode = story.facts["best_mode"]
    if headline == mode:
        return f"Mode `{mode}` was best on dev."
    won = f"; mode `{headline}` was best on dev" if headline else ""
    return f"The folder declares mode `{mode}` as its best by choice{won}."


def _row(card: Card, weights_sha256: str | None) -> str:
    conditions = card["conditions"]
    these = weights_sha256 is not None and conditions.get("checkpoint_sha256") == weights_sha256
    weights = "these" if these else f"others: {conditions.get('checkpoint', '?')}"
    return (
        f"| {card['split']} | {card['procedure']} | {'exact' if card['exact'] else 'bound'} "
        f"| {card['bits_per_byte']:.4f} ± {card['standard_error_bits']:.4f} "
        f"| {card['loss_nats']:.4f} ± {card['standard_error_nats']:.4f} | {card['perplexity']:.2f} "
        f"| {card['tokens']:,} | {card['documents']:,} | {weights} |"
    )


def _conditions(story: Story) -> str:
    if not story.cards:
        return ""
    lines = ["How each number was obtained:", ""]
    for card in story.cards:
        conditions = card["conditions"]
        told = [f"{key} {value}" for key, value in conditions.items() if key not in _SHARED and key != "split"]
        lines.append(f"- {card['split']} {card['procedure']}: {', '.join(told)}")
    first = story.cards[0]["conditions"]
    lines += ["", f"Data `{first.get('data_hash')}`, tokenizer `{first.get('tokenizer_hash')}`."]
    versions = ", ".join(f"{name} {value}" for name, value in (first.get("versions") or {}).items())
    return "\n".join(lines) + (f" {versions}.\n" if versions else "\n")


def _use(facts: Mapping[str, Any]) -> str:
    text = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)      # begins every text with BOS, as the training did
ids = tokenizer("Once", return_tensors="pt").input_ids
"""
    if "ar" in facts["modes"]:
        text += """
# left to right
print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0], skip_special_tokens=True))
"""
    mode = next((f"block({block['size']})" for block in facts.get("blocks", ())), "masked")
    if not facts.get("masked") and not facts.get("blocks"):
        return text + "```\n"
    return (
        text
        + f"""
# as a diffusion model; `custom_generate/generate.py` in the folder is what runs, read it first
out = model.generate(ids, custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=32,
                     mode="{mode}", order="confidence", tokens_per_pass=1, temperature=0.0)
print(tokenizer.decode(out[0], skip_special_tokens=True))
```

A mask's id in `ids` ({facts["mask_token_id"]}) is a hole, and is filled in. The section `crossover` of config.json
says the rest: the mask is never predicted (ids from {facts["predictable"]} on are no predictions), and the state at
input i predicts token i + 1, masked or not.
"""
    )


def _rest(story: Story) -> str:
    return f"""## Licence and limits

Licence: {FILL_IN}; the weights stand under what the text's licence allows.
Intended use, known biases: {FILL_IN}. The numbers above hold for the text that they name and for no other.
"""


def title_of(name: str) -> str:
    """Make a heading of a run's name, free of what Markdown would read as its own."""
    return re.sub(r"[^\w.+() -]", " ", name).strip() or "model"
