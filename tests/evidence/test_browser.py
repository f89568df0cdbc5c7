"""What a browser makes of the report: a file, and a page that is served while a run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossover.evidence.report import write_report
from crossover.evidence.watch import Watch, serving
from evidence import chromium
from evidence.synthetic import AUTOREGRESSIVE, MASKED, write_run, write_study

EVIL = "<script>document.title='ran'</script>"
ALSO_EVIL = "<img src=x onerror=\"document.title='ran'\"> & </pre></svg><svg onload=\"document.title='ran'\">"
SWITCH = {"name": "switch", "at_epochs": 8, "before": {"autoregressive": 1.0}, "after": {"masked": 1.0}}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    program = chromium.find()
    if program is None:
        pytest.skip("no Chromium here; install it (Debian: chromium), or name one in CROSSOVER_CHROMIUM")
    opened = chromium.Chromium(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("CROSSOVER_SCREENSHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose name, corpus, decisions, errors and samples all try to run something."""
    folder = tmp_path_factory.mktemp("study") / "study"
    evil_text = {"data_source": EVIL}
    given: dict[str, dict[str, Any]] = {
        "arm0": {"controller": AUTOREGRESSIVE, "modes": {"ar": lambda f: 3.0 - 0.8 * f}, "manifest": evil_text},
        "arm1": {"controller": MASKED, "manifest": evil_text,
                 "modes": {"l2r": lambda f: 3.4 - 1.6 * f, "nelbo": lambda f: 3.5 - 1.6 * f}},
        "arm2": {"controller": SWITCH, "modes": {"ar": lambda f: 3.0 - 0.9 * f}, "handover_epoch": 8.0,
                 "manifest": evil_text},
    }  # fmt: skip
    write_study(folder, given, name=EVIL)
    for run in folder.glob("*/seed-0"):
        (run / "samples").mkdir()
        row = {"prompt": EVIL, "text": EVIL + ALSO_EVIL, "mode": ALSO_EVIL, "tokens": 3}
        (run / "samples" / "one.json").write_text(json.dumps({"samples": [row]}))
        steps = [{"step": step, "grad_norm": 1.0 + (step >= 4)} for step in range(1, 11)]
        (run / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    for decisions in folder.glob("*/*/decisions.jsonl"):
        decisions.write_text(decisions.read_text().replace("the plan changes", EVIL.replace("'", "\\u0027")))
    return folder


def is_whole(browser: chromium.Chromium) -> None:
    """Hold an opened page to what every page must be."""
    assert browser.console == [], browser.console
    assert "ran" not in (browser.ask("document.title"), browser.ask("document.querySelector('title').textContent"))
    assert browser.ask("document.querySelector('.verdict').textContent").endswith(".")
    assert browser.ask("document.querySelectorAll('#loss-against-compute svg').length") == 2
    assert browser.ask("document.querySelector('#arms ~ .scroll table').rows.length") >= 2


@pytest.mark.parametrize("width", [1200, 380])
def test_the_report_can_be_read_on_a_desk_and_on_a_phone_by_day_and_by_night(
    browser: chromium.Chromium, study: Path, pictures: Path, width: int
) -> None:
    page = study / "report.html"
    if not page.exists():
        write_report(study)
    browser.show(width)
    browser.open(page.as_uri())
    is_whole(browser)
    assert set(browser.requests) <= {page.as_uri(), "data:,"}, "something was loaded"
    assert browser.ask("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    shown = browser.ask("[...document.querySelectorAll('.drawing svg')].map(s => s.getBoundingClientRect().width)")
    assert all(one <= width for one in shown) and sum(one > 0 for one in shown) == len(shown) / 2
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.ask(background)
    day = browser.screenshot(pictures / f"report-{width}-light.png")
    browser.show(width, dark=True)
    assert browser.ask(background) != light
    assert browser.screenshot(pictures / f"report-{width}-dark.png") != day


def test_what_texts_and_names_say_is_shown_and_not_run(browser: chromium.Chromium, study: Path) -> None:
    page = study / "report.html"
    if not page.exists():
        write_report(study)
    browser.open(page.as_uri())
    assert browser.ask("document.querySelectorAll('script, img, [onerror], [onload]').length") == 0
    shown = browser.ask("document.body.textContent")
    assert shown.count(EVIL) >= 3 and "onerror=" in shown
    # Nor could a script run that had found a way into the page: its policy forbids all of them.
    written = "Object.assign(document.createElement('script'), {text: \"document.title='ran'\"})"
    browser.ask(f"document.body.append({written})")
    assert browser.ask("document.title") != "ran"


def test_the_report_can_be_printed(browser: chromium.Chromium, study: Path) -> None:
    page = study / "report.html"
    if not page.exists():
        write_report(study)
    browser.show(800, dark=True, medium="print")
    browser.open(page.as_uri())
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    browser.show(1200)


def test_the_live_page_follows_a_run_and_keeps_the_readers_place(
    browser: chromium.Chromium, tmp_path: Path, pictures: Path
) -> None:
    # A run's name is the name of its arm.
    evil = {"name": EVIL + ALSO_EVIL, "manifest": {"data_source": EVIL}}
    run = write_run(tmp_path / "run", finished=False, handover_epoch=8.0, **evil)
    rows = (run / "evals.jsonl").read_text().splitlines(keepends=True)
    (run / "evals.jsonl").write_text("")
    watched = Watch(run, every_seconds=0.5)
    with serving(watched) as address:
        browser.show(1200, height=500)
        browser.open(address)
        assert browser.ask("document.querySelectorAll('figure').length") >= 1
        assert "Nothing has been measured yet" in browser.ask("document.body.textContent")
        browser.ask("document.querySelector('details#starts, details').open = true, window.scrollTo(0, 200)")
        (run / "evals.jsonl").write_text("".join(rows))
        browser.wait_for("document.querySelectorAll('#loss-against-compute svg').length == 2")
        is_whole(browser)
        assert browser.ask("window.scrollY") == 200
        assert browser.ask("document.querySelectorAll('details[open]').length") == 1
        assert browser.ask("document.getElementById('told').textContent").startswith("live")
        assert browser.requests and all(asked.startswith((address, "data:,")) for asked in browser.requests)
        browser.ask("window.getSelection().selectAllChildren(document.querySelector('h1'))")
        shown = browser.ask("document.querySelector('main').dataset.version")
        (run / "evals.jsonl").write_text("".join(rows[:-1]))
        browser.wait_for("document.getElementById('told').textContent.startsWith('waiting: text is marked')")
        assert browser.ask("document.querySelector('main').dataset.version") == shown
        browser.ask("window.getSelection().empty()")
        browser.wait_for(f"document.querySelector('main').dataset.version != '{shown}'")
        browser.wait_for("document.getElementById('told').textContent.startsWith('live; this page is of ')")
        assert "20" in browser.ask("document.getElementById('told').textContent"), "the day is told too"
        browser.screenshot(pictures / "live-1200-light.png")
        assert browser.ask("fetch('https://example.org/').then(() => 'went out', () => 'was held')") == "was held"
        browser.console.clear()
    browser.wait_for("document.getElementById('told').textContent.startsWith('not live')")
