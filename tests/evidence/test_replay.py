"""A replay is the run's own decisions, or says where another controller would have left the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_runs
from crossover.errors import RecipeError, RunError
from crossover.evidence.replay import json_rows_of, lines_of, replay
from crossover.evidence.stage import read_stage
from crossover.model.shapes import shape_of, training_flops
from crossover.objectives.masked import Masked
from evidence.recorded import TOKENS, Loop

RISE = [2.0] * 10 + [3.0] * 10 + [4.0] * 20


def leaves(level: float) -> dict[str, Any]:
    return {"name": "leaves_of_test", "level": level}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Loop(tmp_path / "run", leaves(2.5), RISE)
    return tmp_path / "run"


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_the_same_controller_decides_the_same_and_nothing_is_written(run):
    before = tiny_runs.snapshot(run)
    found = replay(run)
    assert (found.same, found.asked, found.difference, found.notes) == (True, 40, {}, ())
    # The start; the first question after the first loss of 3; a mark at the twentieth question, without a new mix.
    assert [(item.step, item.mark, item.standing) for item in found.decisions] == [
        (1, "", "as recorded"), (12, "", "as recorded"), (20, "keep", "as recorded"),
    ]  # fmt: skip
    assert "3 decisions, all as recorded" in lines_of(found)
    assert tiny_runs.snapshot(run) == before
    # Naming the run's own controller makes it no other one.
    assert replay(run, ["controller=leaves_of_test(2.5)"]) == found


@settings(max_examples=15, deadline=None)
@given(losses=st.lists(st.floats(1, 5), min_size=2, max_size=40), level=st.floats(1, 5), other=st.floats(1, 5))
def test_any_stream_replays_equal_and_parts_where_the_levels_do(tmp_path_factory, losses, level, other):
    folder = tmp_path_factory.mktemp("any") / "run"
    Loop(folder, leaves(level), losses)
    assert replay(folder).difference == {}
    if other == level:
        return
    found = replay(folder, [f"controller=leaves_of_test({other!r})"])
    # The question after a loss that lies between the levels is the first that is answered otherwise.
    between = [step for step, loss in enumerate(losses[:-1]) if (loss > level) != (loss > other)]
    assert (found.parting.step if found.parting else None) == (between[0] + 2 if between else None)


def test_another_controller_is_followed_to_where_it_parts_and_marked_after_it(run):
    found = replay(run, ["controller.level=3.5"])
    assert not found.same and found.difference == {}
    parting = found.parting
    assert parting is not None
    assert (parting.step, parting.data_tokens, parting.epochs) == (12, 11_000, 11 / 16)
    assert (parting.recorded, parting.mix) == ({"masked": 1.0}, {"autoregressive": 1.0})
    assert parting.reason == "question 12"
    assert [(item.step, item.standing) for item in found.decisions] == [
        (1, "same mix"), (12, "parts"), (20, "counterfactual"), (22, "counterfactual"),
    ]  # fmt: skip
    told = "\n".join(lines_of(found))
    assert "parts from the run at step 12, 0.688 epochs, 11,000 tokens: the run went on with masked" in told
    assert "2 later decision(s) are counterfactual: what it would have said had the numbers been the same" in told


def test_plans_are_replayed_without_signals(tmp_path):
    switch = {"name": "switch", "at_epochs": 1.0, "before": "autoregressive", "after": "masked"}
    Loop(tmp_path / "run", switch, RISE)
    assert replay(tmp_path / "run").difference == {}
    found = replay(tmp_path / "run", ["controller.at_epochs=2"])
    assert found.parting is not None and found.parting.epochs == 1.0
    never = replay(tmp_path / "run", ["controller={name: switch, at_epochs: 1, before: autoregressive, after: masked}"])
    assert never.same


def test_another_controller_that_agrees_is_said_to_agree(run):
    found = replay(run, ["controller.level=2.7"])
    assert found.parting is None and {item.standing for item in found.decisions} == {"same mix"}
    assert "the run would have been the same" in lines_of(found)[1]


def test_weights_that_go_back_part_two_runs(run):
    edit(run / "decisions.jsonl", lambda rows: rows[-1].update(mark="back"))
    found = replay(run, ["controller.level=2.7"])
    assert found.parting is not None and found.parting.step == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("reason", "other words"), ("mix", {"masked": 0.5, "autoregressive": 0.5}), ("details", {}), ("step", 13)],
)
def test_a_decision_that_is_not_as_recorded_is_shown(run, field, value):
    edit(run / "decisions.jsonl", lambda rows: rows[1].update({field: value}))
    found = replay(run)
    recorded, replayed = found.difference["recorded_and_replayed"][field]
    assert found.difference["step"] == 12 and recorded == value != replayed
    assert [item.standing for item in found.decisions] == ["as recorded", "differs", "as recorded"]
    assert "3 decisions, not as recorded" in lines_of(found)


@pytest.mark.parametrize("change", [lambda rows: rows.pop(), lambda rows: rows.append({**rows[-1], "step": 30})])
def test_a_decision_too_few_or_too_many_is_a_difference(run, change):
    edit(run / "decisions.jsonl", change)
    assert replay(run).difference["step"] in (20, 30)


def test_the_rescue_of_a_run_is_no_decision_of_its_controller(run):
    reason = "8 steps in a row had no finite loss: weights and optimizer go back to step 3, the clock goes on"
    rescue = {
        "step": 15,
        "epochs": 1.5,
        "mix": {"masked": 1.0},
        "before": {"masked": 1.0},
        "reason": reason,
        "details": {},
    }
    edit(run / "decisions.jsonl", lambda rows: rows.insert(2, rescue))
    assert replay(run).difference == {}


def test_what_was_never_measured_is_told_and_the_replay_goes_on(tmp_path):
    Loop(tmp_path / "run", "constant(autoregressive)", RISE)
    found = replay(tmp_path / "run", ["controller=leaves_of_test(2.5)"])
    assert found.parting is None
    assert "the run recorded no loss probes; newest_of_test stays not ready" in found.notes
    assert any("the run trains on the control text" in note for note in found.notes)


@pytest.mark.parametrize("vocabulary", [True, False])
def test_an_objective_that_the_run_did_not_have_is_priced_in_closed_form(tmp_path, vocabulary):
    # Without the vocabulary, the rows of the head follow from a price that is recorded.
    Loop(tmp_path / "run", "constant(autoregressive)", RISE, vocabulary=vocabulary)
    stage = read_stage(tmp_path / "run", ["controller=leaves_of_test(2.5)"])
    shape = shape_of(stage.recipe.model, 300)
    expected = training_flops(shape, Masked().workload(100), head_rows=290) / 100
    assert stage.prices["masked"] == pytest.approx(expected, rel=1e-12)
    first = replay(tmp_path / "run", ["controller=leaves_of_test(2.5)"]).decisions[0]
    # A run of this controller would have planned with the dearer of its two objectives.
    assert first.details["planned"] == pytest.approx(stage.budget_flops / max(stage.prices.values()) / TOKENS)


def test_a_price_that_cannot_be_known_is_told(tmp_path):
    Loop(tmp_path / "run", "constant(autoregressive)", RISE, vocabulary=False)
    manifest = tmp_path / "run" / "manifest.json"
    facts = json.loads(manifest.read_text("utf-8"))
    facts["flops_per_token"]["autoregressive"] *= 1.01
    manifest.write_text(json.dumps(facts), "utf-8")
    found = replay(tmp_path / "run", ["controller=leaves_of_test(2.5)"])
    assert "what a token of masked costs is not recorded; it has no price here" in found.notes
    assert list(found.decisions[0].details["prices"]) == ["autoregressive"]


def test_the_command_prints_lines_or_json_and_says_how_it_ended(run, monkeypatch, capsys):
    assert tiny_runs.command(monkeypatch, "replay", run) == 0
    assert "all as recorded" in capsys.readouterr().out
    assert tiny_runs.command(monkeypatch, "replay", run, "controller.level=3.5", "--json") == 0
    outcome, *decisions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert outcome["parting"]["step"] == 12 and decisions[-1]["standing"] == "counterfactual"
    edit(run / "decisions.jsonl", lambda rows: rows[0].update(reason="other words"))
    assert tiny_runs.command(monkeypatch, "replay", run) == 1
    assert 'reason: recorded "other words"' in capsys.readouterr().out


def test_json_rows_are_strict(run):
    assert all(json.loads(row) for row in json_rows_of(replay(run)))


def test_two_thousand_questions_take_less_than_a_second(tmp_path):
    losses = [3.0 - min(step, 1000) / 1000 + max(0, step - 1000) / 1000 for step in range(2000)]
    Loop(tmp_path / "run", leaves(2.5), losses)
    signals = tmp_path / "run" / "signals.jsonl"
    # Held-out losses come four times an epoch at most; the other probes go.
    edit(signals, lambda rows: rows.__setitem__(slice(None), [r for r in rows if r.get("asked") or r["step"] % 4 == 0]))
    online = "controller={name: online, signals: [curvature, gap], thresholds: {critical_compute_factor: 0}}"
    for overrides in ([], [online]):
        seconds = []
        for _ in range(3):
            began = time.process_time()
            assert replay(tmp_path / "run", overrides).asked == 2000
            seconds.append(time.process_time() - began)
        assert min(seconds) < 1.0


def test_the_online_controller_replays_equal(tmp_path):
    # Falls for ten epochs, rises afterwards: the curvature fires, or the cap is reached.
    losses = [2.0 + 0.05 * abs(step - 160) / 160 + 0.001 * (step * 7 % 5) for step in range(480)]
    online = {"name": "online", "signals": ["curvature", "gap"], "thresholds": {"critical_compute_factor": 0.0}}
    online["start"] = {"autoregressive": 1}
    Loop(tmp_path / "run", online, losses)
    found = replay(tmp_path / "run")
    assert found.difference == {} and len(found.decisions) > 2
    later = replay(tmp_path / "run", ["controller.thresholds.most_ar_exposures=9"])
    assert later.parting is not None and later.parting.epochs == pytest.approx(9, abs=0.1)


def test_no_torch_is_imported(tmp_path):
    Loop(tmp_path / "run", "switch(1, before=autoregressive, after=masked)", RISE)
    code = """
import sys
import crossover.evidence.calibrate
from crossover.evidence.replay import replay
assert replay(sys.argv[1]).difference == {}
assert replay(sys.argv[1], ["controller=online"]).parting is not None
assert not {"torch", "transformers"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "signals.jsonl"])
def test_a_run_that_recorded_nothing_is_refused(run, name):
    (run / name).unlink()
    with pytest.raises(RunError, match=f"has no {name}.*train it again"):
        replay(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        replay(tmp_path)


def test_a_question_without_its_facts_is_refused(run):
    edit(run / "signals.jsonl", lambda rows: rows[2].pop("planned_epochs"))
    with pytest.raises(RunError, match=r"line 3: lacks planned_epochs"):
        replay(run)


def test_a_run_that_was_never_asked_is_refused(run):
    (run / "signals.jsonl").write_text("", "utf-8")
    with pytest.raises(RunError, match="never asked"):
        replay(run)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=3", "seed: cannot be replayed"),
        ("controllers=masked", "controllers: cannot be replayed"),
        ("controller=onlin", "did you mean 'online'"),
        ("controller.levle=2", "did you mean 'level'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(run, override, told):
    with pytest.raises(RecipeError, match=told):
        replay(run, [override])


def test_code_of_strangers_is_not_run(run):
    tree = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    (run / "recipe.yaml").write_text(yaml.safe_dump({**tree, "imports": ["antigravity_of_test"]}), "utf-8")
    with pytest.raises(RecipeError, match="--trust"):
        replay(run)
