from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossover.evidence.compare import ArmScore, Comparison
from crossover.evidence.crossing import find_crossing
from crossover.evidence.curves import Curve
from crossover.evidence.headline import headline, standing
from crossover.evidence.page.handover import norms_figure
from crossover.evidence.page.reuse import reuse_figure
from crossover.evidence.page.steering import steering_figures
from crossover.evidence.plots import ArmCurves, compute_figure, mean_curve
from crossover.evidence.report import build_report, write_report
from crossover.evidence.view import read_view
from evidence.recorded import Leaves, Loop

Make = Callable[..., Path]
Build = Callable[..., Curve]
EVIL = '<script>document.title="ran"</script>'


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def scored(arm: str, bits: float, above: float, low: float, high: float, *, exact: bool = True) -> ArmScore:
    return ArmScore(arm, "ar", exact, (0, 1), bits, (bits - 0.1, bits + 0.1), 2.0, 7.4, above, (low, high), True)


BEST = scored("masked", 2.2, 0.0, 0.0, 0.0)
CLOSE = scored("mix", 2.21, 0.01, -0.02, 0.04)
APART = scored("plain", 2.4, 0.2, 0.1, 0.3)


def test_the_headline_is_one_sentence_that_claims_no_order_where_there_is_none() -> None:
    told = headline(Comparison((BEST, APART), 40, "plain"))
    assert told == "masked is best on this text: 2.200 bits per byte on test, 0.200 [0.100, 0.300] less than plain."
    level = headline(Comparison((BEST, CLOSE, APART), 40, "plain"))
    assert level.startswith("masked and mix cannot be told apart: masked has 2.200")
    assert level.endswith("mix has 2.210; masked has 0.200 [0.100, 0.300] less than plain.") and "best" not in level
    bound = headline(Comparison((replace(BEST, exact=False), replace(APART, exact=False)), 40, "plain"))
    assert bound.count("(an upper bound)") == 2
    assert headline(Comparison((BEST,), 40, None)).endswith("there is no other arm to compare it with.")


@pytest.mark.parametrize(("mismatches", "missing", "opening"), [
    (0, 1, "Preliminary (1 run missing): masked is best"),
    (1, 0, "Not a matched comparison (1 thing differs): "),
    (2, 3, "Not a matched comparison (2 things differ), preliminary (3 runs missing): "),
])  # fmt: skip
def test_what_weakens_the_headline_comes_first(mismatches: int, missing: int, opening: str) -> None:
    assert headline(Comparison((BEST, APART), 40, "plain"), mismatches=mismatches, missing=missing).startswith(opening)


def test_before_the_test_scores_it_says_who_is_ahead_now_and_no_more(make_curve: Build) -> None:
    arms = [ArmCurves(name, "ar", {"ar": (make_curve([3.0, low]),)}, ()) for name, low in (("a", 2.5), ("b", 2.0))]
    told = standing(arms, finished=0, planned=2)
    assert told.startswith("No verdict yet: 0 of 2 runs have finished; the lowest dev loss so far has b, 2.000 bits")
    assert standing([], finished=0, planned=1) == "No verdict yet: 0 of 1 run has finished."


def test_a_crossing_is_marked_with_its_interval_and_a_censored_one_is_not(make_curve: Build) -> None:
    flops = np.geomspace(1e9, 1e12, 12)
    held = tuple(make_curve([2.5] * 12, seed=seed, flops_E=flops) for seed in (0, 1))
    passing = np.linspace(3.2, 2.0, 12)
    other = tuple(make_curve(passing, seed=seed, flops_E=flops, arm="b", document_noise=0.05) for seed in (0, 1))
    arms = [ArmCurves("a", "ar", {"ar": held}, ()), ArmCurves("b", "ar", {"ar": other}, ())]
    found = find_crossing(held, other)
    assert found.status == "crossed" and found.ci is not None
    drawn, plain = compute_figure(arms, {"b": found}), compute_figure(arms)
    assert "A cross in a bar" in drawn.caption and "A cross in a bar" not in plain.caption
    censored = compute_figure(arms, {"b": replace(found, status="not reached", root=None, ci=None)})
    assert censored.svg == plain.svg and drawn.svg != plain.svg and drawn.narrow != plain.narrow


def test_a_seed_that_has_just_begun_does_not_stop_the_figure(make_curve: Build) -> None:
    late = make_curve([2.5], flops_E=[9e11], seed=1)
    early = make_curve([3.0, 2.8], flops_E=[1e9, 1e10])
    grid, bits = mean_curve((early, late))
    assert len(grid) == 1 and bits.shape == (2, 1)
    assert "<svg" in compute_figure([ArmCurves("a", "ar", {"ar": (early, late)}, ())]).svg


def test_decayed_points_are_drawn_with_the_run_on_its_way_behind_them(make_curve: Build) -> None:
    points, way = make_curve([2.6, 2.2], flops_E=[1e11, 1e12]), make_curve([2.9, 2.7, 2.2], flops_E=[1e10, 1e11, 1e12])
    plain = ArmCurves("a", "ar", {"ar": (points,)}, ())
    told = compute_figure([replace(plain, trunks={"ar": (way,)})])
    assert "decayed at that budget" in told.caption and "decayed" not in compute_figure([plain]).caption
    assert told.svg.count("<path") > compute_figure([plain]).svg.count("<path")


def test_readings_under_the_curve_are_those_that_the_controller_had(tmp_path: Path) -> None:
    losses = [6.0, 5.0, 4.0, 3.0, 3.5, 5.5, 6.5, 3.0]
    Loop(tmp_path / "run", Leaves(4.5), losses)
    (tmp_path / "run" / "evals.jsonl").touch()
    (tmp_path / "run" / "ledger.json").write_text("{}")
    (figure,), notes = steering_figures(read_view(tmp_path / "run"))
    rows = rows_of(figure.csv)
    said = [row for row in rows if row["what"] == "reading"]
    assert not notes and {row["name"] for row in said} == {"newest"}
    assert [float(row["value"]) for row in said] == losses
    decided = [float(row["epochs"]) for row in rows if row["what"] == "decision"]
    recorded = [json.loads(line) for line in (tmp_path / "run" / "decisions.jsonl").read_text().splitlines()]
    assert decided == [row["epochs"] for row in recorded if row["before"]] and len(decided) >= 2
    shares = {(float(row["epochs"]), row["name"]): float(row["value"]) for row in rows if row["what"] == "share"}
    assert all(shares[row["epochs"], name] == share for row in recorded for name, share in row["mix"].items())


def test_probes_that_cannot_be_read_are_told_and_stop_nothing(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run", handover_epoch=8.0)
    (run / "signals.jsonl").write_text(json.dumps({"probe": "loss", "epochs": 1.0}) + "\n")
    report = build_report(run)
    assert "no readings" in report.notes[0] and len(report.figures.decisions) == 1
    assert "no readings" in report.page()


def test_gradient_norms_are_shown_around_each_change(tmp_path: Path, make_study: Make) -> None:
    given = {"plain": {}, "switch": {"handover_epoch": 8.0}}
    folder = make_study(tmp_path / "study", given)
    assert norms_figure(read_view(folder)) is None
    for seed in (0, 1):
        with open(folder / "switch" / f"seed-{seed}" / "steps.jsonl", "w") as file:
            file.writelines(json.dumps({"step": step, "grad_norm": 10.0 * seed + step}) + "\n" for step in range(1, 9))
    figure = norms_figure(read_view(folder))
    assert figure is not None
    rows = rows_of(figure.csv)
    assert {row["arm"] for row in rows} == {"switch"} and len(rows) == 2 * 8
    # The change takes effect in step 4.
    assert all(float(row["grad_norm"]) == 10.0 * int(row["seed"]) + 4 + int(row["steps_from_change"]) for row in rows)


def test_reuse_counts_epochs_by_objective() -> None:
    row = {"arm": "a", "unique_tokens": 1000, "exposures": {"autoregressive": 4000, "masked": 6000}}
    figure = reuse_figure([row, {**row, "exposures": {"autoregressive": 6000}}, {"arm": "b", "unique_tokens": None}])
    assert figure is not None
    assert {row["objective"]: float(row["epochs"]) for row in rows_of(figure.csv)} == {"autoregressive": 5, "masked": 3}
    assert reuse_figure([{"arm": "b", "unique_tokens": 1000, "exposures": {}}]) is None


def sample(run: Path, prompt: str, text: str, **more: object) -> None:
    (run / "samples").mkdir(exist_ok=True)
    row = {"prompt": prompt, "text": text, "mode": "ar", "tokens": 3, "passes": 3, "flops": 1e6, **more}
    (run / "samples" / "one.json").write_text(json.dumps({"samples": [row, {"text": None}, "broken"]}))


def test_samples_stand_side_by_side_and_only_where_there_are_any(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}, "other": {}}, seeds=[0])
    assert "Samples side by side" not in write_report(folder).read_text()
    sample(folder / "plain" / "seed-0", "def", f"def {EVIL}")
    sample(folder / "other" / "seed-0", "def", "def next(self)")
    page = write_report(folder).read_text()
    assert "Samples side by side" in page and "next(self)" in page and "<script" not in page
    assert "--out RUN/samples/NAME.json" in page
    facts = json.loads((folder / "report.json").read_text())["samples"]
    assert (
        set(facts["arms"]) == {"plain", "other"}
        and [cell["given"] for cell in facts["rows"][0]["cells"]] == ["def"] * 2
    )


def test_a_page_alone_bears_the_numbers_of_its_figures(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    page = write_report(run).read_text()
    held = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)"', page)
    assert {name for _, name in held} >= {"loss-against-compute.csv", "loss-against-epochs.csv", "data-reuse.csv"}
    for text, name in held:
        assert base64.b64decode(text).decode() == (run / "report" / name).read_text()


def test_arms_may_bear_any_name(tmp_path: Path, make_study: Make) -> None:
    names = {EVIL: {"handover_epoch": 8.0}, 'a&b "c" | ../../x': {"handover_epoch": 8.0}, "long " * 40: {}}
    folder = tmp_path / "study"
    make_study(folder, {f"arm{place}": given for place, given in enumerate(names.values())}, seeds=[0])
    arms = dict(zip([f"arm{place}" for place in range(3)], names, strict=True))
    view = read_view(folder)
    renamed = replace(view, arms={arms[arm]: runs for arm, runs in view.arms.items()})
    figures, _ = steering_figures(renamed)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", figure.name) for figure in figures)
    assert len({figure.name for figure in figures}) == len(figures) == 2
    for figure in figures:
        assert "<script" not in figure.svg + figure.narrow + figure.standalone


def test_a_run_under_way_says_how_far_it_is(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run", finished=False)
    (run / "progress.json").write_text(json.dumps({"budget_fraction": 0.45, "loss_nats": 3.25, "seconds_left": 90}))
    assert "45%" in write_report(run).read_text()
    (run / "progress.json").write_text('{"budget_fra')
    assert "Not finished" in write_report(run).read_text()
