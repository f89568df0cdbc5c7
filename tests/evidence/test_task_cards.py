"""Differences of task scores: their errors are those of paired items, and different cards are not compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence.task_cards import compare_tasks, lines_of
from crossover.streams import stream

ITEMS = 400


def answers(seed: int, skill: float) -> dict[str, list[float]]:
    """Make items whose difficulty two models share."""
    shared = stream(7, "items").random(ITEMS)
    own = stream(seed, "model").normal(0, 0.05, ITEMS)
    sizes = stream(7, "sizes").integers(5, 40, ITEMS)
    nats = sizes * (2.0 + shared - skill + own)
    return {
        "acc": (shared + own < skill).astype(float).tolist(),
        "gold_nats": nats.tolist(),
        "gold_bytes": sizes.tolist(),
    }


def record(
    seed: int = 1, skill: float = 0.5, task: str = "blimp", procedure: str = "ar", **card: Any
) -> dict[str, Any]:
    """Write a record as `TaskScore.record` does."""
    part = answers(seed, skill)
    bits = sum(part["gold_nats"]) / math.log(2) / sum(part["gold_bytes"])
    return {
        "task": task,
        "procedure": procedure,
        "items": ITEMS,
        "measures": {"acc": {"value": float(np.mean(part["acc"]))}, "bits_per_byte": {"value": bits}},
        "card": {"limit": None, "seed": 0, "weights_sha256": str(seed), "versions": {"lm_eval": "1"}, **card},
        "answers": {task: part},
    }


def kept(folder: Path, *records: dict[str, Any]) -> Path:
    """Keep records where a run keeps them."""
    place = folder / "scores" / "tasks"
    place.mkdir(parents=True)
    for number, row in enumerate(records):
        (place / f"{number}.json").write_text(json.dumps(row), "utf-8")
    return folder


def test_the_interval_is_that_of_paired_items(tmp_path):
    one, two = record(1, 0.5), record(2, 0.52)
    found = {item.measure: item for item in compare_tasks(kept(tmp_path / "a", one), kept(tmp_path / "b", two))}
    left, right = one["answers"]["blimp"], two["answers"]["blimp"]
    gaps = np.array(right["acc"]) - np.array(left["acc"])
    error = gaps.std(ddof=1) / math.sqrt(ITEMS)
    assert found["acc"].difference == pytest.approx(gaps.mean())
    assert np.ptp(found["acc"].interval) == pytest.approx(2 * 1.96 * error)

    def bits(side: dict[str, list[float]], items: np.ndarray) -> float:
        nats, sizes = (np.array(side[key])[items] for key in ("gold_nats", "gold_bytes"))
        return nats.sum() / math.log(2) / sizes.sum()

    draws = stream(0, "bootstrap").integers(0, ITEMS, (2000, ITEMS))
    spread = np.std([bits(right, items) - bits(left, items) for items in draws])
    assert np.ptp(found["bits_per_byte"].interval) == pytest.approx(2 * 1.96 * spread, rel=0.1)
    # Pairing takes the items' own difficulty out: two unpaired errors would be many times as wide.
    alone = np.std([bits(right, items) for items in draws])
    assert np.ptp(found["bits_per_byte"].interval) < 0.5 * 1.96 * 2 * alone
    assert found["bits_per_byte"].apart and found["bits_per_byte"].difference < 0


def test_equal_models_are_not_told_apart(tmp_path):
    found = compare_tasks(kept(tmp_path / "a", record()), kept(tmp_path / "b", record()))
    assert [item.difference for item in found] == [0, 0] and not any(item.apart for item in found)
    assert sum("they cannot be told apart" in line for line in lines_of(found, "a", "b")) == 2


def test_different_cards_are_refused_and_the_fields_named(tmp_path):
    one, two = kept(tmp_path / "a", record(seed=1)), kept(tmp_path / "b", record(2, versions={"lm_eval": "2"}, seed_=3))
    with pytest.raises(RunError, match=r"versions.lm_eval: 1 in the first, 2 in the second \(blimp\)"):
        compare_tasks(one, two)
    found = compare_tasks(one, two, allow=["versions", "seed_"])
    assert found[0].allowed["versions.lm_eval"] == ("1", "2")
    assert "  allowed to differ: versions.lm_eval: 1 and 2" in lines_of(found, "a", "b")


def test_two_procedures_are_compared_only_when_asked_for(tmp_path):
    one, two = kept(tmp_path / "a", record()), kept(tmp_path / "b", record(procedure="nelbo", draws=4))
    with pytest.raises(RunError, match="no task under the same procedure in common; --allow procedure"):
        compare_tasks(one, two)
    found = compare_tasks(one, two, allow=["procedure"])
    assert found[0].procedures == ("ar", "nelbo") and "ar against nelbo" in lines_of(found, "a", "b")[1]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["blim"], "no score of the task 'blim'; did you mean 'blimp'?"),
        (["arc_easy"], "no score of the task 'arc_easy'"),
    ],
)
def test_a_task_that_was_not_scored_is_named(tmp_path, tasks, message):
    one, two = kept(tmp_path / "a", record()), kept(tmp_path / "b", record())
    with pytest.raises(RunError) as told:
        compare_tasks(one, two, tasks)
    assert message in str(told.value)


def test_other_items_and_no_scores_are_refused(tmp_path):
    short = record()
    short["answers"]["blimp"] = {key: values[:-1] for key, values in short["answers"]["blimp"].items()}
    with pytest.raises(RunError, match="were not asked the same items"):
        compare_tasks(kept(tmp_path / "a", record()), kept(tmp_path / "b", short))
    with pytest.raises(RunError, match="holds no scores of tasks; `crossover eval"):
        compare_tasks(tmp_path / "a", tmp_path)
