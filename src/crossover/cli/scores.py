"""The command `eval`: a model's likelihoods, downstream tasks, and comparisons of what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from crossover.cli.asked import Asked, notify, run_text
from crossover.cli.options import SettingsCommand, Trust, app, model_folder, say
from crossover.errors import RecipeError, RunError

RunPaths = Annotated[
    list[Path], typer.Argument(help="A run folder, or a model folder; two with --compare.", show_default=False)
]
Text = Annotated[
    str | None,
    typer.Option(
        help="Text to score: a file, a folder, or `test`/`dev` of the run. Default: test, dev for checkpoints.",
        show_default=False,
    ),
]
Procedures = Annotated[
    list[str] | None,
    typer.Option(
        help="ar, l2r, nelbo, nelbo(16), order(confidence), block(16) and so on, or all that the model has; may be "
        "given several times. Default: all for text, best for tasks.",
        show_default=False,
    ),
]
Windows = Annotated[int | None, typer.Option(help="Windows of text to score. Default: 256.", min=2, show_default=False)]
Draws = Annotated[
    int | None,
    typer.Option(help="Mask draws per window for a bound. Default: 32, 128 for tasks.", min=1, show_default=False),
]
Positions = Annotated[
    int | None,
    typer.Option(help="Positions per window (l2r). Default: 16, 64 for tasks.", min=1, show_default=False),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Downstream tasks in place of text: hellaswag,mmlu,blimp; with --compare also all.", show_default=False
    ),
]
Evals = Annotated[
    Path | None, typer.Option(help="Folder with the tasks' data; the hub without one.", show_default=False)
]
Limit = Annotated[int | None, typer.Option(help="First items of each task; all by default.", show_default=False)]
Fewshot = Annotated[
    int | None, typer.Option(help="Examples per question; the task's own by default.", min=0, show_default=False)
]
Seed = Annotated[int, typer.Option(help="The same seed draws the same masks, orders and texts.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the score cards; <run>/scores/tasks by default for tasks.", show_default=False),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        help="Score checkpoints that the run kept, `all` or steps such as 100,200, and leave a table in "
        "<run>/scores/tracking; with tasks and text both. What is there already is not scored again.",
        show_default=False,
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Compare the kept scores of two runs.")]
Allow = Annotated[
    list[str] | None, typer.Option(help="A field of the cards that may differ (--compare).", show_default=False)
]


@app.command("eval", cls=SettingsCommand, short_help="Score a model on text or tasks, or compare two.")
def eval_command(
    runs: RunPaths,
    text: Text = None,
    procedure: Procedures = None,
    windows: Windows = None,
    draws: Draws = None,
    positions: Positions = None,
    tasks: Tasks = None,
    evals: Evals = None,
    limit: Limit = None,
    fewshot: Fewshot = None,
    seed: Seed = 0,
    out: Out = None,
    compare: Compare = False,
    allow: Allow = None,
    checkpoints: Checkpoints = None,
    trust: Trust = False,
) -> None:
    """Score a model on text or downstream tasks under declared procedures, or compare two; each number has its card."""
    if compare:
        _compare(runs, tasks, allow or ())
        return
    if len(runs) != 1 or allow:
        stray = "--allow" if allow else f"'{runs[1]}'"
        raise RunError(f"{stray} means something with --compare only, which takes two runs")
    run, folder = runs[0], model_folder(runs[0])
    names = None if tasks is None else _names(tasks)
    asked = Asked(text, names, procedure, windows, draws, positions, evals, limit, fewshot, seed)
    if checkpoints is not None:
        from crossover.cli.tracking import track

        return track(run, folder, checkpoints, asked, out, trust)
    asked.refuse_stray()
    if asked.tasks is not None:
        kept = out or (run / "scores" / "tasks" if (run / "recipe.yaml").exists() else None)
        return _score_tasks(folder, asked.tasks, asked, kept)
    return _score_text(run, folder, asked, out, trust)


def _compare(runs: Sequence[Path], tasks: str | None, allow: Sequence[str]) -> None:
    if len(runs) != 2:
        raise RunError(f"--compare takes two runs, not {len(runs)}")
    first, second = runs
    if tasks is not None:
        from crossover.evidence.task_cards import compare_tasks, lines_of

        names = () if tasks == "all" else _names(tasks)
        lines = lines_of(compare_tasks(first, second, names, allow=allow), str(first), str(second))
    else:
        from crossover.evidence.cards import compare
        from crossover.evidence.cards import lines_of as lines_of_cards

        lines = lines_of_cards(compare(first, second, allow=allow), str(first), str(second))
    for line in lines:
        say(line)


def _names(tasks: str) -> list[str]:
    names = [name for name in (part.strip() for part in tasks.split(",")) if name]
    if not names:
        raise RecipeError("tasks names no task; write tasks=hellaswag,blimp")
    return names


def _score_text(run: Path, folder: Path, asked: Asked, out: Path | None, trust: bool) -> None:
    text = asked.text or "test"
    source: Any = text
    data_hash = None
    if text in ("dev", "test"):
        source = None
        if (run / "recipe.yaml").exists():
            source, data_hash = run_text(run, trust)
    from crossover.scoring.command import score_folder

    procedures = asked.text_procedures
    for scored in score_folder(folder, source, split=text, procedures=procedures, data_hash=data_hash, **asked.of_text):
        say(scored.line())
        _keep(out, scored.name, scored.row())


def _score_tasks(folder: Path, tasks: Sequence[str], asked: Asked, out: Path | None) -> None:
    from crossover.scoring.tasks.evaluate import evaluate

    # The scores of a few items must not take the place of those of all.
    part = "" if asked.limit is None else f"-limit-{asked.limit}"
    for procedure in asked.task_procedures:
        for found in evaluate(folder, tasks, procedure, notify=notify, **asked.of_tasks):
            for line in found.lines():
                say(line)
            _keep(out, f"{found.task}-{found.procedure}{part}", found.record(), indent=None)


def _keep(out: Path | None, name: str, row: Mapping[str, Any], *, indent: int | None = 2) -> None:
    if out is None:
        return
    from crossover.evidence.files import dumps, write_text

    path = out / f"{name}.json"
    write_text(path, dumps(row, indent=indent) + "\n")
    say(f"  kept: {path}")
