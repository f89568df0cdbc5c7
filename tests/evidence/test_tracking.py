"""Downstream crossings: planted answers of items, found where they were planted, and never where there are none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence.crossings import crossings_in
from crossover.evidence.tracking import Score, downstream_settings, is_scored, keep, read_scores, write_table
from crossover.streams import stream
from evidence.synthetic import AUTOREGRESSIVE, MASKED

STEPS = np.arange(1, 9) * 100
ITEMS, PARTS = 600, 3
CARD = {
    "exact": True,
    "limit": None,
    "fewshot": [0],
    "seed": 0,
    "data": {"part0": "a1"},
    "definitions": {"part0": "b1"},
}


def answer(
    run: Path, seed: int, chances_E, *, task: str = "blimp", procedure: str = "ar", items: int = ITEMS, **card
) -> None:
    """Score checkpoints: an item is right when its own hardness is below the model's chance."""
    hardness = stream(0, "items").random((PARTS, items // PARTS))
    for step, chance in zip(STEPS[-len(chances_E) :], chances_E, strict=True):
        jitter = 0.02 * stream(seed, str(run), int(step)).standard_normal(hardness.shape)
        right = (hardness + jitter < chance).astype(float)
        gold = 20 * (1.5 - chance) * (0.5 + hardness)
        answers = {
            f"part{part}": {"acc": right[part].tolist(), "gold_nats": gold[part].tolist(),
                            "gold_bytes": [30] * right.shape[1]}
            for part in range(PARTS)
        }  # fmt: skip
        bits = float(gold.sum() / math.log(2) / (30 * gold.size))
        record = {"task": task, "procedure": procedure, "items": right.size, "answers": answers,
                  "card": {**CARD, "weights_sha256": f"{run} {step}", **card}}  # fmt: skip
        clock = {"step": int(step), "data_tokens": int(step) * 100, "epochs": step / 10, "flops": step * 1e6,
                 "flops_6nd": step * 2e6}  # fmt: skip
        measures = {"acc": (float(right.mean()), 0.01), "bits_per_byte": (bits, 0.02)}
        keep(run, Score(clock, f"{task}-{procedure}", {"limit": None}, measures, record))


@pytest.fixture
def study(make_study, tmp_path):
    return make_study(tmp_path / "study", {"ar": {"controller": AUTOREGRESSIVE}, "masked": {"controller": MASKED}})


STAYS = np.full(8, 0.62)
RISES = np.linspace(0.5, 0.78, 8)


def plant(study: Path, masked=RISES) -> None:
    for seed in (0, 1):
        answer(study / "ar" / f"seed-{seed}", seed, STAYS)
        answer(study / "masked" / f"seed-{seed}", seed, masked)


def test_a_planted_crossing_is_found_in_accuracy_and_in_gold_endings(study):
    plant(study)
    settings = downstream_settings([study], "blimp")
    assert [one.unit for one in settings] == ["share of wrong answers", "bits per byte of the gold ending"]
    # The chances meet between the third and the fifth checkpoint.
    for setting in settings:
        found = next(one for one in crossings_in(setting).crossings if one.axis == "flops")
        assert found.challenger == "masked" and found.status == "crossed" and found.resampled == ("documents", "seeds")
        assert found.root is not None and 3e8 < found.root < 5e8


def test_what_is_the_same_never_crosses(study):
    plant(study, STAYS)
    for setting in downstream_settings([study], "blimp"):
        assert all(one.status == "not reached" for one in crossings_in(setting, draws=200).crossings)


def test_groups_of_items_keep_the_measure(study):
    plant(study)
    accuracy, gold = downstream_settings([study], "blimp")
    scores = [one for one in read_scores(study / "masked" / "seed-1")]
    one, other = accuracy.arms["masked"][1], gold.arms["masked"][1]
    assert one.bits_E == pytest.approx([1 - score.measures["acc"][0] for score in scores])
    assert other.bits_E == pytest.approx([score.measures["bits_per_byte"][0] for score in scores])
    assert one.bytes_D.sum() == ITEMS and accuracy.documents == 400


def test_runs_named_one_by_one_make_a_setting(study):
    plant(study)
    runs = [study / arm / f"seed-{seed}" for arm in ("ar", "masked") for seed in (0, 1)]
    (setting, _) = downstream_settings(runs, "blimp")
    assert set(setting.arms) == {"ar", "masked"} and setting.plain == ("ar",)


def test_what_is_missing_or_mixed_up_is_told(study):
    with pytest.raises(RunError, match="checkpoints=all tasks=blimp"):
        downstream_settings([study], "blimp")
    for seed in (0, 1):
        answer(study / "ar" / f"seed-{seed}", seed, STAYS)
        for procedure in ("nelbo", "order(x)"):
            answer(study / "masked" / f"seed-{seed}", seed, RISES, procedure=procedure)
    with pytest.raises(RunError, match="which procedure reads 'masked' at blimp"):
        downstream_settings([study], "blimp")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fewshot": [5]}, r"fewshot: \[0\] in the first, \[5\] in the second"),
        ({"data": {"part0": "a2"}}, "data.part0: a1 in the first, a2 in the second"),
        ({"definitions": {"part0": "b2"}}, "definitions.part0: b1 in the first, b2 in the second"),
        ({"draws": 64}, "draws: not stated in the first, 64 in the second"),
        ({"precision": "bfloat16"}, "precision: not stated in the first, bfloat16 in the second"),
    ],
)
def test_answers_that_were_asked_in_different_ways_make_no_crossing(study, changed, told):
    """Of two arms, of two seeds of an arm, and of two checkpoints of a run."""
    for runs, steps in ((("masked/seed-0", "masked/seed-1"), 8), (("masked/seed-1",), 8), (("ar/seed-0",), 5)):
        plant(study)
        for run in runs:
            answer(study / run, int(run[-1]), RISES[:steps], **changed)
        with pytest.raises(RunError, match=told) as caught:
            downstream_settings([study], "blimp")
        assert "step " in str(caught.value) and "--allow" not in str(caught.value)


def test_arms_may_be_read_by_different_procedures_and_by_nothing_else_that_differs(study):
    for bound in ({"exact": False, "draws": 128}, {"exact": False, "draws": 128, "fewshot": [5]}):
        for seed in (0, 1):
            answer(study / "ar" / f"seed-{seed}", seed, STAYS)
            answer(study / "masked" / f"seed-{seed}", seed, RISES, procedure="nelbo", **bound)
        if "fewshot" not in bound:
            assert "masked by nelbo" in downstream_settings([study], "blimp")[0].notes[0]
    with pytest.raises(RunError, match="fewshot") as caught:
        downstream_settings([study], "blimp")
    assert "draws" not in str(caught.value)


def test_arms_that_were_asked_different_items_make_no_crossing(study):
    plant(study)
    for seed in (0, 1):
        answer(study / "masked" / f"seed-{seed}", seed, RISES, items=ITEMS - PARTS)
    with pytest.raises(RunError, match="'ar', seed 0, and 'masked', seed 0, were asked different items"):
        downstream_settings([study], "blimp")


def test_the_table_has_a_row_for_each_checkpoint(study):
    run = study / "ar" / "seed-0"
    answer(run, 0, STAYS)
    answer(run, 0, RISES, task="dev")
    as_json, as_csv = write_table(run)
    lines = as_csv.read_text().splitlines()
    assert len(lines) == 9 and lines[0].startswith("step,data_tokens,epochs,flops,flops_6nd,blimp-ar acc")
    assert as_json.exists() and is_scored(run, 100, "blimp-ar", {"limit": None})
    assert not is_scored(run, 100, "blimp-ar", {"limit": 5}) and not is_scored(run, 150, "blimp-ar", {"limit": None})
    (next(run.glob("scores/tracking/step-*/blimp-ar.json"))).write_text("{}")
    with pytest.raises(RunError, match="delete it"):
        read_scores(run)
