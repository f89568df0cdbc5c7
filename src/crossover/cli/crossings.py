"""The command `crossing`: where arms pass a baseline, in runs, studies and published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossover.cli.options import app, say


@app.command("crossing", short_help="Say where each arm passes a baseline.")
def crossing_command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="A study folder, run folders, a folder of runs, or CSV files (step,tokens,flops,loss; optional arm, "
            "seed, epochs, bits_per_byte, standard_error).",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(help="The arm that may be passed; next-token training by default.", show_default=False),
    ] = None,
    downstream: Annotated[
        str | None,
        typer.Option(
            help="Cross at a task in place of held-out text, after `crossover eval RUN checkpoints=all tasks=...`.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say where each arm passes a baseline, at matched FLOPs and at the same epoch, per seed and over seeds."""
    from crossover.evidence.crossing_lines import facts_of, lines_of
    from crossover.evidence.crossings import Crossings, crossings_in, crossings_of

    if downstream is None:
        found = crossings_of(sources, baseline=baseline)
    else:
        from crossover.evidence.tracking import downstream_settings

        settings = downstream_settings(sources, downstream)
        found = Crossings(tuple(crossings_in(setting, baseline) for setting in settings), ())
    if as_json:
        from crossover.evidence.files import dumps

        say(dumps(facts_of(found), indent=2))
        return
    for line in lines_of(found):
        say(line)
