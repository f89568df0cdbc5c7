"""Write the tables and figures of docs/results from finished studies and runs; the prose around them stays.

usage: python studies/results.py controllers stdlib-50k=runs/controllers-stdlib english-50k=runs/transfer-english ...
       python studies/results.py tasks runs/both-modes
       python studies/results.py crossings 10k-small=runs/reproduction-10k-small ...
       python studies/results.py noise runs/noise
       python studies/results.py rising_loss runs/rising

A page has places such as `<!-- begin stdlib-50k -->` ... `<!-- end stdlib-50k -->`: what is between is replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from pages.controllers import write_controllers
from pages.crossings import write_crossings
from pages.noise import write_noise
from pages.rising_loss import write_rising_loss
from pages.tasks import write_tasks

# Pages of several studies, each with a name, and pages of one folder.
OF_SEVERAL: Mapping[str, Callable[[Mapping[str, Path]], None]] = {
    "controllers": write_controllers,
    "crossings": write_crossings,
}
OF_ONE: Mapping[str, Callable[[Path], None]] = {
    "tasks": write_tasks,
    "noise": write_noise,
    "rising_loss": write_rising_loss,
}


def main() -> None:
    """Write a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=(*OF_SEVERAL, *OF_ONE))
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="NAME=STUDY for each study, or one folder")
    options = parser.parse_args()
    if options.page in OF_ONE:
        if len(options.sources) != 1:
            parser.error(f"{options.page} takes one folder")
        OF_ONE[options.page](Path(options.sources[0]))
        return
    named = {name: Path(folder) for name, equals, folder in (item.partition("=") for item in options.sources) if equals}
    if len(named) != len(options.sources):
        parser.error(f"{options.page} takes NAME=STUDY for each study")
    OF_SEVERAL[options.page](named)


if __name__ == "__main__":
    main()
