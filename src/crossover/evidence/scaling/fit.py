"""One family's law, fitted: constants with intervals, what they rest on, and predictions that say how far they reach.

Shape suffixes: K draws, P constants, I points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossover.errors import RunError
from crossover.evidence.scaling.bootstrap import Interval, interval_of, plain_draws, quantiles, resample, runs_of
from crossover.evidence.scaling.design import notes_on, too_few
from crossover.evidence.scaling.fitting import HUBER_DELTA, minimise, problem_of
from crossover.evidence.scaling.laws import (
    FLOPS_PER_PARAMETER_TOKEN,
    Constants,
    Floats,
    Form,
    Point,
    inputs,
    log_loss,
)
from crossover.streams import stream

# A value is beyond the data when it passes their end by more than this factor.
BEYOND = 1.05


@dataclass(frozen=True)
class DataRange:
    """Between what the fitted points lie, lowest and highest.

    Args:
        parameters: N.
        unique_tokens: U.
        tokens: D.
        epochs: D / U.
        flops: 6 N D.
    """

    parameters: Interval
    unique_tokens: Interval
    tokens: Interval
    epochs: Interval
    flops: Interval

    @classmethod
    def of(cls, points: Sequence[Point]) -> DataRange:
        """Read the range of points."""
        columns = [_axes(p.parameters, p.unique_tokens, p.tokens) for p in points]
        ends = {name: [column[name] for column in columns] for name in columns[0]}
        return cls(**{name: (min(values), max(values)) for name, values in ends.items()})

    def beyond(self, parameters: float, unique_tokens: float, tokens: float) -> tuple[str, ...]:
        """Say on which axes a point lies outside, and by how much.

        Args:
            parameters: N.
            unique_tokens: U.
            tokens: D.

        Returns:
            A sentence fragment per axis; none inside the data.
        """
        found = []
        for name, value in _axes(parameters, unique_tokens, tokens).items():
            low, high = getattr(self, name)
            words = name.replace("_", " ")
            if value > high * BEYOND:
                found.append(f"{words} {value:.3g} is {value / high:.3g} times the most in the data ({high:.3g})")
            elif value < low / BEYOND:
                found.append(f"{words} {value:.3g} is {low / value:.3g} times below the least in the data ({low:.3g})")
        return tuple(found)


def _axes(parameters: float, unique_tokens: float, tokens: float) -> dict[str, float]:
    return {
        "parameters": parameters,
        "unique_tokens": unique_tokens,
        "tokens": tokens,
        "epochs": tokens / unique_tokens,
        "flops": FLOPS_PER_PARAMETER_TOKEN * parameters * tokens,
    }


@dataclass(frozen=True)
class Prediction:
    """What a law expects of one training.

    Args:
        loss_nats: Nats per token.
        interval: 95% interval of the law's value (which runs were measured is left to chance).
        run_interval: 95% interval for one more run (its own noise added).
        extrapolation: On which axes it lies beyond the data; empty: on none.
        rests_on_unknown: Constants that the data do not pin down and that matter here, being extrapolated along.
    """

    loss_nats: float
    interval: Interval
    run_interval: Interval
    extrapolation: tuple[str, ...]
    rests_on_unknown: tuple[str, ...]


@dataclass(frozen=True)
class FittedLaw:
    """The law of one family.

    Args:
        family: Name of the family.
        form: Which constants were free.
        constants: The fit.
        intervals: 95% interval of each constant; held ones have none.
        identified: Whether the data pin each free constant down; if not, its interval says how little.
        notes: What the reader must know of the data and the fit, in sentences.
        rms_log_residual: Root mean square of ln L_law - ln L; about the relative error of a prediction.
        median_log_residual: Median of its size, which outliers do not move.
        r_squared: Share of the variance of ln L that the law explains.
        runs: Runs, which are what was resampled.
        points: Points.
        data: Between what they lie.
        draws_KP: The bootstrap's constants, as `Constants.theta` gives them.
        residuals_I: ln L_law - ln L of each point.
        mode: How its losses were measured, in words; empty where that is not known.
        is_bound: Whether they are upper bounds and not the loss itself.
    """

    family: str
    form: Form
    constants: Constants
    intervals: Mapping[str, Interval]
    identified: Mapping[str, bool]
    notes: tuple[str, ...]
    rms_log_residual: float
    median_log_residual: float
    r_squared: float
    runs: int
    points: int
    data: DataRange
    draws_KP: Floats
    residuals_I: Floats
    mode: str = ""
    is_bound: bool = False

    def predict(self, parameters: float, unique_tokens: float, tokens: float) -> Prediction:
        """Predict the loss of one training, with its interval and how far it lies from the data.

        The interval knows the law's form as given: it does not cover that the form itself may be wrong beyond the
        data, which `extrapolation` is for.

        Args:
            parameters: N.
            unique_tokens: U.
            tokens: D.

        Returns:
            The prediction.
        """
        law_K = np.exp(log_loss(self.draws_KP, inputs(parameters, unique_tokens, tokens))[:, 0])
        rng = stream(0, f"scaling/noise/{self.family}")
        stretch = np.sqrt(self.points / max(1, self.points - len(self.form.free)))
        run_K = law_K * np.exp(-stretch * rng.choice(self.residuals_I, len(law_K)))
        beyond = self.data.beyond(parameters, unique_tokens, tokens)
        unknown = tuple(name for name, known in self.identified.items() if not known) if beyond else ()
        loss = float(self.constants.loss_nats(parameters, unique_tokens, tokens))
        return Prediction(loss, _around(loss, law_K), _around(loss, run_K), beyond, unknown)

    def told(self, name: str) -> str:
        """Say a constant in words.

        Args:
            name: Its name in `Constants`.

        Returns:
            Such as "data reuse 15.4 [14.6, 16.1]", "data reuse is held at 15.4" or "data reuse is not identified
            (draws from 40 to 1e+05)".
        """
        value, words = getattr(self.constants, name), name.replace("_", " ")
        if name not in self.intervals:
            return f"{words} is held at {value:.4g}"
        low, high = self.intervals[name]
        if not self.identified[name]:
            return f"{words} is not identified (draws from {low:.3g} to {high:.3g})"
        return f"{words} {value:.4g} [{low:.4g}, {high:.4g}]"


def _around(value: float, draws_K: Floats) -> Interval:
    """Give an interval that holds the value it is printed beside, which few draws could leave outside."""
    low, high = quantiles(draws_K)
    return min(low, value), max(high, value)


@dataclass(frozen=True)
class Ratio:
    """How many times a constant of one family is that of another.

    Args:
        value: The ratio.
        interval: Its 95% interval, the families' runs drawn independently.
        identified: Whether both families' data pin the constant down.
    """

    value: float
    interval: Interval
    identified: bool


def ratio(first: FittedLaw, second: FittedLaw, name: str) -> Ratio:
    """Compare a constant between two families, such as how much longer one can reuse its text.

    Args:
        first: The family above the line.
        second: The family below it.
        name: The constant's name in `Constants`.

    Returns:
        The ratio.
    """
    draws = min(len(first.draws_KP), len(second.draws_KP))
    ratio_K = plain_draws(first.draws_KP[:draws], name) / plain_draws(second.draws_KP[:draws], name)
    value = float(getattr(first.constants, name) / getattr(second.constants, name))
    known = first.identified.get(name, True) and second.identified.get(name, True)
    return Ratio(value, _around(value, ratio_K), known)


def fit_law(
    points: Sequence[Point],
    form: Form | None = None,
    *,
    draws: int = 300,
    seed: int = 0,
    huber_delta: float = HUBER_DELTA,
) -> FittedLaw:
    """Fit the law to the points of one family.

    Huber loss of the log residual (delta 1e-3) with the law in log-sum-exp form, several starts of L-BFGS
    (Hoffmann et al., arXiv 2203.15556; Muennighoff et al., arXiv 2305.16264, appendix), intervals by resampling runs.
    Without the overfitting term the law never turns up: give it `best_so_far(points)` where runs have.

    Args:
        points: Points of one family.
        form: Which constants are free; by default all of Muennighoff's, with both exponents.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        huber_delta: Log residual beyond which a point counts linearly.

    Returns:
        The fitted law.

    Raises:
        RunError: Points of several families, or fewer runs than free constants.
    """
    form = Form() if form is None else form
    families = sorted({point.family for point in points})
    if len(families) != 1:
        raise RunError(f"a scaling law is fitted to one family at a time; the points are of {families or 'none'}")
    problem = problem_of(points, form, huber_delta)
    y_Z, values_K = minimise(problem)
    resampled = resample(problem, y_Z, points, draws, seed)
    residuals_I = problem.residuals(y_Z[None])[0] * huber_delta
    names = form.estimated
    known = {name: resampled.known.get(name, resampled.known.get("size_exponent", False)) for name in names}
    poor = too_few(points, form)
    known = {name: value and name not in poor for name, value in known.items()}
    constants = _plain(problem.space.theta(y_Z[None])[0], form)
    return FittedLaw(
        family=families[0],
        form=form,
        constants=constants,
        intervals={name: interval_of(resampled.draws_KP, name) for name in names},
        identified=known,
        notes=notes_on(points, form, constants.data_reuse, known, values_K),
        rms_log_residual=float(np.sqrt((residuals_I**2).mean())),
        median_log_residual=float(np.median(np.abs(residuals_I))),
        r_squared=_r_squared(residuals_I, problem.log_loss_I),
        runs=int(runs_of(points).max()) + 1,
        points=len(points),
        data=DataRange.of(points),
        draws_KP=resampled.draws_KP,
        residuals_I=residuals_I,
    )


def _plain(theta_P: Floats, form: Form) -> Constants:
    """Read the constants; without the overfitting term its exponents mean nothing and keep their defaults."""
    constants = Constants.of(theta_P)
    if form.overfitting:
        return constants
    return replace(constants, overfit_coefficient=0.0, overfit_repeats_exponent=1.0, overfit_size_exponent=0.0)


def _r_squared(residuals_I: Floats, log_loss_I: Floats) -> float:
    """Give the share explained; nothing can be, where all losses are alike."""
    spread = float(log_loss_I.var())
    return 1.0 - float((residuals_I**2).mean()) / spread if spread > 0 else 0.0
