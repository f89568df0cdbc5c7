"""The command line: parses, resolves the recipe, imports late, calls.

Nothing heavy is imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from crossover.errors import CrossoverError

app = typer.Typer(
    help="Train the best language model that a limited text allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What the machine may refuse, and what a person can do about it; every other OSError is a defect of the program.
_SPACE, _ACCESS, _PLACE = "free some space", "make it writable or name another folder", "name another folder"
MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ACCESS),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _PLACE),
}

RecipePath = Annotated[Path, typer.Argument(help="A recipe file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that come last: dotted.key=value ...", show_default=False)
]
Trust = Annotated[bool, typer.Option("--trust", help="Let the recipe's `imports` run their code.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, or a model folder.", show_default=False)]


def main() -> None:
    """Run the command line; a user's mistake prints one message and exits with 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # SIGTERM unwinds like Ctrl-C, so that the folder says `interrupted` and its lock is given back.
    signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    command = typer.main.get_command(app)
    try:
        # Not `app()`: it turns an interruption into a return value and a closed pipe into a failure of its own.
        with command.make_context("crossover", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except CrossoverError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        goes_on = "; the same command goes on where it stopped" if arguments[:1] in (["train"], ["study"]) else ""
        print(f"\nstopped{goes_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except typer.Exit as error:
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of a pipe has left; there is nobody to tell, and the shell's code for that is SIGPIPE's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror}; {MACHINE[error.errno]}, then give the same command again")
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _refuse_usage(error)
        raise


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _refuse_usage(error: Any) -> None:
    context, message = getattr(error, "ctx", None), error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        # Nothing was asked for: the answer is the help, not an error.
        print(message)
        raise SystemExit(2)
    _fail(f"{message.rstrip('.')}. See `{context.command_path} --help`." if context is not None else message)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _say(message: str) -> None:
    print(message, flush=True)


def _prepare(recipe: Any, notify: Callable[[str], None]) -> Any:
    from crossover.data.prepare import prepare

    # One text for all seeds of a comparison: seeds vary the training, not the text.
    return prepare(recipe.data, seed=0, notify=notify)


@app.command("prepare")
def prepare_command(recipe: RecipePath, overrides: Overrides = None, trust: Trust = False) -> None:
    """Turn a recipe's text into tokens, and say what there is."""
    from crossover.recipe import load

    text = _prepare(load(recipe, overrides or [], trust=trust), _say)
    facts = text.manifest
    _say(f"prepared text: {text.folder}")
    _say(f"  {text.unique_tokens:,} unique training tokens, {facts['bytes_per_token']:.3f} bytes per token")
    _say(f"  dev {len(text.documents('dev')):,} documents, test {len(text.documents('test')):,} documents")
    _say(f"  data hash {text.data_hash[:16]}, tokenizer {text.tokenizer.hash}")


@app.command("train")
def train_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; runs/<name> by default.")] = None,
    trust: Trust = False,
) -> None:
    """Train one run; the same command after an interruption goes on where it stopped."""
    from crossover.evidence.run import RunFolder, read_status
    from crossover.recipe import load, to_tree

    resolved = load(recipe, overrides or [], trust=trust)
    folder = run_dir or Path("runs") / resolved.name
    _give_way(folder)
    with RunFolder(folder).create(to_tree(resolved)) as recorder:
        if (folder / "scores" / "summary.json").exists():
            _say(f"{folder}: this run is finished; use another --run-dir or name= to train again")
            return
        text = _prepare(resolved, _say)
        # Not before the text is known to be good: importing torch takes seconds.
        from crossover.training.train import train

        train(resolved, text, folder, recorder, _recorded(folder), _say)
    _say(f"{folder}: {read_status(folder)['state']}; scores in {folder / 'scores'}, the model in {folder / 'model'}")


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


def _model_folder(path: Path) -> Path:
    from crossover.errors import RunError

    for folder in (path / "model", path):
        if (folder / "config.json").exists():
            return folder
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; expected a run folder or a model folder")
    raise RunError(f"{path}: holds no finished model; `crossover train` leaves one in <run>/model")


@app.command("eval")
def eval_command(
    run: RunPath,
    text: Annotated[str, typer.Option(help="Text to score: a file, a folder, or `test`/`dev` of the run.")] = "test",
    procedure: Annotated[str, typer.Option(help="ar, l2r, nelbo, nelbo(16), or all that the model has.")] = "all",
    windows: Annotated[int, typer.Option(help="Windows to score.", min=2)] = 256,
    draws: Annotated[int, typer.Option(help="Mask draws per window (nelbo).", min=1)] = 32,
    positions: Annotated[int, typer.Option(help="Positions per window (l2r).", min=1)] = 16,
    trust: Trust = False,
) -> None:
    """Score a model on held-out or other text, under declared procedures; each number comes with its card."""
    from crossover.evidence.run import read_run
    from crossover.registry import trust_imports

    folder = _model_folder(run)
    source = text
    if text in ("dev", "test"):
        source = read_run(run).recipe if (run / "recipe.yaml").exists() else None
        if source is not None:
            trust_imports(source.get("imports") or (), trust=trust, origin=str(run / "recipe.yaml"))
    from crossover.scoring.command import score_folder

    for line in score_folder(
        folder, source, split=text, procedure=procedure, windows=windows, draws=draws, positions=positions
    ):
        _say(line)


@app.command("sample")
def sample_command(
    run: RunPath,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to draw; by default 64, or what the window holds.", min=1)
    ] = None,
    mode: Annotated[str, typer.Option(help="ar or masked; by default the model's best mode.")] = "best",
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
) -> None:
    """Write text with a trained model."""
    from crossover.sampling.command import sample_folder

    folder = _model_folder(run)
    drawn, note = sample_folder(folder, prompt, tokens, mode=mode, temperature=temperature, seed=seed)
    _say(prompt + drawn)
    print(note, file=sys.stderr)


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

    result = run_study(study, overrides or [], folder=folder, jobs=jobs, trust=trust, notify=_say)
    if result.report is not None:
        import json

        _say("\n" + json.loads((result.folder / "report.json").read_text("utf-8"))["verdict"])
        _say(f"\nreport: {result.report}")
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
        _say(line)
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
        _say(line)
    _say(f"thresholds: {out}")


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="A run or study folder.", show_default=False)]) -> None:
    """Write the report of a run or study, finished or not."""
    from crossover.evidence.report import write_report

    _say(f"report: {write_report(run)}")


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine can do and what would be chosen here."""
    from crossover.training.doctor import examine

    for line in examine():
        _say(line)
