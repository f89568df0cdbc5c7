"""Rows as numbers: what is a number is shown under a stable name, what is none is left out."""

from __future__ import annotations

import math

import pytest

from crossover.evidence.sinks.naming import evaluation_numbers, score_numbers, signal_numbers, step_numbers

CLOCK = {"step": 3, "data_tokens": 96, "epochs": 0.5, "flops": 2e9, "flops_6nd": 3e9, "seconds": 0.25}
SHOWN = {f"clock/{key}": float(value) for key, value in CLOCK.items() if key != "step"}


def test_a_step_shows_losses_shares_and_the_clock() -> None:
    row = {
        **CLOCK,
        "mix": {"masked": 1.0},
        "learning_rate": 1e-3,
        "loss_nats": 5.0,
        "losses": {"masked": 5.0},
        "grad_norm": None,
        "skipped": True,
    }
    # An objective that has left the mix has the share 0, not a curve that stops; a norm that was lost has no point.
    assert step_numbers(row, ("autoregressive", "masked")) == SHOWN | {
        "train/loss_nats": 5.0,
        "train/learning_rate": 1e-3,
        "train/skipped": 1.0,
        "train/losses/masked": 5.0,
        "mix/autoregressive": 0.0,
        "mix/masked": 1.0,
    }


def test_evaluations_and_scores_are_named_by_their_procedure() -> None:
    card = {"loss_nats": 4.0, "bits_per_byte": 2.0, "document_nats": [1.0], "exact": True, "tokens": 9}
    named = evaluation_numbers({**CLOCK, **card, "split": "dev", "procedure": "nelbo"})
    assert named == SHOWN | {"dev/nelbo/loss_nats": 4.0, "dev/nelbo/bits_per_byte": 2.0}
    assert score_numbers("test-ar", card) == {"scores/test-ar/loss_nats": 4.0, "scores/test-ar/bits_per_byte": 2.0}
    assert score_numbers("summary", {"headline": "ar", "modes": ["ar"]}) == {}


def test_a_probed_loss_is_its_mean_over_tokens_and_vectors_are_left_out() -> None:
    row = {
        **CLOCK,
        "probe": "loss",
        "units": ["w0", "w1"],
        "unit_tokens": [30, 10],
        "train_unit_tokens": [10, 10],
        "control": {"ar": [1.0, 3.0]},
        "train": {"ar": [1.0, 3.0]},
    }
    shown = signal_numbers(row)
    assert shown.pop("signals/loss/control/ar") == pytest.approx(1.5)
    assert shown.pop("signals/loss/train/ar") == pytest.approx(2.0)
    assert shown == SHOWN
    gradient = {**CLOCK, "probe": "gradient", "gear": "masked", "target": "ar", "norm2_M": [1.0], "mean_norm2": 0.5}
    assert signal_numbers(gradient) == SHOWN | {"signals/gradient/masked/ar/mean_norm2": 0.5}


def test_a_question_to_the_controller_is_of_the_next_step_and_brings_no_clock() -> None:
    row = {**CLOCK, "asked": True, "budget_fraction": 0.5, "exposures": {"masked": 96}}
    assert signal_numbers(row) == {"signals/asked/budget_fraction": 0.5, "signals/asked/exposures/masked": 96.0}


def test_numbers_that_are_not_finite_stay_what_they_are() -> None:
    assert math.isnan(step_numbers({"loss_nats": float("nan")})["train/loss_nats"])
