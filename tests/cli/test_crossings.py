"""The command `crossing`: on a study, on runs and on published tables; a mistake gets one message."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

import tiny_runs
from evidence.synthetic import MASKED, write_study

HEADER = "step,tokens,flops,loss"


@pytest.fixture
def crossing(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Give the command in a folder of its own, with no run trained for it."""
    monkeypatch.chdir(tmp_path)

    def give(*arguments: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, "crossing", *arguments)
        return code, *capsys.readouterr()

    return give


@pytest.fixture
def refused(crossing) -> Callable[..., str]:
    """Give the command, which must be refused in one message; returns the message."""

    def give(*arguments: object) -> str:
        code, out, said = crossing(*arguments)
        assert (code, out) == (2, ""), (code, out, said)
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    return give


@pytest.fixture
def tables(tmp_path):
    """A pair of tables as they are published, which meet half-way, and one of two seeds."""
    made = {"ar": lambda i: 3.0 - 0.05 * i, "masked": lambda i: 3.3 - 0.09 * i}
    for arm, loss in made.items():
        rows = [f"{i},{10 * i},{i}e18,{loss(i):.4f}" for i in range(1, 16)]
        (tmp_path / f"{arm}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    rows = [
        f"{i},{10 * i},{i}e18,{loss(i) + 0.01 * seed * (arm == 'ar'):.4f},{arm},{seed}"
        for arm, loss in made.items()
        for seed in (0, 1)
        for i in range(1, 16)
    ]
    (tmp_path / "both.csv").write_text("\n".join([f"{HEADER},arm,seed", *rows]) + "\n")
    return tmp_path


def test_a_published_pair_of_curves(crossing, tables):
    code, out, said = crossing("ar.csv", "masked.csv")
    assert (code, said) == (0, "")
    lines = out.splitlines()
    assert lines[1] == "  baseline: ar (next-token training)"
    assert lines[2].startswith("  best so far, matched FLOPs: the curve of masked meets that of ar at 7.48e+18 FLOPs")
    assert lines[2].endswith("no interval: one curve, so chance is not ruled out")
    assert lines[3].startswith("  latest, matched tokens: ")


def test_seeds_are_told_one_by_one_and_together(crossing, tables):
    code, out, said = crossing("both.csv")
    assert (code, said) == (0, "")
    assert "masked passes ar at " in out and "intervals cover seeds" in out
    assert "each seed, as drawn: 0 at 7.48e+18; 1 at " in out
    assert "over seeds: 2 of 2 seeds cross by " in out and "too few seeds for an interval" in out


def test_json_is_one_document_with_every_number(crossing, tables):
    code, out, _ = crossing("both.csv", "--json", "--baseline", "masked")
    found = json.loads(out)
    (setting,) = found["settings"]
    assert code == 0 and setting["baseline"] == "masked" and found["tests"] == []
    one = setting["crossings"][0]
    assert (one["status"], one["root"], one["interval"]) == ("not reached", None, None)
    assert "does not pass" in one["sentence"] and [row["crossed"] for row in one["passages"]] == [False, False]
    assert one["survival"]["median"] is None


def test_a_study_and_two_settings(crossing, tmp_path):
    def falling(start):
        return {"nelbo": lambda fraction: start - 1.4 * fraction}

    for name, start in (("small", 3.05), ("large", 3.2)):
        arms = {"ar": {}, "masked": {"controller": MASKED, "modes": falling(start)}}
        write_study(tmp_path / name, arms, seeds=(0, 1, 2, 3))
    code, out, said = crossing("small", "large")
    assert (code, said) == (0, "")
    assert "masked passes ar at 5.00e+08 FLOPs" in out and "intervals cover documents and seeds" in out
    assert "matched FLOPs by 6ND" in out and "matched epochs" in out
    assert "masked crosses earlier in small than in large" in out and "exact permutation" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("ar.csv",), "ar.csv: holds one arm, 'ar'; a crossing takes two"),
        (("both.csv", "--baseline", "mask"), "did you mean 'masked'?"),
        ((".",), "holds no run"),
        (("broken.csv",), "broken.csv: line 2: loss is 'nan', expected a finite number"),
        (("--json",), "Missing argument"),
    ],
)
def test_crossing_refuses(refused, tables, arguments, expected):
    (tables / "broken.csv").write_text(f"{HEADER}\n1,2,3,nan\n")
    assert expected in refused(*arguments)
