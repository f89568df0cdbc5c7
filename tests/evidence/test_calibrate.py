"""Thresholds are those whose switches were worth most; what was left out had no say in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tiny_runs
from crossover.control.calibration import Calibration, Thresholds, load_calibration, read_thresholds
from crossover.control.signals.scene import Scene
from crossover.errors import RecipeError, RunError
from crossover.evidence.calibrate import GRID, calibrate, lines_of, switch_epochs
from crossover.evidence.run import RunFolder
from crossover.evidence.switches import Rising, read_cases
from crossover.records import Reading

TOKENS, PER_EPOCH, EPOCHS = 1600, 16, 60
WATCH = {"name": "watch", "controller": {"name": "constant", "mix": {"autoregressive": 1.0}}, "target": "ar"}
MASKED = {"name": "constant", "mix": {"masked": 1.0}}


@dataclass(frozen=True)
class Told:
    """A signal that says what the row says: its first unit is the probability that the loss rises."""

    delta: float = 0.0
    probes = ("loss",)

    def update(self, state: Mapping[str, Any], record: Mapping[str, Any]) -> Mapping[str, Any]:
        return record

    def readings(self, state: Mapping[str, Any], scene: Scene) -> dict[str, Reading]:
        value = state["control"]["ar"][0] + self.delta
        return {"curvature.loss:ar": Reading(3.0, 0.0, True), "curvature.rising:ar": Reading(value, 0.0, True)}


def switch(epochs: float, after: str = "masked") -> dict[str, Any]:
    return {"name": "switch", "at_epochs": epochs, "before": {"autoregressive": 1.0}, "after": {after: 1.0}}


def rows_of(probabilities: Mapping[int, float]) -> list[dict[str, Any]]:
    """Ask sixteen times an epoch; an evaluation at the end of each epoch tells the newest probability."""
    rows, told = [], 0.0
    for index in range(EPOCHS * PER_EPOCH):
        epochs = index / PER_EPOCH
        clock = {"step": index + 1, "data_tokens": 100 * index, "epochs": epochs, "mix": {"autoregressive": 1.0}}
        if index % PER_EPOCH == 0 and index:
            told = probabilities.get(round(epochs), told)
            units = {"units": ["a"], "unit_tokens": [10], "control": {"ar": [told]}}
            rows.append({**clock, "probe": "loss", **units})
        asked = {"budget_fraction": epochs / (2 * EPOCHS), "planned_epochs": 2.0 * EPOCHS, "exposures": {}}
        rows.append({**clock, "asked": True, **asked})
    return rows


def write_run(
    path: Path, seed: int, controller: Any, worth: float, rows: Sequence[Mapping[str, Any]], corpus: str
) -> None:
    recipe = {
        "name": path.parent.name,
        "seed": seed,
        "data": {"source": {"name": corpus}, "unique_tokens": 2000, "context": 10},
        "training": {"learning_rate": {"name": "wsd", "warmup_tokens": 0}},
        "controller": controller,
    }
    with RunFolder(path, terminal=False).create(recipe) as folder:
        folder.manifest({"unique_tokens": 2000, "train_tokens": TOKENS, "data_source": corpus})
        one = {"document_nats": [1.0], "document_bytes": [1], "document_tokens": [1]}
        card = {"procedure": "ar", "exact": True, **one}
        folder.evaluation({"step": 1, "flops": 1.0, "epochs": 0.1, "split": "dev", **card, "bits_per_byte": worth})
        mix = {"masked": 1.0} if controller == MASKED else {"autoregressive": 1.0}
        folder.decision({"step": 1, "epochs": 0.0, "mix": mix, "before": {}, "reason": "", "details": {}})
        if "at_epochs" in controller:
            folder.decision(
                {"step": 9, "epochs": 0.9, "mix": {"masked": 1.0}, "before": mix, "reason": "", "details": {}}
            )
        for row in rows:
            folder.signal(row)
        folder.ledger({"epochs": EPOCHS})
        folder.scores("dev-ar", {**card, "bits_per_byte": worth})
        # Never looked at: a calibration on it would choose the worst.
        folder.scores("test-ar", {**card, "bits_per_byte": -worth})
        folder.scores("summary", {"headline": "ar"})


def write_study(
    folder: Path,
    worths: Mapping[Any, float],
    probabilities: Mapping[int, float],
    *,
    corpus: str = "stdlib",
    seeds: Sequence[int] = (0,),
    vary: str = "controller",
) -> Path:
    """Write a study whose arms are epochs of a switch, "never" for the watched one, "masked" for a constant mix."""
    controllers = {"never": WATCH, "masked": MASKED}
    arms = {f"arm-{name}": controllers.get(name) or switch(name) for name in worths}
    folder.mkdir(parents=True)
    definition = {"name": folder.name, "vary": vary, "arms": arms, "seeds": list(seeds)}
    (folder / "study.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), "utf-8")
    for (arm, controller), (name, worth) in zip(arms.items(), worths.items(), strict=True):
        for seed in seeds:
            rows = rows_of(probabilities) if name == "never" else []
            write_run(folder / arm / f"seed-{seed}", seed, controller, worth, rows, corpus)
    return folder


# The probability steps up: 0.8 is passed at 6 epochs, 0.9 at 14, 0.95 at 30, each evaluation after an epoch.
STEPS = {6: 0.85, 14: 0.93, 30: 0.96}
BEST_AT_15 = {"never": 2.5, 4.0: 2.4, 8.0: 2.2, 15.0: 2.0, 32.0: 2.3}


def _fitted(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(found["thresholds"][key] for key in GRID)


def fit(*studies: Path) -> dict[str, Any]:
    return calibrate(studies, signal_of=Told)


def test_a_planted_best_time_is_found_without_regret(tmp_path):
    found = fit(write_study(tmp_path / "s", BEST_AT_15, STEPS))
    facts = found["provenance"]
    assert facts["regret_bits"]["mean"] == pytest.approx(0)
    assert 11 < facts["runs"][0]["leaves_at_epochs"]["chosen"] < 22
    # The published rules leave at 15 too, so nothing speaks for others.
    assert found["thresholds"] == asdict(Thresholds())


def test_other_thresholds_are_chosen_where_they_are_worth_more(tmp_path):
    # A probability of 0.8 is passed twice at 6 and 7 epochs; the published 0.9 waits until 15.
    found = fit(write_study(tmp_path / "s", {"never": 2.5, 2.0: 2.4, 7.0: 2.0, 15.0: 2.2, 32.0: 2.3}, STEPS))
    assert found["provenance"]["regret_bits"]["mean"] == pytest.approx(0)
    assert found["provenance"]["published_regret_bits"]["mean"] == pytest.approx(0.2)
    # A step to 0.8 or to a cap of 8 would both do; the higher probability is the more cautious.
    assert _fitted(found) == (0.9, 2, 0.0, 8.0)
    assert found["provenance"]["runs"][0]["leaves_at_epochs"]["chosen"] < 10.3


def test_never_is_a_time(tmp_path):
    found = fit(write_study(tmp_path / "s", {"never": 2.0, 4.0: 2.4, 15.0: 2.3, 32.0: 2.1}, {6: 0.5}))
    # The cap of 64 epochs lies beyond the run.
    assert found["thresholds"]["most_ar_exposures"] == 64
    assert found["provenance"]["runs"][0]["leaves_at_epochs"]["chosen"] == "never"
    assert found["provenance"]["regret_bits"]["mean"] == pytest.approx(0)


def test_a_slope_counts_as_rising_with_the_delta_of_the_grid(tmp_path):
    # 0.94 is above 0.95 with a delta of 0.05 alone; the best time is there, and the cap comes elsewhere.
    found = fit(write_study(tmp_path / "s", {"never": 2.5, 11.3: 2.0, 11.4: 2.5, 14.0: 2.6, 6.0: 2.7}, {10: 0.94}))
    assert found["provenance"]["regret_bits"]["mean"] == pytest.approx(0)


def test_regrets_are_against_every_static_arm(tmp_path):
    found = fit(write_study(tmp_path / "s", {**BEST_AT_15, "masked": 1.7}, STEPS))
    assert found["provenance"]["regret_bits"]["mean"] == pytest.approx(0.3)
    fixed = found["provenance"]["fixed_time_regret_bits"]
    assert fixed == pytest.approx({"4": 0.7, "8": 0.5, "15": 0.3, "32": 0.6, "never": 0.8})


def test_seeds_are_averaged_before_corpora(tmp_path):
    first = write_study(tmp_path / "a", BEST_AT_15, STEPS, seeds=(0, 1, 2))
    worse = {**BEST_AT_15, "masked": 1.6}
    second = write_study(tmp_path / "b", worse, STEPS, corpus="installed")
    facts = fit(first, second)["provenance"]
    assert facts["regret_bits"]["by_corpus"] == pytest.approx(
        {"stdlib, 2,000 tokens": 0, "installed, 2,000 tokens": 0.4}
    )
    assert facts["regret_bits"]["mean"] == pytest.approx(0.2)
    assert facts["seeds"] == [0, 1, 2] and len(facts["runs"]) == 4


def test_a_corpus_left_out_has_no_say(tmp_path):
    # By hand: text `a` is best left at 15, where the published rules leave; text `b` at 4, where the cap of 4 does.
    worths_a, worths_b = {"never": 2.5, 4.0: 2.3, 15.0: 2.0}, {"never": 2.5, 4.0: 1.0, 15.0: 1.1}
    a = write_study(tmp_path / "a", worths_a, STEPS)
    b = write_study(tmp_path / "b", worths_b, STEPS, corpus="installed")
    facts = fit(a, b)["provenance"]
    rows = {row["left_out"].split(",")[0]: row for row in facts["leave_one_corpus_out"]}
    # Chosen on b, read on a: 2.3 - 2.0; chosen on a, read on b: 1.1 - 1.0.
    assert rows["stdlib"]["regret_bits"] == pytest.approx(0.3)
    assert rows["installed"]["regret_bits"] == pytest.approx(0.1)
    assert rows["stdlib"]["published_regret_bits"] == pytest.approx(0)
    assert rows["installed"]["published_regret_bits"] == pytest.approx(0.1)
    # Together, leaving at 15 loses 0.1 on b, leaving at 4 loses 0.3 on a.
    assert facts["regret_bits"]["mean"] == pytest.approx(0.05)


def test_the_nearest_real_run_is_nearest_in_the_logarithm(tmp_path):
    (case,), _ = read_cases([write_study(tmp_path / "s", {"never": 9.0, 4.0: 1.0, 16.0: 2.0}, {})])
    assert case.worth_at(7.9) == 1.0 and case.worth_at(8.1) == 2.0
    # Equally near: the later, which is the more cautious.
    assert case.worth_at(8.0) == 2.0
    assert case.worth_at(None) == 9.0 and case.worth_at(1000.0) == 2.0 and case.worth_at(0.01) == 1.0


moments = st.lists(st.tuples(st.floats(0.1, 3), st.booleans(), st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


@given(moments=moments, rule=st.sampled_from([(p, n, e) for p in (0.5, 0.9) for n in (1, 3) for e in (4.0, 30.0)]))
def test_stricter_thresholds_never_leave_earlier(moments, rule):
    epochs = evaluations = 0.0
    stream = []
    for gone, new, probability, may_move in moments:
        epochs, evaluations = epochs + gone, evaluations + new
        stream.append(Rising(epochs, int(evaluations), probability if evaluations else 0.0, may_move))
    probability, in_a_row, cap = rule
    times = [
        switch_epochs(stream, Thresholds(rising_probability=p, rising_evaluations=n, most_ar_exposures=e))
        for p, n, e in ((probability, in_a_row, cap), (0.95, 4, 60.0))
    ]
    loose, strict = (math.inf if time is None else time for time in times)
    assert loose <= strict
    # And no rule leaves where it may not move.
    assert all(time is None or any(m.epochs == time and m.may_move for m in stream) for time in times)


def test_an_evaluation_counts_once_however_often_the_controller_is_asked():
    stream = [Rising(2 + index / 16, 5, 0.99, True) for index in range(8)]
    assert switch_epochs(stream, Thresholds(rising_evaluations=2)) is None
    assert switch_epochs([*stream, Rising(3.0, 6, 0.99, True)], Thresholds(rising_evaluations=2)) == 3.0
    broken = [*stream, Rising(3.0, 6, 0.1, True), Rising(4.0, 7, 0.99, True)]
    assert switch_epochs(broken, Thresholds(rising_evaluations=2)) is None


def test_the_real_curvature_leaves_after_the_minimum(tmp_path):
    study = write_study(tmp_path / "s", BEST_AT_15, {})
    path = study / "arm-never" / "seed-0" / "signals.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        if row.get("probe") == "loss":
            bend = 0.3 * math.log(row["epochs"] / 10) ** 2
            row.update(units=["a", "b", "c"], unit_tokens=[10, 10, 10], control={"ar": [3 + bend, 2 + bend, 4 + bend]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    facts = calibrate([study])["provenance"]
    # The parabola's minimum is at 10 epochs; two evaluations after it, the loss is known to rise.
    assert 11 <= facts["runs"][0]["leaves_at_epochs"]["published"] <= 13
    assert facts["regret_bits"]["mean"] == pytest.approx(0)


def test_what_is_written_can_be_read_as_a_calibration(tmp_path):
    out = tmp_path / "calibration.json"
    found = calibrate([write_study(tmp_path / "s", BEST_AT_15, STEPS)], out, signal_of=Told)
    read = load_calibration(str(out))
    assert read == Calibration(Thresholds(**found["thresholds"]), found["provenance"])
    assert read.provenance["grid"] == {key: list(values) for key, values in GRID.items()}
    assert read.provenance["leave_one_corpus_out"] is None
    assert set(read.provenance["versions"]) == {"crossover", "python", "numpy"}
    text = out.read_text("utf-8")
    # Nothing of the place or the day, so that it comes out equal when it is made again.
    assert str(tmp_path) not in text
    again = tmp_path / "again.json"
    calibrate([tmp_path / "s"], again, signal_of=Told)
    assert again.read_text("utf-8") == text


def test_the_shipped_calibration_has_the_published_rules_for_its_baseline():
    shipped = load_calibration()
    assert isinstance(shipped.thresholds, Thresholds) and shipped.provenance["status"]
    assert Thresholds().most_ar_exposures == 16.0 and Thresholds().rising_probability == 0.9


def test_thresholds_are_read_from_a_file_or_over_the_shipped_ones(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"thresholds": {"most_ar_exposures": 7}, "provenance": {}}), "utf-8")
    assert read_thresholds(str(path)).most_ar_exposures == 7
    assert read_thresholds({"gap_nats": 0.5}) == {**asdict(load_calibration().thresholds), "gap_nats": 0.5}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "has no thresholds and no provenance"),
        ('{"thresholds": {"rising_probability": 2}, "provenance": {}}', "thresholds.rising_probability"),
        ('{"thresholds": {"rising_probabilty": 0.9}, "provenance": {}}', "did you mean 'rising_probability'"),
    ],
)
def test_a_bad_calibration_file_is_refused_by_its_path(tmp_path, text, told):
    path = tmp_path / "bad.json"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match=told) as refused:
        load_calibration(str(path))
    assert str(path) in str(refused.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_calibration(str(tmp_path / "none.json"))


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys):
    study = write_study(tmp_path / "s", BEST_AT_15, STEPS)
    capsys.readouterr()
    assert tiny_runs.command(monkeypatch, "calibrate", study, "--out", tmp_path / "c.json") == 0
    told = capsys.readouterr().out
    assert "published rules" in told and "switching at 15 epochs" in told and "one corpus only" in told
    assert load_calibration(str(tmp_path / "c.json")).provenance["status"] == "fitted"


def test_only_a_fitted_calibration_can_be_told():
    with pytest.raises(RunError, match="not fitted"):
        lines_of({"thresholds": {}, "provenance": {"status": "published rules, not fitted"}})


def test_a_run_folder_is_no_study(tmp_path):
    study = write_study(tmp_path / "s", BEST_AT_15, STEPS)
    with pytest.raises(RunError, match="is no study's folder"):
        fit(study / "arm-never" / "seed-0")


def test_a_study_that_varies_something_else_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"differ in data\.context"):
        fit(write_study(tmp_path / "s", BEST_AT_15, STEPS, vary="data.context"))


def test_a_study_without_a_watched_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"stayed with next-token training.*watch"):
        fit(write_study(tmp_path / "s", {4.0: 2.4, 15.0: 2.0}, STEPS))


def test_a_study_without_a_switch_is_refused(tmp_path):
    with pytest.raises(RunError, match="no finished run leaves"):
        fit(write_study(tmp_path / "s", {"never": 2.4, "masked": 2.0}, STEPS))


def test_unfinished_runs_are_left_out_and_told(tmp_path):
    study = write_study(tmp_path / "s", BEST_AT_15, STEPS, seeds=(0, 1))
    for name in ("arm-8.0/seed-0", "arm-never/seed-1"):
        (study / name / "status.json").write_text('{"state": "failed", "why": "power cut"}', "utf-8")
    facts = fit(study)["provenance"]
    assert [arm["arm"] for arm in facts["runs"][0]["arms"]] == ["arm-never", "arm-4.0", "arm-15.0", "arm-32.0"]
    assert any("arm-8.0/seed-0 is left out: failed: power cut" in note for note in facts["notes"])
    assert any("seed 1 is left out" in note for note in facts["notes"])
