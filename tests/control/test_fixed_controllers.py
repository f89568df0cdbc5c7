"""Controllers that follow a plan: pure functions of progress, kept in JSON, without torch."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.control.controllers.fixed import BlockGrowth, Constant, Ramp, Switch
from crossover.errors import RecipeError
from crossover.records import Decision, Mix, Progress
from crossover.registry import component_of, dump, names

NAMES = ("autoregressive", "masked", "block(4)", "block(16)")
mixes = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9), min_size=1).map(
    lambda parts: Mix(tuple((name, part / sum(parts.values())) for name, part in parts.items()))
)
epochs = st.floats(0, 100, allow_subnormal=False)


def at(seen_epochs: float, unique: int = 1_000_000) -> Progress:
    return Progress(round(seen_epochs * unique), unique, 0.5, 50.0, {})


def decide(controller, progress: Progress, state=None) -> Decision:
    """Decide, and check what holds for every controller of this file."""
    state = {} if state is None else state
    after, decision = controller.decide(state, {}, progress)
    assert json.loads(json.dumps(after)) == after
    assert controller.decide(state, {}, progress) == (after, decision), "the same question has the same answer"
    assert sum(share for _, share in decision.mix.shares) == pytest.approx(1)
    assert {name for name, _ in decision.mix.shares} <= set(controller.objectives())
    assert decision.mix.describe() in decision.reason
    json.dumps(dict(decision.details))
    return decision


@given(mixes, epochs)
def test_a_constant_mix_never_changes(mix: Mix, seen: float) -> None:
    assert decide(Constant(mix), at(seen)).mix == mix


@given(mixes, mixes, st.floats(0.1, 50), epochs)
def test_a_switch_changes_once_at_its_epoch(before: Mix, after: Mix, when: float, seen: float) -> None:
    controller, progress = Switch(when, before, after), at(seen)
    assert decide(controller, progress).mix == (before if progress.epochs < when else after)
    assert set(controller.objectives()) == {name for mix in (before, after) for name, _ in mix.shares}


def test_a_switch_takes_place_at_the_epoch_itself() -> None:
    before, after = Mix((("autoregressive", 1.0),)), Mix((("masked", 1.0),))
    controller = Switch(4, before, after)
    assert decide(controller, Progress(3_999_999, 1_000_000, 0, 9, {})).mix == before
    assert decide(controller, Progress(4_000_000, 1_000_000, 0, 9, {})).mix == after


@given(mixes, mixes, st.floats(0, 50), st.floats(0.1, 20), epochs)
def test_a_ramp_moves_every_share_in_a_straight_line(before, after, start, length, seen) -> None:
    controller, progress = Ramp(start, start + length, before, after), at(seen)
    way = min(1.0, max(0.0, (progress.epochs - start) / length))
    mix = decide(controller, progress).mix
    for name in controller.objectives():
        assert mix.share(name) == pytest.approx((1 - way) * before.share(name) + way * after.share(name), abs=1e-9)


@given(mixes, mixes, epochs, epochs)
def test_a_ramp_never_turns_back(before: Mix, after: Mix, one: float, other: float) -> None:
    controller = Ramp(10, 30, before, after)
    early, late = (decide(controller, at(seen)).mix for seen in sorted((one, other)))
    for name in controller.objectives():
        rising = after.share(name) - before.share(name)
        assert (late.share(name) - early.share(name)) * rising >= -1e-9


@given(st.lists(st.sampled_from([1, 2, 4, 8, 16, 0]), min_size=2, unique=True), st.floats(0.1, 10), epochs)
def test_blocks_grow_by_a_step_every_so_many_epochs(sizes, every: float, seen: float) -> None:
    controller, progress = BlockGrowth(every, tuple(sizes)), at(seen)
    (name, share), *others = decide(controller, progress).mix.shares
    stage = controller.objectives().index(name)
    assert share == 1.0 and not others
    assert stage * every <= progress.epochs + 1e-6 and (
        stage + 1 == len(sizes) or progress.epochs < (stage + 1) * every
    )


def test_the_ends_of_block_growth_are_the_plain_objectives() -> None:
    assert BlockGrowth(1.0).objectives() == ("autoregressive", "block(4)", "block(16)", "masked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("switch(0, autoregressive, masked)", "at_epochs must be above 0"),
        ("ramp(2, 2, autoregressive, masked)", "from_epochs < to_epochs"),
        ("ramp(-1, 2, autoregressive, masked)", "from_epochs < to_epochs"),
        ("block_growth(0)", "every_epochs must be above 0"),
        ("block_growth(1, sizes=[4])", "two or more different sizes"),
        ("block_growth(1, sizes=[4, 4])", "two or more different sizes"),
        ("constant(maskd)", "did you mean 'masked'"),
        ("constant({masked: 0.5})", "sum to 1"),
        ("constnt(masked)", "did you mean 'constant'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        component_of("controller", text)


@pytest.mark.parametrize(
    "text",
    [
        "constant(masked)",
        "switch(4, autoregressive, masked)",
        "ramp(1, 2, masked, masked)",
        "block_growth(2, sizes=[1, 8, 0])",
    ],
)
def test_a_controller_is_its_own_configuration(text: str) -> None:
    controller = component_of("controller", text)
    assert component_of("controller", json.loads(json.dumps(dump(controller)))) == controller
    assert controller.uses_control_text is False


def test_every_fixed_controller_is_tested_here() -> None:
    fixed = {name for name, cls in names("controller").items() if cls.__module__.endswith(".fixed")}
    assert fixed == {"constant", "switch", "ramp", "block_growth"}


def test_deciding_needs_no_torch() -> None:
    code = "import sys, crossover.control.controllers.fixed as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
