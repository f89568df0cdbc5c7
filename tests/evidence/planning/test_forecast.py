"""Expected losses: published numbers, intervals, extrapolation, what has no law, and where masked training wins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.control.critical import critical_compute_flops
from crossover.errors import RunError
from crossover.evidence.planning.forecast import USED_UP_NATS, Book, forecast, read_book, useful_epochs
from crossover.evidence.planning.spending import Spending
from crossover.evidence.scaling.book import published_laws, save_laws
from crossover.evidence.scaling.critical import critical_compute
from crossover.evidence.scaling.laws import MUENNIGHOFF

U = 1_000_000_000


def bought(tokens, parameters=300_000_000):
    flops = 6.0 * parameters * tokens
    prices = {"autoregressive": 6.0 * parameters, "masked": 6.0 * parameters}
    return Spending("flops", flops, flops, prices, flops / tokens, tokens, tokens / U, 1, flops, 0.0, flops, {}, (), "")


def expect(
    book, tokens=16e9, unique=U, parameters=300_000_000, hybrid=False, sparse=False, guessing=10.0, trained=None
):
    return forecast(
        book,
        bought(tokens, parameters),
        parameters=parameters,
        unique_tokens=unique,
        train_tokens=unique if trained is None else trained,
        guessing_nats=guessing,
        sparse=sparse,
        hybrid=hybrid,
    )


def test_four_epochs_cost_half_a_percent(published):
    """Muennighoff et al., figure 1: 8.7B parameters on 44B tokens four times end 0.5% above 178B tokens once."""
    losses = [
        expect(published, 178e9, unique, 8_670_000_000).of("autoregressive").loss_nats for unique in (44e9, 178e9)
    ]
    assert losses[0] / losses[1] - 1 == pytest.approx(0.005, abs=0.003)


def test_the_law_is_the_published_formula(published):
    a, b, power, reuse_d, reuse_n = np.exp(6.255414), np.exp(7.3049974), 0.3526596, 15.387756, 5.309743
    n, d = 300e6, 16e9
    fresh = U + U * reuse_d * (1 - np.exp(-(d / U - 1) / reuse_d))
    best = (a / b) ** (1 / power) * U
    size = min(n, best) + min(n, best) * reuse_n * (1 - np.exp(-(n / min(n, best) - 1) / reuse_n))
    by_hand = np.exp(0.6254804) + a / size**power + b / fresh**power
    found = expect(published).of("autoregressive")
    assert found.loss_nats == pytest.approx(by_hand, rel=1e-9)
    assert found.interval[0] <= by_hand <= found.interval[1]
    assert found.run_interval[0] <= found.interval[0] and found.interval[1] <= found.run_interval[1]


@settings(max_examples=40)
@given(st.floats(7, 10), st.floats(0.01, 3), st.floats(0, 2.5), st.floats(7, 10))
def test_more_text_never_worsens_the_expected_loss(published, log_unique, more, log_epochs, log_parameters):
    law, unique, tokens = published.laws["autoregressive"], 10**log_unique, 10 ** (log_unique + log_epochs)
    overfitting = replace(
        law.constants, overfit_coefficient=0.01, overfit_repeats_exponent=1.2, overfit_size_exponent=0.3
    )
    for constants in (law.constants, overfitting):
        losses = constants.loss_nats(10**log_parameters, [unique, unique * 10**more], tokens)
        assert losses[1] <= losses[0] * (1 + 1e-12)


def test_extrapolation_is_told_and_what_it_rests_on(published):
    inside = expect(published).of("autoregressive")
    assert inside.extrapolation == ()
    outside = expect(published, 1e13, parameters=70_000_000_000).of("autoregressive")
    assert any("parameters 7e+10 is 8.07 times the most in the data" in told for told in outside.extrapolation)
    assert "size_reuse" in outside.rests_on_unknown


def test_a_law_that_is_worse_than_guessing_gives_no_number(published):
    found = expect(published, 1e6, unique=40_000, parameters=280_000, guessing=np.log(1072))
    holder = found.of("autoregressive")
    assert holder.loss_nats is None and "guessing a token costs 6.98" in holder.told and holder.extrapolation
    assert found.optima == ()


def test_what_has_no_law_gets_no_number(published):
    found = expect(published, hybrid=True)
    for way in ("masked", "hybrid"):
        assert found.of(way).loss_nats is None and "no law" in found.of(way).told
    assert "need not lie between" in found.of("hybrid").told
    assert any("another tokenizer" in note for note in found.notes)


def test_sparse_models_are_said_to_be_a_guess(published):
    assert "guess" in expect(published, sparse=True).notes[0]
    assert "sparse" not in " ".join(expect(published).notes)


def test_published_critical_compute(published):
    """Prabhudesai et al.: C_crit(100M) = 4.7e19 and C_crit(500M) = 1.56e21 FLOPs."""
    for unique, flops in ((100_000_000, 4.7e19), (500_000_000, 1.56e21)):
        critical = expect(published, unique=unique).critical
        assert critical.flops == pytest.approx(flops, rel=0.02)
        assert critical.flops == pytest.approx(critical_compute_flops(unique))
        assert critical.status == "published" and critical.interval is None
        assert critical.ratio == pytest.approx(critical.budget_flops / critical.flops)
    assert "5 times more" in expect(published, unique=500_000_000).critical.told
    assert "times" not in expect(published, unique=50_000_000).critical.told


def test_two_laws_give_their_own_critical_compute(pair):
    critical = expect(pair).critical
    found = critical_compute(pair.laws["autoregressive"], pair.laws["masked"], U)
    assert (critical.flops, critical.interval, critical.status) == (found.flops, found.interval, "crossed")


def test_the_lead_changes_at_the_critical_compute(pair):
    flops = expect(pair).critical.flops
    for share, masked_leads in ((0.2, False), (5.0, True)):
        best = {each.family: each.loss_nats for each in expect(pair, share * flops / (6 * 300e6)).optima}
        assert (best["masked"] < best["autoregressive"]) is masked_leads


def test_the_best_size_is_no_worse_than_the_recipe(pair):
    found = expect(pair)
    for best in found.optima:
        assert best.loss_nats <= found.of(best.family).loss_nats + 1e-9
        assert best.interval[0] <= best.loss_nats <= best.interval[1]
        assert 6 * best.parameters * best.epochs * U <= found.critical.budget_flops * 1.001


def test_useful_epochs_end_where_a_law_turns_up_or_saturates(published):
    law = published.laws["autoregressive"]
    epochs, turns_up = useful_epochs(law, 300e6, U)
    limit = law.constants.loss_nats(300e6, U, U * 1e6)
    assert not turns_up
    assert law.constants.loss_nats(300e6, U, U * epochs) == pytest.approx(limit + USED_UP_NATS, abs=5e-4)
    longer = replace(law, constants=replace(MUENNIGHOFF, data_reuse=500.0))
    assert useful_epochs(longer, 300e6, U)[0] > 5 * epochs
    worse = replace(MUENNIGHOFF, overfit_coefficient=1e-3, overfit_repeats_exponent=1.5, overfit_size_exponent=0.1)
    epochs, turns_up = useful_epochs(replace(law, constants=worse), 300e6, U)
    losses = worse.loss_nats(300e6, U, [U * epochs * by for by in (0.8, 1.0, 1.25)])
    assert turns_up and losses[1] == min(losses)


def test_laws_are_read_by_their_family(tmp_path, pair):
    path = tmp_path / "laws.json"
    save_laws({"my ar": pair.laws["autoregressive"], "my masked": pair.laws["masked"]}, path)
    book = read_book(path)
    assert set(book.laws) == {"autoregressive", "masked"} and book.source == str(path)
    found, before = expect(book), expect(pair)
    assert [each.loss_nats for each in found.expected] == [each.loss_nats for each in before.expected]
    save_laws({"x": replace(pair.laws["masked"], family="block(16)")}, path)
    with pytest.raises(RunError, match="has laws of block\\(16\\); expected one of autoregressive, ar, masked"):
        read_book(path)


def test_a_hybrid_with_a_law_has_a_number(pair):
    law = replace(pair.laws["masked"], family="online")
    found = expect(Book({**pair.laws, "hybrid": law}, "three"), hybrid=True)
    assert found.of("hybrid").loss_nats == found.of("masked").loss_nats
    assert published_laws().keys() == {"autoregressive"}


def test_exact_family_names_come_first_and_what_is_taken_is_told(tmp_path, pair):
    holder, path = pair.laws["autoregressive"], tmp_path / "laws.json"

    def taken(**names):
        laws = {name: replace(holder, family=name, runs=runs) for name, runs in names.items()}
        save_laws({"autoregressive": holder, **laws}, path)
        book = read_book(path)
        return {way: law.runs for way, law in book.laws.items() if way != "autoregressive"}, " ".join(book.notes)

    found, notes = taken(**{"masked(0.5)": 20, "masked": 30})
    assert found == {"masked": 30} and "'masked' is taken; masked(0.5) would do too" in notes
    found, notes = taken(**{"masked(0.5)": 20})
    assert found == {"masked": 20} and "the one called 'masked(0.5)' is taken" in notes
    found, notes = taken(**{"masked(0.5)": 20, "masked(0.2)": 30})
    assert found == {} and "for masked training, of the laws of this file none is taken" in notes
    found, notes = taken(online=20, hybrid=30)
    assert found == {"hybrid": 30} and "online would do too" in notes
    assert taken(masked=30) == ({"masked": 30}, "")


def test_a_law_above_guessing_gives_no_number_inside_its_data_either(published):
    found = expect(published, guessing=1.0).of("autoregressive")
    assert found.extrapolation == () and found.loss_nats is None and "guessing a token costs 1" in found.told
