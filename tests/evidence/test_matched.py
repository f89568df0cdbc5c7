from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from crossover.errors import RunError
from crossover.evidence.match import prove_matched
from crossover.trees import flatten

Build = Callable[[str, int], dict[str, Any]]


def runs_of(build: Build) -> list[dict[str, Any]]:
    return [build(arm, seed) for arm in ("ar", "masked") for seed in (0, 1)]


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[part]
    tree[last] = value


def changed(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return "on"
    return f"not {value}" if isinstance(value, str) else 2 * value + 1


def test_matched_runs_are_proven_and_the_declared_is_told(plain_run: Build) -> None:
    proof = prove_matched(runs_of(plain_run), vary="controller")
    assert proof.matched, proof.mismatches
    assert set(proof.declared) == {"controller.mix.autoregressive", "controller.mix.masked"}
    assert proof.checked > 20 and proof.runs == 4


def test_every_single_key_change_in_any_run_is_caught(plain_run: Build) -> None:
    skipped = {"recipe.name", "manifest.machine.cores", "ledger.unique_tokens", "ledger.epochs"}
    skipped |= {"ledger.seconds", "ledger.evaluation_seconds"}
    spent = {"ledger.exposures.autoregressive", "ledger.flops_by_objective.autoregressive", "ledger.evaluation_flops"}
    keys = set(flatten(plain_run("ar", 0))) - skipped - spent - {"ledger.data_tokens"}
    keys = {key for key in keys if not key.startswith("recipe.controller")}
    assert len(keys) > 20
    for key in sorted(keys):
        for place in range(4):
            runs = runs_of(plain_run)
            before = flatten(runs[place])[key]
            set_key(runs[place], key, changed(before))
            found = prove_matched(runs, vary="controller").mismatches
            assert [item.key for item in found], f"{key} of run {place} was not caught"
            assert any(item.key == key or item.key == "recipe.seed" for item in found), (key, found)


@pytest.mark.parametrize("key", ["data_hash", "data_order", "tokenizer_hash", "versions", "choices", "budget"])
def test_what_was_not_recorded_in_any_run_proves_nothing(plain_run: Build, key: str) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        del run["manifest"][key]
    assert any(item.key.startswith(f"manifest.{key}") for item in prove_matched(runs, vary="controller").mismatches)


def test_tunable_keys_may_differ_but_only_those(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for run in runs[2:]:
        run["recipe"]["training"]["clip_norm"] = 2.0
    assert not prove_matched(runs, vary="controller").matched
    proof = prove_matched(runs, vary="controller", tunable=["training.clip_norm"])
    assert proof.matched and "training.clip_norm" in proof.declared


def test_texts_may_differ_where_they_are_what_is_varied(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for run in runs[2:]:
        run["recipe"]["data"]["source"] = "degraded(stdlib, 0.3)"
        run["recipe"]["controller"] = runs[0]["recipe"]["controller"]
        run["manifest"] |= {"data_hash": "worse", "data_source": "degraded", "data_order": f"{run['recipe']['seed']}"}
    assert prove_matched(runs, vary="data.source").matched
    assert not prove_matched(runs, vary="controller").matched
    runs[3]["manifest"]["tokenizer_hash"] = "another"
    assert [item.key for item in prove_matched(runs, vary="data.source").mismatches] == ["manifest.tokenizer_hash"]
    runs = copy.deepcopy(runs)
    runs[3]["manifest"] |= {"tokenizer_hash": runs[0]["manifest"]["tokenizer_hash"], "data_order": "other"}
    runs[3]["recipe"]["seed"] = runs[2]["recipe"]["seed"]
    assert "manifest.data_order" in [item.key for item in prove_matched(runs, vary="data.source").mismatches]


def test_a_prefix_of_a_key_is_not_that_key(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    runs[0]["recipe"]["training"]["clip_norm"] = 2.0
    assert not prove_matched(runs, vary="controller", tunable=["training.clip"]).matched


@pytest.mark.parametrize(("factor", "matched"), [(1.0049, True), (0.9951, True), (1.0051, False), (1.02, False)])
def test_spent_flops_agree_within_half_a_percent(plain_run: Build, factor: float, matched: bool) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        run["ledger"]["data_tokens"] = 1_000_000
    runs[1]["ledger"]["flops"] *= factor
    assert prove_matched(runs, vary="controller").matched is matched


def test_one_step_of_a_short_run_is_no_mismatch(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        run["ledger"]["data_tokens"] = 5000
    runs[1]["ledger"]["flops"] *= 1.015
    assert prove_matched(runs, vary="controller").matched


def test_attention_is_compared_pattern_by_pattern(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        pattern = "causal" if "autoregressive" in run["recipe"]["controller"]["mix"] else "full"
        run["manifest"]["choices"]["attention"] = {pattern: "sdpa"}
    assert prove_matched(runs, vary="controller").matched
    runs[1]["manifest"]["choices"]["attention"] = {"causal": "eager"}
    found = prove_matched(runs, vary="controller").mismatches
    assert [item.key for item in found] == ["manifest.choices.attention.causal"]
    del runs[1]["manifest"]["choices"]["attention"]
    assert not prove_matched(runs, vary="controller").matched


def test_the_sentence_about_the_choices_is_no_mismatch(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for seconds, run in enumerate(runs):
        run["manifest"]["choices"]["reason"] = f"a run of about {seconds} s would not repay compilation"
    assert prove_matched(runs, vary="controller").matched


def test_a_missing_seed_and_a_doubled_run_are_caught(plain_run: Build) -> None:
    assert not prove_matched(runs_of(plain_run)[:3], vary="controller").matched
    doubled = [*runs_of(plain_run), copy.deepcopy(runs_of(plain_run)[0])]
    assert any(item.key == "recipe.seed" for item in prove_matched(doubled, vary="controller").mismatches)


def test_arms_that_hold_control_text_out_are_ordered_among_themselves_and_told(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        run["manifest"]["train_tokens"] = 1000
    for run in runs[2:]:
        run["recipe"]["controller"] = {"name": "online"}
        run["manifest"] |= {"train_tokens": 950, "data_order": f"shorter-{run['recipe']['seed']}"}
    proof = prove_matched(runs, vary="controller")
    assert proof.matched, proof.mismatches
    assert proof.declared["manifest.train_tokens"] == {"ar-0": 1000, "ar-1": 1000, "masked-0": 950, "masked-1": 950}
    watched = copy.deepcopy(runs[2])
    watched["recipe"] |= {"name": "watched-0", "controller": {"name": "watch"}}
    watched["manifest"]["data_order"] = "another"
    found = prove_matched([*runs, watched], vary="controller").mismatches
    assert "manifest.data_order" in [item.key for item in found]


@pytest.mark.parametrize("place", range(4))
def test_less_text_than_the_controller_explains_is_a_mismatch(plain_run: Build, place: int) -> None:
    runs = runs_of(plain_run)
    for run in runs:
        run["manifest"]["train_tokens"] = 1000
    runs[place]["manifest"] |= {"train_tokens": 900, "data_order": "shorter"}
    found = prove_matched(runs, vary="controller").mismatches
    assert [item.key for item in found] == ["manifest.train_tokens"]


def test_runs_of_an_older_version_trained_on_all_of_their_text(plain_run: Build) -> None:
    runs = runs_of(plain_run)
    runs[0]["manifest"]["train_tokens"] = runs[0]["manifest"]["unique_tokens"]
    proof = prove_matched(runs, vary="controller")
    assert proof.matched and "manifest.train_tokens" not in proof.declared
    runs[0]["manifest"]["data_order"] = "another"
    assert not prove_matched(runs, vary="controller").matched


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(RunError, match="nothing to compare"):
        prove_matched([], vary="controller")
