"""The law of repeated text as a function of parameters, unique tokens and tokens, and what it is fitted to.

Shape suffixes: K sets of constants, P constants, I points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossover.errors import RunError, nearest

Floats = NDArray[np.float64]
# Training costs 6 FLOPs per parameter and token; frontiers and critical compute count so.
FLOPS_PER_PARAMETER_TOKEN = 6.0
# exp of more than this is no number that a law could use.
LARGEST_LOG = 100.0
# More parameters or tokens than any point has; beyond it a law's powers leave the range of numbers.
LARGEST_COUNT = 1e30
# Between what exponents are looked for, and may be held.
EXPONENT_BOX = {
    "size_exponent": (0.02, 2.0),
    "data_exponent": (0.02, 2.0),
    "overfit_repeats_exponent": (0.2, 4.0),
    "overfit_size_exponent": (0.0, 3.0),
}
EXPONENTS = ("size_exponent", "data_exponent", "overfit_repeats_exponent", "overfit_size_exponent")
OVERFIT = ("overfit_coefficient", "overfit_repeats_exponent", "overfit_size_exponent")


@dataclass(frozen=True)
class Point:
    """One measured loss.

    Args:
        parameters: Parameters of the model, N.
        unique_tokens: Distinct training tokens, U.
        tokens: Training tokens seen, repeats counted, D.
        loss_nats: Held-out loss, nats per token.
        family: How it was trained, such as "autoregressive" or "masked".
        seed: Seed of the run.
        group: Name of the run; points of one (group, seed) are resampled together.
    """

    parameters: float
    unique_tokens: float
    tokens: float
    loss_nats: float
    family: str
    seed: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        for name in ("parameters", "unique_tokens", "tokens", "loss_nats"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise RunError(f"point of '{self.family}' ({self.group}): {name} is {value}; expected a number above 0")
            if value > LARGEST_COUNT:
                raise RunError(
                    f"point of '{self.family}' ({self.group}): {name} is {value}; expected at most {LARGEST_COUNT:g}"
                )


@dataclass(frozen=True)
class Form:
    """Which constants of the law are free.

    Args:
        tied_exponents: Keep the data exponent equal to the size exponent, as Muennighoff et al. do.
        overfitting: Add the term that grows with repetition; without it the law cannot turn up.
        held: Constants that are not fitted, by the names of `Constants`.
    """

    tied_exponents: bool = False
    overfitting: bool = False
    held: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.held.items():
            if name not in NAMES:
                raise RunError(f"scaling law: no constant '{name}'; {nearest(name, NAMES)}")
            if not (np.isfinite(value) and value > 0):
                raise RunError(f"scaling law: {name} is held at {value}; expected a number above 0")
            low, high = plain_box(name)
            if not low <= value <= high:
                raise RunError(f"scaling law: {name} is held at {value}; expected from {low:.3g} to {high:.3g}")
        if self.tied_exponents and "data_exponent" in self.held:
            raise RunError("scaling law: data_exponent is tied to size_exponent; hold size_exponent, or untie them")
        if not self.overfitting and (idle := [name for name in OVERFIT if name in self.held]):
            raise RunError(f"scaling law: {idle[0]} has no effect without `overfitting`")

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the constants to be fitted."""
        absent = set(self.held) | ({"data_exponent"} if self.tied_exponents else set())
        return tuple(name for name in NAMES if name not in absent and (self.overfitting or name not in OVERFIT))

    @property
    def estimated(self) -> tuple[str, ...]:
        """Names of the constants that a fit gives intervals for: the free ones, and one that is tied to a free one."""
        tied = {"data_exponent"} if self.tied_exponents and "size_exponent" not in self.held else set()
        return tuple(name for name in NAMES if name in self.free or name in tied)


def plain_box(name: str) -> tuple[float, float]:
    """Give the ends between which a constant may lie for the law to stay within the range of numbers.

    Args:
        name: Its name in `Constants`.

    Returns:
        The lowest and the highest value, in plain units.
    """
    return EXPONENT_BOX.get(name, (float(np.exp(-LARGEST_LOG)), float(np.exp(LARGEST_LOG))))


@dataclass(frozen=True)
class Constants:
    """The constants of one law, in plain units.

    L(N, D, U) = E + A / N'^alpha + B / D'^beta + P R^delta (N / U)^kappa, with

    * D' = U_D + U_D R_D* (1 - exp(-R / R_D*)), U_D = min(U, D), R = D / U_D - 1 (Muennighoff et al.,
      arXiv 2305.16264, equations 5 and 6),
    * N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)), U_N = min(N, N_opt(U_D)), R_N = N / U_N - 1 (the same),
    * N_opt(U) = (alpha A / (beta B))^(1 / alpha) U^(beta / alpha): the size for which U tokens, seen once, are the
      compute-optimal number, from alpha A / N^alpha = beta B / D^beta,
    * the last term for the upturn of next-token training: 0 for one epoch. An additive penalty by repeats and by
      parameters per unique token is arXiv 2605.01640's; to set it on Muennighoff's law is ours, since one
      saturates and the other turns up and data should say which is needed.

    Args:
        irreducible_nats: E.
        size_coefficient: A.
        size_exponent: alpha.
        data_coefficient: B.
        data_exponent: beta.
        data_reuse: R_D*: repeats after which a further one is worth 1/e of fresh text.
        size_reuse: R_N*: the same for parameters beyond the optimal number.
        overfit_coefficient: P; 0 without the term.
        overfit_repeats_exponent: delta.
        overfit_size_exponent: kappa.
    """

    irreducible_nats: float
    size_coefficient: float
    size_exponent: float
    data_coefficient: float
    data_exponent: float
    data_reuse: float
    size_reuse: float
    overfit_coefficient: float = 0.0
    overfit_repeats_exponent: float = 1.0
    overfit_size_exponent: float = 0.0

    def loss_nats(self, parameters: ArrayLike, unique_tokens: ArrayLike, tokens: ArrayLike) -> Floats:
        """Give the loss that the law expects.

        Args:
            parameters: N, any shape.
            unique_tokens: U, broadcast against it.
            tokens: D, broadcast against it.

        Returns:
            Nats per token, of the broadcast shape.
        """
        shape = np.broadcast_shapes(*(np.shape(value) for value in (parameters, unique_tokens, tokens)))
        loss_KI = np.exp(log_loss(self.theta()[None], inputs(parameters, unique_tokens, tokens)))
        return loss_KI[0].reshape(shape)

    def optimal_parameters(self, unique_tokens: float) -> float:
        """Give N_opt(U): how many parameters are compute-optimal for U tokens seen once."""
        return float(np.exp(log_optimal_parameters(self.theta()[None], np.log([unique_tokens]))[0, 0]))

    def theta(self) -> Floats:
        """Give the constants as the fitter has them: exponents as they are, all else as its logarithm, shape (P,)."""
        values = {name: float(getattr(self, name)) for name in NAMES}
        with np.errstate(divide="ignore"):
            return np.array([value if name in EXPONENTS else np.log(value) for name, value in values.items()])

    @classmethod
    def of(cls, theta_P: Floats) -> Constants:
        """Read constants back from what `theta` gives."""
        return cls(*(float(v if n in EXPONENTS else np.exp(v)) for n, v in zip(NAMES, theta_P, strict=True)))


NAMES = tuple(each.name for each in fields(Constants))
# Muennighoff et al., arXiv 2305.16264, as their README prints them (tied exponents).
MUENNIGHOFF = Constants(
    irreducible_nats=float(np.exp(0.6254804)),
    size_coefficient=float(np.exp(6.255414)),
    size_exponent=0.3526596,
    data_coefficient=float(np.exp(7.3049974)),
    data_exponent=0.3526596,
    data_reuse=15.387756,
    size_reuse=5.309743,
)


@dataclass(frozen=True)
class Inputs:
    """What the law is evaluated at.

    Args:
        log_parameters_I: ln N.
        log_fresh_I: ln U_D, the tokens that were new when seen.
        repeats_I: R = D / U_D - 1.
        log_parameters_per_unique_I: ln (N / U).
    """

    log_parameters_I: Floats
    log_fresh_I: Floats
    repeats_I: Floats
    log_parameters_per_unique_I: Floats


def inputs(parameters: ArrayLike, unique_tokens: ArrayLike, tokens: ArrayLike) -> Inputs:
    """Prepare points for the law.

    Args:
        parameters: N, any shape.
        unique_tokens: U, broadcast against it.
        tokens: D, broadcast against it.

    Returns:
        The inputs, flat.
    """
    given = [np.asarray(value, float) for value in (parameters, unique_tokens, tokens)]
    size_I, unique_I, tokens_I = (np.ravel(value) for value in np.broadcast_arrays(*given))
    fresh_I = np.minimum(unique_I, tokens_I)
    return Inputs(np.log(size_I), np.log(fresh_I), tokens_I / fresh_I - 1, np.log(size_I / unique_I))


def inputs_of(points: Sequence[Point]) -> Inputs:
    """Prepare measured points for the law."""
    return inputs([p.parameters for p in points], [p.unique_tokens for p in points], [p.tokens for p in points])


def log_optimal_parameters(theta_KP: Floats, log_fresh_I: Floats) -> Floats:
    """Give ln N_opt(U_D) for each set of constants, shape (K, I); see `Constants` for the formula."""
    _, a, alpha, b, beta = (theta_KP[:, [column]] for column in range(5))
    return np.clip((np.log(alpha / beta) + a - b + beta * log_fresh_I) / alpha, -LARGEST_LOG, LARGEST_LOG)


def log_loss(theta_KP: Floats, at: Inputs) -> Floats:
    """Give ln L as a log-sum-exp of the law's terms.

    Args:
        theta_KP: Constants as `Constants.theta` gives them.
        at: The points.

    Returns:
        ln L, shape (K, I).
    """
    return _terms(theta_KP, at)[0]


def log_loss_gradient(theta_KP: Floats, at: Inputs) -> tuple[Floats, Floats]:
    """Give ln L and its derivative by each constant.

    Args:
        theta_KP: Constants as `Constants.theta` gives them.
        at: The points.

    Returns:
        ln L of shape (K, I), and the derivatives of shape (K, P, I).
    """
    value_KI, shares, reuse_N, reuse_D, log_n, log_d = _terms(theta_KP, at)
    share_E, share_A, share_B, share_P = shares
    alpha, beta = theta_KP[:, [2]], theta_KP[:, [4]]
    log_optimal_KI = log_optimal_parameters(theta_KP, at.log_fresh_I)
    by_optimal_KI, by_reuse_KI = _slopes(reuse_N, theta_KP[:, [6]])
    # N' moves with N_opt, which moves with A, alpha, B and beta.
    through_KI = -alpha * share_A * by_optimal_KI
    repeats_I, ratio_I = at.repeats_I, at.log_parameters_per_unique_I
    log_repeats_I = np.log(np.where(repeats_I > 0, repeats_I, 1.0))
    rows = [
        share_E,
        share_A + through_KI / alpha,
        -share_A * log_n + through_KI * (1 / alpha - log_optimal_KI) / alpha,
        share_B - through_KI / alpha,
        -share_B * log_d + through_KI * (at.log_fresh_I - 1 / beta) / alpha,
        -beta * share_B * _slopes(reuse_D, theta_KP[:, [5]])[1],
        -alpha * share_A * by_reuse_KI,
        share_P,
        share_P * log_repeats_I,
        share_P * ratio_I,
    ]
    return value_KI, np.stack(rows, axis=1)


def _terms(theta_KP: Floats, at: Inputs) -> tuple[Floats, list[Floats], Floats, Floats, Floats, Floats]:
    """Give ln L, each term's share of L, the excess of N and D over what is not excess, ln N' and ln D'."""
    e, a, alpha, b, beta, log_reuse_D, log_reuse_N, p, delta, kappa = (theta_KP[:, [c]] for c in range(10))
    log_optimal_KI = log_optimal_parameters(theta_KP, at.log_fresh_I)
    log_excess_KI = np.clip(at.log_parameters_I - log_optimal_KI, 0.0, LARGEST_LOG)
    excess_N = np.expm1(log_excess_KI)
    excess_D = np.broadcast_to(at.repeats_I, excess_N.shape)
    log_n = np.minimum(at.log_parameters_I, log_optimal_KI) + _log_worth(excess_N, log_reuse_N)
    log_d = at.log_fresh_I + _log_worth(excess_D, log_reuse_D)
    repeated_I = at.repeats_I > 0
    log_repeats_I = np.log(np.where(repeated_I, at.repeats_I, 1.0))
    penalty_KI = np.where(repeated_I, p + delta * log_repeats_I + kappa * at.log_parameters_per_unique_I, -np.inf)
    logs = np.broadcast_arrays(e, a - alpha * log_n, b - beta * log_d, penalty_KI)
    top_KI = np.maximum(np.maximum(logs[0], logs[1]), np.maximum(logs[2], logs[3]))
    parts = [np.exp(log - top_KI) for log in logs]
    total_KI = parts[0] + parts[1] + parts[2] + parts[3]
    return top_KI + np.log(total_KI), [part / total_KI for part in parts], excess_N, excess_D, log_n, log_d


def _log_worth(excess_KI: Floats, log_reuse_K: Floats) -> Floats:
    """Give ln (1 + R* (1 - exp(-R / R*))): what the whole is worth in units of its part that is not excess."""
    reuse = np.exp(log_reuse_K)
    return np.log1p(-reuse * np.expm1(-excess_KI / reuse))


def _slopes(excess_KI: Floats, log_reuse_K: Floats) -> tuple[Floats, Floats]:
    """Give the derivatives of ln N' by ln N_opt (N held) and by ln R_N*; by ln R_D* it is the same for ln D'."""
    reuse = np.exp(log_reuse_K)
    kept_KI = np.exp(-excess_KI / reuse)
    saturated_KI = -reuse * np.expm1(-excess_KI / reuse)
    worth_KI = 1 + saturated_KI
    by_optimal = np.where(excess_KI > 0, 1 - kept_KI * (1 + excess_KI) / worth_KI, 0.0)
    return by_optimal, (saturated_KI - kept_KI * excess_KI) / worth_KI
