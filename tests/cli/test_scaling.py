"""The command `scaling`: planted laws come back through it, and too little is told instead of fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

import tiny_runs
from crossover.evidence.scaling.book import load_laws
from crossover.evidence.scaling.laws import Point
from evidence_scaling.folders import write_point, write_runs, write_small_study, write_table
from evidence_scaling.grids import AUTOREGRESSIVE, DIFFUSION, measured, small

GRID = {"sizes": (3e5, 2e6, 2e7, 3e8), "texts": (1e6, 1e7, 1e8), "noise": 0.002, "most_flops": 1e20}
NAMES = ("size_exponent", "data_exponent", "data_reuse")


@pytest.fixture
def scaling(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Give the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def give(*arguments: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, "scaling", *arguments)
        return code, *capsys.readouterr()

    return give


def test_planted_laws_come_back_from_run_folders(scaling, tmp_path):
    points = measured(AUTOREGRESSIVE, epochs=(1.0, 8.0, 60.0), **GRID)
    points += measured(DIFFUSION, epochs=(1.0, 30.0, 600.0), family="masked", **GRID)
    write_runs(tmp_path / "runs", points)
    code, out, _ = scaling("runs", "--draws", 40, "--out", "laws.json", "--json")
    assert code == 0
    found = json.loads(out)
    for family, truth in (("autoregressive", AUTOREGRESSIVE), ("masked", DIFFUSION)):
        law = found["families"][family]["law"]
        for name in NAMES:
            low, high = law["intervals"][name]
            # Few draws give narrow ends.
            assert 0.85 * low <= getattr(truth, name) <= 1.15 * high and law["identified"][name], (family, name)
        assert "not shown to be needed" in law["overfitting"]
    assert found["reuse_ratio"]["masked"]["value"] == pytest.approx(493.89 / 31.19, rel=0.3)
    exponent = found["critical_compute"]["masked"]
    assert exponent["exponent"] == pytest.approx(2.174, abs=0.2) and exponent["published_exponent"] == 2.174
    laws = load_laws(tmp_path / "laws.json")
    assert set(laws) == {"autoregressive", "masked"}
    told = laws["masked"].predict(2e7, 1e7, 1e8).loss_nats
    assert told == pytest.approx(float(DIFFUSION.loss_nats(2e7, 1e7, 1e8)), rel=0.01)


def test_planted_laws_come_back_from_a_table_in_plain_words(scaling, tmp_path):
    points = [*small(AUTOREGRESSIVE, "autoregressive"), *small(DIFFUSION, "masked")]
    write_table(tmp_path / "points.csv", points)
    code, out, _ = scaling("points.csv", "--draws", 30)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("points: one point a run, where it ended (decayed)")
    assert any(line.startswith("  masked can reuse its text 1") for line in lines)
    assert any("critical compute grows as U^2." in line and "published 2.174" in line for line in lines)
    assert sum("FLOPs: " in line and "nats [" in line for line in lines) == 8
    assert all(line.isprintable() and "nan" not in line for line in lines)


def test_a_constant_can_be_held_and_exponents_tied(scaling, tmp_path):
    write_table(tmp_path / "points.csv", measured(AUTOREGRESSIVE, epochs=(1.0, 8.0), **GRID)[:20])
    code, out, _ = scaling("points.csv", "--draws", 20, "--tied", "--hold", "data_reuse=31.19", "--hold=size_reuse=55")
    assert code == 0 and "data reuse is held at 31.19" in out


def test_too_few_runs_are_told_with_what_would_be_enough(scaling, tmp_path):
    point = Point(5e5, 5e4, 2e5, 4.0, "autoregressive")
    other = {"point": replace(point, family="masked"), "modes": {"nelbo": 1.0}}
    write_small_study(tmp_path / "study", {"ar": {"seed-0": {"point": point}}, "md": {"seed-0": other}})
    code, out, _ = scaling("study", "--out", "laws.json")
    assert code == 2 and not (tmp_path / "laws.json").exists()
    assert "1 run of 1 size on 1 text cannot give a law of 7 constants: it takes 8 runs or more" in out
    assert "1.2e+05 and 2e+06 parameters" in out and "data.unique_tokens" in out and "other budgets" in out
    assert "no law, as for autoregressive" in out and "no law, so laws.json is not written" in out
    code, out, _ = scaling("study", "--json")
    assert code == 2 and json.loads(out)["families"]["masked"]["law"] is None


def test_one_family_with_runs_enough_is_a_success(scaling, tmp_path):
    points = measured(AUTOREGRESSIVE, epochs=(1.0, 8.0), **GRID)
    write_table(tmp_path / "points.csv", [*points, replace(points[0], family="masked")])
    code, out, _ = scaling("points.csv", "--draws", 20)
    assert code == 0 and "no law: 1 run" in out and "data reuse" in out and "against" not in out


def test_many_seeds_of_one_size_on_one_text_are_no_law(scaling, tmp_path):
    rows = [Point(5e5, 5e4, 2e5 * (1 + seed % 3), 4.0 - 0.01 * seed, "masked", seed) for seed in range(12)]
    write_table(tmp_path / "points.csv", rows)
    code, out, _ = scaling("points.csv")
    assert code == 2 and "12 runs of 1 size on 1 text cannot give a law" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--points", "some"), "--points: is 'some', expected 'ends' or 'all'"),
        (("--hold", "data_reuse"), "--hold: is 'data_reuse', expected a constant and its value"),
        (("--hold", "reuse=3"), "no constant 'reuse'; did you mean"),
        (("--baseline", "masked"), "no family called 'masked'"),
    ],
)
def test_a_mistake_gets_one_message(scaling, tmp_path, arguments, told):
    write_point(tmp_path / "run", Point(5e5, 5e4, 2e5, 4.0, "autoregressive"))
    code, out, said = scaling("run", *arguments)
    assert (code, out) == (2, "") and told in said and said.count("\n") == 1
