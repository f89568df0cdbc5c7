"""`crossover eval RUN checkpoints=...`: the kept checkpoints of a run, scored one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.cli.asked import Asked, notify, run_text
from crossover.cli.options import say
from crossover.errors import RecipeError, RunError

# Where a task's data lie changes no answer of a model; the cards say what the data are.
_PLACES = ("evals",)


def track(run: Path, model: Path, wanted: str, asked: Asked, out: Path | None, trust: bool) -> None:
    """Score checkpoints on held-out text, at tasks, or at both.

    Args:
        run: The run folder.
        model: The model folder that it left.
        wanted: "all", or steps.
        asked: Settings of the scores; where no text is named it is "dev", and none where there are tasks.
        out: Must be None: the scores have their place in the run folder.
        trust: Whether the recipe's `imports` may run.

    Raises:
        RunError: There is no such checkpoint, or the text is not the run's.
        RecipeError: A setting has no effect.
    """
    if out is not None:
        raise RunError(f"out has no effect with checkpoints; their scores are kept in {run}/scores/tracking")
    asked.refuse_stray()
    if asked.text is not None or asked.tasks is None:
        track_text(run, model, wanted, asked.text or "dev", asked.text_procedures, asked.of_text, trust)
    if asked.tasks is not None:
        track_tasks(run, model, wanted, asked.tasks, asked.task_procedures, asked.of_tasks)


def track_text(
    run: Path,
    model: Path,
    wanted: str,
    split: str,
    procedures: Sequence[str],
    sizes: Mapping[str, int],
    trust: bool,
) -> None:
    """Score checkpoints on the run's own held-out text.

    Args:
        run: The run folder.
        model: The model folder that it left.
        wanted: "all", or steps.
        split: "dev" or "test".
        procedures: Names of procedures, or "all".
        sizes: "windows", "draws" and "positions".
        trust: Whether the recipe's `imports` may run.

    Raises:
        RunError: There is no such checkpoint, or the split is none of the run's.
        DataError: The text at `data.source` is no longer what the run was trained on.
    """
    from crossover.scoring.command import score_folder

    if split not in ("dev", "test"):
        raise RunError(f"text={split}: checkpoints are scored on the run's own text; text=dev or text=test")
    _of_run(run)
    recipe, data_hash = run_text(run, trust)

    def score(folder: Path, procedure: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Sequence[str]]:
        (found,) = score_folder(folder, recipe, split=split, procedures=[procedure], data_hash=data_hash, **sizes)
        row = found.row()
        measures = {
            "bits_per_byte": (row["bits_per_byte"], row["standard_error_bits"]),
            "loss_nats": (row["loss_nats"], row["standard_error_nats"]),
        }
        return row, measures, [found.line().splitlines()[0]]

    _track(run, model, wanted, [split], procedures, {**sizes, "data_hash": data_hash}, lambda name: score)


def track_tasks(
    run: Path, model: Path, wanted: str, tasks: Sequence[str], procedures: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Score checkpoints at downstream tasks.

    Args:
        run: The run folder.
        model: The model folder that it left.
        wanted: "all", or steps.
        tasks: Names of tasks.
        procedures: Names of procedures, or "best".
        settings: Those of `crossover.scoring.tasks.evaluate.evaluate`.

    Raises:
        RunError: There is no such checkpoint.
    """
    from crossover.scoring.tasks.evaluate import evaluate

    def scorer(task: str) -> Callable[[Path, str], Any]:
        def score(folder: Path, procedure: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Sequence[str]]:
            (found,) = evaluate(folder, [task], procedure, notify=notify, **settings)
            measures = {name: (item.value, item.standard_error) for name, item in found.measures.items()}
            return found.record(), measures, found.lines()[:1]

        return score

    asked = {key: value for key, value in settings.items() if key not in _PLACES}
    _track(run, model, wanted, tasks, procedures, asked, scorer)


def _track(
    run: Path,
    model: Path,
    wanted: str,
    names: Sequence[str],
    procedures: Sequence[str],
    asked: Mapping[str, Any],
    scorer: Callable[[str], Callable[[Path, str], Any]],
) -> None:
    from crossover.evidence.tracking import Score, is_scored, keep, write_table
    from crossover.scoring.checkpoints import as_model, checksum_of, modes_of

    clocks, weights = _of_run(run)
    for kept, clock in clocks(wanted):
        done, todo = 0, []
        # A checkpoint of the same step may hold other weights: that of a run that was made anew.
        exactly = {**asked, "weights": weights, "weights_sha256": checksum_of(kept, weights)}
        for what in names:
            for mode in dict.fromkeys(mode for name in procedures for mode in modes_of(model, name)):
                name = f"{what}-{mode}"
                done += (there := is_scored(run, kept.step, name, exactly))
                todo += [] if there else [(what, mode, name)]
        if done:
            say(f"step {kept.step:,}: {done} score(s) are there already")
        if not todo:
            continue
        with as_model(kept, model, weights) as folder:
            for what, mode, name in todo:
                record, measures, lines = scorer(what)(folder, mode)
                keep(run, Score(clock, name, exactly, measures, record))
                for line in lines:
                    say(f"step {kept.step:,}, epoch {clock['epochs']:.2f}: {line}")
    for path in write_table(run):
        say(f"kept: {path}")


def _of_run(run: Path) -> tuple[Callable[[str], Iterator[tuple[Any, dict[str, float]]]], str]:
    from crossover.evidence.record import read_run
    from crossover.scoring.checkpoints import kept_checkpoints

    if not (run / "recipe.yaml").exists():
        raise RunError(f"{run}: is no run folder; checkpoints are those of a run")
    record = read_run(run)
    tokens = float(record.manifest.get("train_tokens") or record.manifest["unique_tokens"])

    def clocks(wanted: str) -> Iterator[tuple[Any, dict[str, float]]]:
        for kept in kept_checkpoints(run, _steps(wanted)):
            clock = {"step": kept.step, "data_tokens": kept.data_tokens, "epochs": kept.data_tokens / tokens}
            yield kept, {**clock, "flops": kept.flops, "flops_6nd": kept.flops_6nd}

    return clocks, str((record.recipe.get("scoring") or {}).get("weights", "raw"))


def _steps(wanted: str) -> list[int] | None:
    if wanted == "all":
        return None
    parts = [part.strip() for part in wanted.strip("[]").split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise RecipeError(f"checkpoints={wanted}: expected `all` or steps such as 100,200")
    return [int(part) for part in parts]
