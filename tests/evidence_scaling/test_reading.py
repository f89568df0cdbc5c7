from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from crossover.errors import RunError
from crossover.evidence.record import read_run
from crossover.evidence.scaling.laws import Point
from crossover.evidence.scaling.reading import read_points
from crossover.evidence.scaling.table import read_point_table
from evidence_scaling.folders import BOTH, constant, write_point, write_small_study, write_table
from evidence_scaling.grids import measured

POINT = Point(5e5, 5e4, 2e5, 4.0, "autoregressive")
# A run at a constant learning rate, and the drop of its decay at the end.
EARLIER = ((0.0001, 7.0), (0.2, 5.0), (0.6, 4.5))


def only(measured_points, family: str = "autoregressive") -> Point:
    (point,) = measured_points.points[family]
    return point


def test_a_run_gives_the_point_where_its_learning_rate_has_decayed(tmp_path):
    write_point(tmp_path / "run", POINT, before=EARLIER)
    found = read_points([tmp_path / "run"])
    point = only(found)
    assert (point.parameters, point.unique_tokens, point.tokens) == (5e5, 5e4, 2e5)
    assert point.loss_nats == pytest.approx(4.0) and found.used == "ends" and found.plain == ("autoregressive",)


def test_all_evaluations_are_those_after_the_warm_up_and_belong_to_one_run(tmp_path):
    write_point(tmp_path / "run", POINT, before=EARLIER)
    points = read_points([tmp_path / "run"], used="all").points["autoregressive"]
    assert [point.loss_nats for point in points] == pytest.approx([5.0, 4.5, 4.0])
    assert len({(point.group, point.seed) for point in points}) == 1


def test_text_that_a_controller_holds_out_is_not_counted_as_unique_tokens(tmp_path):
    write_point(tmp_path / "run", POINT, manifest={"train_tokens": 47_000})
    assert only(read_points([tmp_path / "run"])).unique_tokens == 47_000


def test_a_run_that_is_not_finished_or_not_measured_at_its_end_is_left_out_and_told(tmp_path):
    write_point(tmp_path / "a", POINT)
    write_point(tmp_path / "b", POINT, finished=False)
    write_point(tmp_path / "c", POINT, end_tokens=3e5)
    found = read_points([tmp_path])
    assert only(found).group.startswith(str(tmp_path / "a"))
    assert any("not finished" in note and "b" in note for note in found.notes)
    assert any("c left out: no evaluation by 'ar'" in note for note in found.notes)
    assert len(read_points([tmp_path], used="all").points["autoregressive"]) == 3
    with pytest.raises(RunError, match=r"nothing in it can be used: .*not finished"):
        read_points([tmp_path / "b"])


def test_families_are_kinds_of_training_and_mixtures_are_named_by_their_arm(tmp_path):
    block = {"point": POINT, "controller": "constant(block(16))", "modes": {"nelbo": 1.0}}
    mixed = {"point": POINT, "controller": constant(BOTH)}
    write_small_study(
        tmp_path / "study",
        {"plain": {"seed-0": {"point": POINT}}, "dual": {"seed-0": mixed}, "blocks": {"seed-0": block}},
    )
    write_point(tmp_path / "alone", POINT, controller=constant(BOTH))
    found = read_points([tmp_path])
    assert set(found.points) == {"autoregressive", "dual", "block(16)", "autoregressive 50%, masked 50%"}
    assert found.bounds == ("block(16)",) and "upper bound" in found.modes["block(16)"]


def test_arms_of_one_kind_are_one_family_only_if_size_or_text_set_them_apart(tmp_path):
    larger = replace(POINT, parameters=2e6)
    write_small_study(
        tmp_path / "sizes", {"small": {"seed-0": {"point": POINT}}, "large": {"seed-0": {"point": larger}}}
    )
    assert {name: len(points) for name, points in read_points([tmp_path / "sizes"]).points.items()} == {
        "autoregressive": 2
    }
    write_small_study(
        tmp_path / "tuned", {"tuned": {"seed-0": {"point": POINT}}, "published": {"seed-0": {"point": POINT}}}
    )
    found = read_points([tmp_path / "tuned"])
    assert set(found.points) == {"tuned", "published"} and set(found.plain) == {"tuned", "published"}


def test_branches_are_points_of_their_trunk_and_what_they_copied_is_not_read_twice(tmp_path):
    short = replace(POINT, tokens=1e5, loss_nats=4.3)
    begins = {"branch": {"data_tokens": 70_000}}
    runs = {
        "seed-0": {"point": POINT, "before": ((0.3, 5.0),)},
        "budget-1e+05/seed-0": {"point": short, "before": ((0.6, 5.0),), "manifest": begins},
    }
    study = write_small_study(tmp_path / "study", {"ar": runs})
    points = read_points([study]).points["autoregressive"]
    assert sorted(point.loss_nats for point in points) == pytest.approx([4.0, 4.3])
    assert len({(point.group, point.seed) for point in points}) == 1
    every = read_points([study], used="all").points["autoregressive"]
    assert sorted(point.loss_nats for point in every) == pytest.approx([4.0, 4.3, 5.0])


def test_tuning_trials_are_not_read(tmp_path):
    study = write_small_study(tmp_path / "study", {"ar": {"seed-0": {"point": POINT}}})
    write_point(study / "tune" / "ar" / "0", replace(POINT, loss_nats=9.0))
    assert only(read_points([study])).loss_nats == pytest.approx(4.0)


def test_a_family_is_read_in_one_mode(tmp_path):
    point = replace(POINT, family="masked")
    write_point(tmp_path / "one", point, modes={"nelbo": 1.1, "l2r": 1.0})
    write_point(tmp_path / "two", point, modes={"nelbo": 1.1})
    found = read_points([tmp_path])
    # Only the bound was measured in both.
    assert [each.loss_nats for each in found.points["masked"]] == pytest.approx([4.4, 4.4])
    write_point(tmp_path / "three", point, modes={"l2r": 1.0})
    with pytest.raises(RunError, match="masked left out: no procedure has been measured in every run"):
        read_points([tmp_path])


def test_runs_of_two_tokenizers_are_refused_with_both_named(tmp_path):
    write_point(tmp_path / "one", POINT, manifest={"tokenizer_hash": "aaaa"})
    write_point(tmp_path / "two", POINT, manifest={"tokenizer_hash": "bbbb"})
    with pytest.raises(RunError) as caught:
        read_points([tmp_path / "one", tmp_path / "two"])
    told = str(caught.value)
    assert all(word in told for word in ("one has aaaa", "two has bbbb", "data.tokenizer=file(", "tokenizer.json"))


def test_what_else_sets_runs_apart_is_told(tmp_path):
    write_point(tmp_path / "one", POINT, decay_fraction=0.0)
    write_point(tmp_path / "two", POINT, manifest={"data_source": "english", "active_parameters": 10_000})
    notes = " ".join(read_points([tmp_path]).notes)
    assert "without a decay" in notes and "different texts" in notes and "sparse" in notes


def test_a_run_named_twice_counts_once(tmp_path):
    write_point(tmp_path / "run", POINT)
    only(read_points([tmp_path, tmp_path / "run", tmp_path / "run"]))


@pytest.mark.parametrize(("make", "told"), [(True, "holds no run"), (False, "no such file or folder")])
def test_a_source_without_runs_is_refused(tmp_path, make, told):
    if make:
        (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=told):
        read_points([tmp_path / "empty"])


def test_a_table_gives_its_points_exactly(tmp_path):
    points = measured()[:20]
    read, notes = read_point_table(write_table(tmp_path / "points.csv", points))
    for before, after in zip(points, read, strict=True):
        assert replace(after, group="", seed=0) == replace(before, group="", seed=0)
    assert len({point.group for point in read}) == 20 and any("run of its own" in note for note in notes)


HEADER = "parameters,unique_tokens,tokens,loss_nats,family"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("parameters,unique_tokens,tokens,loss,family\n1,1,1,1,ar\n", r"line 1: lacks the column\(s\) loss_nats"),
        (f"{HEADER}\n1e6,1e5,1e6,low,ar\n", "line 2: loss_nats is 'low', expected a number above 0"),
        (f"{HEADER}\n1e6,1e5,1e6,-1,ar\n", "line 2: .*loss_nats is -1.0"),
        (f"{HEADER}\n1e6,1e5,inf,3,ar\n", "line 2: .*tokens is inf"),
        (f"{HEADER}\n1e6,1e5,1e6,3,\n", "line 2: family is ''"),
        (f"{HEADER},seed\n1e6,1e5,1e6,3,ar,one\n", "line 2: seed is 'one'"),
        (f"{HEADER}\n1e6,1e5,1e6,3\n", "line 2: has 4 cells, expected 5"),
        (f"{HEADER}\n", "holds no measurement; expected a header with parameters"),
    ],
)
def test_a_damaged_table_is_told_with_its_line(tmp_path, text, told):
    path = tmp_path / "points.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(RunError, match=told):
        read_points([path])


def test_copies_of_a_run_count_once_and_are_told(tmp_path):
    write_point(tmp_path / "one", POINT)
    write_point(tmp_path / "twin", POINT)
    shutil.copytree(tmp_path / "one", tmp_path / "exported")
    recipe = (tmp_path / "exported" / "recipe.yaml").read_text("utf-8")
    (tmp_path / "exported" / "recipe.yaml").write_text(recipe.replace("name: one", "name: exported"), "utf-8")
    found = read_points([tmp_path])
    assert len(found.points["autoregressive"]) == 2
    assert any("copies of runs are left out" in note and "exported" in note for note in found.notes)


def test_links_in_a_circle_are_followed_once(tmp_path):
    write_point(tmp_path / "run", POINT)
    for number in range(8):
        (tmp_path / f"again-{number}").symlink_to(tmp_path)
    assert len(read_points([tmp_path]).points["autoregressive"]) == 1


def test_folders_are_passed_by_only_where_their_names_mean_something(tmp_path):
    write_point(tmp_path / "best" / "logs", POINT)
    arms = {"best": {"seed-0": {"point": POINT}}, "model": {"seed-0": {"point": replace(POINT, parameters=2e6)}}}
    study = write_small_study(tmp_path / "study", arms)
    write_point(study / "tune" / "0", replace(POINT, loss_nats=9.0))
    write_point(study / "best" / "seed-0" / "best" / "kept", replace(POINT, loss_nats=9.0))
    write_point(study / "best" / "seed-0" / "forks" / "0", replace(POINT, loss_nats=9.0))
    points = read_points([tmp_path]).points["autoregressive"]
    assert len(points) == 3 and all(point.loss_nats == pytest.approx(4.0) for point in points)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ledger.json", "data_tokens", "many"),
        ("ledger.json", "data_tokens", 10**400),
        ("ledger.json", "flops", 1e31),
        ("ledger.json", "seconds", True),
        ("ledger.json", "exposures", "x"),
        ("ledger.json", "exposures", {"masked": "many"}),
        ("manifest.json", "parameters", [5]),
        ("manifest.json", "unique_tokens", -1),
        ("manifest.json", "branch", "trunk"),
        ("evals.jsonl", "data_tokens", "20k"),
        ("evals.jsonl", "loss_nats", {}),
        ("evals.jsonl", "exact", "yes"),
        ("evals.jsonl", "procedure", None),
        ("evals.jsonl", "document_nats", [1.0, "2"]),
    ],
)
def test_what_cannot_be_reckoned_with_is_told_with_file_and_key(tmp_path, name, key, value):
    run = write_point(tmp_path / "run", POINT)
    text = (run / name).read_text("utf-8").splitlines() if name.endswith("jsonl") else [(run / name).read_text("utf-8")]
    (run / name).write_text(json.dumps({**json.loads(text[0]), key: value}) + "\n", "utf-8")
    with pytest.raises(RunError, match=key) as caught:
        read_points([run])
    assert str(caught.value).startswith(str(run / name)) and len(str(caught.value)) < 300


def test_what_an_unfinished_run_lacks_is_no_error(tmp_path):
    run = write_point(tmp_path / "run", POINT, finished=False)
    (run / "ledger.json").write_text('{"flops": null}\n', "utf-8")
    (run / "manifest.json").unlink()
    (run / "evals.jsonl").write_text('{"step": 1}\n', "utf-8")
    assert read_run(run).evals == ({"step": 1},)


@pytest.mark.parametrize("name", ["parameters", "unique_tokens", "tokens"])
def test_points_beyond_all_numbers_are_refused(name):
    with pytest.raises(RunError, match=rf"{name} is 1e\+31; expected at most 1e\+30"):
        replace(POINT, **{name: 1e31})
