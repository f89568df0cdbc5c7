"""What a run begins with: how much next-token training a mix should hold when the text is to be seen R times."""

from __future__ import annotations

from collections.abc import Sequence

from crossover.control.critical import critical_compute_flops
from crossover.records import Mix, Progress

AUTOREGRESSIVE = "autoregressive"
# A share of other objectives below this is next-token training alone: 63/64 is the published most (arXiv 2512.14549).
LEAST_OTHER = 1 / 64


def planned_share(progress: Progress, other: str, exposures: float, exponent: float, most_share: float) -> float:
    """Solve share = min(most_share, (exposures / R)^exponent), where R, the epochs of the run, depends on the share.

    R is what the budget buys under the mix, and objectives cost differently. Exponent 1 is the published rule for
    training without strong regularisation (arXiv 2512.14549: next-token training sees the text `exposures` times,
    however long the run is); below 1 the exposures grow with the run.

    Args:
        progress: Gives the epochs that the budget buys under a mix.
        other: The objective that receives the rest.
        exposures: Epochs up to which next-token training is best alone.
        exponent: How fast its share falls with the epochs of the run, in (0, 1].
        most_share: Largest share of next-token training.

    Returns:
        The share of next-token training.
    """
    low, high = 0.0, most_share
    for _ in range(60):
        share = (low + high) / 2
        repeats = progress.epochs_under(Mix(((AUTOREGRESSIVE, share), (other, 1 - share))))
        if share ** (1 / exponent) * repeats > exposures:
            high = share
        else:
            low = share
    return high


def starting_mix(
    start: Mix | None, gears: Sequence[str], exposures: float, exponent: float, progress: Progress
) -> tuple[Mix, float]:
    """Give the mix that a run begins with.

    Args:
        start: The mix that was asked for, or None to choose it from the horizon.
        gears: Objectives that the run may go to; the last that is no next-token training shares a chosen start.
        exposures: Epochs up to which next-token training is best alone.
        exponent: How fast its share falls with the epochs of the run.
        progress: Gives the epochs that the budget buys.

    Returns:
        The mix, and the exposures of next-token training that a chosen mix plans, in epochs; 0 where none is planned.
    """
    other = next((gear for gear in reversed(gears) if not gear.startswith(AUTOREGRESSIVE)), None)
    if start is not None or other is None:
        return start or Mix(((AUTOREGRESSIVE, 1.0),)), 0.0
    share = planned_share(progress, other, exposures, exponent, 1.0)
    if share > 1 - LEAST_OTHER:
        return Mix(((AUTOREGRESSIVE, 1.0),)), 0.0
    mix = Mix(((AUTOREGRESSIVE, share), (other, 1 - share)))
    return mix, share * progress.epochs_under(mix)


def staying(start: Mix, progress: Progress, least_epochs: float, factor: float) -> str:
    """Say why a run stays with its start.

    Args:
        start: The start.
        progress: Where the run stands.
        least_epochs: With fewer planned epochs it stays.
        factor: Times the critical compute below which a budget stays; 0 gives the critical compute no weight.

    Returns:
        The reason, or "" when the run may move.
    """
    planned = progress.epochs_under(start)
    if planned < least_epochs:
        return f"{planned:.2f} epochs are planned, too few for the text to be used up"
    budget, prices = progress.budget_flops, progress.flops_per_token
    if budget is None and all(name in prices for name, _ in start.shares):
        price = sum(share * prices[name] for name, share in start.shares)
        budget = planned * progress.unique_tokens * price
    critical = critical_compute_flops(progress.unique_tokens)
    if budget is None or budget >= factor * critical:
        return ""
    return f"the budget, {budget:.2g} FLOPs, is below {factor:g} times the critical compute, {critical:.2g}"
