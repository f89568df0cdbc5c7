"""Gradient probes: the numbers are those that autograd gives directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from crossover.registry import component_of
from crossover.streams import stream
from crossover.training.probes.bench import draw_windows
from crossover.training.probes.gradients import GradientProbe, inner, precondition
from probing import MIX, at, held_out, make, probe_of, trained


@pytest.fixture
def shop(workshop: Callable[..., Any]) -> Any:
    """A run whose training text ends before the control part, after a few steps."""
    return trained(held_out(workshop(controller=MIX, model__residual_dropout=0.1)))


def direct(shop: Any, objective: Any, tokens: np.ndarray, name: str, *counters: int) -> torch.Tensor:
    """One flat gradient of the mean loss per data token, by torch.autograd, slice by slice."""
    stepper, slice_windows = shop.stepper, shop.stepper.loader.windows_per_slice
    total: Any = 0.0
    for start in range(0, len(tokens), slice_windows):
        rng = stream(stepper.seed, name, *counters, start)
        example = objective.corrupt(tokens[start : start + slice_windows], rng, stepper.vocabulary)
        total = total + stepper.loss(example, float(tokens.size))
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(shop.model.parameters()))]).double()


def metric(shop: Any, control: torch.Tensor) -> torch.Tensor:
    """1 / (sqrt(beta2 v + (1 - beta2) g^2) + eps), v bias-corrected, written out for one flat vector."""
    (optimizer,) = shop.stepper.optimizers
    second = [optimizer.state[parameter]["exp_avg_sq"].flatten() for parameter in shop.model.parameters()]
    steps = float(next(iter(optimizer.state.values()))["step"])
    v = torch.cat(second).double() / (1 - 0.95**steps)
    return 1 / ((0.95 * v + 0.05 * control**2).sqrt() + 1e-8)


@pytest.mark.parametrize(("gear", "target"), [("autoregressive", "ar"), ("masked", "nelbo"), ("block(8)", "ar")])
def test_a_gradient_row_is_what_autograd_gives(shop, gear, target):
    probe = probe_of(make(shop, target=target), GradientProbe, gear)
    row = probe.measure(at(7, {}))
    shop.model.eval()
    bench, size, context = probe.bench, probe.windows, shop.recipe.data.context
    text = draw_windows(shop.stepper.loader.tokens_U, 4 * size, context, stream(0, "probe windows", 7))
    held = draw_windows(bench.control_U, probe.control_windows, context, stream(0, "probe control", 7))
    of_target = component_of("objective", {"ar": "autoregressive", "nelbo": "masked"}[target])
    control = direct(shop, of_target, held, "probe control masks", 7)
    objective = component_of("objective", gear)
    parts = [direct(shop, objective, text[m * size : (m + 1) * size], "probe masks", 7, m) for m in range(4)]
    scale = metric(shop, control)
    assert row["gear"] == gear and row["target"] == target and row["parts"] == 4
    assert row["part_tokens"] == row["pair_tokens"] == size * context
    assert row["norm2_M"] == pytest.approx([float(g @ g) for g in parts], rel=1e-3)
    mean = torch.stack(parts).mean(0)
    assert row["mean_norm2"] == pytest.approx(float(mean @ mean), rel=1e-3)
    assert row["control_norm2"] == pytest.approx(float((control * scale) @ control), rel=1e-3)
    assert row["along_M"] == pytest.approx([float((control * scale) @ g) for g in parts], rel=1e-3, abs=1e-3)
    if gear == "autoregressive":
        assert row["mask_half_distance2"] == 0.0
    else:
        other = direct(shop, objective, text[:size], "probe masks", 7, 4)
        assert row["mask_half_distance2"] == pytest.approx(0.5 * float((other - parts[0]).square().sum()), rel=1e-3)
        assert row["mask_half_distance2"] > 0


def test_the_covariance_of_part_means_is_unbiased():
    """M/(M-1) (mean |g_m|^2 - |gbar|^2) is the trace, (M |gbar|^2 - mean |g_m|^2)/(M-1) the squared mean."""
    rng, parts, repeats = np.random.default_rng(0), 4, 20_000
    mean, scale = np.array([1.0, -2.0, 0.5]), np.array([2.0, 1.0, 0.3])
    g = mean + scale * rng.normal(size=(repeats, parts, 3))
    mean_norm2 = (g.mean(1) ** 2).sum(-1)
    norm2 = (g**2).sum(-1).mean(1)
    trace = parts / (parts - 1) * (norm2 - mean_norm2)
    signal = (parts * mean_norm2 - norm2) / (parts - 1)
    assert trace.mean() == pytest.approx((scale**2).sum(), abs=5 * trace.std() / repeats**0.5)
    assert signal.mean() == pytest.approx((mean**2).sum(), abs=5 * signal.std() / repeats**0.5)


def test_a_coordinate_without_a_history_does_not_outweigh_the_others():
    """While only next-token prediction trains, the mask's embedding has no second moment: 1/eps would be its weight."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.95), eps=1e-8)
    for _ in range(50):
        parameter.grad = torch.tensor([1.0, 0.0])
        optimizer.step()
    gradient = [torch.tensor([1.0, 1.0])]
    norm2 = precondition(gradient, [parameter], [optimizer])
    assert gradient[0][0] == pytest.approx(1.0, rel=1e-3)
    assert gradient[0][1] == pytest.approx(1 / 0.05**0.5, rel=1e-3)
    assert norm2 == pytest.approx(inner(gradient, [torch.ones(2)]))


def test_without_second_moments_the_product_is_plain(workshop):
    shop = held_out(workshop(controller=MIX))
    probe = probe_of(make(shop, target="ar"), GradientProbe, "autoregressive")
    value = [torch.full_like(parameter, 2.0) for parameter in shop.model.parameters()]
    assert precondition(value, probe._parameters, shop.stepper.optimizers) == pytest.approx(
        4.0 * sum(parameter.numel() for parameter in shop.model.parameters())
    )


def test_under_muon_a_matrix_is_scaled_as_a_whole(workshop):
    shop = trained(held_out(workshop(controller=MIX, training__optimizer="muon(learning_rate=1e-3)")))
    row = probe_of(make(shop, target="ar"), GradientProbe, "masked").measure(at(1, {}))
    assert row["control_norm2"] > 0 and np.isfinite(row["along_M"]).all()
    muon = shop.stepper.optimizers[0]
    matrix = muon.param_groups[0]["params"][0]
    buffer = muon.state[matrix]["momentum_buffer"]
    value = [torch.ones_like(matrix)]
    precondition(value, [matrix], shop.stepper.optimizers)
    scale = 0.2 / (buffer.square().mean().sqrt() + muon.param_groups[0]["eps"])
    assert torch.allclose(value[0], scale.expand_as(matrix))


def test_the_gradient_of_the_better_mode_is_followed(shop):
    probe = probe_of(make(shop), GradientProbe, "masked")
    assert probe.measure(at(0, {}))["target"] == "ar"
    assert probe.measure(at(0, {"ar": 4.0, "nelbo": 3.0}))["target"] == "nelbo"
    assert probe_of(make(shop, target="l2r"), GradientProbe, "masked").measure(at(0, {}))["target"] == "l2r"
