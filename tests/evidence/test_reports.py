from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from crossover.errors import RunError
from crossover.evidence.page.markdown import markdown
from crossover.evidence.page.words import number
from crossover.evidence.report import build_report, write_report
from crossover.evidence.view import read_view
from evidence.synthetic import AUTOREGRESSIVE, MASKED

Make = Callable[..., Path]
EVIL = '<script>alert("$1$")</script>'
SWITCH = {"name": "switch", "at_epochs": 8, "before": {"autoregressive": 1.0}, "after": {"masked": 1.0}}


def arms() -> dict[str, dict[str, object]]:
    return {
        "autoregressive": {"controller": AUTOREGRESSIVE, "modes": {"ar": lambda f: 3.0 - 0.8 * f}},
        "masked": {
            "controller": MASKED,
            "modes": {"l2r": lambda f: 3.4 - 1.6 * f, "nelbo": lambda f: 3.5 - 1.6 * f},
        },
        "switch": {
            "controller": SWITCH,
            "modes": {"ar": lambda f: 3.0 - 0.9 * f, "nelbo": lambda f: 3.6 - f},
            "handover_epoch": 8.0,
        },
    }


class Links(HTMLParser):
    """Collects what a browser would fetch by itself, and what a reader may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        told = dict(attrs)
        self.fetched += [told[name] or "" for name in ("src", "data", "xlink:href", "srcset") if name in told]
        if tag == "link":
            self.fetched.append(told["href"] or "")
        if tag == "a":
            self.followed.append(told["href"] or "")


def test_a_study_report_is_whole_and_needs_nothing_else(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", arms())
    page = write_report(folder).read_text()
    links = Links()
    links.feed(page)
    assert all(link.startswith("#") or link == "data:," for link in links.fetched), links.fetched
    assert "script" not in links.tags and "@import" not in page and "url(http" not in page
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in page
    assert not [link for link in links.followed if link.startswith(("http", "/", "//"))]
    for link in links.followed:
        assert link.startswith(("#", "data:text/csv")) or (folder / link).is_file(), link
    for told in ("prefers-color-scheme: dark", "@media print", "width=device-width", "masked is best", "Crossings"):
        assert told in page, told
    assert "the plan changes at epoch 8" in page and '<span class="good">Yes.' in page
    assert "passes autoregressive at" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two figures share an id"


def test_figures_lie_beside_the_report_with_their_numbers(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", arms())
    write_report(folder)
    for name in ("loss-against-compute", "loss-against-epochs", "test-scores"):
        ElementTree.fromstring((folder / "report" / f"{name}.svg").read_text())
        with open(folder / "report" / f"{name}.csv") as file:
            assert len(list(csv.DictReader(file))) >= 3
    with open(folder / "report" / "loss-against-compute.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "masked" and row["mode"] == "l2r"]
    assert len(rows) == 2 * 10
    assert all(float(row["best_so_far"]) <= float(row["bits_per_byte"]) + 1e-12 for row in rows)
    facts = json.loads((folder / "report.json").read_text())
    scored = {row["arm"]: row["score"]["bits_per_byte"] for row in facts["arms"]}
    assert scored["masked"] < scored["switch"] < scored["autoregressive"]
    headline = next(row for row in facts["crossings"] if row["challenger"] == "masked" and row["axis"] == "flops")
    assert headline["status"] == "crossed" and headline["ci"][0] <= headline["root"] <= headline["ci"][1]
    text = (folder / "report.md").read_text()
    assert facts["verdict"] in text and f"{scored['masked']:.3f}" in text


def test_names_are_escaped_everywhere(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run", name=EVIL, manifest={"data_source": EVIL}, handover_epoch=8.0)
    page = write_report(run).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in (run / "report.md").read_text()
    assert "<script" not in (run / "report" / "loss-against-compute.svg").read_text()


def test_a_mismatch_is_shown_in_red_and_stops_the_advice(tmp_path: Path, make_study: Make) -> None:
    given = arms()
    given["masked"]["manifest"] = {"tokenizer_hash": "another"}
    folder = make_study(tmp_path / "study", given)
    page = write_report(folder).read_text()
    assert "The runs are not matched" in page and 'class="bad"><code>manifest.tokenizer_hash' in page
    assert "Not a matched comparison" in page and "Take masked" not in page


def test_an_unfinished_study_says_what_is_missing(tmp_path: Path, make_study: Make) -> None:
    given = arms()
    given["masked"]["finished"] = False
    folder = make_study(tmp_path / "study", given)
    page = write_report(folder).read_text()
    assert "Preliminary: 2 run(s)" in page and "masked/seed-0" in page and "not finite 20 times" in page
    assert "Not scored yet: masked." in page


def test_a_study_that_has_not_begun_has_a_report(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", arms(), seeds=[])
    text = (folder / "study.yaml").read_text().replace("seeds: []", "seeds: [0]")
    (folder / "study.yaml").write_text(text)
    page = write_report(folder).read_text()
    assert "No verdict yet: 0 of 3" in page and "Nothing has been measured yet" in page


def test_arms_that_cannot_be_compared_are_said_to_be_so(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", arms())
    card = next(iter(sorted((folder / "masked" / "seed-1" / "scores").glob("test-*.json"))))
    found = json.loads(card.read_text())
    found["document_bytes"] = [*reversed(found["document_bytes"][:-1]), found["document_bytes"][-1] + 1]
    card.write_text(json.dumps(found))
    page = write_report(folder).read_text()
    assert "No verdict: " in page and "other documents" in page and "No verdict yet" not in page


def test_a_single_run_has_a_report(tmp_path: Path, make_run: Make) -> None:
    page = write_report(make_run(tmp_path / "run")).read_text()
    assert "no other arm to compare it with" in page and "only one run" in page


def test_the_time_that_evaluations_took_is_told(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    assert "time on evaluation" in write_report(run).read_text() and "7.0%" in (run / "report.html").read_text()
    facts = json.loads((run / "report.json").read_text())
    assert facts["arms"][0]["evaluation_share"] == facts["ledger"][0]["evaluation_share"] == pytest.approx(0.07)
    # A run of an earlier version did not record it.
    ledger = json.loads((run / "ledger.json").read_text())
    del ledger["evaluation_seconds"]
    (run / "ledger.json").write_text(json.dumps(ledger))
    write_report(run)
    assert json.loads((run / "report.json").read_text())["ledger"][0]["evaluation_share"] is None


def shift(step: int = 4, *, reason: str = "", **details: object) -> dict[str, object]:
    clock = {"step": step, "data_tokens": 2000 * step, "epochs": 2.0 * step, "flops": 1e8 * step}
    mix, before = {"autoregressive": 0.9, "masked": 0.1}, {"autoregressive": 1.0}
    return {**clock, "mix": mix, "before": before, "reason": reason or f"used up at step {step}", "details": details}


def add(run: Path, *rows: dict[str, object], stream: str = "decisions") -> None:
    with open(run / f"{stream}.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


EVIDENCE = {
    "to": {"masked": 0.95, "autoregressive": 0.05},
    "evidence": ["curvature", "cap<b>"],
    "readings": {"gap:ar": [0.25, None], "broken": 3},
    "alternatives": [
        {"gear": "masked", "flops_per_token": 2e6, "novelty": 0.8125, "alignment": None, "clears_floor": True},
        {"gear": "autoregressive", "stays": True},
    ],
}


def test_an_online_arm_is_held_against_the_best_plan_with_its_handicap_told(tmp_path: Path, make_study: Make) -> None:
    held_out = {"train_tokens": 950, "data_order": "shorter"}
    online = {"controller": {"name": "online"}, "modes": {"ar": lambda f: 3.0 - 1.2 * f}, "manifest": held_out}
    folder = make_study(tmp_path / "study", {**arms(), "online": online}, seeds=[0])
    run = folder / "online" / "seed-0"
    add(run, shift(**EVIDENCE))
    add(run, *({"step": step, "grad_norm": 1.0 if step < 4 else 2.5} for step in range(1, 11)), stream="steps")
    page, text = write_report(folder).read_text(), (folder / "report.md").read_text()
    facts = json.loads((folder / "report.json").read_text())
    row = next(row for row in facts["regret"] if row["arm"] == "online")
    assert row["against"] == "masked" and row["told"] in page and row["decision_epochs"] == {"0": [8.0]}
    for told in (page, text):
        assert "Against the best static arm" in told and "seed 0: 8.00" in told and "worse than masked" in told
        assert "online on 950 (95.0%)" in told and "masked 95%, autoregressive 5%" in told
    assert "1 → 2.5" in page and facts["proof"]["matched"]
    assert "manifest.train_tokens" in facts["proof"]["declared"]


def test_a_study_of_plans_has_no_such_table(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", arms(), seeds=[0])
    assert "Against the best static arm" not in write_report(folder).read_text() + (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["regret"] == []


def test_a_decision_tells_its_evidence_and_what_else_there_was(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run", controller={"name": "online"})
    add(run, shift(**EVIDENCE))
    page = write_report(run).read_text()
    assert "evidence: curvature, cap&lt;b&gt;" in page and "0.812" in page and "autoregressive (stay)" in page
    assert "gap:ar" in page and "0.25 ± -" in page and "<b>" not in page.replace("<b>(headline)</b>", "")
    drawing = (run / "report" / "loss-against-compute.svg").read_text()
    assert "curvature + cap&lt;b&gt;" in drawing, "the curve says why the mix changed"


def test_many_decisions_are_cut_in_markdown_but_not_those_of_online_arms(tmp_path: Path, make_study: Make) -> None:
    given = {arm: {**one, "handover_epoch": None} for arm, one in arms().items()}
    given["online"] = {"controller": {"name": "online"}, "modes": {"ar": lambda f: 3.0 - f}}
    folder = make_study(tmp_path / "study", given, seeds=[0])
    for arm in ("switch", "online"):
        add(folder / arm / "seed-0", *(shift(step) for step in range(2, 52)))
    write_report(folder)
    text, facts = (folder / "report.md").read_text(), json.loads((folder / "report.json").read_text())
    assert len(facts["decisions"]) == 100
    assert text.count("| switch | 0 |") == 40 and text.count("| online | 0 |") == 50
    assert "90 of 100 decisions are shown; all are in report.json." in text


def test_what_probes_took_is_told(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    ledger = json.loads((run / "ledger.json").read_text())
    (run / "ledger.json").write_text(json.dumps({**ledger, "probe_flops": 4.2e7, "probe_seconds": 4.8}))
    assert "4.2%, 8.0%" in write_report(run).read_text()
    row = json.loads((run / "report.json").read_text())["ledger"][0]
    assert row["probe_flops_share"] == pytest.approx(0.042) and row["probe_seconds_share"] == pytest.approx(0.08)


HALF = "half \ud800 <b>"


def test_half_characters_break_no_report(tmp_path: Path, make_study: Make, make_run: Make) -> None:
    run = make_run(tmp_path / HALF.replace("\ud800", "\udcff"), name=HALF, controller={"name": "online"})
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "data_source": HALF}))
    add(run, shift(**{**EVIDENCE, "evidence": [HALF], "to": {HALF: 1.0}}, reason=HALF))
    ledger = json.loads((run / "ledger.json").read_text())
    (run / "ledger.json").write_text(json.dumps({**ledger, "exposures": {HALF: 10}}))
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    (run / "evals.jsonl").write_text("".join(json.dumps({**row, "procedure": HALF}) + "\n" for row in rows))
    (run / "samples").mkdir()
    (run / "samples" / "one.json").write_text(json.dumps({"samples": [{"prompt": HALF, "text": HALF, "mode": HALF}]}))
    page = write_report(run).read_text("utf-8")
    assert page.count("half ? &lt;b&gt;") > 5
    for path in (*(run / "report").iterdir(), run / "report.md", run / "report.json"):
        assert "\ud800" not in path.read_text("utf-8")
    for svg in (run / "report").glob("*.svg"):
        ElementTree.fromstring(svg.read_text())
    folder = make_study(tmp_path / "study", arms(), seeds=[0], name=HALF)
    assert "<h1>half ? &lt;b&gt;</h1>" in write_report(folder).read_text("utf-8")


@pytest.mark.parametrize(("amount", "form", "told"), [
    (1000, ",d", "1,000"), (1000.0, ",d", "1,000"), (1.5, ",d", "1.5"), (float("nan"), ",d", "nan"),
    (10**400, ".2e", "more than can be shown"), ("x", ",d", "-"), (True, ",d", "-"), (None, ".3f", "-"),
])  # fmt: skip
def test_whatever_was_recorded_is_written(amount: object, form: str, told: str) -> None:
    assert number(amount, form) == told


@pytest.mark.parametrize("started", [
    {"study": 7}, {"study": "x.yaml", "overrides": [1]}, {"study": "x.yaml", "overrides": 3}, {"study": ["x"]},
    {"study": "x\n# <script>alert(1)</script>"}, {"study": "x\u2028# y"}, {"study": "x", "overrides": {"a": 1}}, {},
])  # fmt: skip
def test_a_command_that_cannot_be_told_is_told_in_general(
    tmp_path: Path, make_study: Make, started: dict[str, object]
) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}}, seeds=[0])
    (folder / "started.json").write_text(json.dumps(started))
    (told,) = read_view(folder).reproduce
    assert told.startswith("crossover train recipes/<arm>") and told.isprintable()


def test_a_command_stays_in_its_block_of_code(tmp_path: Path, make_study: Make) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}}, seeds=[0])
    (folder / "started.json").write_text(
        json.dumps({"study": "a b.yaml", "overrides": ["study.jobs=1", "name=</pre>"]})
    )
    assert read_view(folder).reproduce == ("crossover study 'a b.yaml' study.jobs=1 'name=</pre>'",)
    assert "name=&lt;/pre&gt;" in write_report(folder).read_text()
    report = build_report(folder)
    text = markdown({**report.facts, "reproduce": ["one\n\n# two\u2028<b>three"]}, ())
    block = text.partition("## How to reproduce\n")[2].splitlines()
    assert len([line for line in block if line.strip()]) == 3
    assert all(line.startswith("    ") for line in block if line.strip())


@pytest.mark.parametrize(("key", "broken"), [
    ("arms", 5), ("arms", ["plain"]), ("arms", {"../plain": {}}), ("arms", {"a/b": {}}), ("arms", {"..": {}}),
    ("arms", {"a\nb": {}}), ("arms", {None: {}, "": {}}), ("seeds", ["../0"]), ("seeds", [0.5]), ("seeds", [True]),
    ("seeds", "01"), ("tunable", 5), ("tunable", "training"), ("tunable", [1]),
])  # fmt: skip
def test_a_study_file_that_no_study_left_is_refused_by_key(
    tmp_path: Path, make_study: Make, key: str, broken: object
) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}}, seeds=[0])
    definition = yaml.safe_load((folder / "study.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump({**definition, key: broken}))
    with pytest.raises(RunError, match=rf"study\.yaml: {key}: "):
        read_view(folder)


@pytest.mark.parametrize("broken", ["[1, 2]", "3", "{", "budgets: [x]", "budgets: [1" + "0" * 400 + "]"])
def test_a_study_file_of_another_kind_is_refused(tmp_path: Path, make_study: Make, broken: str) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}}, seeds=[0])
    text = (folder / "study.yaml").read_text() if broken.startswith("budgets") else ""
    (folder / "study.yaml").write_text(text + broken)
    with pytest.raises(RunError, match=r"study\.yaml: is not what a study leaves"):
        read_view(folder)


def test_points_are_called_decayed_only_where_they_are(tmp_path: Path, make_study: Make, make_run: Make) -> None:
    folder = make_study(tmp_path / "study", {"plain": {}, "other": {"controller": MASKED}}, seeds=[0])
    with open(folder / "study.yaml", "a") as file:
        file.write("budgets: [5.0e+8]\n")

    def told() -> tuple[bool, set[str]]:
        page, text = write_report(folder).read_text(), (folder / "report.md").read_text()
        said = {"decayed": "is a run whose learning rate decayed", "on the way": "were measured on the way"}
        found = {name for name, words in said.items() if words in page}
        assert found == {name for name, words in said.items() if words in text}
        return json.loads((folder / "report.json").read_text())["decayed"], found

    assert told() == (False, set()), "without a branch there is nothing to tell"
    for arm, expected in (("plain", (False, {"on the way"})), ("other", (True, {"decayed"}))):
        controller = MASKED if arm == "other" else AUTOREGRESSIVE
        make_run(folder / arm / "budget-5e+08" / "seed-0", name=f"{arm}-0", controller=controller)
        rows = (folder / arm / "budget-5e+08" / "seed-0" / "evals.jsonl").read_text().splitlines(keepends=True)
        (folder / arm / "budget-5e+08" / "seed-0" / "evals.jsonl").write_text("".join(rows[:5]))
        assert told() == expected


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        write_report(tmp_path)
