"""The command `scaling`: laws of repeated text, from runs, studies and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossover.cli.options import app, say
from crossover.errors import RunError

Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Study folders, run folders, folders of either, or CSV files (parameters,unique_tokens,tokens,loss_nats,"
        "family; optional seed, group).",
        show_default=False,
    ),
]
Points = Annotated[str, typer.Option(help="`ends`: where each run ended; `all`: every evaluation after the warm-up.")]
Baseline = Annotated[
    str | None,
    typer.Option(help="The family to hold others against; next-token training by default.", show_default=False),
]
Tied = Annotated[bool, typer.Option("--tied", help="One exponent for size and text: one constant fewer.")]
Hold = Annotated[
    list[str] | None,
    typer.Option(help="A constant that is known, such as data_reuse=500; may be repeated.", show_default=False),
]
Draws = Annotated[int, typer.Option(min=20, help="Bootstrap draws behind each interval.")]
Out = Annotated[Path | None, typer.Option(help="Write the laws to this file, with their draws.", show_default=False)]


@app.command("scaling", short_help="Fit laws of loss by size, text and repeats.")
def scaling_command(
    sources: Sources,
    points: Points = "ends",
    baseline: Baseline = None,
    tied: Tied = False,
    hold: Hold = None,
    draws: Draws = 300,
    out: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Fit a law of loss by size, text and repeats to each kind of training, and say where one passes another."""
    from crossover.evidence.files import dumps
    from crossover.evidence.scaling.book import save_laws
    from crossover.evidence.scaling.findings import findings_of
    from crossover.evidence.scaling.laws import Form
    from crossover.evidence.scaling.lines import facts_of, lines_of
    from crossover.evidence.scaling.reading import read_points

    if points not in ("ends", "all"):
        raise RunError(f"--points: is '{points}', expected 'ends' or 'all'")
    form = Form(tied_exponents=tied, held=_held(hold or []))
    found = findings_of(read_points(sources, used=points), form=form, baseline=baseline, draws=draws)
    if out is not None and found.laws:
        save_laws(found.laws, out)
    if as_json:
        say(dumps(facts_of(found), indent=2))
    else:
        written = f"laws written to {out}" if found.laws else f"no law, so {out} is not written"
        for line in [*lines_of(found), *([written] if out is not None else ())]:
            say(line)
    if not found.laws:
        raise typer.Exit(2)


def _held(settings: list[str]) -> dict[str, float]:
    """Read `name=value` settings."""
    held = {}
    for text in settings:
        name, _, value = text.partition("=")
        try:
            held[name.strip()] = float(value)
        except ValueError:
            raise RunError(f"--hold: is '{text}', expected a constant and its value, such as data_reuse=500") from None
    return held
