"""The command `plan`: what a recipe costs and should reach, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossover.cli.options import Overrides, RecipePath, Trust, app, say


@app.command("plan", short_help="Say what a recipe costs, where it fits, and what to expect.")
def plan_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    machine: Annotated[
        str | None,
        typer.Option(
            help='A name (h100, a100-80, ...), settings ("gpus=8,memory_gib=141,tflops=990,mfu=0.4"), or both.',
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="How many GPUs; as few as fit by default.", show_default=False)
    ] = None,
    laws: Annotated[
        Path | None,
        typer.Option(help="Laws that `crossover scaling --out` wrote; published ones by default.", show_default=False),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", help="In any currency.", min=0, show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    trust: Trust = False,
) -> None:
    """Say what a recipe will cost, what of it fits where, and what loss to expect, without training or the text."""
    from crossover.evidence.planning.forecast import read_book
    from crossover.evidence.planning.lines import facts_of, lines_of
    from crossover.evidence.planning.machines import machine_of
    from crossover.evidence.planning.plan import plan_of
    from crossover.recipe import load

    where, resolved = machine_of(machine, gpus=gpus), load(recipe, overrides or [], trust=trust)
    plan = plan_of(resolved, where, read_book(laws), price_per_gpu_hour=price)
    if as_json:
        from crossover.evidence.files import dumps

        say(dumps(facts_of(plan), indent=2))
    else:
        for line in lines_of(plan):
            say(line)
    if plan.problems:
        raise typer.Exit(1)
