"""Which hidden tokens are revealed in a forward pass, and which drawn ones are hidden again.

A policy is asked once per text and pass. Those that look see what the model says about every hidden place; the others
choose before the model is run, so that it is run for the chosen places alone, and not at all when there are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RecipeError, nearest

Floats = NDArray[np.float64]
# Places whose scores differ by less than this part of the largest probability, or whose entropies by less than this in
# nats, count as equal, and the leftmost goes first. It is far above what the size of a batch does to float32 and far
# below what makes a choice better.
TIE = 1e-5


@dataclass(frozen=True)
class Told:
    """What the model says about each hidden place, at temperature 1 and not truncated.

    Args:
        first_R: Probability of the likeliest token.
        second_R: Probability of the second.
        entropy_R: Entropy, nats.
    """

    first_R: Floats
    second_R: Floats
    entropy_R: Floats


@dataclass(frozen=True)
class Turn:
    """One text's turn to choose.

    Args:
        hidden: Number of hidden places; a choice names them by rank from left to right.
        drawn: Number of places that were drawn and stand revealed.
        step: Turns that this text (or block) had before, from 0.
        rng: The text's own random numbers.
        told: What the model says about the hidden places; None for a policy that does not look.
    """

    hidden: int
    drawn: int
    step: int
    rng: np.random.Generator
    told: Told | None = None


@dataclass(frozen=True)
class Move:
    """A choice: ranks among the hidden places to reveal, and among the drawn ones to hide again."""

    reveal: list[int]
    hide: list[int] = field(default_factory=list)


class Policy(Protocol):
    """A rule by which hidden tokens are revealed."""

    looks: ClassVar[bool]
    remasks: ClassVar[bool]

    @property
    def name(self) -> str:
        """Name as on the command line."""
        ...

    def choose(self, turn: Turn) -> Move:
        """Choose what is revealed now."""
        ...

    def over(self, step: int) -> bool:
        """Say whether a text without hidden places is finished after so many turns."""
        ...


class _Onward:
    """A policy that never hides again: a text without hidden places is finished."""

    looks: ClassVar[bool] = False
    remasks: ClassVar[bool] = False

    def over(self, step: int) -> bool:
        """Say that nothing is left to be done."""
        return step >= 0


@dataclass(frozen=True)
class _Counted(_Onward):
    """A policy that reveals the same number of tokens in every pass."""

    tokens_per_pass: int = 1
    word: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _at_least_one(self.tokens_per_pass, "tokens_per_pass", self.name)

    @property
    def name(self) -> str:
        """Name as on the command line."""
        return f"{self.word}({self.tokens_per_pass})"


@dataclass(frozen=True)
class LeftToRight(_Counted):
    """Reveals the leftmost hidden tokens; one a pass is an exact draw from what `l2r` scores.

    Args:
        tokens_per_pass: k.
    """

    word: ClassVar[str] = "left_to_right"

    def choose(self, turn: Turn) -> Move:
        """Choose the leftmost."""
        return Move(list(range(min(self.tokens_per_pass, turn.hidden))))


@dataclass(frozen=True)
class FirstHitting(_Counted):
    """First-hitting sampler (Zheng et al., arXiv 2409.02908): from one moment of unmasking to the next.

    Under the linear schedule n tokens hidden at time t are revealed at n independent uniform times in (0, t). The next
    moment is the largest of them, t u^(1/n), and is equally likely to be any token's. The model is not told the time,
    so nothing but the order is left of it: uniformly random. One token a pass draws from the reverse process exactly,
    with no grid; more tokens a pass are drawn as if independent.

    Args:
        tokens_per_pass: Moments per forward pass.
    """

    word: ClassVar[str] = "first_hitting"

    def choose(self, turn: Turn) -> Move:
        """Choose at random."""
        return Move(sorted(turn.rng.permutation(turn.hidden)[: self.tokens_per_pass].tolist()))


@dataclass(frozen=True)
class Ancestral(_Onward):
    """Steps of the reverse process on a grid (MDLM, arXiv 2406.07524, linear schedule).

    From time t to s each hidden token is revealed with probability (t - s) / t, apart from the others. Steps that
    reveal nothing cost no pass, since the model is not told the time.

    Args:
        steps: Steps of equal length from t = 1 to 0, for each text or block.
    """

    steps: int = 64

    def __post_init__(self) -> None:
        _at_least_one(self.steps, "steps", self.name)

    @property
    def name(self) -> str:
        """Name as on the command line."""
        return f"ancestral({self.steps})"

    def choose(self, turn: Turn) -> Move:
        """Choose by a coin per token; the last step takes all."""
        chance = 1 / (self.steps - turn.step)
        return Move(np.flatnonzero(turn.rng.random(turn.hidden) < chance).tolist())


@dataclass(frozen=True)
class Remasking(_Onward):
    """Steps of a reverse process that hides drawn tokens again (ReMDM, arXiv 2503.00307, schedule "cap").

    From time t to s a drawn token is hidden with probability sigma = min(cap, (1 - alpha_s) / alpha_t) and a hidden
    one is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), with alpha_t = 1 - t. The share
    of hidden tokens at each time is the one of `ancestral`, which cap = 0 is. Given tokens stay.

    Args:
        steps: Steps of equal length from t = 1 to 0, for each text or block.
        cap: Largest probability that a drawn token is hidden in a step.
    """

    steps: int = 128
    cap: float = 0.02
    remasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _at_least_one(self.steps, "steps", self.name)
        if not 0 <= self.cap <= 1:
            raise RecipeError(f"'{self.name}': cap must lie in [0, 1], not {self.cap}")

    @property
    def name(self) -> str:
        """Name as on the command line."""
        return f"remasking({self.steps}, {self.cap:g})"

    def choose(self, turn: Turn) -> Move:
        """Choose by a coin per token, hidden or drawn."""
        now, then = (self.steps - turn.step) / self.steps, (self.steps - turn.step - 1) / self.steps
        # At t = 1 nothing has been drawn, so there is nothing to hide.
        sigma = min(self.cap, then / (1 - now)) if now < 1 else 0.0
        chance = 1.0 if turn.step == self.steps - 1 else ((1 - then) - (1 - sigma) * (1 - now)) / now
        reveal, hide = turn.rng.random(turn.hidden) < chance, turn.rng.random(turn.drawn) < sigma
        return Move(np.flatnonzero(reveal).tolist(), np.flatnonzero(hide).tolist())

    def over(self, step: int) -> bool:
        """Say whether the last step is done: until then a drawn token may be hidden again."""
        return step >= self.steps


@dataclass(frozen=True)
class Confidence(_Counted):
    """Reveals the places whose likeliest token is the most probable (LLaDA, arXiv 2502.09992).

    The place is chosen before its token is drawn, so that the text is an exact draw from what `order(confidence)`
    scores; at temperature 0 this is the same as ranking the drawn tokens.

    Args:
        tokens_per_pass: k.
    """

    word: ClassVar[str] = "confidence"
    looks: ClassVar[bool] = True

    def choose(self, turn: Turn) -> Move:
        """Choose the surest."""
        told = _told(turn)
        return Move(_best(told.first_R, float(told.first_R.max()), self.tokens_per_pass))


@dataclass(frozen=True)
class Margin(_Counted):
    """Reveals the places whose likeliest token leads the second by most (arXiv 2502.06768).

    Args:
        tokens_per_pass: k.
    """

    word: ClassVar[str] = "margin"
    looks: ClassVar[bool] = True

    def choose(self, turn: Turn) -> Move:
        """Choose the widest lead."""
        told = _told(turn)
        return Move(_best(told.first_R - told.second_R, float(told.first_R.max()), self.tokens_per_pass))


@dataclass(frozen=True)
class EntropyBounded(_Onward):
    """EB-sampler (arXiv 2505.24857): as many of the places of lowest entropy as keep their joint error bounded.

    It reveals the largest set U of them with sum over U of H - max over U of H <= gamma; the left side bounds the
    mutual information that drawing them independently ignores. At least one is revealed, and gamma = 0 reveals one
    (and all places that have no doubt left).

    Args:
        gamma: The bound, nats.
    """

    gamma: float = 0.1
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise RecipeError(f"'{self.name}': gamma must be a number of nats that is not negative, not {self.gamma}")

    @property
    def name(self) -> str:
        """Name as on the command line."""
        return f"entropy({self.gamma:g})"

    def choose(self, turn: Turn) -> Move:
        """Choose the places of least doubt, as many as the bound allows."""
        entropy_R = _told(turn).entropy_R
        order_R = np.array(_best(-entropy_R, 1.0, len(entropy_R)))
        # In ascending order the largest is the last: what counts is the sum of those before it.
        before_R = np.concatenate([[0.0], np.cumsum(entropy_R[order_R])[:-1]])
        return Move(order_R[before_R <= self.gamma].tolist())


def policy_of(name: str) -> Policy:
    """Make a policy from its name.

    Args:
        name: "first_hitting", "left_to_right", "ancestral", "remasking", "confidence", "margin" or "entropy", with
            arguments in brackets or without: "confidence(4)", "remasking(128, 0.02)". "random" is "first_hitting".

    Returns:
        The policy.

    Raises:
        RecipeError: There is no such policy, or it does not take these arguments.
    """
    found = re.fullmatch(r"\s*([a-z_]+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", name)
    word = found[1] if found else name
    whole = {"left_to_right": LeftToRight, "first_hitting": FirstHitting, "random": FirstHitting}
    whole |= {"ancestral": Ancestral, "confidence": Confidence, "margin": Margin}
    kinds: dict[str, tuple[Callable[..., Policy], tuple[type, ...]]] = {
        word: (kind, (int,)) for word, kind in whole.items()
    }
    kinds |= {"remasking": (Remasking, (int, float)), "entropy": (EntropyBounded, (float,))}
    if found is None or word not in kinds:
        raise RecipeError(f"no way of unmasking called '{name}'; {nearest(word, kinds)}")
    make, types = kinds[word]
    written = [part.strip() for part in found[2].split(",")] if found[2] else []
    try:
        if len(written) > len(types):
            raise ValueError
        values = [kind(part) for kind, part in zip(types, written, strict=False)]
    except ValueError:
        expected = ", ".join(kind.__name__ for kind in types)
        raise RecipeError(f"'{name}': expected {word}({expected}), or fewer arguments") from None
    return make(*values)


def _at_least_one(value: int, what: str, name: str) -> None:
    if value < 1:
        raise RecipeError(f"'{name}': {what} must be at least 1, not {value}")


def _told(turn: Turn) -> Told:
    if turn.told is None:
        raise ValueError("this policy has to be told what the model says")
    return turn.told


def _best(score_R: Floats, scale: float, count: int) -> list[int]:
    """Take the largest scores, the leftmost among those that are equal but for `TIE` parts of a scale."""
    open_R, slack = score_R.copy(), TIE * scale
    chosen = []
    for _ in range(min(count, len(score_R))):
        chosen.append(int(np.argmax(open_R >= open_R.max() - slack)))
        open_R[chosen[-1]] = -np.inf
    return chosen
