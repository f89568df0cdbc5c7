"""Critical compute: where one family's best loss passes another's on a text, and how it grows with the text.

Shape suffixes: K draws, P constants, G grid points of compute, U texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossover.control.critical import PUBLISHED_EXPONENT
from crossover.errors import RunError
from crossover.evidence.scaling.bootstrap import CONFIDENCE, Interval, quantiles
from crossover.evidence.scaling.design import distinct
from crossover.evidence.scaling.fit import FittedLaw
from crossover.evidence.scaling.frontier import FIRST_SHARE, STEPS_A_DECADE, frontier_log_losses, sizes
from crossover.evidence.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Constants, Floats

# A lead below this share of the loss is rounding.
SMALLEST_LEAD = 1e-9
# An exponent from fewer texts, or from texts within a smaller factor, is noted as such.
FEW_TEXTS, SHORT_SPAN = 4, 30.0
Status = Literal["crossed", "not reached", "always ahead"]


@dataclass(frozen=True)
class CriticalCompute:
    """Where the challenger's best loss passes the holder's on one text.

    Args:
        unique_tokens: U.
        status: "crossed", "not reached" within `searched`, or "always ahead" since the start of the search.
        flops: C_crit(U), None unless crossed.
        interval: Its 95% interval; the upper end is inf where draws do not cross, the lower 0 where they are always
            ahead; None unless crossed.
        crossing_share: Share of the bootstrap's draws that cross.
        searched: First and last compute that were searched.
        lost_again: The challenger falls behind again later in the search.
        beyond_data: Most compute in the data of both families, if C_crit lies above it; else None.
        draws_K: C_crit of each draw; inf and 0 as in `interval`.
    """

    unique_tokens: float
    status: Status
    flops: float | None
    interval: Interval | None
    crossing_share: float
    searched: tuple[float, float]
    lost_again: bool
    beyond_data: float | None
    draws_K: Floats

    @property
    def told(self) -> str:
        """The same in one sentence."""
        on = f"on {self.unique_tokens:.3g} unique tokens"
        if self.status == "not reached":
            return f"{on}: not reached by {self.searched[1]:.2e} FLOPs"
        if self.flops is None or self.interval is None:
            return f"{on}: ahead from the first compute considered ({self.searched[0]:.2e} FLOPs)"
        low, high = self.interval
        first = "ahead from the start" if low == 0 else f"{low:.2e}"
        last = "not reached" if np.isinf(high) else f"{high:.2e}"
        ends = f"[{first}, {last}]"
        far = "" if self.beyond_data is None else f", {self.flops / self.beyond_data:.3g} times beyond the data"
        again = ", but falls behind again later" if self.lost_again else ""
        return f"{on}: {self.flops:.2e} FLOPs {ends}{far}{again}"


def critical_compute(
    holder: FittedLaw, challenger: FittedLaw, unique_tokens: float, *, reach: float = 1e8
) -> CriticalCompute:
    """Find the compute at which the challenger's best loss first passes the holder's, by their fitted laws.

    C_crit(U) is the first zero of m_holder(C) - m_challenger(C), m the frontier of `frontier` (Prabhudesai et al.,
    arXiv 2507.15857, whose Delta L = 0 it is). Losses of both families must be comparable: both exact, or a bound
    against an exact loss, which puts C_crit too high.

    Args:
        holder: The law that leads at first, such as next-token training's.
        challenger: The law that may pass it.
        unique_tokens: U.
        reach: How far to search, in multiples of one epoch of the holder's optimal size.

    Returns:
        The critical compute, or that it is not reached.
    """
    draws = min(len(holder.draws_KP), len(challenger.draws_KP))
    one_epoch = FLOPS_PER_PARAMETER_TOKEN * holder.constants.optimal_parameters(unique_tokens) * unique_tokens
    start, end = FIRST_SHARE * one_epoch, reach * one_epoch
    flops_G = np.logspace(np.log10(start), np.log10(end), int(np.log10(end / start) * STEPS_A_DECADE) + 1)
    sides = [
        frontier_log_losses(_with_draws(law, draws), unique_tokens, flops_G, sizes(law, unique_tokens))
        for law in (holder, challenger)
    ]
    lead_KG = sides[0] - sides[1]
    flops_K = np.array([_first_passing(lead_G, flops_G) for lead_G in lead_KG])
    value, draws_K = float(flops_K[0]), flops_K[1:]
    status: Status = "not reached" if np.isinf(value) else "always ahead" if value == 0 else "crossed"
    ahead_G = lead_KG[0] > SMALLEST_LEAD
    most = max(holder.data.flops[1], challenger.data.flops[1])
    low, high = quantiles(draws_K)
    return CriticalCompute(
        unique_tokens=unique_tokens,
        status=status,
        flops=value if status == "crossed" else None,
        interval=(min(low, value), max(high, value)) if status == "crossed" else None,
        crossing_share=float((np.isfinite(draws_K) & (draws_K > 0)).mean()),
        searched=(float(start), float(end)),
        lost_again=bool((ahead_G[:-1] & ~ahead_G[1:]).any()),
        beyond_data=float(most) if status == "crossed" and value > most else None,
        draws_K=draws_K,
    )


def _with_draws(law: FittedLaw, draws: int) -> Floats:
    return np.concatenate([law.constants.theta()[None], law.draws_KP[:draws]])


def _first_passing(lead_G: Floats, flops_G: Floats) -> float:
    """Interpolate the first zero of the lead in ln C; inf where it never leads, 0 where it leads from the start."""
    ahead_G = lead_G > SMALLEST_LEAD
    if not ahead_G.any():
        return float("inf")
    first = int(ahead_G.argmax())
    if first == 0:
        return 0.0
    low, high = lead_G[first - 1], lead_G[first]
    logs = np.log(flops_G[first - 1 : first + 1])
    return float(np.exp(logs[0] + min(max(-low / (high - low), 0.0), 1.0) * (logs[1] - logs[0])))


@dataclass(frozen=True)
class CriticalExponent:
    """How critical compute grows with the text: C_crit(U) = coefficient x U^exponent.

    Args:
        exponent: Slope of ln C_crit by ln U; None where fewer than two texts have a crossing.
        interval: Its 95% interval, over the draws that cross on all the texts.
        coefficient: C_crit at one unique token, an extrapolation of the line; None with `exponent`.
        at: Critical compute on each text.
        usable_share: Share of the draws that cross on all the texts.
        identified: Whether both families have several texts and every constant pinned down, and the fit and 95% of its
            draws cross on all the texts.
        notes: What keeps it from being known, in sentences.
    """

    exponent: float | None
    interval: Interval | None
    coefficient: float | None
    at: tuple[CriticalCompute, ...]
    usable_share: float
    identified: bool
    notes: tuple[str, ...]

    @property
    def told(self) -> str:
        """The same in one sentence, beside the published exponent."""
        if self.exponent is None or self.interval is None:
            return f"the exponent of critical compute is not known: {'; '.join(self.notes)}"
        low, high = self.interval
        agrees = "covers" if low <= PUBLISHED_EXPONENT <= high else "does not cover"
        words = f"critical compute grows as U^{self.exponent:.3f} [{low:.3f}, {high:.3f}]"
        if self.identified:
            words += f", which {agrees} the published {PUBLISHED_EXPONENT}"
        else:
            words += " by these laws, which is not established"
        return words + (f"; {'; '.join(self.notes)}" if self.notes else "")


def critical_exponent(
    holder: FittedLaw, challenger: FittedLaw, unique_tokens_U: Sequence[float], *, reach: float = 1e8
) -> CriticalExponent:
    """Fit a power law to the critical compute over texts of several sizes, once per bootstrap draw.

    When both laws share E, alpha and beta the exponent is 1 + beta / alpha exactly (`shared_exponent`); what differs
    from that comes from constants that differ between the families.

    Args:
        holder: The law that leads at first.
        challenger: The law that may pass it.
        unique_tokens_U: The texts, at least two; four over a factor of 30 or more are wanted.
        reach: As in `critical_compute`.

    Returns:
        The exponent with its interval.

    Raises:
        RunError: Fewer than two texts.
    """
    texts = sorted({float(unique) for unique in unique_tokens_U})
    if len(texts) < 2:
        raise RunError(f"an exponent needs critical compute on two texts or more, got {len(texts)}")
    at = tuple(critical_compute(holder, challenger, unique, reach=reach) for unique in texts)
    crossed = [each for each in at if each.flops is not None]
    notes = _exponent_notes(holder, challenger, texts, crossed, at)
    if len(crossed) < 2:
        return CriticalExponent(None, None, None, at, 0.0, False, notes)
    log_texts_U = np.log([each.unique_tokens for each in crossed])
    flops_KU = np.stack([each.draws_K for each in crossed], axis=1)
    usable_K = (np.isfinite(flops_KU) & (flops_KU > 0)).all(1)
    slope, log_coefficient = np.polyfit(log_texts_U, np.log([each.flops or 0.0 for each in crossed]), 1)
    share = float(usable_K.mean())
    interval = None
    if usable_K.sum() > 1:
        low, high = quantiles(np.polyfit(log_texts_U, np.log(flops_KU[usable_K]).T, 1)[0])
        interval = min(low, float(slope)), max(high, float(slope))
    if share < CONFIDENCE:
        notes += (f"only {share:.0%} of the draws cross on all of these texts, so the interval is too short",)
    known = all(_well_founded(law) for law in (holder, challenger))
    identified = known and share >= CONFIDENCE and len(crossed) == len(at)
    return CriticalExponent(float(slope), interval, float(np.exp(log_coefficient)), at, share, identified, notes)


def _well_founded(law: FittedLaw) -> bool:
    """Say whether the data, and not the form alone, say how loss depends on size, text and repeats."""
    return distinct(list(law.data.unique_tokens)) > 1 and all(law.identified.values())


def _exponent_notes(
    holder: FittedLaw,
    challenger: FittedLaw,
    texts: Sequence[float],
    crossed: Sequence[CriticalCompute],
    at: Sequence[CriticalCompute],
) -> tuple[str, ...]:
    """Say what keeps the exponent from being known."""
    notes = []
    if len(crossed) < len(at):
        notes.append(f"a crossing within the search on {len(crossed)} of {len(at)} texts only")
    if len(texts) < FEW_TEXTS or texts[-1] / texts[0] < SHORT_SPAN:
        notes.append(f"{len(texts)} texts over a factor of {texts[-1] / texts[0]:.3g}, where 4 over 30 are wanted")
    for law in (holder, challenger):
        low, high = law.data.unique_tokens
        if distinct([low, high]) == 1:
            notes.append(f"the data of {law.family} have one text, so the law's form alone says how U matters")
        elif texts[0] < low / 1.05 or texts[-1] > high * 1.05:
            notes.append(f"texts beyond those of {law.family} ({low:.3g} to {high:.3g} unique tokens)")
        if unknown := [name.replace("_", " ") for name, known in law.identified.items() if not known]:
            notes.append(f"{law.family}: {', '.join(unknown)} not identified")
    if any(each.beyond_data is not None for each in crossed):
        notes.append("some of the critical compute lies beyond all runs")
    return tuple(notes)


def shared_exponent(constants: Constants) -> float:
    """Give the exponent of critical compute between two laws that share E, alpha and beta.

    With N_opt(U) growing as U^(beta / alpha), a law of `Constants` without the overfitting term has
    L - E = U^-beta f(N / U^(beta / alpha), D / U) if R_D*, R_N* and A / B are constants; two such f meet at one
    fixed pair of arguments per budget, so C = 6 N D grows as U^(1 + beta / alpha).

    Args:
        constants: Of either law.

    Returns:
        1 + beta / alpha: 2 for tied exponents.
    """
    return 1.0 + constants.data_exponent / constants.size_exponent
