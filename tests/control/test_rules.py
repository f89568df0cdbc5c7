"""Static rules, the placebo and the onlooker: baselines that read no signal."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.control.controllers.fixed import Switch
from crossover.control.controllers.rules import RandomTime, StaticDual, Watch
from crossover.errors import RecipeError
from crossover.recipe import resolve, to_tree
from crossover.records import Decision, Mix, Progress, Reading
from crossover.registry import component_of

UNIQUE = 1_000_000
AR, MASKED = Mix((("autoregressive", 1.0),)), Mix((("masked", 1.0),))


def at(seen_epochs: float = 0.0, planned: float = 50.0, seed: int = 0, **facts) -> Progress:
    tokens = round(seen_epochs * UNIQUE)
    return Progress(tokens, UNIQUE, seen_epochs / planned, planned, {}, seed=seed, changeable_fraction=0.7, **facts)


def decide(controller, progress: Progress, state=None) -> tuple[dict, Decision]:
    """Decide, and check what holds for every controller of this file."""
    state = {} if state is None else state
    after, decision = controller.decide(state, {}, progress)
    assert json.loads(json.dumps(after)) == after
    assert controller.decide(state, {}, progress) == (after, decision)
    assert {name for name, _ in decision.mix.shares} <= set(controller.objectives())
    return after, decision


@given(st.floats(17, 1e4), st.floats(0.3, 3), st.floats(1e-3, 1e3))
def test_the_static_share_shows_the_text_sixteen_times_whatever_a_token_costs(epochs, ratio, price) -> None:
    """The share x epochs = 16 rule of arXiv 2512.14549, solved where the share changes how many epochs there are."""
    prices = {"autoregressive": price, "masked": ratio * price}
    progress = at(0, 1.0, budget_flops=epochs * price * UNIQUE, flops_per_token=prices)
    _, decision = decide(StaticDual(), progress)
    share = decision.mix.share("autoregressive")
    seen = share * progress.epochs_under(decision.mix)
    assert seen == pytest.approx(16) if share < 63 / 64 - 1e-9 else seen <= 16 + 1e-6
    assert decision.mix.share("masked") >= 1 / 64 - 1e-9


@pytest.mark.parametrize(("epochs", "share"), [(1, 63 / 64), (16, 63 / 64), (32, 1 / 2), (64, 1 / 4), (128, 1 / 8)])
def test_the_static_share_is_the_published_one_where_prices_are_equal(epochs: float, share: float) -> None:
    state, decision = decide(StaticDual(), at(0, epochs))
    assert decision.mix.share("autoregressive") == pytest.approx(share)
    assert f"the budget buys {epochs:.1f} epochs" in decision.reason
    later, unchanged = decide(StaticDual(), at(0.5, epochs * 2), state)
    assert later == state and unchanged.mix == decision.mix, "chosen once, when the run begins"


@pytest.mark.parametrize(("epochs", "share"), [(16, 63 / 64), (32, 0.5**0.5), (64, 1 / 2), (256, 1 / 4)])
def test_with_exponent_one_half_it_is_the_start_of_online_and_stays(epochs: float, share: float) -> None:
    progress = at(0, epochs)
    mix = decide(StaticDual(exponent=0.5), progress)[1].mix
    assert mix.share("autoregressive") == pytest.approx(share)
    start = component_of("controller", "online").decide({}, {}, progress)[1].mix
    assert start.share("autoregressive") == pytest.approx(share if epochs > 16 else 1.0)


def lots(seed: int, *, planned: float = 50.0, earliest: float = 1.0) -> float:
    return decide(RandomTime(AR, MASKED, earliest), at(0, planned, seed))[0]["at_epochs"]


@given(st.integers(0, 2**31), st.floats(2, 1000), st.floats(0.1, 3))
def test_the_lot_falls_between_the_earliest_time_and_the_last_that_leaves_room_for_the_ramp(seed, planned, earliest):
    time, last = lots(seed, planned=planned, earliest=earliest), 0.7 * planned - 1.5
    assert earliest - 1e-9 <= time <= max(earliest, last) * (1 + 1e-9)
    assert time == lots(seed, planned=planned, earliest=earliest)


def test_lots_are_log_uniform_and_differ_between_seeds() -> None:
    times = [lots(seed) for seed in range(400)]
    assert len(set(times)) == 400
    quantiles = sorted(math.log(time) / math.log(0.7 * 50 - 1.5) for time in times)
    # Kolmogorov-Smirnov distance to the uniform law; 1.63 / sqrt(n) is its one-per-cent point.
    assert max(abs(value - (rank + 0.5) / 400) for rank, value in enumerate(quantiles)) < 1.63 / 20


def test_the_placebo_shifts_by_a_ramp_at_its_time() -> None:
    controller = RandomTime(AR, MASKED, ramp_epochs=2.0)
    state, first = decide(controller, at(0))
    when = state["at_epochs"]
    seen = [when - 0.01, when + 0.5, when + 1, when + 2.01]
    shares = [decide(controller, at(epoch), state)[1].mix.share("masked") for epoch in seen]
    assert shares == pytest.approx([0, 0.25, 0.5, 1], abs=1e-5)
    assert first.mix == AR and f"the lot fell on {when:.2f} epochs" in first.reason


@given(st.floats(0, 40))
def test_an_onlooker_decides_as_the_controller_that_it_looks_at(seen: float) -> None:
    inner = Switch(4, AR, MASKED)
    watched = Watch(inner, gears=("masked",), signals=("gap",), target="ar", probe_share=0.1)
    loud = {"curvature.rising:ar": Reading(1.0, 0.0, True)}
    assert watched.decide({}, loud, at(seen)) == inner.decide({}, {}, at(seen))
    assert watched.objectives() == inner.objectives() and watched.first_change_epochs == 4
    assert watched.uses_control_text and not inner.uses_control_text
    look = watched.watching
    assert (look.signals, look.gears, look.target, look.share) == (("gap",), ("masked",), "ar", 0.1)


@pytest.mark.parametrize(
    "controller",
    [
        "static_dual",
        "static_dual(block(16), 8, 0.9)",
        "random_time(autoregressive, masked)",
        "watch(constant(masked))",
        {"name": "watch", "controller": "switch(4, autoregressive, masked)", "gears": ["block(4)"], "signals": []},
    ],
)
def test_a_recipe_is_read_and_written_alike(controller) -> None:
    recipe = resolve({"controller": controller})
    assert resolve(json.loads(json.dumps(to_tree(recipe)))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("static_dual(autoregressive)", "other must be another objective"),
        ("static_dual(most_share=1)", "most_share must lie in"),
        ("static_dual(autoregressive_epochs=0)", "autoregressive_epochs above 0"),
        ("static_dual(exponent=0)", "exponent must lie in"),
        ("random_time(autoregressive, masked, 0)", "earliest_epochs and ramp_epochs must be above 0"),
        ("random_time(autoregressive)", "after: is missing"),
        ("watch(cnstant)", "no controller called 'cnstant'; did you mean 'constant'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        component_of("controller", text)


def test_no_module_of_control_needs_torch() -> None:
    code = (
        "import importlib, pkgutil, sys, crossover.control as room\n"
        "names = [item.name for item in pkgutil.walk_packages(room.__path__, room.__name__ + '.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "assert len(names) > 15, names\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
