"""What a budget should reach, by scaling laws: expected losses, useful epochs, critical compute, the best size.

A law is of its own text and tokenizer: its levels are another text's only by luck, differences between its numbers say
more. Shape suffix: G grid points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossover.control.critical import critical_compute_flops
from crossover.errors import RunError
from crossover.evidence.planning.spending import Spending
from crossover.evidence.scaling.book import load_laws, published_laws
from crossover.evidence.scaling.critical import critical_compute
from crossover.evidence.scaling.fit import FittedLaw
from crossover.evidence.scaling.frontier import frontier
from crossover.evidence.scaling.laws import Floats

Interval = tuple[float, float]
AUTOREGRESSIVE, MASKED, HYBRID = "autoregressive", "masked", "hybrid"
# Names that a family may go by in a file of laws.
FAMILIES = {
    AUTOREGRESSIVE: ("autoregressive", "ar"),
    MASKED: ("masked", "diffusion", "mdlm"),
    HYBRID: ("hybrid", "online", "switch", "ramp", "static_dual"),
}
# A text is used up where all further epochs together are worth less than this.
USED_UP_NATS = 0.01
# Between what texts the published critical compute was fitted.
CRITICAL_TEXTS = (25e6, 100e6)
MOST_EPOCHS, EPOCHS_A_DECADE = 1e5, 200


@dataclass(frozen=True)
class Book:
    """The laws that a plan uses.

    Args:
        laws: By the three ways to train: "autoregressive", "masked", "hybrid"; those that there are.
        source: Where they are from.
        notes: How they were chosen among the laws of a file, where that leaves a question.
    """

    laws: Mapping[str, FittedLaw]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What one way to train should reach.

    Args:
        family: "autoregressive", "masked" or "hybrid".
        tokens: Data tokens that the budget buys.
        epochs: Times that the text is seen.
        loss_nats: Expected loss, nats per token of the law's text; None where there is no law.
        interval: 95% interval of the law's value.
        run_interval: 95% interval of one run.
        extrapolation: On which axes it lies beyond the law's data.
        rests_on_unknown: Constants that the law's data do not pin down and that matter here.
        useful_epochs: Where the law turns up, or where all further epochs are worth less than `USED_UP_NATS`.
        turns_up: Whether the law turns up there.
        told: What it rests on, or why there is no number.
        is_bound: Whether the law is of upper bounds of the loss, and not of the loss itself.
    """

    family: str
    tokens: float
    epochs: float
    loss_nats: float | None
    interval: Interval | None
    run_interval: Interval | None
    extrapolation: tuple[str, ...]
    rests_on_unknown: tuple[str, ...]
    useful_epochs: float | None
    turns_up: bool
    told: str
    is_bound: bool = False


@dataclass(frozen=True)
class Critical:
    """The compute from which masked training is expected to be ahead.

    Args:
        flops: C_crit(U) by 6ND; None where the laws do not cross.
        interval: Its 95% interval, None where none is known; its upper end may be infinite.
        status: "crossed", "not reached", "always ahead", or "published" for the published formula.
        searched: First and last compute that were searched, None for the published formula.
        budget_flops: The budget by 6ND.
        told: What it rests on.
    """

    flops: float | None
    interval: Interval | None
    status: str
    budget_flops: float
    told: str
    searched: Interval | None = None

    @property
    def ratio(self) -> float | None:
        """The budget as a multiple of the critical compute; None where that is not known."""
        return None if self.flops is None else self.budget_flops / self.flops


@dataclass(frozen=True)
class Optimum:
    """The size that is best for a text and a budget.

    Args:
        family: By whose law.
        parameters: The size.
        epochs: Times that it sees the text.
        loss_nats: What it should reach.
        interval: The 95% interval of that.
        inside: Whether it lies within the law's data.
        is_bound: Whether the law is of upper bounds.
    """

    family: str
    parameters: float
    epochs: float
    loss_nats: float
    interval: Interval
    inside: bool
    is_bound: bool


@dataclass(frozen=True)
class Forecast:
    """Everything that laws say of a recipe.

    Args:
        source: Where the laws are from.
        expected: What each way to train should reach.
        critical: The critical compute.
        optima: The best size by each law.
        notes: What a reader must know of the laws.
    """

    source: str
    expected: tuple[Expected, ...]
    critical: Critical
    optima: tuple[Optimum, ...]
    notes: tuple[str, ...]

    def of(self, family: str) -> Expected:
        """Give what one way to train should reach."""
        return next(each for each in self.expected if each.family == family)


def read_book(path: str | Path | None) -> Book:
    """Read the laws that a plan uses.

    Args:
        path: A file that `crossover scaling --out` wrote; None for the published laws.

    Returns:
        The laws, by way to train.

    Raises:
        RunError: The file cannot be used, or none of its laws is of a family that is known here.
    """
    laws = published_laws() if path is None else load_laws(path)
    found: dict[str, FittedLaw] = {}
    notes = []
    for way, names in FAMILIES.items():
        taken, passed_by = _chosen(laws, names)
        if taken is not None:
            found[way] = laws[taken]
        if passed_by or (taken is not None and _plain(taken) not in names):
            which = "none" if taken is None else f"the one called '{taken}'"
            others = f"; {', '.join(passed_by)} would do too" if passed_by else ""
            notes.append(f"for {way} training, of the laws of this file {which} is taken{others}")
    if not found:
        families = ", ".join(sorted({law.family for law in laws.values()}))
        known = ", ".join(name for names in FAMILIES.values() for name in names)
        raise RunError(f"{path}: has laws of {families}; expected one of {known}; fit families with these names")
    return Book(found, "published laws" if path is None else str(path), tuple(notes))


def _chosen(laws: Mapping[str, FittedLaw], names: Sequence[str]) -> tuple[str | None, list[str]]:
    """Choose the law that goes by one of some names, the exact ones first; a name with settings only if it is alone."""
    told = {key: {_plain(key), _plain(law.family)} for key, law in laws.items()}
    exact = [key for name in names for key in laws if name in told[key]]
    settled = [key for key in laws if {name.split("(")[0].strip() for name in told[key]} & set(names)]
    fitting = list(dict.fromkeys([*exact, *settled]))
    taken = fitting[0] if exact or len(settled) == 1 else None
    return taken, [key for key in fitting if key != taken]


def _plain(name: str) -> str:
    return name.strip().lower()


def forecast(
    book: Book,
    spending: Spending,
    *,
    parameters: int,
    unique_tokens: int,
    train_tokens: int,
    guessing_nats: float,
    sparse: bool,
    hybrid: bool,
) -> Forecast:
    """Say what a budget should reach on a text.

    Args:
        book: The laws.
        spending: What the budget buys.
        parameters: Parameters, the active ones of a sparse model.
        unique_tokens: U of next-token and of masked training alone, which hold no text out.
        train_tokens: U of the recipe, without what its controller holds out.
        guessing_nats: Loss of a model that knows nothing, ln of the vocabulary; above it a law means nothing.
        sparse: Whether the model is sparse, which no law here is fitted to.
        hybrid: Whether the recipe trains in more than one way.

    Returns:
        The forecast.
    """
    tokens = {
        AUTOREGRESSIVE: spending.tokens_under("autoregressive"),
        MASKED: spending.tokens_under("masked"),
        HYBRID: spending.tokens,
    }
    ways = [AUTOREGRESSIVE, MASKED, *([HYBRID] if hybrid else [])]
    texts = {AUTOREGRESSIVE: unique_tokens, MASKED: unique_tokens, HYBRID: train_tokens}
    expected = tuple(_expected(book, way, parameters, texts[way], tokens[way], guessing_nats) for way in ways)
    notes = [*book.notes, *(f"{law.family}: {note}" for law in book.laws.values() for note in law.notes)]
    if sparse:
        notes.insert(0, "the laws are of dense models; a sparse one is taken by its active parameters: a guess")
    critical = _critical(book, unique_tokens, spending.flops_6nd)
    optima = tuple(
        _optimum(book.laws[each.family], each.family, texts[each.family], spending.flops_6nd)
        for each in expected
        if each.loss_nats is not None
    )
    return Forecast(book.source, expected, critical, optima, tuple(notes))


def _expected(
    book: Book, way: str, parameters: int, unique_tokens: int, tokens: float, guessing_nats: float
) -> Expected:
    epochs, law = tokens / unique_tokens, book.laws.get(way)
    if law is None:
        told = _no_law(way, book.source)
        return Expected(way, tokens, epochs, None, None, None, (), (), None, False, told)
    found = law.predict(parameters, unique_tokens, tokens)
    useful, turns_up = useful_epochs(law, parameters, unique_tokens)
    if found.loss_nats > guessing_nats:
        why = (
            f"no number: the law of {law.family} does not reach here; it gives {found.loss_nats:.3g} nats where "
            f"guessing a token costs {guessing_nats:.3g}; fit one to runs of this size with `crossover scaling`"
        )
        return Expected(way, tokens, epochs, None, None, None, found.extrapolation, (), None, False, why, law.is_bound)
    return Expected(
        family=way,
        tokens=tokens,
        epochs=epochs,
        loss_nats=found.loss_nats,
        interval=found.interval,
        run_interval=found.run_interval,
        extrapolation=found.extrapolation,
        rests_on_unknown=found.rests_on_unknown,
        useful_epochs=useful,
        turns_up=turns_up,
        told=f"law of {law.family} ({law.runs} runs, {law.points} points; {book.source})",
        is_bound=law.is_bound,
    )


def _no_law(way: str, source: str) -> str:
    """Say why there is no number."""
    if way == HYBRID:
        return (
            "no law: none is known for a run that changes its training, and what it reaches need not lie between the "
            "other two; a study of your own runs gives one"
        )
    return f"no law of {way} training in the {source}; fit one to your own runs with `crossover scaling`"


def useful_epochs(law: FittedLaw, parameters: float, unique_tokens: float) -> tuple[float, bool]:
    """Find after how many epochs a text is used up.

    Args:
        law: The law.
        parameters: N.
        unique_tokens: U.

    Returns:
        Where the law turns up and True; or, where it only saturates, after how many epochs all further ones together
        are worth less than `USED_UP_NATS`, and False.
    """
    count = int(np.log10(MOST_EPOCHS) * EPOCHS_A_DECADE) + 1
    epochs_G: Floats = np.logspace(0, np.log10(MOST_EPOCHS), count)
    loss_G = law.constants.loss_nats(parameters, unique_tokens, unique_tokens * epochs_G)
    lowest = int(loss_G.argmin())
    if loss_G[-1] > loss_G[lowest] + USED_UP_NATS:
        return float(epochs_G[lowest]), True
    return float(epochs_G[int((loss_G <= loss_G[-1] + USED_UP_NATS).argmax())]), False


def _critical(book: Book, unique_tokens: int, budget_flops: float) -> Critical:
    holder, challenger = book.laws.get(AUTOREGRESSIVE), book.laws.get(MASKED)
    if holder is None or challenger is None:
        most = unique_tokens / CRITICAL_TEXTS[1]
        least = CRITICAL_TEXTS[0] / unique_tokens
        far = (
            f" (this text is {most:.3g} times more)" if most > 1 else f" ({least:.3g} times less)" if least > 1 else ""
        )
        told = (
            f"published formula (arXiv 2507.15857), fitted to 25M to 100M unique tokens{far} and to next-token "
            "training without strong regularisation: an order of magnitude at best"
        )
        return Critical(critical_compute_flops(unique_tokens), None, "published", budget_flops, told)
    found = critical_compute(holder, challenger, unique_tokens)
    told = f"{book.source}: {found.told}{_bound_told(holder, challenger)}"
    return Critical(found.flops, found.interval, found.status, budget_flops, told, found.searched)


def _bound_told(holder: FittedLaw, challenger: FittedLaw) -> str:
    """Say what a bound on one side does to critical compute."""
    if holder.is_bound == challenger.is_bound:
        return ""
    bounded, way = (challenger, "high") if challenger.is_bound else (holder, "low")
    return f"; losses of {bounded.family} are upper bounds, so this is too {way}"


def _optimum(law: FittedLaw, way: str, unique_tokens: int, flops_6nd: float) -> Optimum:
    best = frontier(law, unique_tokens, np.array([flops_6nd]))
    return Optimum(
        family=way,
        parameters=float(best.parameters_G[0]),
        epochs=float(best.tokens_G[0] / unique_tokens),
        loss_nats=float(best.loss_nats_G[0]),
        interval=(float(best.low_G[0]), float(best.high_G[0])),
        inside=bool(best.inside_G[0]),
        is_bound=law.is_bound,
    )
