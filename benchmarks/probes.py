"""Time what probes and signals cost: the same training with them and without, in one process, in turns.

usage: python benchmarks/probes.py [--epochs 12] [--repeats 3] [--threads 1] [--json FILE]

Trains the beginning of recipes/scarce.yaml for so many epochs under `watch(...)`, with all five signals at the default
share and with a share of 0, which probes nothing; the controller inside is next-token training or an even mix.
"FLOPs" is the probes' part of the training FLOPs, "timed" the part of the training time that passed inside probes and
signals (evaluations apart), "ratio" the training time with probes over that without, medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from table import Table, add_options, begin, finish

from crossover.control.controllers.rules import Watch
from crossover.data.prepare import prepare
from crossover.evidence.files import read_json
from crossover.evidence.run import RunFolder
from crossover.recipe import load, to_tree
from crossover.training import train as loop

PROBE_SHARE = Watch.probe_share
RECIPE = Path(__file__).parent.parent / "recipes" / "scarce.yaml"
MIXES = {"next-token": "autoregressive", "even mix": "{autoregressive: 0.5, masked: 0.5}"}


def train_once(mix: str, share: float, options: argparse.Namespace) -> dict[str, float]:
    """Train a run; returns its ledger's seconds and FLOPs, evaluations apart."""
    controller = f"{{name: watch, controller: {{name: constant, mix: {mix}}}, probe_share: {share}}}"
    tokens = round(options.epochs * 50_000)
    given = [f"controller={controller}", f"budget={{tokens: {tokens}}}", f"training.threads={options.threads}"]
    # One evaluation at the end: they are no part of what is compared.
    recipe = load(RECIPE, [*given, f"scoring.every_tokens={tokens}", f"training.checkpoint_every_tokens={tokens}"])
    text = prepare(recipe.data, seed=0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        with RunFolder(folder, terminal=False).create(to_tree(recipe)) as recorder:
            finished, loop.finish = loop.finish, lambda *arguments: None
            try:
                loop.train(recipe, text, folder, recorder, None)
            finally:
                loop.finish = finished
        ledger = read_json(folder / "ledger.json")
    seconds = ledger["seconds"] - ledger["evaluation_seconds"]
    return {
        "seconds": seconds,
        "flops": ledger["probe_flops"] / ledger["flops"],
        "timed": ledger["probe_seconds"] / seconds,
    }


def in_turn(mix: str, turn: int, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Train with probes and without; who begins changes from turn to turn."""
    both = (PROBE_SHARE, 0.0)
    found = {share: train_once(mix, share, options) for share in (both if turn % 2 == 0 else both[::-1])}
    return found[PROBE_SHARE], found[0.0]


def main() -> None:
    """Measure both mixes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=3)
    parser.add_argument("--epochs", type=float, default=12, help="epochs of each run (12)")
    options = parser.parse_args()
    begin(options)
    # The first run of a process pays for what all others find done.
    train_once(MIXES["next-token"], PROBE_SHARE, argparse.Namespace(**{**vars(options), "epochs": 1.0}))
    table = Table({"mix": "", "FLOPs": ".2%", "timed": ".2%", "ratio": ".3f"})
    for name, mix in MIXES.items():
        runs = [in_turn(mix, turn, options) for turn in range(options.repeats)]
        ratio = statistics.median(probed["seconds"] / plain["seconds"] for probed, plain in runs)
        flops, timed = (statistics.median(probed[key] for probed, _ in runs) for key in ("flops", "timed"))
        table.add(name, flops, timed, ratio)
    finish(options, table)


if __name__ == "__main__":
    main()
