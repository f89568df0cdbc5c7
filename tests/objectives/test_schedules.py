"""Noise schedules: the weight belongs to the masking rate, and a bound does not depend on the schedule."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from crossover.errors import RecipeError
from crossover.objectives.masked import Masked
from crossover.objectives.schedules import Clipped, Cosine, FrequencyInformed, Linear, LogLinear, Polynomial
from crossover.registry import component_of, names
from tiny import vocabulary

BOUNDS = [Linear(), Cosine(), LogLinear(0.0), Polynomial(), Polynomial(3.0), Polynomial(1.0), Clipped(0.0, 1.0)]
T = 3


def test_every_registered_schedule_is_tested_here() -> None:
    assert set(names("noise")) == {type(item).component_name for item in [*BOUNDS, FrequencyInformed()]}


def some(name: str):
    """Any setting of a registered schedule."""
    share = st.floats(0, 0.99)
    return {
        "linear": st.just(Linear()),
        "cosine": st.just(Cosine()),
        "log_linear": st.builds(LogLinear, share),
        "polynomial": st.builds(Polynomial, st.floats(0.2, 3)),
        "clipped": st.tuples(st.floats(0, 0.5), st.floats(0.51, 1)).map(lambda pair: Clipped(*pair)),
        "frequency": st.builds(FrequencyInformed, st.floats(0, 2)),
    }[name]


@pytest.mark.parametrize("name", sorted(names("noise")))
@given(data=st.data())
def test_alpha_falls_and_a_bounds_weight_is_its_relative_slope(name: str, data) -> None:
    schedule = data.draw(some(name))
    t, step = data.draw(st.floats(0.05, 0.95)), 1e-6
    before, now, after = schedule.alpha(np.array([t - step, t, t + step]))
    assert before > now > after
    ends = schedule.alpha(np.array([0.0, 1.0]))
    assert (ends >= -1e-12).all() and (ends <= 1).all()
    weight = float(schedule.weight(np.array([t]))[0])
    assert np.isfinite(weight) and weight > 0
    if schedule.is_bound:
        assert ends == pytest.approx([1.0, 0.0], abs=1e-12)
        assert weight == pytest.approx((before - after) / (2 * step) / (1 - now), rel=1e-4)


@given(st.floats(0, 0.5), st.floats(0.51, 1), st.floats(0, 1))
def test_clipped_rates_stay_in_the_window_and_weigh_their_inverse(beta: float, omega: float, t: float) -> None:
    schedule = Clipped(beta, omega)
    rate = 1 - schedule.alpha(np.array([t]))
    assert beta - 1e-12 <= rate[0] <= omega + 1e-12
    if rate[0] > 0:
        assert schedule.weight(np.array([t])) * rate == pytest.approx(1)


def subsets() -> list[tuple[int, ...]]:
    return [item for size in range(1, T + 1) for item in itertools.combinations(range(T), size)]


def predictor() -> dict[tuple[int, tuple[int, ...]], float]:
    """Nats of token i when the tokens of a set are hidden: any numbers will do."""
    rng = np.random.default_rng(0)
    return {(token, hidden): rng.exponential() for hidden in subsets() for token in hidden}


def exact_count() -> float:
    """Expectation of T / l times the nats of l hidden tokens, l uniform: the bound's definition."""
    nats, total = predictor(), 0.0
    for size in range(1, T + 1):
        these = [hidden for hidden in subsets() if len(hidden) == size]
        total += np.mean([sum(nats[token, hidden] for token in hidden) for hidden in these]) * T / size / T
    return total


@pytest.mark.parametrize("schedule", BOUNDS, ids=repr)
def test_the_expected_loss_is_the_same_under_every_bound_schedule(schedule) -> None:
    nats = predictor()

    def density(t: float) -> float:
        time = np.array([t])
        rate, weight = 1 - schedule.alpha(time)[0], schedule.weight(time)[0]
        chance = {size: rate**size * (1 - rate) ** (T - size) for size in range(1, T + 1)}
        return weight * sum(chance[len(hidden)] * nats[token, hidden] for hidden in subsets() for token in hidden)

    assert schedule.is_bound
    assert quad(density, 0, 1, epsabs=1e-10)[0] == pytest.approx(exact_count(), abs=1e-8)


def test_a_training_only_schedule_has_another_expectation() -> None:
    """What the test above measures can tell: a clipped window gives another number, and says that it is no bound."""
    schedule, nats = Clipped(0.3, 0.8), predictor()
    times = (np.arange(2000) + 0.5) / 2000
    rate, weight = 1 - schedule.alpha(times), schedule.weight(times)
    total = sum(
        np.mean(weight * rate ** len(hidden) * (1 - rate) ** (T - len(hidden))) * nats[token, hidden]
        for hidden in subsets()
        for token in hidden
    )
    assert not schedule.is_bound
    assert abs(total - exact_count()) > 0.01


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("masked", True),
        ("masked(bernoulli)", False),
        ("masked(bernoulli, eps=0)", True),
        ("masked(bernoulli, noise=cosine, eps=0)", True),
        ("masked(bernoulli, noise=clipped, eps=0)", False),
        ("masked(bernoulli, noise=frequency, eps=0)", False),
        ("masked(bernoulli, noise=log_linear, eps=0)", False),
        ("masked(suffix_share=0.5)", False),
        ("block(4)", True),
        ("block(4, bernoulli)", False),
        ("block(4, bernoulli, eps=0)", True),
        ("block(4, clean=causal, autoregressive_weight=0.5)", False),
    ],
)
def test_an_objective_says_whether_it_is_a_bound(text: str, bound: bool) -> None:
    assert component_of("objective", text).is_bound is bound


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0, 3),
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=4),
)
def test_frequency_informed_noise_keeps_the_mean_rate_and_the_order_of_rarity(rarity, power, times) -> None:
    t_B = np.array(times)
    rarity_BT = np.broadcast_to(np.array(rarity, np.float32), (len(t_B), len(rarity)))
    rates = FrequencyInformed(power).rates_BT(t_B, rarity_BT)
    assert (rates >= 0).all() and (rates <= 1 + 1e-12).all()
    assert rates.mean(1) == pytest.approx(t_B, abs=1e-9)
    order = np.argsort(rarity, kind="stable")
    assert (np.diff(rates[:, order], axis=1) >= -1e-9).all()


def test_frequency_informed_noise_needs_frequencies_and_whole_windows() -> None:
    objective = Masked(count="bernoulli", noise=FrequencyInformed(1.0))
    tokens = np.random.default_rng(0).integers(0, 9, (2000, 6))
    with pytest.raises(ValueError, match="needs token counts"):
        objective.corrupt(tokens, np.random.default_rng(0), vocabulary(9))
    words = vocabulary(9, rarity=True)
    hidden = objective.corrupt(tokens, np.random.default_rng(0), words).inputs_BN[:, 1:] == words.mask_id
    assert hidden.mean() == pytest.approx(0.5, abs=0.01)
    assert hidden[tokens == 8].mean() > 0.6 > 0.4 > hidden[tokens == 0].mean()
    with pytest.raises(RecipeError, match="whole windows"):
        component_of("objective", "block(4, bernoulli, noise=frequency)")
