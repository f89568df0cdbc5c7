"""The published critical compute, which the controller logs, a plan shows and fitted exponents are held against."""

from __future__ import annotations

import pytest

from crossover.control.critical import PUBLISHED_EXPONENT, critical_compute_flops


@pytest.mark.parametrize(("unique_tokens", "flops"), [(1e8, 4.7e19), (5e8, 1.56e21)])
def test_it_gives_the_numbers_of_the_paper(unique_tokens: float, flops: float) -> None:
    assert critical_compute_flops(unique_tokens) == pytest.approx(flops, rel=0.02)


def test_it_grows_with_the_published_power_of_the_text() -> None:
    assert critical_compute_flops(1e7) / critical_compute_flops(1e6) == pytest.approx(10**PUBLISHED_EXPONENT)
