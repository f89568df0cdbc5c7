"""Adopt a pretrained next-token model, train it masked for two minutes, and see what it gains and what it keeps.

usage: python benchmarks/adopt.py MODEL [--tokenizer FILE] [--minutes 2] [--floor 1.05] [--json FILE]

MODEL is what `crossover adopt` takes: a llama2.c file such as stories260K.bin, or a Hugging Face folder. The text is
what the model itself writes at temperature 1: no model can read it better left to right than its author, so whatever
the masked training costs shows at once. Printed are the bits per byte of held-out documents before and after, for the
same weights in both directions: `ar`, exact, left to right, and `nelbo`, the masked bound. The target: the bound falls
by more than three standard errors of the difference between the same documents, and `ar` stays within the floor times
what it was. The exit code is 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from table import Table, begin, finish

from crossover.data.prepare import prepare
from crossover.data.shards import PreparedText
from crossover.evidence.files import read_json
from crossover.evidence.run import RunFolder
from crossover.hub.adopt import open_model, put_weights
from crossover.hub.start import RECIPE, make_ready
from crossover.model.backbone import Backbone
from crossover.recipe import load, to_tree
from crossover.records import ScoreCard
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.reading import Reading
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import procedure_of
from crossover.scoring.windows import held_out
from crossover.training.train import train

BATCH = 64
PROCEDURES = ("ar", "nelbo")


def write_text(path: Path, folder: Path, tokens: int) -> int:
    """Let the model write documents until there are so many tokens; returns how many there are."""
    model, tokenizer, _ = open_model(folder)
    sampler, reading, texts, drawn = AutoregressiveSampler(), Reading(tokenizer.decode), [], 0
    while drawn < tokens:
        made = sampler.sample(model, [[]] * BATCH, model.context, 0, first=len(texts), reading=reading)
        texts += [item.text for item in made]
        drawn += sum(len(item.ids) for item in made)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return drawn


def scored(model: Backbone, text: PreparedText, context: int, windows: int) -> dict[str, ScoreCard]:
    """Score held-out documents in both directions."""
    cut = held_out(text, "test", context, windows)
    procedures = {name: procedure_of(name, draws=32, positions=16) for name in PROCEDURES}
    return {name: score(model, cut, how, precision="float32") for name, how in procedures.items()}


def difference(before: ScoreCard, after: ScoreCard) -> tuple[float, float]:
    """Give the change in bits per byte and its standard error over documents, each against itself."""
    size = sum(before.document_bytes)
    delta = (np.array(after.document_nats) - np.array(before.document_nats)) / math.log(2)
    mean = delta.sum() / size
    rest = delta - mean * np.array(before.document_bytes)
    count = len(rest)
    return float(mean), float(math.sqrt(count / (count - 1) * (rest**2).sum()) / size)


def trained(folder: Path, options: argparse.Namespace) -> tuple[Backbone, Backbone, Any, dict[str, Any]]:
    """Adopt, write text, train; returns the model as it was and as it is, the text and the recipe's facts."""
    make_ready(options.model, folder / "adopted", tokenizer=options.tokenizer)
    print(f"text: {write_text(folder / 'text.jsonl', folder / 'adopted', options.tokens):,} tokens of its own")
    given = [f"data.source={folder / 'text.jsonl'}", "data.test_share=0.15", f"training.threads={options.threads}"]
    given += [f"budget={{minutes: {options.minutes}}}", "scoring.test_windows=16", f"seed={options.seed}"]
    recipe = load(folder / "adopted" / RECIPE, given)
    text = prepare(recipe.data, seed=0, cache=folder / "cache")
    run = folder / "run"
    with RunFolder(run, terminal=False).create(to_tree(recipe)) as recorder:
        train(recipe, text, run, recorder, None, notify=print)
    before, after = (open_model(folder / "adopted")[0] for _ in range(2))
    # One set of weights for both directions: those that were best at the masked bound on dev.
    put_weights(after, load_file(run / "best" / "nelbo" / "model.safetensors"), run)
    facts = {"context": recipe.data.context, **read_json(run / "ledger.json")}
    return before, after, text, facts


def main() -> None:
    """Print the table and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `crossover adopt` takes")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer, where it does not lie beside the weights")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, on one thread (2)")
    parser.add_argument("--tokens", type=int, default=150_000, help="of text (150,000)")
    parser.add_argument("--windows", type=int, default=96, help="windows that are scored (96)")
    parser.add_argument("--floor", type=float, default=1.05, help="how far `ar` may rise (1.05 times)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    begin(options)
    with tempfile.TemporaryDirectory() as place:
        before, after, text, facts = trained(Path(place), options)
        cards = [scored(model, text, facts["context"], options.windows) for model in (before, after)]
    exposures = ", ".join(f"{name} {count:,}" for name, count in facts["exposures"].items())
    print(f"{facts['epochs']:.1f} epochs: {exposures} tokens, {facts['seconds']:.0f} s")
    numbers = {
        "before": ".4f",
        "± before": ".4f",
        "after": ".4f",
        "± after": ".4f",
        "change": "+.4f",
        "± change": ".4f",
    }
    table, changes = Table({"bits per byte": "", **numbers}), {}
    for name in PROCEDURES:
        old, new = cards[0][name], cards[1][name]
        changes[name] = difference(old, new)
        ends = [old.bits_per_byte, old.standard_error_bits, new.bits_per_byte, new.standard_error_bits]
        table.add(name, *ends, *changes[name])
    gain, error = changes["nelbo"]
    ratio = cards[1]["ar"].bits_per_byte / cards[0]["ar"].bits_per_byte
    holds = gain < -3 * error and ratio <= options.floor
    finish(options, table, ratio=ratio, floor=options.floor, holds=holds)
    print(
        f"nelbo fell by {-gain / error:.0f} standard errors; ar is {ratio:.4f} times what it was, floor {options.floor}"
    )
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
