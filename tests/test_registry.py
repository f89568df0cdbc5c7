"""Components by name: calls are read, labels are canonical, mixes add up, strangers' code does not run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticCustomError

from crossover.errors import RecipeError
from crossover.records import Mix
from crossover.registry import Component, MixField, build, component_of, dump, label, names, parse_mix, register


@register("gadget", "spring")
@dataclass(frozen=True)
class Spring:
    """A component to test with."""

    stiffness: float
    kind: str = "coil"
    length: int = 3


@register("gadget", "clock")
@dataclass(frozen=True)
class Clock:
    """A component that holds another one, and a mix."""

    spring: Annotated[Any, Component("gadget")] = field(default_factory=lambda: Spring(1.0))
    mix: MixField = field(default_factory=lambda: Mix((("autoregressive", 1.0),)))

    def __post_init__(self) -> None:
        if isinstance(self.spring, Clock):
            raise ValueError("a clock is no spring")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("spring(2)", Spring(2.0)),
        ("spring(2, leaf)", Spring(2.0, "leaf")),
        ("spring(2, length=7)", Spring(2.0, length=7)),
        (" spring( stiffness = -1.5 ) ", Spring(-1.5)),
        ("spring(2, kind='two words')", Spring(2.0, "two words")),
        ("spring(2, kind=a.txt)", Spring(2.0, "a.txt")),
        ({"name": "spring", "stiffness": 2}, Spring(2.0)),
        (Spring(4.0), Spring(4.0)),
        ("clock", Clock()),
        ("clock(spring(5, leaf))", Clock(Spring(5.0, "leaf"))),
        ("clock(mix={masked: 0.5, block(16): 0.5})", Clock(mix=Mix((("masked", 0.5), ("block(16)", 0.5))))),
    ],
)
def test_a_call_is_read_as_the_component_it_names(written, expected):
    assert build("gadget", written) == expected


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("sprng(2)", "no gadget called 'sprng'; did you mean 'spring'?"),
        ({"name": "watch"}, "no gadget called 'watch'; (choices: clock, spring)"),
        ("spring(2", "cannot read 'spring(2' as gadget"),
        ("spring(1, leaf, 3, 4)", "takes at most 3 settings (stiffness, kind, length)"),
        ("spring(__import__('os').getpid())", "stiffness: "),
        ("spring(2, stifness=3)", "stifness: no such setting; did you mean 'stiffness'?"),
        ("spring", "stiffness: is missing"),
        ("spring(2, length=short)", "length: "),
        ("clock(spring(soft))", "spring: stiffness: "),
        ("clock(clock)", "clock is no spring"),
        (7, "expected a name or name(key=value), one of clock, spring; not 7"),
        ({"stiffness": 2}, "expected a name"),
    ],
)
def test_what_cannot_be_built_says_why(written, said):
    with pytest.raises(RecipeError) as caught:
        component_of("gadget", written)
    assert said in str(caught.value)


@given(
    stiffness=st.floats(allow_nan=False, allow_infinity=False),
    kind=st.text(st.characters(categories=["L", "N", "P", "Zs"])),
    length=st.integers(),
)
def test_a_label_names_exactly_the_component_it_was_made_from(stiffness, kind, length):
    original = Clock(Spring(stiffness, kind, length))
    assert build("gadget", label(original)) == original
    assert build("gadget", dump(original)) == original


def test_labels_are_canonical():
    assert label(build("gadget", "spring(2.0, length=3, kind=coil)")) == "spring(2.0)"
    assert label(build("gadget", {"name": "spring", "length": 9, "stiffness": 2})) == "spring(2.0, length=9)"
    assert label(Clock()) == "clock"


def test_only_frozen_dataclasses_are_components_and_a_name_is_taken_once():
    with pytest.raises(TypeError, match="frozen dataclass"):
        register("gadget", "loose")(dataclass(type("Loose", (), {})))
    other = dataclasses.make_dataclass("Other", [], frozen=True)
    with pytest.raises(TypeError, match=r"'spring' is already .*Spring"):
        register("gadget", "spring")(other)
    assert names("gadget")["spring"] is Spring


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("objective", {"autoregressive", "masked", "block"}),
        ("noise", {"linear", "cosine", "log_linear", "polynomial", "clipped", "frequency"}),
        ("controller", {"constant", "switch", "ramp"}),
        ("optimizer", {"adamw", "muon"}),
        ("learning_rate", {"wsd", "cosine"}),
        ("corpus", {"stdlib", "files"}),
        ("tokenizer", {"bpe", "bytes", "file"}),
    ],
)
def test_every_room_offers_its_components(kind, expected):
    assert expected <= set(names(kind))


def test_an_objective_is_known_by_one_name_only():
    assert parse_mix("block(size=16)") == parse_mix("block(16)") == parse_mix({"block(16)": 1})
    assert parse_mix({"masked()": 0.75, "autoregressive": 0.25}).share("masked") == 0.75
    assert parse_mix("masked").describe() == "masked"


def test_a_mix_may_be_written_where_a_controller_takes_one():
    mixed = component_of("controller", "constant({autoregressive: 0.25, block(16): 0.75})")
    assert mixed.mix.share("block(16)") == 0.75
    assert component_of("controller", label(mixed)) == mixed
    assert component_of("controller", dump(mixed)) == mixed


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"masked": 0.5, "autoregressive": 0.4}, "sum to 1, not 0.9"),
        ({"masked": 1.5, "autoregressive": -0.5}, "non-negative"),
        ({"masked": 0.5, "masked()": 0.5}, "'masked' has two shares"),
        ({"maskd": 1}, "no objective called 'maskd'; did you mean 'masked'?"),
        ({"masked": "all"}, "must be a number, not 'all'"),
        ({"masked": True}, "must be a number, not True"),
        ({"masked": float("nan")}, "sum to 1"),
        ({"block(-1)": 1}, "block(-1): "),
        ({}, "expected objectives and their shares"),
        (3, "expected objectives and their shares"),
        ({3: 1}, "expected a name"),
    ],
)
def test_a_mix_that_is_none_says_why(written, said):
    with pytest.raises(PydanticCustomError) as caught:
        parse_mix(written)
    assert said in caught.value.message()
    with pytest.raises(pydantic.ValidationError):
        TypeAdapter(MixField).validate_python(written)


OBJECTIVES = ["autoregressive", "masked", "block(4)", "block(16)"]
weights = st.dictionaries(st.sampled_from(OBJECTIVES), st.floats(min_value=0.01, max_value=1), min_size=1)
mixes = weights.map(lambda parts: Mix(tuple((name, part / sum(parts.values())) for name, part in parts.items())))
unit = st.floats(min_value=0, max_value=1)


@given(mixes, mixes, unit)
def test_a_blend_lies_between_its_ends(first, second, weight):
    blend = first.blend(second, weight)
    assert sum(share for _, share in blend.shares) == pytest.approx(1)
    for name in OBJECTIVES:
        expected = (1 - weight) * first.share(name) + weight * second.share(name)
        assert blend.share(name) == pytest.approx(expected, abs=1e-12)
    assert all(share > 0 for _, share in blend.shares)


@given(mixes, mixes, unit)
def test_blending_ends_at_its_ends_and_is_symmetric(first, second, weight):
    assert dict(first.blend(second, 0).shares) == pytest.approx(dict(first.shares))
    assert dict(first.blend(second, 1).shares) == pytest.approx(dict(second.shares))
    there, back = first.blend(second, weight), second.blend(first, 1 - weight)
    assert {name: there.share(name) for name in OBJECTIVES} == pytest.approx(
        {name: back.share(name) for name in OBJECTIVES}, abs=1e-12
    )


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_blend_beyond_its_ends_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        Mix((("masked", 1.0),)).blend(Mix((("autoregressive", 1.0),)), weight)


def test_a_mix_does_not_name_an_objective_twice():
    with pytest.raises(ValueError, match="two shares"):
        Mix((("masked", 0.5), ("masked", 0.5)))


@given(mixes)
def test_a_mix_survives_writing_and_reading(mix):
    adapter = TypeAdapter(MixField)
    assert adapter.validate_python(adapter.dump_python(mix)) == mix


def test_a_folder_named_without_a_slash_is_told_how_paths_are_written() -> None:
    with pytest.raises(PydanticCustomError, match=r"no corpus called 'my_text'.*such as \./my_text"):
        build("corpus", "my_text")
