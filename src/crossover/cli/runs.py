"""Commands that make runs, and that read what they left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from crossover.cli.options import Overrides, RecipePath, Trust, app, say

# What a run writes before its text is looked at.
BEGINNINGS = ("status.json", "recipe.yaml")


def _prepare(recipe: Any, notify: Callable[[str], None]) -> Any:
    from crossover.data.prepare import prepare

    # One text for all seeds of a comparison: seeds vary the training, not the text.
    return prepare(recipe.data, seed=0, notify=notify)


@app.command("prepare")
def prepare_command(recipe: RecipePath, overrides: Overrides = None, trust: Trust = False) -> None:
    """Turn a recipe's text into tokens, and say what there is."""
    from crossover.recipe import load

    text = _prepare(load(recipe, overrides or [], trust=trust), say)
    facts = text.manifest
    say(f"prepared text: {text.folder}")
    say(f"  {text.unique_tokens:,} unique training tokens, {facts['bytes_per_token']:.3f} bytes per token")
    counts = [f"{split} {facts['documents'][split]:,} documents" for split in ("dev", "test")]
    say(f"  {', '.join(counts)}; dropped {facts['duplicates_removed']:,} exact duplicates{_near_duplicates(facts)}")
    say(f"  data hash {text.data_hash[:16]}, tokenizer {text.tokenizer.hash}")


def _near_duplicates(facts: dict[str, Any]) -> str:
    if "near_duplicates_removed" not in facts:
        return ""
    told = f", {facts['near_duplicates_removed']:,} near-duplicates"
    first = next(iter(facts["near_duplicates"]), None)
    if first is None:
        return told
    return f"{told}, such as {first['dropped']}, {100 * first['similarity']:.0f}% like {first['for']}"


@app.command("train", short_help="Train one run, or go on with it where it stopped.")
def train_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; runs/<name> by default.")] = None,
    fork_for: Annotated[
        list[float] | None,
        typer.Option(help="A smaller budget whose run may later begin at this one's (again for each).", min=0),
    ] = None,
    branch_of: Annotated[
        Path | None,
        typer.Option(help="A run of a larger budget that kept a fork for this one: only the decay is left to do."),
    ] = None,
    copies: Annotated[
        int,
        typer.Option(help="Under torchrun: copies of the model; each is spread over its part of the processes.", min=1),
    ] = 1,
    trust: Trust = False,
) -> None:
    """Train one run; the same command after an interruption goes on where it stopped.

    SIGTERM, SIGUSR1 and the first Ctrl-C save the present step before the run ends, with exit code 130.
    """
    from contextlib import nullcontext

    from crossover.evidence.run import RunFolder
    from crossover.evidence.sinks.tee import require_sinks
    from crossover.recipe import load, to_tree
    from crossover.stopping import Stopping
    from crossover.training.parallel import Silent, place

    resolved = load(recipe, overrides or [], trust=trust)
    require_sinks(resolved.sinks)
    tree, folder, here, stop = to_tree(resolved), run_dir or Path("runs") / resolved.name, place(), Stopping()
    if here.leads:
        _give_way(folder)
    # Until there are steps to save, a signal ends the command at once.
    with stop.listening(), RunFolder(folder).create(tree) if here.leads else nullcontext(Silent()) as recorder:
        finished = (folder / "scores" / "summary.json").exists()
        if not finished:
            _train(resolved, folder, recorder, copies, branch_of, fork_for or (), stop)
    if here.leads:
        _say_where(folder, finished)


def _say_where(folder: Path, finished: bool) -> None:
    """Tell what the run left, or that it had been finished before."""
    from crossover.evidence.record import read_status

    if finished:
        say(f"{folder}: this run is finished; use another --run-dir or name= to train again")
    else:
        say(f"{folder}: {read_status(folder)['state']}; scores in {folder / 'scores'}, the model in {folder / 'model'}")


def _train(
    recipe: Any,
    folder: Path,
    recorder: Any,
    copies: int,
    branch_of: Path | None,
    fork_for: Sequence[float],
    stop: Any,
) -> None:
    """Train with the other processes of the run, of which the first one writes and speaks for all."""
    from contextlib import nullcontext

    from crossover.evidence.branches import begin_branch
    from crossover.evidence.sinks.tee import Tee
    from crossover.recipe import to_tree
    from crossover.training.parallel import place, together

    here = place()
    tell = say if here.leads else _nothing
    if branch_of is not None and here.leads:
        say(begin_branch(folder, branch_of))
    text = _prepare(recipe, say) if here.leads else None
    # Not before the text is known to be good: importing torch takes seconds.
    from crossover.training.train import train

    telling = Tee(recorder, folder, to_tree(recipe), recipe.sinks, say) if here.leads else nullcontext(recorder)
    with together(here, copies) as world, telling as told:
        # The others have waited here for the text.
        text = text or _prepare(recipe, tell)
        train(recipe, text, folder, told, _recorded(folder), tell, fork_for, stop, world)


def _nothing(sentence: str) -> None:
    """Say nothing."""


def _give_way(folder: Path) -> None:
    """Forget a start that ended before there was anything to train, so that a corrected recipe may use its folder."""
    from crossover.errors import RunError
    from crossover.evidence.lock import take_lock

    if not _only_begun(folder):
        return
    with suppress(RunError), take_lock(folder):
        # Asked again: until we had the lock, another command may have begun to train here.
        if _only_begun(folder):
            for name in BEGINNINGS:
                (folder / name).unlink(missing_ok=True)


def _only_begun(folder: Path) -> bool:
    held = {item.name for item in folder.iterdir() if not item.name.startswith(".")} if folder.is_dir() else set()
    return bool(held) and held <= set(BEGINNINGS)


def _recorded(folder: Path) -> Any:
    from crossover.evidence.files import read_json

    return read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else None


@app.command("replay", short_help="Decide again from what a run's signals recorded.")
def replay_command(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Another controller: controller=... or controller.key=...", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON rows: the outcome, then each decision.")] = False,
    trust: Trust = False,
) -> None:
    """Fold a run's recorded signals again: the same controller must decide the same; another one is followed."""
    from crossover.evidence.replay import json_rows_of, lines_of, replay

    found = replay(run, overrides or [], trust=trust)
    for line in json_rows_of(found) if as_json else lines_of(found):
        say(line)
    if found.difference:
        raise typer.Exit(1)


@app.command("calibrate", short_help="Fit the online controller's thresholds on studies.")
def calibrate_command(
    studies: Annotated[list[Path], typer.Argument(help="Folders of finished studies.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the thresholds and their provenance go.")] = Path("calibration.json"),
) -> None:
    """Fit the online controller's thresholds on finished studies, and say how they do where they were not fitted."""
    from crossover.evidence.calibrate import calibrate, lines_of

    for line in lines_of(calibrate(studies, out)):
        say(line)
    say(f"thresholds: {out}")


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="A run or study folder.", show_default=False)]) -> None:
    """Write the report of a run or study, finished or not."""
    from crossover.evidence.report import write_report

    say(f"report: {write_report(run)}")


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine can do and what would be chosen here."""
    from crossover.training.doctor import examine

    for line in examine():
        say(line)
