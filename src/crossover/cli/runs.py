"""Commands that make runs and studies, and that read what they left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from crossover.cli.options import Overrides, RecipePath, Trust, app, say


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
    say(f"  dev {len(text.documents('dev')):,} documents, test {len(text.documents('test')):,} documents")
    say(f"  data hash {text.data_hash[:16]}, tokenizer {text.tokenizer.hash}")


@app.command("train")
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
    trust: Trust = False,
) -> None:
    """Train one run; the same command after an interruption goes on where it stopped."""
    from crossover.evidence.run import RunFolder, read_status
    from crossover.evidence.sinks.tee import Tee, require_sinks
    from crossover.recipe import load, to_tree

    resolved = load(recipe, overrides or [], trust=trust)
    require_sinks(resolved.sinks)
    folder = run_dir or Path("runs") / resolved.name
    _give_way(folder)
    with RunFolder(folder).create(to_tree(resolved)) as recorder:
        if (folder / "scores" / "summary.json").exists():
            say(f"{folder}: this run is finished; use another --run-dir or name= to train again")
            return
        if branch_of is not None:
            from crossover.evidence.branches import begin_branch

            say(begin_branch(folder, branch_of))
        text = _prepare(resolved, say)
        # Not before the text is known to be good: importing torch takes seconds.
        from crossover.training.train import train

        with Tee(recorder, folder, to_tree(resolved), resolved.sinks, say) as told:
            train(resolved, text, folder, told, _recorded(folder), say, fork_for or ())
    say(f"{folder}: {read_status(folder)['state']}; scores in {folder / 'scores'}, the model in {folder / 'model'}")


def _give_way(folder: Path) -> None:
    """Forget a start that ended before there was anything to train, so that a corrected recipe may use its folder."""
    from crossover.evidence.lock import is_locked

    beginnings = ("status.json", "recipe.yaml")
    held = {item.name for item in folder.iterdir() if not item.name.startswith(".")} if folder.is_dir() else set()
    if held and held <= set(beginnings) and not is_locked(folder):
        for name in beginnings:
            (folder / name).unlink(missing_ok=True)


def _recorded(folder: Path) -> Any:
    from crossover.evidence.files import read_json

    return read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else None


@app.command("study")
def study_command(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).", show_default=False)],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option(help="The study's folder; runs/<name> by default.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at the same time, which share the cores out; the study file's by default.", min=1),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train matched arms, prove that they are matched, and report where the curves cross."""
    from crossover.evidence.study import run_study

    result = run_study(study, overrides or [], folder=folder, jobs=jobs, trust=trust, notify=say)
    if result.report is not None:
        import json

        say("\n" + json.loads((result.folder / "report.json").read_text("utf-8"))["verdict"])
        say(f"\nreport: {result.report}")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command("replay")
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


@app.command("calibrate")
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
