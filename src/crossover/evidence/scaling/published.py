"""What is published of scaling laws of repeated text, and how well a published law fits the runs of its own source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files

import numpy as np

from crossover.evidence.scaling.fit import DataRange, FittedLaw, fit_law
from crossover.evidence.scaling.laws import MUENNIGHOFF, Form, Point
from crossover.evidence.scaling.table import read_point_table

# Reuse constants of Prabhudesai et al. (arXiv 2507.15857, table 1b), to hold in a fit of one's own runs.
REUSE = {
    "autoregressive": {"data_reuse": 31.19, "size_reuse": 55.16},
    "masked": {"data_reuse": 493.89, "size_reuse": 1265.65},
}
# A run counts as overfitted when one that is no larger and no longer, on the same text, ends this share below it.
OVERFITTED = 0.01
DRAWS = 200


def published_points() -> tuple[Point, ...]:
    """Give the losses on C4 that Muennighoff et al. publish, mean over seeds, overfitted runs included."""
    with as_file(files("crossover.evidence.scaling") / "published.csv") as path:
        return read_point_table(path)[0]


def without_overfitted(points: Sequence[Point]) -> tuple[Point, ...]:
    """Leave out runs that more parameters or more repeats have made worse, as the paper does before it fits.

    Args:
        points: Points of one family, one a run.

    Returns:
        The points that no smaller and no longer run on the same text beats by `OVERFITTED`.
    """
    return tuple(
        point
        for point in points
        if not any(
            other.unique_tokens == point.unique_tokens
            and other.parameters <= point.parameters
            and other.tokens <= point.tokens
            and other.loss_nats < point.loss_nats * (1 - OVERFITTED)
            for other in points
        )
    )


def muennighoff_law(draws: int = DRAWS) -> FittedLaw:
    """Give the published law of next-token training with a spread from the published runs.

    The paper states no intervals (R^2 0.77 on 182 runs). So the form is fitted again to its runs without the
    overfitted ones: the draws and the residuals are that fit's, and every interval is widened to hold the published
    constants, whose own residuals are told. `published.json` is what this gives: `save_laws({"autoregressive":
    muennighoff_law()}, ".../published.json")` writes it anew.

    Args:
        draws: Bootstrap draws.

    Returns:
        The law with the published constants.
    """
    points = without_overfitted(published_points())
    again = fit_law(points, Form(tied_exponents=True), draws=draws)
    log_loss_I = np.log([point.loss_nats for point in points])
    sizes, texts, tokens = zip(*((p.parameters, p.unique_tokens, p.tokens) for p in points), strict=True)
    residuals_I = np.log(MUENNIGHOFF.loss_nats(sizes, texts, tokens)) - log_loss_I
    ends = {
        name: (min(low, getattr(MUENNIGHOFF, name)), max(high, getattr(MUENNIGHOFF, name)))
        for name, (low, high) in again.intervals.items()
    }
    return replace(
        again,
        constants=MUENNIGHOFF,
        intervals=ends,
        notes=_notes(again, residuals_I),
        rms_log_residual=float(np.sqrt((residuals_I**2).mean())),
        median_log_residual=float(np.median(np.abs(residuals_I))),
        r_squared=1 - float((residuals_I**2).mean() / log_loss_I.var()),
        data=DataRange.of(points),
    )


def _notes(again: FittedLaw, residuals_I: np.ndarray) -> tuple[str, ...]:
    bias, rms = float(np.expm1(np.median(residuals_I))), float(np.sqrt((residuals_I**2).mean()))
    low, high = again.intervals["data_reuse"]
    return (
        "published constants of Muennighoff et al. (arXiv 2305.16264) for C4 and the GPT-2 tokenizer: other text and "
        "another tokenizer have other losses per token, so use differences and not levels",
        f"the source states no intervals; these are of the same form fitted again to {again.points} of its runs, "
        f"widened to hold the published constants",
        f"on these runs the published constants give {abs(bias):.0%} too {'low' if bias < 0 else 'high'} a loss in the "
        f"middle (rms {rms:.0%}); fitted again, rms {again.rms_log_residual:.0%} and data reuse "
        f"{again.constants.data_reuse:.3g} [{low:.3g}, {high:.3g}]",
        *again.notes,
    )
