"""How good the kept checkpoints of a run are, one after the other: what was scored, as a table and as curves.

Shape suffixes: E checkpoints, I items, G groups of items.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.arms import PLAIN_NAME, Setting, view_of_runs
from crossover.evidence.compare import is_autoregressive
from crossover.evidence.conditions import settle
from crossover.evidence.curves import Curve
from crossover.evidence.files import dumps, read_json, write_text
from crossover.evidence.record import RunRecord
from crossover.evidence.task_cards import conditions_of
from crossover.evidence.view import View, read_view
from crossover.folders import step_folder, steps_in

Floats = NDArray[np.float64]
CLOCK = ("step", "data_tokens", "epochs", "flops", "flops_6nd")
# A bootstrap weighs items in groups, as many as documents of a held-out text may be; a group holds some of every task.
MOST_GROUPS = 400
MEASURES = {"acc": "share of wrong answers", "bits_per_byte": "bits per byte of the gold ending"}


@dataclass(frozen=True)
class Score:
    """What one checkpoint scored at one thing under one procedure.

    Args:
        clock: Where the run stood: "step", "data_tokens", "epochs", "flops", "flops_6nd".
        name: What was scored and how, such as "dev-ar" or "blimp-nelbo".
        asked: All settings that the number depends on.
        measures: Value and standard error (None where there is none) by measure.
        record: The whole record with its card, as `eval` keeps it.
    """

    clock: Mapping[str, float]
    name: str
    asked: Mapping[str, Any]
    measures: Mapping[str, tuple[float, float | None]]
    record: Mapping[str, Any]


def folder_of(run: Path) -> Path:
    """Say where the scores of a run's checkpoints are kept."""
    return run / "scores" / "tracking"


def _path(run: Path, step: int, name: str) -> Path:
    return step_folder(folder_of(run), step) / f"{name}.json"


def is_scored(run: Path, step: int, name: str, asked: Mapping[str, Any]) -> bool:
    """Say whether a checkpoint has been scored with exactly these settings."""
    path = _path(run, step, name)
    return path.exists() and read_json(path).get("asked") == dict(asked)


def keep(run: Path, score: Score) -> Path:
    """Keep what a checkpoint scored, in the place of what it scored with other settings.

    Args:
        run: The run folder.
        score: The score.

    Returns:
        The file.

    Raises:
        RunError: It cannot be written.
    """
    path = _path(run, int(score.clock["step"]), score.name)
    measures = {key: list(value) for key, value in score.measures.items()}
    tree = {"clock": dict(score.clock), "name": score.name, "asked": dict(score.asked), "measures": measures}
    write_text(path, dumps({**tree, "record": dict(score.record)}) + "\n")
    return path


def read_scores(run: Path) -> tuple[Score, ...]:
    """Read what was scored of a run's checkpoints, in the order of their steps.

    Args:
        run: The run folder.

    Returns:
        The scores.

    Raises:
        RunError: A file is broken.
    """
    found = []
    for path in [path for folder in steps_in(folder_of(run)).values() for path in sorted(folder.glob("[!.]*.json"))]:
        tree = read_json(path)
        try:
            measures = {key: (value, error) for key, (value, error) in tree["measures"].items()}
            found.append(Score(tree["clock"], tree["name"], tree["asked"], measures, tree["record"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path}: is not what `crossover eval checkpoints=` leaves ({error}); delete it") from None
    return tuple(found)


def write_table(run: Path) -> tuple[Path, Path]:
    """Write the scores of all checkpoints of a run as one table, a row for each checkpoint.

    Args:
        run: The run folder.

    Returns:
        `table.json` (a list of rows) and `table.csv`; columns are the clock and, for each measure such as
        `blimp-ar acc`, the number and its standard error.
    """
    rows: dict[int, dict[str, float | None]] = {}
    for score in read_scores(run):
        row = rows.setdefault(int(score.clock["step"]), {key: score.clock[key] for key in CLOCK})
        for measure, (value, error) in score.measures.items():
            row[f"{score.name} {measure}"] = value
            row[f"{score.name} {measure} standard error"] = error
    ordered = [rows[step] for step in sorted(rows)]
    columns = list(dict.fromkeys([*CLOCK, *(key for row in ordered for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    as_json, as_csv = folder_of(run) / "table.json", folder_of(run) / "table.csv"
    write_text(as_json, dumps(ordered, indent=1) + "\n")
    write_text(as_csv, text.getvalue())
    return as_json, as_csv


def downstream_settings(sources: Sequence[str | Path], task: str) -> tuple[Setting, ...]:
    """Read how arms' tracked scores at a task move, as settings in which a crossing can be looked for.

    Items play the part of documents: wrong answers that of nats (a share of wrong answers is the loss), gold endings
    that of text. Items are put into at most 400 groups, every group with items of all parts of the task, and the
    bootstrap draws groups.

    Args:
        sources: Study folders, and run folders that make one setting together.
        task: The task's name, as it was given to `eval`.

    Returns:
        For each source and measure, a setting.

    Raises:
        RunError: A run was not tracked at the task, or runs were asked different items or in different ways.
    """
    settings = []
    for view in _views([Path(source) for source in sources]):
        runs = {arm: _scored(arm, members, task) for arm, members in view.arms.items() if members}
        if len(runs) < 2:
            raise RunError(f"{view.folder}: a crossing takes two arms; name the other arm's runs too")
        _check_asked(runs, task)
        plain = tuple(
            arm for arm, group in view.arms.items()
            if group and (is_autoregressive(group[0].recipe) or PLAIN_NAME.fullmatch(arm))
        )  # fmt: skip
        settings += [_setting(view, runs, plain, task, measure) for measure in MEASURES if _has(runs, measure)]
    return tuple(settings)


def _views(paths: Sequence[Path]) -> list[View]:
    studies = [path for path in paths if (path / "study.yaml").exists()]
    runs = [path.absolute() for path in paths if path not in studies]
    views = [read_view(path) for path in studies]
    if runs:
        shared = Path(os.path.commonpath([path.parent for path in runs]))
        views.append(view_of_runs(shared, runs))
    return views


def _scored(arm: str, runs: Sequence[RunRecord], task: str) -> list[tuple[RunRecord, list[Score]]]:
    """Read the scores of an arm's runs at a task under the one procedure that they have in common."""
    by_run = [(run, [one for one in read_scores(run.path) if one.record.get("task") == task]) for run in runs]
    for run, scores in by_run:
        if not scores:
            raise RunError(
                f"{run.path}: its checkpoints were not scored at '{task}'; `crossover eval {run.path} "
                f"checkpoints=all tasks={task}` does it"
            )
    common = set.intersection(*({one.name for one in scores} for _, scores in by_run))
    headline = {str(run.scores.get("summary", {}).get("headline")) for run in runs}
    chosen = [name for name in common if len(common) == 1 or name.removeprefix(f"{task}-") in headline]
    if len(chosen) != 1:
        kept = ", ".join(sorted(common)) or "nothing in common"
        raise RunError(
            f"{runs[0].path.parent}: which procedure reads '{arm}' at {task}? Its runs have {kept}; keep one"
        )
    return [(run, [one for one in scores if one.name == chosen[0]]) for run, scores in by_run]


def _check_asked(runs: Mapping[str, list[tuple[RunRecord, list[Score]]]], task: str) -> None:
    """Refuse scores that were asked in different ways: of two arms, only the procedures may differ."""
    by_arm = [[(run.path, one) for run, scores in group for one in scores] for group in runs.values()]
    pairs = [(arm[0], other, ()) for arm in by_arm for other in arm[1:]]
    pairs += [(by_arm[0][0], arm[0], ("procedure",)) for arm in by_arm[1:]]
    for (first, one), (second, two), allow in pairs:
        places = [f"{path}, step {int(at.clock['step'])}," for path, at in ((first, one), (second, two))]
        advice = f"Score all checkpoints of all runs alike: `crossover eval RUN checkpoints=all tasks={task}`"
        settle([(task, conditions_of(one.record), conditions_of(two.record))], allow, *places, advice=advice)


def _has(runs: Mapping[str, list[tuple[RunRecord, list[Score]]]], measure: str) -> bool:
    return all(measure in one.measures for group in runs.values() for _, scores in group for one in scores)


def _setting(
    view: View,
    runs: Mapping[str, list[tuple[RunRecord, list[Score]]]],
    plain: tuple[str, ...],
    task: str,
    measure: str,
) -> Setting:
    arms = {
        arm: tuple(sorted((_curve(arm, run, scores, measure) for run, scores in group), key=lambda one: one.seed))
        for arm, group in runs.items()
    }
    read = ", ".join(f"{arm} by {group[0][1][0].record['procedure']}" for arm, group in runs.items())
    items = runs[next(iter(runs))][0][1][0].record["items"]
    first, *others = (curve for curves in arms.values() for curve in curves)
    for other in others:
        if not np.array_equal(other.bytes_D, first.bytes_D):
            places = f"'{first.arm}', seed {first.seed}, and '{other.arm}', seed {other.seed}"
            raise RunError(f"{view.folder}: {places}, were asked different items; score all with the same limit")
    groups = len(first.bytes_D)
    return Setting(
        name=f"{view.folder}: {task}, {MEASURES[measure]}",
        arms=arms,
        plain=plain,
        unit=MEASURES[measure],
        epoch_unit="epochs",
        documents=groups,
        with_errors=(),
        notes=(f"scored: {read}", f"'documents' are {groups} groups of the task's {items:,} items"),
    )


def _curve(arm: str, run: RunRecord, scores: Sequence[Score], measure: str) -> Curve:
    lost, sizes = zip(*(_grouped(one.record["answers"], measure) for one in scores), strict=True)
    if any(not np.array_equal(size_G, sizes[0]) for size_G in sizes):
        raise RunError(f"{run.path}: its checkpoints were asked different items; score all with the same limit")

    def clock(key: str) -> Floats:
        return np.array([one.clock[key] for one in scores], float)

    return Curve(
        arm=arm,
        seed=int(run.recipe.get("seed", 0)),
        procedure=str(scores[0].record["procedure"]),
        exact=bool(scores[0].record.get("card", {}).get("exact", True)),
        flops_E=clock("flops"),
        flops_6nd_E=clock("flops_6nd"),
        epochs_E=clock("epochs"),
        nats_ED=np.stack(lost),
        bytes_D=sizes[0],
    )


def _grouped(answers: Mapping[str, Mapping[str, Sequence[float]]], measure: str) -> tuple[Floats, Floats]:
    """Sum losses and sizes over groups of items, so that total loss / (ln 2 x total size) is the measure as a loss."""
    if measure == "bits_per_byte":
        lost = [np.array(part["gold_nats"], float) for part in answers.values()]
        sizes = [np.array(part["gold_bytes"], float) for part in answers.values()]
    else:
        lost = [math.log(2) * (1 - np.array(part[measure], float)) for part in answers.values()]
        sizes = [np.ones(len(part)) for part in lost]
    # Dealt out one by one, part after part, so that each group has its share of every part.
    group_I = np.arange(sum(len(part) for part in lost)) % MOST_GROUPS
    groups = int(group_I.max()) + 1
    lost_G, size_G = (np.bincount(group_I, np.concatenate(values), groups) for values in (lost, sizes))
    return lost_G.astype(np.float64), size_G.astype(np.float64)
