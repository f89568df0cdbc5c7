"""The commands `export` and `adopt`: models out to transformers, and models from elsewhere in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossover.cli.options import app, say
from crossover.errors import RecipeError

Out = Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)]


@app.command("export", short_help="Write a run's model as a folder for transformers.")
def export_command(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    out: Out,
    mode: Annotated[
        str | None,
        typer.Option(
            help="The mode to declare as best, such as ar or nelbo, with its best weights.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="final (the run's model), or best/MODE.", show_default=False)
    ] = None,
) -> None:
    """Write a run's model as a folder that transformers loads without remote code, with its card."""
    from crossover.hub.publish import publish

    facts = publish(run, out, weights=weights, mode=mode)
    say(f"{out}: modes {', '.join(facts['modes'])}; best {facts['best_mode']}")
    say(f"fill in the text and its licence: {out / 'README.md'}")


@app.command("adopt", short_help="Make a model from elsewhere ready to be trained on.")
def adopt_command(
    source: Annotated[
        str,
        typer.Argument(help="A Hugging Face folder, a hub name (org/name), or a llama2.c file.", show_default=False),
    ],
    out: Out,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe to go by, then dotted.key=value ...", show_default=False, metavar="[RECIPE] ..."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Its tokenizer, where that does not lie beside the weights.", show_default=False),
    ] = None,
) -> None:
    """Make a model from elsewhere ready to be trained on, in both directions: its folder, and the recipe in it."""
    recipes = [Path(part) for part in settings or () if "=" not in part]
    if len(recipes) > 1:
        raise RecipeError(f"'{recipes[1]}': expected key=value; one recipe to go by is given already")
    from crossover.hub.start import RECIPE, make_ready

    given = [part for part in settings or () if "=" in part]
    build, facts = make_ready(source, out, tokenizer=tokenizer, recipe=recipes[0] if recipes else None, settings=given)
    shape = build.shape
    say(f"{out}: {facts['adopted']['source']}, {shape.family}, width {shape.width}, depth {shape.depth}")
    say(f"  vocabulary {facts['predictable']:,} and the mask, id {facts['mask_token_id']}")
    say(f"train it: crossover train {out / RECIPE} data.source=my_text/")
