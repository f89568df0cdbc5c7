"""Published curves: tables are read or refused by their line, and what they show is told with what it rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.errors import RunError
from crossover.evidence.crossing_lines import facts_of, lines_of, sentence_of
from crossover.evidence.crossings import crossings_of
from crossover.evidence.published import patterns, read_table
from evidence.synthetic import AUTOREGRESSIVE, MASKED, write_run, write_study

POINTS = 16
X = np.linspace(0, 1, POINTS)
FLOPS = np.geomspace(1e18, 1e21, POINTS)
HOLDER = 3.0 - 0.8 * X
# Meets the holder at X = 0.5, which is 10^19.5 FLOPs.
CHALLENGER = 3.3 - 1.4 * X
TRUE_ROOT = 10**19.5


def write_table(path, arms, *, header="step,tokens,flops,loss", more=()):
    """Write arms {(arm, seed): losses}; the columns arm and seed are written where a key has them."""
    keys = [name for name in ("arm", "seed") if any(key[name == "seed"] is not None for key in arms)]
    lines = [",".join([header, *keys, *(name for name, _ in more)])]
    for (arm, seed), losses in arms.items():
        for i, loss in enumerate(losses):
            tail = [str(value) for value in (arm, seed) if value is not None]
            tail += [f"{values[i]:.6g}" for _, values in more]
            lines.append(",".join([f"{100 * (i + 1)},{1e6 * (i + 1):.0f},{FLOPS[i]:.8e},{loss:.8f}", *tail]))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def only(found, axis="flops"):
    (setting,) = found.settings
    return next(one for one in setting.crossings if one.axis == axis)


def test_a_published_pair_of_curves_without_an_interval(tmp_path):
    for arm, losses in (("ar", HOLDER), ("masked", CHALLENGER)):
        write_table(tmp_path / f"{arm}.csv", {(None, None): losses})
    found = crossings_of([tmp_path / "masked.csv", tmp_path / "ar.csv"])
    one = only(found)
    assert (one.challenger, one.holder, one.status) == ("masked", "ar", "crossed as drawn")
    assert one.root == pytest.approx(TRUE_ROOT, rel=1e-5) and one.interval is None and one.lead_interval is None
    assert one.lead == pytest.approx(0.3) and one.unit == "nats per token" and one.survival is None
    told = sentence_of(one)
    assert "no interval: one curve, so chance is not ruled out" in told and "passes" not in told
    # Without epochs the same epoch is the same number of tokens: X = 0.5 is 8.5 million, by its logarithm.
    assert only(found, "tokens").root == pytest.approx(8.5e6, rel=0.01)
    assert "next-token training" in lines_of(found)[1]


def test_one_table_of_several_seeds_gives_each_seed_and_all(tmp_path):
    arms = {("ar", seed): HOLDER for seed in range(3)}
    arms |= {("masked", seed): CHALLENGER + shift for seed, shift in enumerate((-0.03, 0.0, 0.03))}
    found = crossings_of(write_table(tmp_path / "all.csv", arms))
    one = only(found)
    assert one.status == "crossed" and one.resampled == ("seeds",) and one.paired
    # A shift of 0.03 moves the meeting point by 0.05 of X, 0.15 of a decade.
    assert [math.log10(item.at) for item in one.passages] == pytest.approx([19.35, 19.5, 19.65], abs=1e-4)
    assert one.survival is not None and one.survival.median == pytest.approx(TRUE_ROOT, rel=1e-4)
    # t with 2 degrees of freedom: 4.303 * 0.03 / sqrt(3) = 0.0745 of loss, 0.1242 of X, 0.3727 of a decade.
    assert np.log10(one.interval) == pytest.approx([19.5 - 0.3727, 19.5 + 0.3727], abs=0.002)
    facts = facts_of(found)["settings"][0]["crossings"][0]
    assert facts["status"] == "crossed" and "masked passes ar at 3.16e+19 FLOPs" in facts["sentence"]


def test_a_seed_that_does_not_cross_is_censored_and_never_called_a_crossing(tmp_path):
    arms = {("ar", seed): HOLDER for seed in range(3)}
    arms |= {("masked", seed): HOLDER + gap for seed, gap in enumerate((0.1, 0.2, 0.3))}
    found = crossings_of(write_table(tmp_path / "all.csv", arms))
    for one in found.settings[0].crossings:
        assert one.status == "not reached" and one.root is None and one.interval is None
        assert not any(item.crossed for item in one.passages) and one.survival.median is None
        assert "does not pass" in sentence_of(one) and "(censored)" in sentence_of(one)
    assert "0 of 3 seeds cross by 1e+21 FLOPs, 3 censored" in "\n".join(lines_of(found))


@settings(max_examples=25, deadline=None)
@given(
    losses=st.lists(st.floats(0.5, 9.0), min_size=POINTS, max_size=POINTS),
    seeds=st.integers(1, 3),
    with_errors=st.booleans(),
)
def test_identical_curves_never_cross(tmp_path_factory, losses, seeds, with_errors):
    arms = {(arm, seed): losses for arm in ("ar", "masked") for seed in range(seeds)}
    more = [("standard_error", np.full(POINTS, 0.05))] if with_errors else []
    path = write_table(tmp_path_factory.mktemp("same") / "same.csv", arms, more=more)
    for one in crossings_of(path, draws=50).settings[0].crossings:
        assert one.status == "not reached" and one.lead == pytest.approx(0, abs=1e-9)
        assert not any(item.crossed for item in one.passages)


def test_standard_errors_give_an_interval_of_one_shift_per_arm(tmp_path):
    errors = [("standard_error", np.full(POINTS, 0.02)), ("bits_per_byte", HOLDER / 2)]
    path = write_table(tmp_path / "all.csv", {("ar", None): HOLDER, ("masked", None): CHALLENGER}, more=errors[:1])
    one = only(crossings_of(path))
    assert one.status == "crossed" and one.resampled == ("standard errors",)
    # Two independent shifts of 0.02: 1.96 * 0.02 * sqrt(2) = 0.0554 of loss.
    assert one.lead_interval == pytest.approx((0.3 - 0.0554, 0.3 + 0.0554), abs=0.006)
    assert "not what another seed would change" in sentence_of(one)
    table = read_table(write_table(tmp_path / "bits.csv", {("ar", None): HOLDER}, more=errors))[0]
    bits, scaled = table.levels(True)
    assert bits == pytest.approx(HOLDER / 2, rel=1e-5) and scaled == pytest.approx(0.01, rel=1e-4)


def test_patterns_of_arms_are_independent_unit_shifts():
    made = patterns(4)
    assert made.sum(1) == pytest.approx(0, abs=1e-6)
    assert made @ made.T == pytest.approx(np.eye(4) * made.shape[1] ** 2, abs=1e-5)


def test_a_baseline_can_be_named_and_is_else_chosen_and_told(tmp_path):
    path = write_table(tmp_path / "t.csv", {("x", None): HOLDER, ("y", None): CHALLENGER})
    (setting,) = crossings_of(path).settings
    assert setting.baseline == "x" and "none is next-token training" in setting.why
    other = only(crossings_of(path, baseline="y"))
    assert (other.challenger, other.status) == ("x", "not reached") and "behind again" in other.remark
    with pytest.raises(RunError, match=r"t\.csv: has no arm called 'z'; \(choices: x, y\)"):
        crossings_of(path, baseline="z")


def test_other_columns_comments_and_blank_lines_are_passed_over_and_told(tmp_path):
    path = write_table(tmp_path / "t.csv", {("ar", 0): HOLDER, ("b", 0): CHALLENGER}, more=[("note", X)])
    text = "\ufeff# digitised from a figure\n\n" + path.read_text("utf-8").replace("step,tokens", "Step, Tokens")
    path.write_text(text.replace("\n", "\r\n"), "utf-8", newline="")
    (setting,) = crossings_of(path).settings
    assert any("not read: note" in note for note in setting.notes)
    assert setting.crossings[0].root == pytest.approx(TRUE_ROOT, rel=1e-4)


GOOD = "step,tokens,flops,loss\n1,10,1e9,3.0\n2,20,2e9,2.9\n3,30,3e9,2.8\n"
SEEDED = "step,tokens,flops,loss,seed\n1,10,1e9,3.0,0\n2,20,2e9,2.9,0\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("flops", "compute"), r"line 1: lacks the column\(s\) flops; .*choices: compute, loss"),
        (GOOD.replace(",", ";"), r"line 1: lacks the column\(s\) step, tokens, flops, loss.*parted by commas"),
        (GOOD.replace("tokens", "step"), "line 1: has the column 'step' twice"),
        (GOOD.replace("2.9", "nan"), "line 3: loss is 'nan', expected a finite number"),
        (GOOD.replace("2.9", "inf"), "line 3: loss is 'inf', expected a finite number"),
        (GOOD.replace("2.9", "two"), "line 3: loss is 'two', expected a number"),
        (GOOD.replace("2.9", ""), "line 3: loss is '', expected a number"),
        (GOOD.replace("2.9", "0"), "line 3: loss is 0, expected a number above 0"),
        (GOOD.replace("2e9", "-2e9"), "line 3: flops is -2e9, expected a number from 0 on"),
        (GOOD.replace("\n3,30", "\n1.5,30"), r"line 4: step 1.5 .* comes after step 2 \(line 3\); sort the rows"),
        (GOOD.replace("\n3,30", "\n2,30"), r"line 4: step 2 of arm 't', seed 0 is in line 3 already; keep one"),
        (GOOD.replace("3,30", "3,15"), r"line 4: tokens .* falls from 20 \(line 3\) to 15"),
        (GOOD.replace("3e9", "1e8"), r"line 4: flops .* falls from 2e\+09 \(line 3\) to 1e\+08"),
        (GOOD.replace("2,20,2e9,2.9", "2,20,2e9"), "line 3: has 3 cells, expected 4"),
        (GOOD.replace("2,20,2e9,2.9", '2,20,2e9,"2.9'), "line 3: is no CSV"),
        ("step,tokens,flops,loss\n1,10,1e9,3\n", "line 2: is the only row"),
        ("step,tokens,flops,loss\n", "holds no measurement"),
        ("", "holds no measurement"),
        (SEEDED.replace("3.0,0", "3.0,a"), "line 2: seed is 'a'"),
        (SEEDED.replace("seed", "arm").replace("3.0,0", "3.0,"), "line 2: arm is '', expected a name"),
        (SEEDED.replace("seed", "arm").replace("3.0,0", "3.0,\x1b[2J"), r"line 2: arm is '\\x1b"),
        ("\x1b[2Ja,b\n1,2\n", r"lacks the column.*choices: \[2ja, b"),
    ],
)
def test_a_damaged_table_is_refused_by_its_line(tmp_path, text, expected):
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(RunError, match=expected) as refused:
        read_table(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='0123456789.,-+ein"\n\r;#abstepokfl \u2028', max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, rest):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    path.write_text(GOOD + rest, "utf-8", newline="")
    try:
        assert all(np.isfinite(one.columns["loss"]).all() for one in read_table(path))
    except RunError as error:
        assert "\n" not in str(error)


def test_sources_that_cannot_be_compared_are_refused(tmp_path):
    table = write_table(tmp_path / "ar.csv", {(None, None): HOLDER})
    with pytest.raises(RunError, match="holds one arm, 'ar'; a crossing takes two"):
        crossings_of(table)
    again = write_table(tmp_path / "again.csv", {("ar", None): HOLDER})
    with pytest.raises(RunError, match=r"arm 'ar', seed 0 is in .*ar\.csv and in .*again\.csv"):
        crossings_of([table, again, write_table(tmp_path / "b.csv", {("b", None): HOLDER})])
    with pytest.raises(RunError, match="no such file or folder"):
        crossings_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        crossings_of(tmp_path / "empty")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="no text in UTF-8"):
        crossings_of(tmp_path / "binary.csv")


def falling(start, slope):
    return lambda fraction: start - slope * fraction


def test_a_study_a_folder_of_runs_and_its_runs_one_by_one_say_the_same(tmp_path):
    arms = {"ar": {}, "masked": {"controller": MASKED, "modes": {"nelbo": falling(3.2, 1.4)}}}
    study = write_study(tmp_path / "study", arms, seeds=(0, 1, 2))
    for arm, run in arms.items():
        for seed in range(3):
            more = {"controller": AUTOREGRESSIVE, **run}
            write_run(tmp_path / "runs" / f"{arm}-{seed}", name=f"{arm}-{seed}", seed=seed, **more)
    one = only(crossings_of(study))
    assert one.status == "crossed" and one.resampled == ("documents", "seeds") and one.seeds == (3, 3)
    # 3 - f meets 3.2 - 1.4 f at half of the budget.
    assert one.root == pytest.approx(5e8) and one.challenger == "masked"
    apart = sorted((tmp_path / "runs").iterdir())
    assert only(crossings_of(tmp_path / "runs")) == one == only(crossings_of(apart))
    (setting,) = crossings_of(study).settings
    assert {item.axis for item in setting.crossings} == {"flops", "flops_6nd", "epochs"}
    assert only(crossings_of(study), "epochs").root == pytest.approx(10.0)
    assert any("upper bound" in note for note in setting.notes)


def test_runs_meet_a_table_in_bits_per_byte(tmp_path):
    run = write_run(tmp_path / "ar", name="ar")
    header = "step,tokens,flops,loss,bits_per_byte,epochs\n"
    rows = [f"{i},{2000 * i},{1e8 * i},{4 - 0.1 * i},{3.2 - 0.14 * i},{2 * i}" for i in range(1, 11)]
    table = tmp_path / "masked.csv"
    table.write_text(header + "\n".join(rows) + "\n", "utf-8")
    (setting,) = crossings_of([run, table]).settings
    one = next(item for item in setting.crossings if item.axis == "flops")
    assert (one.holder, one.challenger, one.status) == ("ar", "masked", "crossed as drawn")
    assert 3.5e8 < one.root < 6.5e8 and any("cannot be checked" in note for note in setting.notes)
    assert [item.axis for item in setting.crossings] == ["flops", "epochs"]
    table.write_text(GOOD, "utf-8")
    with pytest.raises(RunError, match="add bits_per_byte, epochs"):
        crossings_of([run, table])


def test_two_settings_are_tested_against_one_another(tmp_path):
    for name, gap in (("small", 0.0), ("large", 0.15)):
        arms = {("ar", seed): HOLDER for seed in range(4)}
        arms |= {("masked", seed): CHALLENGER + gap + 0.01 * seed for seed in range(4)}
        write_table(tmp_path / f"{name}.csv", arms, more=[("epochs", range(1, len(HOLDER) + 1))])
    found = crossings_of([tmp_path / "small.csv", tmp_path / "large.csv"])
    assert [pair.axis for pair in found.tests] == ["flops", "epochs"]
    for pair in found.tests:
        assert pair.test.earlier == "first" and pair.test.p_value == pytest.approx(2 / 70)
    told = "\n".join(lines_of(found))
    assert told.count("masked crosses earlier in") == 2 and "exact permutation" in told
    assert "2 tests were made" in told
