"""A study with two next-token arms: the better one is the baseline, and no arm is held against itself."""

from __future__ import annotations

from crossover.evidence.facts import find
from crossover.evidence.view import arm_curves, read_view
from evidence.synthetic import AUTOREGRESSIVE, MASKED


def test_the_verdict_and_the_crossings_name_one_baseline(make_study, tmp_path):
    folder = make_study(
        tmp_path / "study",
        {
            "plain": {"controller": AUTOREGRESSIVE, "modes": {"ar": lambda fraction: 3.2 - fraction}},
            "tuned": {"controller": AUTOREGRESSIVE, "modes": {"ar": lambda fraction: 3.0 - fraction}},
            "masked": {"controller": MASKED, "modes": {"l2r": lambda fraction: 3.6 - 1.1 * fraction}},
        },
    )
    view = read_view(folder)
    found = find(view, arm_curves(view))
    assert set(found.crossings) == {"plain", "masked"}
    assert {row["holder"] for row in found.facts["crossings"]} == {"tuned"}
    assert "masked does not pass tuned" in found.verdict and "tuned does not pass tuned" not in found.verdict
    assert "tuned is ahead of tuned" not in found.verdict
