"""Every reader takes every damaged file as a correct read or as an error that names it; many more cases: benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import MUTATIONS, mutate
from fuzz.targets import TARGETS, Shooting

# What is dear to set up or to read is left to `benchmarks/fuzz.py`, which gives each of them hundreds of cases.
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
EXAMPLES = {1.0: 8, 2.0: 15, 3.0: 20}


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_stranger_sends_is_read_or_refused(shooting: Callable[[str], Shooting], name: str):
    target = shooting(name)
    sound = [target.give(content, seconds=60.0) for content in target.contents]
    assert [found for found in sound if found.defect] == []
    assert "read" in {found.kind for found in sound}, sound

    @settings(max_examples=EXAMPLES.get(target.target.share, 4), suppress_health_check=SLOW)
    @given(st.integers(0, 2**32), st.sampled_from(target.contents))
    def damaged(seed: int, content: bytes) -> None:
        found = target.give(mutate(Random(seed), content, target.target.kind), seconds=30.0)
        assert not found.defect, found

    @settings(max_examples=4, suppress_health_check=SLOW)
    @given(st.binary(max_size=300))
    def anything(content: bytes) -> None:
        found = target.give(content, seconds=30.0)
        assert not found.defect, found

    damaged()
    anything()


@pytest.mark.parametrize("kind", MUTATIONS)
def test_the_same_seed_damages_in_the_same_way(shooting: Callable[[str], Shooting], kind: str):
    name = next(name for name, target in TARGETS.items() if target.kind == kind or kind in ("bytes", "text", "json"))
    content = shooting(name).contents[0]
    one, two = (mutate(Random("7"), content, kind) for _ in range(2))
    assert one == two
    assert len({mutate(Random(number), content, kind) for number in range(40)}) > 15
