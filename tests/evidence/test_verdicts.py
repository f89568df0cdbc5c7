from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence.compare import compare, is_autoregressive, verdict
from crossover.evidence.record import RunRecord, read_run
from evidence.synthetic import MASKED, card_of

Make = Callable[..., Path]


def record(tmp_path: Path, make_run: Make, arm: str, seed: int, loss: float, **more: object) -> RunRecord:
    mode = str(more.pop("mode", "ar"))
    return read_run(make_run(tmp_path / f"{arm}-{seed}", name=arm, seed=seed, modes={mode: lambda f: loss}, **more))


def arms_of(tmp_path: Path, make_run: Make, second: float, **more: object) -> dict[str, list[RunRecord]]:
    return {
        "autoregressive": [record(tmp_path, make_run, "autoregressive", seed, 2.0) for seed in (0, 1)],
        "masked": [record(tmp_path, make_run, "masked", seed, second, controller=MASKED, **more) for seed in (0, 1)],
    }


def test_the_numbers_are_those_of_the_cards(tmp_path: Path, make_run: Make) -> None:
    runs = arms_of(tmp_path, make_run, 2.2)
    result = compare(runs)
    card = [run.scores["test-ar"] for run in runs["autoregressive"]]
    assert result.arms[0].bits_per_byte == pytest.approx(np.mean([one["bits_per_byte"] for one in card]))
    assert result.arms[0].loss_nats == pytest.approx(np.mean([one["loss_nats"] for one in card]))
    assert result.arms[1].difference == pytest.approx(result.arms[1].bits_per_byte - result.arms[0].bits_per_byte)
    # Pairing removes what the documents have in common, which is most of the variance.
    single, paired = result.arms[1].interval, result.arms[1].difference_interval
    assert paired[1] - paired[0] < 0.5 * (single[1] - single[0])


def test_a_clear_win_of_next_token_training_says_stay(tmp_path: Path, make_run: Make) -> None:
    said = verdict(compare(arms_of(tmp_path, make_run, 2.2)), text="1,000 unique tokens of stdlib")
    assert "autoregressive is best" in said and "(ar, exact)" in said and said.endswith("Stay with autoregressive.")
    assert "2 seeds: the interval covers documents well and seeds poorly" in said


def test_a_clear_win_of_another_arm_says_take_it(tmp_path: Path, make_run: Make) -> None:
    said = verdict(compare(arms_of(tmp_path, make_run, 1.8)), text="t")
    assert "masked is best" in said and said.endswith("Take masked.")


def test_an_interval_over_zero_cannot_be_told_apart(tmp_path: Path, make_run: Make) -> None:
    result = compare(arms_of(tmp_path, make_run, 2.0))
    said = verdict(result, text="t")
    assert not result.arms[1].apart
    assert "cannot be told apart" in said and "is best" not in said and "Take" not in said


def test_a_bound_is_called_a_bound(tmp_path: Path, make_run: Make) -> None:
    said = verdict(compare(arms_of(tmp_path, make_run, 2.2, mode="nelbo")), text="t")
    assert "nelbo, an upper bound" in said and "may be better than shown" in said and "not proven" in said


def test_mismatched_and_unfinished_runs_are_not_advised_on(tmp_path: Path, make_run: Make) -> None:
    said = verdict(compare(arms_of(tmp_path, make_run, 1.8)), text="t", mismatches=2, missing=1)
    assert said.startswith("Preliminary") and "Not a matched comparison: 2" in said and "Take" not in said


def test_one_seed_is_said_to_be_one(tmp_path: Path, make_run: Make) -> None:
    runs = {arm: runs[:1] for arm, runs in arms_of(tmp_path, make_run, 2.2).items()}
    assert "with one seed the interval covers documents only" in verdict(compare(runs), text="t")


def test_runs_of_one_arm_on_other_documents_are_refused(tmp_path: Path, make_run: Make) -> None:
    runs = arms_of(tmp_path, make_run, 2.2)
    scores = {**runs["masked"][1].scores, "test-ar": card_of([1.0, 2.0], [8, 8], "ar", True)}
    other = RunRecord(**{**vars(runs["masked"][1]), "scores": scores})
    with pytest.raises(RunError, match="other documents"):
        compare({**runs, "masked": [runs["masked"][0], other]})


def test_which_arm_is_plain_next_token_training() -> None:
    assert is_autoregressive({"controller": {"name": "constant", "mix": {"autoregressive": 1.0}}})
    assert not is_autoregressive({"controller": {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}})
    assert not is_autoregressive({"controller": {"name": "switch", "before": {"autoregressive": 1.0}}})


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(RunError, match="no run has been scored"):
        compare({"a": []})
