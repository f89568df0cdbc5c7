"""What a budget buys: FLOPs as the shapes count them, tokens, epochs, steps, and the controller's plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data.prepare import prepare
from crossover.data.tokenizer import Bpe, Bytes
from crossover.errors import RecipeError
from crossover.evidence.planning.spending import spending_of
from crossover.evidence.planning.text import text_facts
from crossover.model.shapes import active_parameters, shape_of, training_flops
from crossover.recipe import resolve
from crossover.registry import component_of

MIXED = {"name": "constant", "mix": {"autoregressive": 0.25, "block(32)": 0.75}}


def spent(recipe, flops_per_second=1e14):
    text = text_facts(recipe)
    return spending_of(recipe, text, shape_of(recipe.model, text.vocabulary), flops_per_second=flops_per_second)


def test_prices_are_those_of_the_shapes(recipe_of):
    recipe = recipe_of(controller=MIXED)
    text, found = text_facts(recipe), spent(recipe)
    shape = shape_of(recipe.model, text.vocabulary)
    assert {"autoregressive", "masked", "block(16)", "block(32)"} == set(found.flops_per_token)
    for name, price in found.flops_per_token.items():
        work = component_of("objective", name).workload(512)
        assert price == training_flops(shape, work, head_rows=text.predictable) / 512
    own = 0.25 * found.flops_per_token["autoregressive"] + 0.75 * found.flops_per_token["block(32)"]
    assert found.own_flops_per_token == pytest.approx(own)
    assert found.flops == pytest.approx(own * found.tokens)
    assert found.flops_6nd == 6.0 * active_parameters(shape) * found.tokens


def test_tokens_become_epochs_and_whole_steps(recipe_of):
    found = spent(recipe_of(budget={"tokens": "800M"}))
    assert found.steps == math.ceil(800e6 / 131072)
    assert found.tokens == found.steps * 131072
    assert found.epochs == found.tokens / 100e6
    assert found.tokens_under("masked") == found.tokens


def test_flops_and_minutes_buy_what_they_pay_for(recipe_of):
    flops = spent(recipe_of(budget={"flops": 1e17}, controller=MIXED))
    assert 1e17 <= flops.flops <= 1e17 + 131072 * flops.own_flops_per_token
    assert flops.tokens_under("masked") == 1e17 / flops.flops_per_token["masked"]
    minutes = spent(recipe_of(budget={"minutes": 10}, controller=MIXED), flops_per_second=1e17 / 600)
    assert (minutes.tokens, minutes.flops) == (flops.tokens, flops.flops)


@given(st.floats(1e14, 1e18), st.floats(0.05, 0.95))
def test_a_budget_is_spent_and_no_more_than_a_step_beyond(recipe_of, flops, share):
    mix = {"autoregressive": share, "masked": 1 - share}
    found = spent(recipe_of(budget={"flops": flops}, controller={"name": "constant", "mix": mix}))
    assert found.tokens % 131072 == 0
    assert flops <= found.flops * (1 + 1e-9)
    assert found.steps == 1 or found.flops - 131072 * found.own_flops_per_token <= flops * (1 + 1e-9)


def test_a_switch_is_followed_where_it_happens(recipe_of):
    controller = {"name": "switch", "at_epochs": 2, "before": "autoregressive", "after": "masked"}
    found = spent(recipe_of(controller=controller))
    first, second = found.phases
    assert first.mix == {"autoregressive": 1.0} and second.mix == {"masked": 1.0}
    assert first.to_epochs == second.from_epochs == pytest.approx(2, abs=1 / 16)
    assert found.exposures == pytest.approx(
        {"autoregressive": first.to_epochs, "masked": found.epochs - first.to_epochs}
    )
    assert found.unplanned == ""


def test_the_online_controller_is_followed_as_far_as_it_plans(recipe_of):
    found = spent(recipe_of(budget={"tokens": "6.4B"}, controller="online"))
    assert sum(found.exposures.values()) == pytest.approx(found.epochs)
    assert min(found.exposures["masked"], found.exposures["autoregressive"]) > 0
    assert "it reads signals" in found.unplanned


def test_probes_are_paid_by_a_budget_in_flops(recipe_of):
    """On finished runs under `watch(probe_share=0.05)` probes took what they may, within half a percent."""
    watched = {"name": "watch", "controller": "constant(autoregressive)", "probe_share": 0.05}
    plain, probed = (
        spent(recipe_of(budget={"flops": 1e17}, controller=each)) for each in (watched["controller"], watched)
    )
    assert plain.probe_flops == 0 and probed.probe_flops == pytest.approx(probed.flops * 0.05 / 1.05)
    assert probed.tokens == pytest.approx(plain.tokens / 1.05, rel=1e-3)
    assert probed.own_flops_per_token == pytest.approx(plain.own_flops_per_token)
    assert probed.wanted_tokens == pytest.approx(probed.tokens, rel=1e-3)


def test_control_text_is_no_training_text(recipe_of):
    plain, online = text_facts(recipe_of()), text_facts(recipe_of(controller="online"))
    assert plain.train_tokens == plain.unique_tokens == 100_000_000
    assert online.train_tokens == 95_000_000


def test_the_vocabulary_before_training_is_the_one_after_it(recipe_of):
    for tokenizer, fitted in (("bytes", Bytes().fit(())), ("bpe(300)", Bpe(300).fit(["a longer text"] * 2))):
        text, words = text_facts(recipe_of(data={"tokenizer": tokenizer})), fitted.vocabulary
        if tokenizer == "bytes":
            assert (text.vocabulary, text.predictable) == (words.size, words.predictable)
        # A text this short yields fewer pieces than it may.
        assert text.vocabulary >= words.size and text.predictable % 16 == 0 and text.vocabulary % 64 == 0


def test_prepared_text_is_counted(tmp_path, recipe_of):
    source = tmp_path / "text"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.txt").write_text(f"document {number} " + "with words enough to be split " * 20, "utf-8")
    tree = {"data": {"source": f"{source}/", "tokenizer": "bytes"}, "budget": {"tokens": 50000}, "controller": "online"}
    with pytest.raises(RecipeError, match=r"data.unique_tokens: the text is not prepared.*crossover prepare"):
        text_facts(resolve(tree))
    recipe = resolve(tree)
    prepared = prepare(recipe.data, seed=0)
    found = text_facts(recipe)
    assert found.counted and found.unique_tokens == prepared.unique_tokens
    assert found.train_tokens == len(prepared.train_tokens(with_control=False)) < found.unique_tokens
    assert (found.vocabulary, found.predictable) == (prepared.vocabulary.size, prepared.vocabulary.predictable)


def test_an_objective_that_does_not_fit_the_context_is_named(recipe_of):
    with pytest.raises(RecipeError, match="block size 100 does not divide the context 512"):
        spent(recipe_of(controller={"name": "constant", "mix": {"block(100)": 1.0}}))
