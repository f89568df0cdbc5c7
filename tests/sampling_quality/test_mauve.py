"""MAUVE is the area that its closed form gives, 1 for equal texts and small for texts that share nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.errors import RecipeError
from crossover.sampling.judges import Embedding
from crossover.sampling.mauve import area, cluster, mauve
from crossover.streams import stream

SHARES = (
    st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any).map(lambda counts: np.array(counts) / sum(counts))
)


def numbers(texts: Sequence[str]) -> np.ndarray:
    return np.array([[float(part) for part in text.split()] for text in texts])


PLANE = Embedding("plane", numbers)


def cloud(name: str, count: int, angle: float, spread: float = 0.3) -> list[str]:
    """Texts that embed as points around a direction."""
    angles = angle + spread * stream(0, name).standard_normal(count)
    return [f"{math.cos(one)} {math.sin(one)}" for one in angles]


def test_distributions_that_share_nothing_have_the_area_of_a_beta_integral() -> None:
    """R = (w, 1 - w) gives the curve ((1 - w)^c, w^c), whose area is c B(c + 1, c)."""
    for scaling in (1.0, 2.0, 5.0):
        exact = scaling * math.gamma(scaling + 1) * math.gamma(scaling) / math.gamma(2 * scaling + 1)
        assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0]), scaling=scaling) == pytest.approx(exact, rel=0.03)
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.005


@given(first=SHARES, second=SHARES)
def test_the_area_is_symmetric_and_one_for_equals_alone(first: np.ndarray, second: np.ndarray) -> None:
    value = area(first, second)
    assert 0 < value <= 1 + 1e-12
    assert value == pytest.approx(area(second, first), rel=1e-9)
    assert area(first, first) == pytest.approx(1)
    assert (value > 1 - 1e-9) == np.allclose(first, second, atol=1e-6)


@given(first=SHARES, second=SHARES)
def test_mixing_two_distributions_brings_them_closer(first: np.ndarray, second: np.ndarray) -> None:
    assert area(first, (first + second) / 2) >= area(first, second) - 1e-9


def test_clusters_that_lie_apart_are_found() -> None:
    rng = stream(0, "groups")
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    truth = rng.integers(0, 4, 200)
    points = centres[truth] + rng.standard_normal((200, 2))
    labels = cluster(points, 4, seed=0)
    assert len({(int(one), int(two)) for one, two in zip(truth, labels, strict=True)}) == 4
    assert np.array_equal(labels, cluster(points, 4, seed=0)), "the same seed gives the same clusters"


def test_points_all_alike_are_one_cluster() -> None:
    assert len(set(cluster(np.ones((30, 4)), 3, seed=1).tolist())) == 1


def test_equal_texts_are_alike_disjoint_ones_are_not_and_others_lie_between() -> None:
    people = cloud("people", 200, 0.0)
    same = mauve(people, people, PLANE)
    alike = mauve(cloud("model", 200, 0.0), people, PLANE)
    near = mauve(cloud("model", 200, 0.4), people, PLANE)
    far = mauve(cloud("model", 200, 3.0), people, PLANE)
    assert same.value == pytest.approx(1)
    assert same.clusters == 20 and (same.samples, same.references, same.embedding) == (200, 200, "plane")
    assert same.value > alike.value > 0.85 > near.value > 0.1 > far.value
    assert far.value < 0.006


def test_collapse_onto_one_kind_of_text_is_seen() -> None:
    """What perplexity rewards: half of what people write, all of it likely."""
    people = cloud("one", 150, 0.0) + cloud("two", 150, 2.0)
    assert mauve(cloud("model", 300, 0.0), people, PLANE).value < 0.6 < mauve(people[::-1], people, PLANE).value


@pytest.mark.parametrize(("samples", "clusters"), [(0, None), (1, None), (5, 6), (5, 1)])
def test_too_few_texts_or_clusters_are_an_error(samples: int, clusters: int | None) -> None:
    texts = cloud("few", samples, 0.0)
    with pytest.raises(RecipeError, match=rf"MAUVE of {samples} samples and 20 references"):
        mauve(texts, cloud("people", 20, 0.0), PLANE, clusters=clusters)
