"""The plan as a person meets it: the shipped big recipes, hours and cost, problems, advice, lines and JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import tiny_runs
from crossover.evidence.files import dumps
from crossover.evidence.planning.advice import advice_of
from crossover.evidence.planning.forecast import Book
from crossover.evidence.planning.lines import facts_of, lines_of
from crossover.evidence.planning.plan import CHECKPOINTING_WORK
from crossover.model.backbone import make_config
from crossover.recipe import load
from crossover.records import Vocabulary

ROOT = Path(__file__).resolve().parents[3]
BIG = [f"{size}_u{text}" for size in ("300m", "1b", "1.7b", "8b-a1b") for text in ("1b", "10b")]
# Seconds of the whole process that a plan may take.
AT_MOST_SECONDS = 5.0


@pytest.mark.parametrize("name", BIG)
def test_big_recipes_pass(name, plan):
    found = plan(load(ROOT / "recipes" / f"{name}.yaml"))
    assert found.problems == () and found.fit.fits and found.fit.shared
    assert found.text.unique_tokens == (10**9 if name.endswith("_u1b") else 10**10)
    sizes = {"300m": 0.3e9, "1b": 1e9, "1.7b": 1.7e9, "8b-a1b": 8e9}
    assert found.sizes.total == pytest.approx(sizes[name.split("_")[0]], rel=0.1)
    assert found.forecast.of("autoregressive").loss_nats is not None


@pytest.mark.parametrize("name", BIG[::2])
def test_counts_are_those_of_the_model(name, plan):
    found = plan(load(ROOT / "recipes" / f"{name}.yaml"))
    words = Vocabulary(found.text.vocabulary, found.text.predictable, 1, 2, found.text.predictable)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(found.shape, words, context=2048))
    assert found.sizes.total == sum(parameter.numel() for parameter in model.parameters())
    ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = sum(each.numel() for each in {id(each): each for each in ends}.values())
    assert found.sizes.body == found.sizes.total - outside


def test_a_sparse_model_is_counted_by_what_a_token_meets(plan):
    found = plan(load(ROOT / "recipes" / "8b-a1b_u1b.yaml"))
    shape = found.shape
    idle = 3 * shape.width * shape.expert_width * (shape.experts - shape.experts_per_token) * shape.depth
    assert found.sizes.active == found.sizes.total - idle == pytest.approx(1e9, rel=0.1)
    assert found.spending.flops_6nd == 6.0 * found.sizes.active * found.spending.tokens
    assert found.price.mfu == 0.25


@settings(max_examples=15)
@given(st.integers(1, 64), st.floats(0.05, 1))
def test_hours_are_flops_over_what_the_machine_reaches(plan, recipe_of, gpus, mfu):
    found = plan(recipe_of(), f"h100,mfu={mfu}", gpus, price=2.5)
    assert found.price.hours == pytest.approx(found.spending.flops / (gpus * 989e12 * mfu) / 3600)
    assert found.price.gpu_hours == pytest.approx(gpus * found.price.hours)
    assert found.price.cost == pytest.approx(2.5 * found.price.gpu_hours)


def test_hours_grow_with_the_budget_and_with_checkpointing(plan, recipe_of):
    one, two = (plan(recipe_of(budget={"flops": flops})).price for flops in (1e18, 2e18))
    assert two.hours == pytest.approx(2 * one.hours, rel=0.01)
    again = plan(recipe_of(budget={"flops": 1e18}, training={"activation_checkpointing": True})).price
    assert again.hours == pytest.approx(CHECKPOINTING_WORK * one.hours)
    assert one.cost is None


def test_minutes_are_converted_at_the_assumed_rate(plan, recipe_of):
    found = plan(recipe_of(budget={"minutes": 90}), gpus=4)
    assert found.price.hours == pytest.approx(1.5, rel=0.01)


def test_the_number_of_gpus_is_the_smallest_that_fits_and_shares_slices(plan):
    recipe = load(ROOT / "recipes" / "8b-a1b_u1b.yaml")
    found = plan(recipe)
    assert not found.fit.stated and 64 % found.fit.gpus == 0 and found.fit.gpus >= found.fit.fewest_gpus
    smaller = plan(recipe, gpus=found.fit.gpus // 2)
    assert smaller.fit.stated and not smaller.fit.fits
    assert f"take {found.fit.fewest_gpus} GPUs or more" in smaller.problems[0]


@pytest.mark.parametrize(
    ("changes", "machine", "gpus", "told"),
    [
        ({"budget": {"tokens": 1000}}, "h100", 1, "budget.tokens: buys 1,000 tokens, less than one step"),
        ({"budget": {"flops": 1e10}}, "h100", 1, "budget.flops: buys .* less than one step"),
        (
            {"training": {"learning_rate": "wsd(warmup_tokens=900000000)"}},
            "h100",
            1,
            "warmup_tokens: 900,000,000 is no shorter than the run .* lower it to 40,",
        ),
        ({}, "h100", 3, "a step has 16 slice.*3 GPUs cannot share out alike; choose training.batch_tokens"),
        ({"mix": {"slice_tokens": 65536}}, "h100", 8, "a step has 2 slice.*set mix.slice_tokens=16384"),
        ({"data": {"unique_tokens": 400}}, "h100", 1, "data.unique_tokens: 400 tokens are fewer than one window"),
        (
            {"controller": {"name": "switch", "at_epochs": 7, "before": "autoregressive", "after": "masked"}},
            "h100",
            1,
            "controller: the mix should change at 7 epochs, but the budget buys at most 5.6",
        ),
        (
            {"mix": {"slice_tokens": 131072}},
            "memory_gib=16,tflops=50",
            1,
            "does not fit: .* 14.4 GiB may be filled; set training.activation_checkpointing=true, or lower mix.slice",
        ),
        ({"model": {"preset": "1.7b"}}, "memory_gib=2,tflops=50", 1, "take a smaller model.preset or GPUs with more"),
    ],
)
def test_what_cannot_run_is_said_with_what_to_change(plan, recipe_of, changes, machine, gpus, told):
    problems = plan(recipe_of(**changes), machine, gpus).problems
    assert any(re.search(told, problem) for problem in problems), problems


def test_what_a_problem_advises_helps(plan, recipe_of):
    tight = "memory_gib=16,tflops=50,gpus=1"
    bad = plan(recipe_of(mix={"slice_tokens": 131072}), tight)
    assert bad.problems
    tokens = bad.fit.most_windows * 512
    assert plan(recipe_of(mix={"slice_tokens": 2 ** (tokens.bit_length() - 1)}), tight).problems == ()
    saved = plan(recipe_of(mix={"slice_tokens": 131072}, training={"activation_checkpointing": True}), tight)
    assert saved.problems == () and saved.fit.most_windows == bad.fit.most_windows_other


def test_a_warm_up_into_the_decay_is_noted(plan, recipe_of):
    notes = plan(recipe_of(training={"learning_rate": "wsd(warmup_tokens=700000000)"})).notes
    assert any("the warm-up of 700,000,000 tokens ends after the decay has begun" in note for note in notes)


@pytest.mark.parametrize(
    ("epochs", "unique", "told"),
    [
        (1, "100M", "stay with next-token training: 1 epochs do not use the text up"),
        (8, "1B", "stay with next-token training, strongly regularised"),
        (64, "1B", "take a hybrid in which next-token training leads"),
        (64, "20M", "take a hybrid, which need not choose"),
        (900, "1M", "go to masked training"),
    ],
)
def test_advice_follows_epochs_and_critical_compute(plan, recipe_of, epochs, unique, told):
    count = int(float(unique[:-1]) * {"M": 1e6, "B": 1e9}[unique[-1]])
    found = plan(recipe_of(data={"unique_tokens": unique}, budget={"tokens": epochs * count}))
    assert found.advice[0].startswith(told), found.advice


def test_advice_by_two_laws_follows_their_intervals(plan, recipe_of, pair):
    found = plan(recipe_of(), book=pair)
    holder, challenger = found.forecast.of("autoregressive"), found.forecast.of("masked")

    def told(low, high):
        other = replace(challenger, loss_nats=(low + high) / 2, interval=(low, high))
        return advice_of(found.spending, replace(found.forecast, expected=(holder, other)))[0]

    low, high = holder.interval
    assert told(high + 0.1, high + 0.2).startswith("stay with next-token training")
    assert told(low - 0.2, low - 0.1).startswith("go to masked training")
    assert told(low - 0.1, high + 0.1).startswith("take a hybrid")


def test_json_is_stable_and_holds_what_the_lines_say(plan, recipe_of):
    first, second = (plan(recipe_of(controller="online"), "h200", 4, price=2) for _ in range(2))
    text = dumps(facts_of(first), indent=2)
    assert text == dumps(facts_of(second), indent=2)
    facts = json.loads(text)
    assert list(facts) == [
        "recipe", "runs", "problems", "advice", "notes", "shape", "parameters", "text", "spending", "machine",
        "memory_gib", "memory_gib_by_gpus", "fit", "price", "forecast",
    ]  # fmt: skip
    memory = facts["memory_gib"]
    parts = sum(value for name, value in memory.items() if name not in ("total", "kept_free"))
    assert memory["total"] == pytest.approx(parts)
    lines = "\n".join(lines_of(first))
    assert f"{facts['parameters']['total']:,} parameters" in lines
    assert f"{facts['spending']['steps']:,} steps" in lines
    assert f"{facts['forecast']['expected'][0]['loss_nats']:.3f}" in lines
    assert "an estimate" in lines and "assumed: 40% of 989 TFLOP/s" in lines
    assert lines.splitlines()[-1].startswith("advice: ")


def command(monkeypatch, capsys, *arguments):
    code = tiny_runs.command(monkeypatch, "plan", *arguments)
    return code, *capsys.readouterr()


def test_the_command(monkeypatch, capsys):
    recipe = ROOT / "recipes" / "300m_u1b.yaml"
    code, out, said = command(monkeypatch, capsys, recipe, "budget.tokens=10B", "--machine", "h200", "--gpus", "8")
    assert (code, said) == (0, "") and "on each of 8 h200 of 139 GiB: fits (as asked for" in out
    code, out, said = command(monkeypatch, capsys, recipe, "--json")
    assert (code, said) == (0, "") and json.loads(out)["parameters"]["total"] == 316_785_664
    code, out, said = command(monkeypatch, capsys, recipe, "budget.tokens=1k")
    assert code == 1 and "cannot run: budget.tokens" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--machine", "h300"), "did you mean 'h"),
        (("--laws", "nowhere.json"), "nowhere.json: cannot be read"),
        (("data.unique_tokens=null",), "data.unique_tokens: the text is not prepared"),
        (("data.tokenizer=file(nowhere.json)",), "nowhere.json: cannot be read"),
        (("model.preset=2b",), "no preset called '2b'"),
    ],
)
def test_a_mistake_gets_one_message(monkeypatch, capsys, arguments, told):
    code, out, said = command(monkeypatch, capsys, ROOT / "recipes" / "300m_u1b.yaml", *arguments)
    assert (code, out) == (2, "") and told in said and said.startswith("error: ") and said.count("\n") == 1


LIGHT = """
import sys
from crossover.cli import main
sys.argv = ["crossover", "plan", sys.argv[1]]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.mark.parametrize("name", BIG[::2])
def test_a_big_plan_takes_seconds_and_no_torch(name):
    before = os.times()
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    finished = subprocess.run(
        [sys.executable, "-c", LIGHT, recipe], capture_output=True, text=True, timeout=60, check=False
    )
    after = os.times()
    assert finished.returncode == 0, finished.stderr
    # Processor time of the whole process: on a machine that does nothing else, about the time on the clock.
    took = after.children_user - before.children_user + after.children_system - before.children_system
    assert took < AT_MOST_SECONDS


WATCHED = {"name": "watch", "controller": "constant(autoregressive)", "signals": ["alignment"]}


def test_memory_counts_what_probes_and_noise_hold(plan, recipe_of):
    plain = plan(recipe_of(), gpus=1).fit.parts
    looked_at = plan(recipe_of(controller=WATCHED), gpus=1).fit.parts
    assert plain.probes == 0 and looked_at.probes == 3 * plain.gradients
    dropout = plan(recipe_of(controller=WATCHED, model={"residual_dropout": 0.1}), gpus=1).fit.parts
    whole = plan(recipe_of(controller=WATCHED, mix={"slice_tokens": 131072}), gpus=1).fit.parts
    assert dropout.probes == whole.probes == 2 * plain.gradients
    assert plan(recipe_of(controller={**WATCHED, "signals": ["curvature"]}), gpus=1).fit.parts.probes == 0
    noisy = plan(recipe_of(controller=WATCHED, model={"parameter_noise": 0.1}), gpus=1)
    assert noisy.fit.parts.noise > 0 and noisy.fit.parts.noise + noisy.fit.parts.probes == 2 * plain.gradients
    assert "probes" in facts_of(noisy)["memory_gib"] and "noise " in "\n".join(lines_of(noisy))


def test_several_gpus_are_told_to_be_no_part_of_this_version(plan, recipe_of):
    told = "training on several GPUs is not part of this version yet; this is what it would take"
    two = plan(recipe_of(), gpus=2)
    assert two.problems == () and f"note: {told}" in lines_of(two) and told in facts_of(two)["notes"]
    assert told not in plan(recipe_of(), gpus=1).notes


def test_a_gpu_runs_no_more_slices_together_than_it_has(plan, recipe_of):
    recipe = recipe_of(mix={"slice_tokens": 8192, "micro_batch_slices": 8})
    found = {gpus: plan(recipe, gpus=gpus).fit for gpus in (1, 2, 4, 16)}
    assert {gpus: fit.windows for gpus, fit in found.items()} == {1: 128, 2: 128, 4: 64, 16: 16}
    assert found[1].bytes_by_gpus[16] == found[16].parts.total


def test_a_bound_alone_never_decides(plan, recipe_of, pair):
    holder = pair.laws["autoregressive"]
    for factor, bounded, firm in ((1.5, "masked", "stay"), (0.5, "autoregressive", "go to masked")):
        constants = replace(holder.constants, irreducible_nats=factor * holder.constants.irreducible_nats)
        other = replace(
            holder, family="masked", constants=constants, draws_KP=np.repeat(constants.theta()[None], 20, axis=0)
        )
        for is_bound in (False, True):
            laws = {"autoregressive": holder, "masked": other}
            laws[bounded] = replace(laws[bounded], is_bound=is_bound)
            found = plan(recipe_of(), book=Book(laws, "a pair"))
            assert found.advice[0].startswith("take a hybrid" if is_bound else firm)
            assert ("upper bound" in found.advice[0]) is is_bound
            assert ("(an upper bound)" in "\n".join(lines_of(found))) is is_bound


@pytest.mark.parametrize(
    ("status", "flops", "told"),
    [
        ("not reached", None, "stay with next-token training: by these laws masked training does not pass it by 2e+20"),
        ("always ahead", None, "go to masked training: by these laws it is ahead from the first compute"),
        ("crossed", 1e18, "the critical compute by these laws [5e+17, 2e+18 FLOPs]"),
        ("published", 1e18, "the critical compute by the published formula, an order of magnitude at best"),
    ],
)
def test_advice_says_how_critical_compute_is_known(plan, recipe_of, status, flops, told):
    found = plan(recipe_of())
    interval = (5e17, 2e18) if status == "crossed" else None
    critical = replace(found.forecast.critical, status=status, flops=flops, interval=interval, searched=(1e10, 2e20))
    advice = advice_of(found.spending, replace(found.forecast, critical=critical))
    assert told in advice[0] and ("published" in advice[0]) is (status == "published")


def test_text_that_a_controller_holds_out_is_trained_on_by_single_objectives(plan, recipe_of):
    found = plan(recipe_of(controller="online"))
    assert found.text.train_tokens < found.text.unique_tokens
    for way in ("autoregressive", "masked"):
        each = found.forecast.of(way)
        assert each.epochs == pytest.approx(each.tokens / found.text.unique_tokens)
    own = found.forecast.of("hybrid")
    assert own.epochs == pytest.approx(own.tokens / found.text.train_tokens)
