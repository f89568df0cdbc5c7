"""Next-token prediction and its regularisers."""

import numpy as np
import pytest

import tiny
from crossover.objectives.autoregressive import Autoregressive
from crossover.streams import stream

WORDS = tiny.vocabulary(9)
TOKENS = stream(0, "text").integers(0, 9, (300, 8))


def test_the_plain_objective_shifts_by_one() -> None:
    example = Autoregressive().corrupt(TOKENS, stream(0, "m"), WORDS)
    assert np.array_equal(example.inputs_BN[:, 1:], TOKENS[:, :-1])
    assert np.array_equal(example.targets_R, TOKENS.ravel())
    assert example.reads_R is None and (example.weights_R == 1).all()


@pytest.mark.parametrize("rate", ["fixed", "uniform"])
def test_inputs_are_hidden_at_the_rate_and_targets_are_not(rate) -> None:
    example = Autoregressive(input_mask_rate=0.6, rate=rate).corrupt(TOKENS, stream(1, "m"), WORDS)
    hidden = example.inputs_BN[:, 1:] == WORDS.mask_id
    assert np.array_equal(example.targets_R, TOKENS.ravel())
    assert np.array_equal(example.inputs_BN[:, 1:][~hidden], TOKENS[:, :-1][~hidden])
    assert hidden.mean() == pytest.approx(0.6 if rate == "fixed" else 0.3, abs=0.03)
    # Rates that differ between windows spread the counts more than chance alone does.
    chance = 7 * 0.6 * 0.4
    assert (hidden.sum(1).var() > 1.4 * 7 * 0.3 * 0.7) if rate == "uniform" else hidden.sum(1).var() < 1.3 * chance


def test_the_auxiliary_pass_is_the_clean_loss_plus_a_share_of_the_masked_one() -> None:
    model, few = tiny.model(WORDS, 8), TOKENS[:4]
    clean, noisy, both = (
        float(tiny.loss(model, objective.corrupt(few, stream(2, "m"), WORDS)).detach())
        for objective in (
            Autoregressive(),
            Autoregressive(input_mask_rate=0.5),
            Autoregressive(input_mask_rate=0.5, masked_input_weight=0.4),
        )
    )
    assert both == pytest.approx(clean + 0.4 * noisy, rel=1e-5)
    assert noisy != pytest.approx(clean, rel=1e-3)


def test_orders_are_fixed_permutations_and_positions_stay_with_tokens() -> None:
    examples = [Autoregressive(orders=4).corrupt(TOKENS, stream(3, "m", index), WORDS) for index in range(2)]
    whole = np.concatenate([np.full((len(TOKENS), 1), WORDS.bos_id), TOKENS], 1)
    kinds = []
    for example in examples:
        order = example.positions_BN
        assert np.array_equal(example.inputs_BN, np.take_along_axis(whole, order, 1))
        last = 36 - order.sum(1)
        targets = np.concatenate([example.inputs_BN[:, 1:], np.take_along_axis(whole, last[:, None], 1)], 1)
        assert np.array_equal(example.targets_R, targets.ravel())
        assert np.array_equal(np.sort(np.concatenate([order, last[:, None]], 1)), np.tile(np.arange(9), (300, 1)))
        kinds.append({tuple(row) for row in order})
    assert kinds[0] == kinds[1] and len(kinds[0]) == 4, "an order belongs to the objective, not to a run"
    assert tuple(range(8)) in kinds[0]
    assert {tuple(row) for row in Autoregressive(orders=2).corrupt(TOKENS, stream(4, "m"), WORDS).positions_BN} < (
        kinds[0]
    ), "more orders keep the ones there were"


def test_orders_do_not_mix_with_borders_that_would_show_the_future() -> None:
    with pytest.raises(ValueError, match="attend_across_documents"):
        Autoregressive(orders=2).corrupt(TOKENS, stream(0, "m"), tiny.vocabulary(9, separate=True))
