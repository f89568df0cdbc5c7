from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.errors import RunError
from crossover.evidence.scaling.critical import critical_compute, critical_exponent, shared_exponent
from crossover.evidence.scaling.fit import fit_law
from crossover.evidence.scaling.frontier import frontier
from crossover.evidence.scaling.laws import MUENNIGHOFF
from evidence_scaling.grids import AUTOREGRESSIVE, DIFFUSION, SMALL_TEXTS, exactly, measured, small

OVERFITTING = replace(AUTOREGRESSIVE, overfit_coefficient=5e-3, overfit_repeats_exponent=1.2, overfit_size_exponent=0.5)
AR, MASKED = exactly(AUTOREGRESSIVE), exactly(DIFFUSION, "masked")
FLOPS = np.logspace(14, 22, 50)


@pytest.mark.parametrize("constants", [AUTOREGRESSIVE, DIFFUSION, OVERFITTING])
def test_the_frontier_is_the_lowest_loss_of_all_sizes_and_tokens(constants):
    asked = FLOPS[::4]
    found = frontier(exactly(constants), 1e7, asked)
    sizes, shares = np.meshgrid(np.logspace(3, 13, 600), np.logspace(-6, 0, 200))
    searched = [constants.loss_nats(sizes, 1e7, shares * most / (6 * sizes)).min() for most in asked]
    np.testing.assert_allclose(found.loss_nats_G, searched, rtol=5e-4)
    # Size and tokens are those that give this loss, within the compute.
    reached = constants.loss_nats(found.parameters_G, 1e7, found.tokens_G)
    np.testing.assert_allclose(reached, found.loss_nats_G, rtol=1e-3)
    assert (6 * found.parameters_G * found.tokens_G <= asked * 1.001).all()


def test_a_law_that_turns_up_leaves_compute_unspent():
    found = frontier(exactly(OVERFITTING), 1e7, FLOPS)
    assert 6 * found.parameters_G[-1] * found.tokens_G[-1] < 0.1 * FLOPS[-1]
    assert (np.diff(found.loss_nats_G) <= 0).all()


def test_the_frontier_says_where_it_leaves_the_data():
    law = fit_law(measured(), draws=100)
    found = frontier(law, 1e9, np.logspace(17, 26, 30))
    assert found.inside_G.any() and not found.inside_G[0] and not found.inside_G[-1]
    truth = frontier(exactly(MUENNIGHOFF), 1e9, found.flops_G).loss_nats_G
    held = (found.low_G <= truth * (1 + 1e-6)) & (truth <= found.high_G * (1 + 1e-6))
    assert held[found.inside_G].all()


@given(alpha=st.floats(0.25, 0.5), times=st.floats(0.8, 1.3))
@settings(max_examples=8, deadline=None)
def test_laws_with_the_same_exponents_and_floor_cross_as_one_plus_beta_over_alpha(alpha, times):
    changed = {"size_exponent": alpha, "data_exponent": alpha * times}
    ar, masked = (replace(law, constants=replace(law.constants, **changed)) for law in (AR, MASKED))
    ar, masked = (replace(law, draws_KP=law.constants.theta()[None]) for law in (ar, masked))
    found = critical_exponent(ar, masked, (1e7, 1e8, 1e9))
    assert found.exponent == pytest.approx(shared_exponent(ar.constants), abs=3e-3)


def test_critical_compute_is_where_the_frontiers_meet():
    found = critical_compute(AR, MASKED, 1e8)
    assert found.status == "crossed" and found.flops is not None and not found.lost_again
    around = found.flops * np.array([1e-4, 0.99, 1.01, 1e4])
    ahead = frontier(AR, 1e8, around).loss_nats_G - frontier(MASKED, 1e8, around).loss_nats_G
    assert (np.sign(ahead) == [-1, -1, 1, 1]).all()


def test_identical_laws_never_cross():
    found = critical_compute(AR, replace(AR, family="masked"), 1e8)
    assert found.status == "not reached" and found.flops is None and found.interval is None
    assert "not reached by" in found.told
    exponent = critical_exponent(AR, AR, (1e7, 1e8))
    assert exponent.exponent is None and "not known" in exponent.told and not exponent.identified


def test_a_search_that_ends_too_early_is_censored_and_a_constant_lead_is_no_crossing():
    assert critical_compute(AR, MASKED, 1e8, reach=10.0).status == "not reached"
    better = replace(AUTOREGRESSIVE, size_coefficient=300.0, data_coefficient=1000.0)
    found = critical_compute(AR, exactly(better, "masked"), 1e8)
    assert found.status == "always ahead" and "ahead from the first" in found.told


def test_draws_that_do_not_cross_leave_the_interval_open():
    theta_P = DIFFUSION.theta()
    never_P = replace(DIFFUSION, irreducible_nats=2.2).theta()
    unsure = replace(MASKED, draws_KP=np.stack([theta_P] * 15 + [never_P] * 5))
    sure = replace(AR, draws_KP=np.repeat(AUTOREGRESSIVE.theta()[None], 20, axis=0))
    found = critical_compute(sure, unsure, 1e8)
    assert found.interval is not None and np.isinf(found.interval[1]) and found.crossing_share == 0.75
    assert "not reached]" in found.told
    exponent = critical_exponent(sure, unsure, (1e7, 3e7, 1e8, 1e9))
    assert not exponent.identified and exponent.usable_share == 0.75
    assert any("only 75% of the draws" in note for note in exponent.notes)


def test_a_planted_exponent_of_critical_compute_is_recovered():
    held = 0
    for case in range(3):
        ar = fit_law(small(AUTOREGRESSIVE, "autoregressive", case=case), draws=120, seed=case)
        masked = fit_law(small(DIFFUSION, "masked", case=case), draws=120, seed=case)
        found = critical_exponent(ar, masked, SMALL_TEXTS)
        assert found.exponent is not None and found.interval is not None and found.identified
        assert found.exponent == pytest.approx(2.174, abs=0.08) and np.diff(found.interval) < 0.25
        held += found.interval[0] <= shared_exponent(AUTOREGRESSIVE) <= found.interval[1]
    assert shared_exponent(AUTOREGRESSIVE) == pytest.approx(2.174) and held >= 2


@pytest.mark.slow
def test_the_exponents_interval_covers_in_nine_of_ten_simulations():
    held, simulations = 0, 60
    for case in range(simulations):
        ar = fit_law(small(AUTOREGRESSIVE, "autoregressive", case=case), draws=200, seed=case)
        masked = fit_law(small(DIFFUSION, "masked", case=case), draws=200, seed=case)
        found = critical_exponent(ar, masked, SMALL_TEXTS)
        assert found.interval is not None
        held += found.interval[0] <= 2.174 <= found.interval[1]
    print(held / simulations)
    assert held >= 0.9 * simulations


def test_an_exponent_from_one_measured_text_is_the_forms_and_not_the_datas():
    one = replace(AR, data=replace(AR.data, unique_tokens=(1e8, 1e8)))
    found = critical_exponent(one, MASKED, (1e7, 1e8))
    assert not found.identified and found.exponent is not None
    assert "not established" in found.told and "published" not in found.told
    assert any("have one text" in note for note in found.notes)
    assert any("where 4 over 30 are wanted" in note for note in found.notes)
    with pytest.raises(RunError, match="two texts or more"):
        critical_exponent(AR, MASKED, (1e8, 1e8))


def test_an_exponent_that_rests_on_what_no_data_say_is_not_established():
    vague = replace(AR, identified={**AR.identified, "size_exponent": False})
    found = critical_exponent(vague, MASKED, SMALL_TEXTS)
    assert not found.identified and any("size exponent not identified" in note for note in found.notes)
    found = critical_exponent(AR, MASKED, SMALL_TEXTS)
    assert found.identified and "the published 2.174" in found.told
