from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.errors import RunError
from crossover.evidence.scaling.laws import (
    MUENNIGHOFF,
    Constants,
    Form,
    Point,
    inputs,
    log_loss,
    log_loss_gradient,
)

OVERFITTING = replace(MUENNIGHOFF, overfit_coefficient=2e-3, overfit_repeats_exponent=1.2, overfit_size_exponent=0.5)


def test_text_seen_once_by_a_model_of_optimal_size_is_chinchillas_law():
    unique = 1e9
    size = MUENNIGHOFF.optimal_parameters(unique)
    expected = MUENNIGHOFF.irreducible_nats + MUENNIGHOFF.size_coefficient / size**MUENNIGHOFF.size_exponent
    expected += MUENNIGHOFF.data_coefficient / unique**MUENNIGHOFF.data_exponent
    assert MUENNIGHOFF.loss_nats(size, unique, unique) == pytest.approx(expected, rel=1e-12)


@given(alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6))
def test_the_optimal_size_is_where_compute_is_best_spent(alpha, beta):
    law = replace(MUENNIGHOFF, size_exponent=alpha, data_exponent=beta)
    tokens = 1e9
    size = law.optimal_parameters(tokens)
    # Same compute, another size, text always fresh: nothing is better.
    a, b = law.size_coefficient, law.data_coefficient
    around = [a / (size * f) ** alpha + b / (tokens / f) ** beta for f in (0.99, 1.0, 1.01)]
    assert around[1] == min(around)


def test_the_published_constants_reproduce_the_published_readings():
    size, unique = MUENNIGHOFF.optimal_parameters(1e9), 1e9
    fresh = MUENNIGHOFF.loss_nats(size, 4 * unique, 4 * unique)
    once, four, forty, endless = (float(MUENNIGHOFF.loss_nats(size, unique, unique * n)) for n in (1, 4, 40, 1e6))
    # Up to four epochs repeated text is nearly as good as fresh; by forty it is almost worthless.
    assert abs(four - fresh) < 0.08 * (once - fresh) + 0.02
    assert forty - endless < 0.03 * (once - endless)
    law = MUENNIGHOFF
    worth = (endless - law.irreducible_nats - law.size_coefficient / size**law.size_exponent) / law.data_coefficient
    assert worth ** (-1 / law.data_exponent) / unique == pytest.approx(1 + law.data_reuse, rel=1e-6)


def test_parameters_beyond_the_optimal_number_are_worth_ever_less():
    unique = 1e8
    best = MUENNIGHOFF.optimal_parameters(unique)
    losses = MUENNIGHOFF.loss_nats(best * np.array([1.0, 2.0, 10.0, 1e3, 1e6]), unique, unique)
    assert (np.diff(losses) <= 0).all() and losses[-2] - losses[-1] < 1e-9


@given(size=st.floats(1e5, 1e10), unique=st.floats(1e5, 1e10), share=st.floats(0.01, 1.0))
def test_the_overfitting_term_is_nothing_for_one_epoch(size, unique, share):
    tokens = unique * share
    assert OVERFITTING.loss_nats(size, unique, tokens) == MUENNIGHOFF.loss_nats(size, unique, tokens)


def test_the_overfitting_term_turns_the_curve_up_sooner_for_a_larger_model():
    epochs = np.logspace(0, 3, 200)
    turns = [epochs[OVERFITTING.loss_nats(size, 1e8, 1e8 * epochs).argmin()] for size in (1e7, 1e8, 1e9)]
    assert turns[0] > turns[1] > turns[2] > 1
    assert np.argmin(MUENNIGHOFF.loss_nats(1e8, 1e8, 1e8 * epochs[:100])) == 99


numbers = st.tuples(
    st.floats(0.5, 3.0), st.floats(10, 1e4), st.floats(0.1, 0.8), st.floats(10, 1e4), st.floats(0.1, 0.8),
    st.floats(1, 1e3), st.floats(1, 1e3), st.floats(1e-4, 0.1), st.floats(0.3, 2.0), st.floats(0.01, 1.0),
)  # fmt: skip


@given(numbers)
@settings(deadline=None)
def test_the_gradient_is_the_derivative(values):
    theta_KP = Constants(*values).theta()[None]
    sizes, texts, epochs = np.meshgrid([1e6, 1e8, 1e10], [1e6, 1e9], [0.3, 1.0, 5.0, 300.0])
    at = inputs(sizes, texts, texts * epochs)
    # The law has a kink in its second derivative where a size is exactly optimal; points near it are left out.
    value_KI, slopes_KPI = log_loss_gradient(theta_KP, at)
    assert np.array_equal(value_KI, log_loss(theta_KP, at))
    for column in range(theta_KP.shape[1]):
        step = np.zeros_like(theta_KP)
        step[0, column] = 1e-6
        numeric_KI = (log_loss(theta_KP + step, at) - log_loss(theta_KP - step, at)) / 2e-6
        np.testing.assert_allclose(slopes_KPI[:, column], numeric_KI, rtol=2e-4, atol=2e-6)


def test_constants_survive_the_fitters_coordinates():
    for law in (MUENNIGHOFF, OVERFITTING):
        assert asdict(Constants.of(law.theta())) == pytest.approx(asdict(law))


@pytest.mark.parametrize("field", ["parameters", "unique_tokens", "tokens", "loss_nats"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_point_that_is_no_measurement_is_refused(field, value):
    with pytest.raises(RunError, match=field):
        replace(Point(1e6, 1e6, 1e6, 3.0, "masked"), **{field: value})


def test_a_form_that_means_nothing_is_refused():
    with pytest.raises(RunError, match="did you mean 'data_reuse'"):
        Form(held={"data_reus": 15.0})
    with pytest.raises(RunError, match="above 0"):
        Form(held={"data_reuse": -1.0})
    with pytest.raises(RunError, match="tied"):
        Form(tied_exponents=True, held={"data_exponent": 0.3})
    with pytest.raises(RunError, match="no effect"):
        Form(held={"overfit_coefficient": 0.1})
