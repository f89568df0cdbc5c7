"""Count false claims: how often equal arms are said to cross, by the bootstrap alone and with the t test over seeds.

usage: python benchmarks/crossings.py [--repeats 200] [--json FILE]

Both arms have one true curve; each seed adds a level of its own (0.02 nats, standard deviation) and noise to every one
of 16 evaluations (0.01 nats). A claim is "crossed" or "always ahead", nominally at most 5%.
"""

from __future__ import annotations

import argparse

import numpy as np
from table import Table, add_options, finish

from crossover.evidence.crossing import Crossing, find_crossing
from crossover.evidence.curves import Curve
from crossover.evidence.seed_leads import confirmed
from crossover.streams import stream

FLOPS_E = np.geomspace(1e18, 1e21, 16)
LOSSES_E = np.linspace(3.0, 2.2, 16)


def arm(name: str, case: int, seeds: int) -> list[Curve]:
    """Simulate the curves of an arm, of a text with one document of one byte."""
    rng = stream(case, f"arm-{name}")
    curves = []
    for seed in range(seeds):
        loss_E = LOSSES_E + 0.02 * rng.standard_normal() + 0.01 * rng.standard_normal(len(LOSSES_E))
        curves.append(
            Curve(name, seed, "table", True, FLOPS_E, FLOPS_E, FLOPS_E / 1e18, loss_E[:, None], np.ones(1))
        )  # fmt: skip
    return curves


def claims(found: Crossing) -> bool:
    """Say whether a crossing is claimed."""
    return found.status != "not reached"


def main() -> None:
    """Count for two, three and five seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=200, threads=False)
    options = parser.parse_args()
    # Which machine it is does not matter: nothing is timed.
    table = Table({"seeds": "d", "bootstrap": ".1%", "with t test": ".1%"})
    for seeds in (2, 3, 5):
        pairs = [(arm("a", case, seeds), arm("b", case, seeds)) for case in range(options.repeats)]
        found = [find_crossing(*pair, draws=200, seed=case) for case, pair in enumerate(pairs)]
        kept = [confirmed(one, *pair) for one, pair in zip(found, pairs, strict=True)]
        table.add(seeds, np.mean([claims(one) for one in found]), np.mean([claims(one) for one in kept]))
    finish(options, table)


if __name__ == "__main__":
    main()
