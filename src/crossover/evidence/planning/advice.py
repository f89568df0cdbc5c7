"""Which training to choose for a text and a budget, in a sentence or two, and on what grounds."""

from __future__ import annotations

from crossover.evidence.planning.forecast import AUTOREGRESSIVE, MASKED, Critical, Expected, Forecast
from crossover.evidence.planning.spending import Spending

# With fewer epochs the text is not used up: `online` stays with next-token training there, too.
FEW_EPOCHS = 2.0
# Up to so many epochs of next-token training are the published rule (arXiv 2512.14549).
AUTOREGRESSIVE_EPOCHS = 16.0
# Critical compute is known to an order of magnitude: the published one, and one that is extrapolated.
UNSURE = 10.0
OWN = "a study with both on your own text settles it"


def advice_of(spending: Spending, found: Forecast) -> tuple[str, ...]:
    """Say which training to choose and why.

    Args:
        spending: What the budget buys.
        found: What laws say of it.

    Returns:
        One sentence or two.
    """
    holder, challenger = found.of(AUTOREGRESSIVE), found.of(MASKED)
    if holder.epochs < FEW_EPOCHS:
        return (f"stay with next-token training: {holder.epochs:.2g} epochs do not use the text up",)
    if holder.interval is not None and challenger.interval is not None:
        return _by_both(holder, challenger)
    return _by_critical(holder, challenger, found.critical)


def _by_both(holder: Expected, challenger: Expected) -> tuple[str, ...]:
    assert holder.interval is not None and challenger.interval is not None
    assert holder.loss_nats is not None and challenger.loss_nats is not None
    lead = holder.loss_nats - challenger.loss_nats
    told = f"{holder.loss_nats:.3f} for next-token against {challenger.loss_nats:.3f} nats for masked training"
    far = _caution(holder, challenger)
    apart = challenger.interval[1] < holder.interval[0] or holder.interval[1] < challenger.interval[0]
    worse = holder if challenger.interval[1] < holder.interval[0] else challenger
    if apart and worse.is_bound:
        what = "next-token" if worse is holder else "masked"
        unknown = f"{told}, the intervals apart, but that of {what} training is an upper bound, and its loss lies below"
        return (f"take a hybrid, which need not choose beforehand: {unknown}", *(far or (OWN,)))
    if challenger.interval[1] < holder.interval[0]:
        return (f"go to masked training, or to a hybrid that ends in it: {told}, the intervals apart", *far)
    if holder.interval[1] < challenger.interval[0]:
        return (f"stay with next-token training: {told}, the intervals apart", *_stop(holder), *far)
    within = f"{told}, {abs(lead):.3f} apart within error"
    return (f"take a hybrid, which need not choose beforehand: {within}", *(far or (OWN,)))


def _caution(*sides: Expected) -> tuple[str, ...]:
    far = [side.family for side in sides if side.extrapolation]
    return (f"this rests on extrapolation ({' and '.join(far)})", OWN) if far else ()


def _by_critical(holder: Expected, challenger: Expected, critical: Critical) -> tuple[str, ...]:
    ratio = critical.ratio
    if ratio is None:
        return (*_uncrossed(holder, challenger, critical), *_stop(holder), OWN)
    told = f"the budget is {ratio:.2g} times the critical compute by {_known(critical)}"
    if ratio < 1 / UNSURE and challenger.is_bound:
        return (f"take a hybrid, which need not choose beforehand: {told}, too high for being of upper bounds", OWN)
    if ratio < 1 / UNSURE and holder.epochs <= AUTOREGRESSIVE_EPOCHS:
        return (f"stay with next-token training, strongly regularised: {told}", *_stop(holder))
    if ratio < 1 / UNSURE:
        return (
            f"take a hybrid in which next-token training leads: {told}, but {holder.epochs:.3g} epochs are more "
            f"than the {AUTOREGRESSIVE_EPOCHS:g} after which next-token training alone wears out by the published rule",
            *_stop(holder),
            OWN,
        )
    if ratio <= UNSURE:
        return (f"take a hybrid, which need not choose beforehand: {told}", OWN)
    return (f"go to masked training, or to a hybrid that ends in it: {told}", OWN)


def _known(critical: Critical) -> str:
    """Say how well critical compute is known."""
    if critical.status == "published":
        return "the published formula, an order of magnitude at best"
    if critical.interval is None:
        return "these laws"
    low, high = critical.interval
    return f"these laws [{low:.2g}, {high:.2g} FLOPs]"


def _uncrossed(holder: Expected, challenger: Expected, critical: Critical) -> tuple[str, ...]:
    """Advise where the laws have no crossing within the search."""
    worse = {"always ahead": holder, "not reached": challenger}.get(critical.status)
    if worse is None:
        return ("no law says where masked training passes next-token training here",)
    if worse.is_bound:
        bounded = f"its law of {worse.family} training is of upper bounds"
        return (f"take a hybrid, which need not choose beforehand: by these laws {critical.status}, but {bounded}",)
    if critical.status == "always ahead":
        first = "" if critical.searched is None else f" ({critical.searched[0]:.2g} FLOPs)"
        return (f"go to masked training: by these laws it is ahead from the first compute considered{first}",)
    last = "the search's end" if critical.searched is None else f"{critical.searched[1]:.2g} FLOPs"
    return (f"stay with next-token training: by these laws masked training does not pass it by {last}",)


def _stop(holder: Expected) -> tuple[str, ...]:
    useful = holder.useful_epochs
    if useful is None or useful >= holder.epochs:
        return ()
    why = "its law turns up there" if holder.turns_up else "its law saturates there"
    return (f"next-token training has used the text up after {useful:.3g} of {holder.epochs:.3g} epochs ({why})",)
