"""Which training to choose for a text and a budget, in a sentence or two, and on what grounds."""

from __future__ import annotations

from crossover.evidence.planning.forecast import AUTOREGRESSIVE, MASKED, Critical, Expected, Forecast
from crossover.evidence.planning.spending import Spending

# With fewer epochs the text is not used up: `online` stays with next-token training there, too.
FEW_EPOCHS = 2.0
# Up to so many epochs of next-token training are the published rule (arXiv 2512.14549).
AUTOREGRESSIVE_EPOCHS = 16.0
# The published critical compute is known to an order of magnitude.
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
    return _by_critical(holder, found.critical)


def _by_both(holder: Expected, challenger: Expected) -> tuple[str, ...]:
    assert holder.interval is not None and challenger.interval is not None
    assert holder.loss_nats is not None and challenger.loss_nats is not None
    lead = holder.loss_nats - challenger.loss_nats
    told = f"{holder.loss_nats:.3f} for next-token against {challenger.loss_nats:.3f} nats for masked training"
    far = _caution(holder, challenger)
    if challenger.interval[1] < holder.interval[0]:
        return (f"go to masked training, or to a hybrid that ends in it: {told}, the intervals apart", *far)
    if holder.interval[1] < challenger.interval[0]:
        return (f"stay with next-token training: {told}, the intervals apart", *_stop(holder), *far)
    return (f"take a hybrid, which need not choose beforehand: {told}, {abs(lead):.3f} apart within error; {OWN}", *far)


def _caution(*sides: Expected) -> tuple[str, ...]:
    far = [side.family for side in sides if side.extrapolation]
    return (f"this rests on extrapolation ({' and '.join(far)}); {OWN}",) if far else ()


def _by_critical(holder: Expected, critical: Critical) -> tuple[str, ...]:
    ratio = critical.ratio
    if ratio is None:
        return (f"no law says where masked training passes next-token training here; {OWN}",)
    told = f"the budget is {ratio:.2g} times the published critical compute, which is an order of magnitude at best"
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


def _stop(holder: Expected) -> tuple[str, ...]:
    useful = holder.useful_epochs
    if useful is None or useful >= holder.epochs:
        return ()
    why = "its law turns up there" if holder.turns_up else "its law saturates there"
    return (f"next-token training has used the text up after {useful:.3g} of {holder.epochs:.3g} epochs ({why})",)
