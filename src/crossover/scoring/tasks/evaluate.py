"""Downstream tasks for the command line: lm-evaluation-harness on a model folder, each number with its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossover.errors import RecipeError
from crossover.scoring.procedures import procedure_of
from crossover.scoring.tasks.metrics import Measure, answers_of, items_of, measures_of

EXAMPLES_SEED = 1234  # lm-evaluation-harness's own, so that few-shot examples are those of its users


@dataclass(frozen=True)
class TaskScore:
    """How good a model is at one task, or at a group of tasks, under one procedure.

    Args:
        task: The name that was asked for.
        procedure: How it was scored.
        items: Items that were scored, all parts together.
        measures: "acc"; "acc_norm" where the harness has it (by characters); "acc_bytes", normalised by UTF-8 bytes;
            "bits_per_byte" of the gold endings; what else the task measures. One that is not defined is not there.
        parts: Measures of each task of a group.
        passes: Forward passes of one window, NFE.
        flops: Useful FLOPs.
        seconds: Wall-clock time, prompts and few-shot examples included.
        notes: What a reader must know: contexts that were cut, an accuracy that is not defined.
        card: All that is needed to obtain the numbers again.
        answers: Of each task: lists over its items of every metric, of `gold_nats` and of `gold_bytes`, so that two
            models can be compared item by item.
    """

    task: str
    procedure: str
    items: int
    measures: Mapping[str, Measure]
    parts: Mapping[str, Mapping[str, Measure]]
    passes: int
    flops: float
    seconds: float
    notes: tuple[str, ...]
    card: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Sequence[float]]]

    def record(self) -> dict[str, Any]:
        """Give everything as plain values of JSON: what a file of scores holds."""
        return {**asdict(self), "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """Write the score as a person would."""
        measures = (f"{name} {item.value:.4f}{_error(item)}" for name, item in self.measures.items())
        cost = f"{self.passes:,} forward passes, {self.flops:.3g} FLOPs, {self.seconds:.0f} s"
        shown = {key: value for key, value in self.card.items() if key not in ("data", "definitions")}
        return [
            f"{self.task}, {self.procedure}: {', '.join(measures)} ({self.items:,} items, {cost})",
            *(f"  {note}" for note in self.notes),
            f"  card: {', '.join(f'{key}={value}' for key, value in shown.items())}",
        ]


def _error(measure: Measure) -> str:
    return "" if measure.standard_error is None else f" +- {measure.standard_error:.4f}"


def evaluate(
    folder: Path,
    tasks: Sequence[str],
    procedure: str = "best",
    *,
    evals: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    draws: int = 128,
    positions: int = 64,
    seed: int = 0,
    precision: str = "float32",
    device: str | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Iterator[TaskScore]:
    """Score a model folder on downstream tasks.

    Args:
        folder: A model folder that a run left.
        tasks: Names of tasks and groups, as lm-evaluation-harness has them; "lambada" is `lambada_openai`.
        procedure: A procedure's name, or "best" for the mode that scored best on dev.
        evals: A folder with the data, so that no network is needed; without one they come from the hub.
        limit: Items per task, the first ones; of a group, per part. None for all.
        fewshot: Examples in front of each question; None for the task's own number.
        draws: Mask draws per request for a bound.
        positions: Positions per request for `l2r`.
        seed: Seed of draws and orders.
        precision: "float32" or "bfloat16" compute.
        device: Where the model runs.
        notify: Told what is being done.

    Returns:
        A score per task, each as soon as it is there.

    Raises:
        RecipeError: There is no such task or procedure, or lm-evaluation-harness is not installed.
        DataError: The data are not there or damaged.
        CheckpointError: The folder holds no model of ours.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"limit must be at least 1 item, not {limit}")
    if procedure != "best":
        # A mistyped name should not wait for the harness.
        procedure_of(procedure, draws=draws, positions=positions)
    notify("loading lm-evaluation-harness")
    try:
        from crossover.scoring.harness import CrossoverLM
        from crossover.scoring.tasks.definitions import check_names, hub_tasks, local_tasks
    except ModuleNotFoundError as error:
        missing = f"tasks need lm-evaluation-harness, of which '{error.name}' is missing"
        raise RecipeError(f"{missing}; install it with: pip install 'crossover-lm[eval]'") from None
    manager = hub_tasks(tasks) if evals is None else local_tasks(evals)
    check_names(manager, tasks)
    model = CrossoverLM(folder, procedure, draws, positions, seed, precision, device)

    def scores() -> Iterator[TaskScore]:
        for name in tasks:
            notify(f"{name}: {model.procedure.name}")
            yield score_task(model, manager, name, limit=limit, fewshot=fewshot)

    return scores()


def score_task(model: Any, manager: Any, name: str, *, limit: int | None, fewshot: int | None) -> TaskScore:
    """Score a model on one task or group.

    Args:
        model: A `CrossoverLM`.
        manager: Where the task is defined.
        name: The task's name.
        limit: Items per task, or None for all.
        fewshot: Examples in front of each question; None for the task's own number.

    Returns:
        The score.
    """
    import lm_eval.evaluator

    from crossover.scoring.tasks.definitions import task_name

    start = time.perf_counter()
    loaded = manager.load([task_name(name)])
    members: dict[str, Any] = loaded["tasks"]
    for task in members.values():
        _set_examples(task, fewshot)
    model.forget()
    ask: Any = lm_eval.evaluator.evaluate
    found = ask(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    defined = not model.counts["undefined_greedy"]
    items = {key: items_of(task, found["samples"][key], greedy=defined) for key, task in members.items()}
    grouped = len(members) > 1
    return TaskScore(
        task=name,
        procedure=model.procedure.name,
        items=sum(len(part) for part in items.values()),
        measures=measures_of(list(items.values())),
        parts={key: measures_of([part]) for key, part in items.items()} if grouped else {},
        passes=model.spent.passes,
        flops=model.spent.flops,
        seconds=time.perf_counter() - start,
        notes=_notes(model, members, defined, fewshot),
        card=_card(model, members, limit),
        answers={key: answers_of(part) for key, part in items.items()},
    )


def _set_examples(task: Any, fewshot: int | None) -> None:
    own = task.get_config("num_fewshot")
    # A task that says 0 cannot be asked with examples: its items are not questions.
    task.set_config(key="num_fewshot", value=(own or 0) if fewshot is None or own == 0 else fewshot)
    task.set_fewshot_seed(seed=EXAMPLES_SEED)


def _notes(model: Any, members: Mapping[str, Any], defined: bool, fewshot: int | None) -> tuple[str, ...]:
    counts = model.counts
    notes = []
    if counts["contexts_cut"]:
        window = f"the window of {model.window_tokens} tokens"
        notes.append(f"{counts['contexts_cut']} of {counts['requests']} contexts exceed {window}: cut from the left")
    if counts["continuations_split"]:
        notes.append(f"{counts['continuations_split']} endings exceed the window: scored in pieces, without context")
    if counts["borders_crossed"]:
        what = (
            "a token spans the border between context and ending, so that their bits and bytes differ by a part of it"
        )
        notes.append(f"{counts['borders_crossed']} of {counts['requests']} requests: {what}")
    if fewshot and any(task.get_config("num_fewshot") == 0 for task in members.values()):
        notes.append(f"fewshot={fewshot} has no effect here: the items are no questions")
    if not defined and any(task.OUTPUT_TYPE == "loglikelihood" for task in members.values()):
        why = "a bound has no likeliest text" if not model.procedure.exact else "only some positions were scored"
        notes.append(f"accuracy asks for the likeliest text and is not defined under {model.procedure.name}: {why}")
    return tuple(notes)


def _card(model: Any, members: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    from crossover.scoring.tasks.definitions import data_of, definition_hash

    first = next(iter(members.values()))
    files: dict[str, str] = {}
    for task in members.values():
        files |= data_of(task)
    return {
        **model.get_model_info(),
        "limit": limit,
        "split": first.config.test_split or first.config.validation_split,
        "fewshot": sorted({int(task.get_config("num_fewshot")) for task in members.values()}),
        "task_versions": sorted({str(task.VERSION) for task in members.values()}),
        "definitions": {key: definition_hash(task) for key, task in members.items()},
        "data": files,
    }
