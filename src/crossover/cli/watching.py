"""The command `watch`: the report of runs under way, live in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossover.cli.options import app, say


@app.command("watch", short_help="Show the report of a run or study in a browser, live.")
def watch_command(
    run: Annotated[Path, typer.Argument(help="A run or study folder, under way or finished.", show_default=False)],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8765,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the folder, at least.", min=0.5)] = 3.0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Serve the report of a run or study on this machine, refreshed as it goes; nothing is written to its folder."""
    from crossover.evidence.watch import watch_folder

    watch_folder(run, port=port, every_seconds=every, notify=say, browser=browser)
