"""Which orders an objective trains, in closed form: direction balance, ordering entropy, contexts of targets, novelty.

Suffixes: D distances 1 to T - 1, L numbers of hidden tokens 0 to S, K context buckets. A window has T data tokens, a
block S of them, of which l are hidden. Attention is taken to reach across documents.

The bucket of a target is 4 * rate_bin + 2 * left + right: rate_bin is min(3, floor(4 l / S)) of its block (a masked
window is one block of S = T; in next-token training S = l = 1); left says whether it sees the token before it, or BOS;
right whether it sees the token after it, which must lie in its block. A block's first token always sees the one before
it, its last token never the one after it. Definitions: papers.md 2b, "Ordering Coverage Index".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, xlog1py, xlogy

from crossover.errors import RecipeError
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.objectives.schedules import Schedule
from crossover.records import Mix
from crossover.registry import component_of

Numbers = NDArray[np.float64]
Gear = Autoregressive | Masked | Block

BUCKETS = 16
# Next-token training hides all of a block of one, sees to the left and never to the right.
NEXT_TOKEN_BUCKET = 4 * 3 + 2


@dataclass(frozen=True)
class Directions:
    """How much context the targets of a window see on either side.

    Args:
        left_D: Loss-weighted number of targets, in expectation, that see the token d places before them.
        right_D: The same for the token d places after them.
    """

    left_D: Numbers
    right_D: Numbers


@dataclass(frozen=True)
class HiddenCounts:
    """The law of the number of hidden tokens in a block.

    Args:
        probability_L: Probability that l of the S tokens are hidden.
        weight_L: The same, multiplied by the mean loss weight of a hidden token given l.
    """

    probability_L: Numbers
    weight_L: Numbers


@lru_cache(maxsize=64)
def gear_of(name: str, context: int) -> Gear:
    """Find the objective behind a name, blocks of one token or of a whole window as what they are.

    Args:
        name: Canonical name of an objective.
        context: T, data tokens of a window.

    Returns:
        The objective; a `Block` has 1 < S < T.

    Raises:
        RecipeError: There is no such objective, its blocks do not divide the window, or it has no closed form here.
    """
    gear = component_of("objective", name)
    if isinstance(gear, Block) and context % gear.size:
        raise RecipeError(f"{name}: blocks of {gear.size} do not divide the context {context}; choose a divisor")
    if isinstance(gear, Block) and gear.size == 1:
        return Autoregressive()
    if isinstance(gear, Block) and gear.size == context:
        return Masked(gear.count, gear.noise, gear.eps)
    if not isinstance(gear, Autoregressive | Masked | Block):
        raise RecipeError(
            f"{name}: signal coverage knows no closed form for it, only for autoregressive, masked and block; "
            "leave it out of the gears or leave coverage out of the signals"
        )
    return gear


@lru_cache(maxsize=64)
def hidden_counts(size: int, count: str, noise: Schedule, eps: float) -> HiddenCounts:
    """Say how many tokens of a block are hidden, and at what weight.

    "exact": l is uniform on 1 to S and weighs S / l. "bernoulli": P(l) is the mean over t ~ U(eps, 1) of
    Binomial(l; S, 1 - alpha(t)), and weight(t) stands in the same mean. Frequency-informed noise is taken at its mean
    rate, as if no token were rarer than another.

    Args:
        size: S, tokens in the block.
        count: "exact" or "bernoulli".
        noise: Schedule of "bernoulli".
        eps: Smallest t of "bernoulli".

    Returns:
        The law; sum(probability_L) is 1, and sum(weight_L * l) / S is 1 for a bound schedule at eps = 0.
    """
    l_L = np.arange(size + 1)
    if count == "exact":
        drawn = np.where(l_L > 0, 1 / size, 0.0)
        return HiddenCounts(drawn, drawn * size / np.maximum(l_L, 1))
    # Binomials are as wide as 1 / sqrt(S) of the range, 1 / S at its ends, which is how Gauss-Legendre nodes lie.
    nodes, parts = np.polynomial.legendre.leggauss(64 + 8 * math.isqrt(size))
    # The square of a node, because weight * rate may grow like 1 / sqrt(t) (polynomial noise of power 1/2).
    root = (nodes + 1) / 2
    t, parts = eps + (1 - eps) * root**2, parts * root
    rate = np.clip(1 - noise.alpha(t), 0, 1)[:, None]
    choose_L = gammaln(size + 1) - gammaln(l_L + 1) - gammaln(size - l_L + 1)
    binomial_tL = np.exp(choose_L + xlogy(l_L, rate) + xlog1py(size - l_L, -rate))
    return HiddenCounts(parts @ binomial_tL, (parts * noise.weight(t)) @ binomial_tL)


@lru_cache(maxsize=64)
def directions(name: str, context: int) -> Directions:
    """Count the context on either side of the targets of one window, weighted by the loss, distance by distance.

    Next-token: (T - d, 0); hidden inputs scale it by the share that stays visible; with fixed orders (noise of standard
    deviation i on the positions) the token d to the right comes first with probability Phi(-d / (i sqrt 2)).
    Masked: a pair is (hidden, visible) with probability l (T - l) / (T (T - 1)) and weighs T / l, so its mean is
    E[T - l] / (T - 1) = 1/2, hence ((T - d)/2, (T - d)/2). A schedule gives E_t[weight (1 - alpha) alpha], for a bound
    one -int alpha' alpha dt = 1/2 again. Suffixes see min(l, T - l, d, T - d) targets' left, nothing right.
    Block(S): (T/S) (S - d)+ pairs lie inside blocks and count 1/2 on either side; the others see left, whole.
    papers.md 2b S1.1.

    Args:
        name: Canonical name of an objective.
        context: T, data tokens of a window.

    Returns:
        The counts, for d = 1 to T - 1.
    """
    gear = gear_of(name, context)
    d_D = np.arange(1, context)
    if isinstance(gear, Autoregressive):
        return _next_token_directions(gear, d_D, context)
    size = context if isinstance(gear, Masked) else gear.size
    law = hidden_counts(size, gear.count, gear.noise, gear.eps)
    l_L = np.arange(size + 1)
    scored = float(law.weight_L @ l_L) / size
    half = float(law.weight_L @ (l_L * (size - l_L))) / (size * max(1, size - 1))
    inside_D = context / size * np.maximum(size - d_D, 0)
    if isinstance(gear, Block):
        clean_D = (context - d_D) * gear.autoregressive_weight
        return Directions(half * inside_D + scored * (context - d_D - inside_D) + clean_D, half * inside_D)
    random_D = (1 - gear.suffix_share) * half * inside_D
    left_D = random_D
    if gear.suffix_share:
        ends_L, ends_D = np.minimum(l_L, context - l_L), np.minimum(d_D, context - d_D)
        left_D = random_D + gear.suffix_share * (np.minimum(ends_D[:, None], ends_L) @ law.weight_L)
    return Directions(left_D, random_D if gear.attention == "full" else np.zeros(context - 1))


def _next_token_directions(gear: Autoregressive, d_D: NDArray[np.int64], context: int) -> Directions:
    mean_rate = gear.input_mask_rate / (2 if gear.rate == "uniform" else 1)
    second = gear.masked_input_weight
    seen = 1 + second * (1 - mean_rate) if second else 1 - mean_rate
    scales = np.arange(1, gear.orders)[:, None]
    earlier_D = ndtr(-d_D / (scales * math.sqrt(2))).sum(axis=0) / gear.orders
    return Directions(seen * (context - d_D) * (1 - earlier_D), seen * (context - d_D) * earlier_D)


def direction_balance(mix: Mix, context: int, gamma: float = 1.0) -> float:
    """Say how evenly a mix looks to both sides.

    sum_d w_d 2 min(left, right) / (left + right) / sum_d w_d with w_d = (T - d) d^-gamma, which is a weight of d^-gamma
    for each of the T - d pairs of tokens that lie d apart; a mix adds the counts of its objectives, each times its
    share. Range [0, 1]: next-token training 0, masked 1, their mix 1 minus the next-token share, block(S) the mean of
    T (S - d)+ / (S (T - d)), with gamma = 0 (S - 1) / (T - 1). papers.md 2b S1.1 (OCI-P; its table has these weights).

    Args:
        mix: Shares of data tokens.
        context: T, data tokens of a window; with T = 1 there is no distance and the balance is 0.
        gamma: How fast distance loses weight.

    Returns:
        The balance.
    """
    if context < 2:
        return 0.0
    each = [(share, directions(name, context)) for name, share in mix.shares if share > 0]
    left_D = np.sum([share * one.left_D for share, one in each], axis=0)
    right_D = np.sum([share * one.right_D for share, one in each], axis=0)
    both_D = left_D + right_D
    even_D = np.divide(2 * np.minimum(left_D, right_D), both_D, out=np.zeros_like(both_D), where=both_D > 0)
    d_D = np.arange(1.0, context)
    return float(np.average(even_D, weights=(context - d_D) * d_D**-gamma))


def ordering_entropy(mix: Mix, context: int) -> float:
    """Say how many orders a mix can be asked to generate in, on a logarithmic scale.

    ln |orders| / ln T!, range [0, 1]: one order 0, k fixed orders ln k / ln T!, block(S) (T/S) ln S! / ln T!, masked 1
    (its suffix share, and causal attention, one order: 0). A mix has the mean, weighted by shares, and within an
    objective by the loss weight of its parts. papers.md 2b S1.2 (OCI-H).

    Args:
        mix: Shares of data tokens.
        context: T, data tokens of a window; with T = 1 there is one order.

    Returns:
        The entropy.
    """
    if context < 2:
        return 0.0
    whole = float(gammaln(context + 1))
    return sum(share * _log_orders(gear_of(name, context), context) for name, share in mix.shares if share > 0) / whole


def _log_orders(gear: Gear, context: int) -> float:
    whole = float(gammaln(context + 1))
    if isinstance(gear, Autoregressive):
        return min(whole, math.log(gear.orders))
    if isinstance(gear, Block):
        return context / gear.size * float(gammaln(gear.size + 1)) / (1 + gear.autoregressive_weight)
    return (1 - gear.suffix_share) * whole if gear.attention == "full" else 0.0


@lru_cache(maxsize=64)
def context_probabilities(name: str, context: int) -> Numbers:
    """Say how likely one pass over the text makes a token a target in each bucket of contexts.

    The token lies anywhere in its window alike. Given l of S hidden, any subset is as likely: a token is hidden with
    probability l/S; then one neighbour is visible with (S - l)/(S - 1), both with
    (S - l)(S - l - 1) / ((S - 1)(S - 2)). A hidden suffix of l tokens has one target that sees its left, and none that
    sees its right. Next-token training has one bucket, whatever its options. Range: each in [0, 1]; they sum to the
    probability of being a target, 1 for next-token training and (S + 1) / (2 S) with count=exact. A next-token loss
    beside a block's adds a second target, so its bucket has probability 1.

    Args:
        name: Canonical name of an objective.
        context: T, data tokens of a window.

    Returns:
        p_K, the probabilities of the 16 buckets.
    """
    gear = gear_of(name, context)
    if isinstance(gear, Autoregressive):
        return np.eye(BUCKETS)[NEXT_TOKEN_BUCKET]
    size = context if isinstance(gear, Masked) else gear.size
    law = hidden_counts(size, gear.count, gear.noise, gear.eps)
    found_4L = _neighbours(size)
    if isinstance(gear, Masked):
        found_4L = (1 - gear.suffix_share) * found_4L + gear.suffix_share * _suffix_neighbours(size)
        if gear.attention == "causal":
            found_4L = np.stack(
                [found_4L[0] + found_4L[1], 0 * found_4L[0], found_4L[2] + found_4L[3], 0 * found_4L[0]]
            )
    rate_bin_L = np.minimum(3, 4 * np.arange(size + 1) // size)
    bucket_4L = 4 * rate_bin_L + np.arange(4)[:, None]
    probability_K = np.zeros(BUCKETS)
    np.add.at(probability_K, bucket_4L, found_4L * law.probability_L)
    if isinstance(gear, Block) and gear.autoregressive_weight:
        probability_K[NEXT_TOKEN_BUCKET] = 1.0
    return probability_K


def _neighbours(size: int) -> Numbers:
    """Probability of being hidden with (neither, right, left, both) neighbours visible, given each l: [4, S + 1]."""
    l_L = np.arange(size + 1.0)
    one_L = (size - l_L) / max(1, size - 1)
    pairs = max(1, (size - 1) * (size - 2))
    either_L = (size - l_L) * np.maximum(l_L - 1, 0) / pairs
    both_L = (size - l_L) * np.maximum(size - l_L - 1, 0) / pairs
    neither_L = np.maximum(l_L - 1, 0) * np.maximum(l_L - 2, 0) / pairs
    nothing_L = np.zeros(size + 1)
    if size == 1:
        return np.stack([nothing_L, nothing_L, l_L, nothing_L])
    first = np.stack([nothing_L, nothing_L, 1 - one_L, one_L])
    last = np.stack([1 - one_L, nothing_L, one_L, nothing_L])
    inner = np.stack([neither_L, either_L, either_L, both_L])
    return l_L / size * (first + last + (size - 2) * inner) / size


def _suffix_neighbours(size: int) -> Numbers:
    """The same, if the hidden tokens are the last ones of the window."""
    l_L = np.arange(size + 1)
    nothing_L = np.zeros(size + 1)
    return np.stack([np.maximum(l_L - 1, 0), nothing_L, np.minimum(l_L, 1), nothing_L]) / size


def expected_novelty(probability_K: Numbers, epochs: float) -> float:
    """Say which share of a gear's targets stand in a context that is new to them, after some epochs of it alone.

    sum_b p_b (1 - p_b)^E / sum_b p_b, range [0, 1], falling in E: the Good-Turing expectation of unseen mass, each
    pass hitting bucket b with p_b. papers.md 2b S1.3 (OCI-N).

    Args:
        probability_K: p_K of `context_probabilities`.
        epochs: E, passes over the text before the one asked about.

    Returns:
        The share; 0 where nothing is ever a target.
    """
    return counterfactual_novelty(probability_K, 1 - (1 - probability_K) ** epochs)


def counterfactual_novelty(probability_K: Numbers, seen_K: Numbers) -> float:
    """Say which share of a gear's targets would stand in a new context if the next pass were that gear's.

    sum_b p_b (1 - s_b) / sum_b p_b, range [0, 1]: a pass hits bucket b with p_b whatever the token has been through.
    papers.md 2b S1.3.

    Args:
        probability_K: p_K of `context_probabilities`.
        seen_K: s_K, weighted share of token instances that were a target in bucket b before.

    Returns:
        The share; 0 where nothing is ever a target.
    """
    total = float(probability_K.sum())
    return float(probability_K @ (1 - seen_K)) / total if total > 0 else 0.0
