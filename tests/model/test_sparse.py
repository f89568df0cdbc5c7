"""Experts and routers: transformers' own arithmetic, losses that know one sequence only, a log without waiting."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

import tiny
from crossover.model.backbone import Backbone, build
from crossover.model.layers import Pieces
from crossover.model.routing import Reads, RouterLosses, Routing, balance_and_z, losses_of, routing_row
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.objectives.mixing import join
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.picking import Picking
from crossover.sections import ModelRecipe
from crossover.streams import stream

OBJECTIVES = [
    Autoregressive(),
    Masked(),
    Masked(count="bernoulli"),
    Block(4),
    Block(4, clean="causal", autoregressive_weight=0.5),
]
WORDS = tiny.vocabulary(9)


def sparse(losses: RouterLosses | None = None, **changes) -> Backbone:
    """A random sparse model in training, with weights large enough that routers have preferences."""
    shape = replace(tiny.shape("qwen3_moe", WORDS.size), **changes)
    made = build(shape, WORDS, context=8, seed=0, router_losses=losses)
    with torch.no_grad():
        for parameter in made.inner.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10)
    return made.train()


def example_of(objective, windows: int = 6, seed: int = 0):
    return objective.corrupt(stream(seed, "text").integers(0, 8, (windows, 8)), stream(seed, "mask"), WORDS)


def backward(model: Backbone, example, step_tokens: float) -> torch.Tensor:
    """One micro-batch of a step as the stepper runs it."""
    index = None if example.reads_R is None else tiny.tensor(example.reads_R)
    inputs, positions = tiny.tensor(example.inputs_BN), tiny.tensor(example.positions_BN)
    targets, weights = tiny.tensor(example.targets_R), tiny.tensor(example.weights_R)
    share = example.data_tokens / step_tokens
    loss = model(inputs, positions, tiny.plan_of(model, example), index, targets, weights, step_tokens, share)
    loss.backward()
    return loss.detach()


def gradients(model: Backbone) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.inner.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("choices", [1, 2, 4])
@pytest.mark.parametrize("theirs", ["eager", "grouped_mm", "batched_mm"])
def test_experts_compute_what_transformers_computes(choices, theirs) -> None:
    """Forward and backward, also for experts that no token chose."""
    model = sparse(experts_per_token=choices)
    inner = model.inner.model.layers[0].mlp
    states = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for implementation in ("crossover", theirs):
        model.inner.set_experts_implementation(implementation)
        out = inner(states[None])[0]
        (gradient,) = torch.autograd.grad(out.square().sum(), states, retain_graph=True)
        weights = torch.autograd.grad(out.square().sum(), list(inner.parameters()))
        results.append([out.detach(), gradient, *weights])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_same_pass_gives_the_same_gradient_on_several_threads() -> None:
    """From three choices on, a sum whose terms come in any order would differ from pass to pass."""
    model = sparse(width=64, experts=8, experts_per_token=3, heads=2, head_width=32)
    ids = stream(0, "text").integers(0, 8, (64, 8))
    example = Autoregressive().corrupt(ids, stream(0, "mask"), WORDS)
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(8):
            backward(model, example, 512.0)
            found.append(gradients(model))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_routers_and_residual_stream_stay_exact_where_products_are_rounded() -> None:
    model = sparse()
    seen = []
    model.inner.model.layers[0].mlp.gate.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    ids = torch.arange(8)[None]
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(ids, ids, model.plan(Pattern("full"), 8))
    assert seen[0].dtype == torch.float32 and states.dtype == torch.float32
    torch.testing.assert_close(states, model.states(ids, ids, model.plan(Pattern("full"), 8)), rtol=0.2, atol=0.2)


def test_the_losses_are_those_of_their_papers() -> None:
    """Over one sequence, transformers' loss is K times the one here; the z-loss is written out."""
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    for choices in (1, 2, 3):
        chosen = logits.topk(choices).indices
        balance, z, usage = balance_and_z(logits, chosen, Reads(1, 12, None, torch.ones(12)))
        torch.testing.assert_close(balance * choices, load_balancing_loss_func((logits,), 5, choices))
        torch.testing.assert_close(
            z, sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist()) / torch.tensor(12.0)
        )
        assert usage.tolist() == np.bincount(chosen.flatten(), minlength=5).tolist()


def test_balance_is_one_for_even_use_and_experts_over_choices_for_a_single_set() -> None:
    even = torch.eye(4).repeat(2, 1) * 50
    reads = Reads(1, 8, None, torch.ones(8))
    assert float(balance_and_z(even, even.topk(1).indices, reads)[0]) == pytest.approx(1, abs=1e-5)
    same = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert float(balance_and_z(same, same.topk(1).indices, reads)[0]) == pytest.approx(4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), last=st.booleans(), cut=st.integers(0, 5))
def test_sequences_are_balanced_one_by_one(seed, rows, last, cut) -> None:
    """The loss of rows together is the mean of their own, however they are cut; only states that are read count."""
    rng, inputs = np.random.default_rng(seed), 6
    logits = torch.from_numpy(rng.normal(size=(rows * inputs, 5))).float()
    read = np.flatnonzero(rng.random(rows * inputs) < 0.6)
    index = torch.from_numpy(np.concatenate([read, np.zeros(3, np.int64)]))
    weights = torch.cat([torch.ones(len(read)), torch.zeros(3)])

    def losses(which: np.ndarray) -> torch.Tensor:
        mine = torch.from_numpy(np.isin(index.numpy() // inputs, which))
        offset = inputs * int(which[0]) if len(which) else 0
        states = torch.cat([torch.arange(row * inputs, (row + 1) * inputs) for row in which.tolist()])
        states = index[mine] if last else states
        # Padding points at the first state of what it stands in, as objectives pad.
        reads = Reads(len(which), inputs, index[mine] - offset, weights[mine])
        return torch.stack(balance_and_z(logits[states], logits[states].topk(2).indices, reads, last=last)[:2])

    alone = torch.stack([losses(np.array([row])) for row in range(rows)])
    torch.testing.assert_close(losses(np.arange(rows)), alone.mean(0))
    cut = min(cut, rows)
    parts = [losses(part) * len(part) / rows for part in (np.arange(cut), np.arange(cut, rows)) if len(part)]
    torch.testing.assert_close(torch.stack(parts).sum(0), alone.mean(0))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(objective) -> None:
    """Gradient, losses and expert usage; the coefficients are large, so that they would show."""
    examples = [example_of(objective, windows=2, seed=seed) for seed in range(4)]
    tokens, results = 4 * 2 * 8.0, []
    for cut in (1, 2, 3, 4):
        model = sparse(RouterLosses(balance=2.0, router_z=0.5))
        parts = [join(examples[start : start + cut]) for start in range(0, 4, cut)]
        loss = sum(backward(model, part, tokens) for part in parts)
        results.append([loss, model.routing.take(), *gradients(model).values()])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_auxiliary_losses_move_the_gradient_in_training_and_no_reported_nats(objective) -> None:
    example = example_of(objective)
    plain, free, held = sparse(), sparse(RouterLosses(0.0, 0.0)), sparse(RouterLosses(3.0, 1.0))
    nats = [backward(model, example, 48.0) for model in (plain, free, held)]
    assert torch.equal(nats[0], nats[1]) and torch.equal(nats[0], nats[2])
    base, same, moved = (gradients(model) for model in (plain, free, held))
    assert all(torch.equal(base[name], same[name]) for name in base)
    assert all(not torch.equal(base[name], moved[name]) for name in base if name.endswith("mlp.gate.weight"))
    # Out of training, as probes and scores look at it, the losses act on nothing and nothing is counted.
    held.routing.forget()
    backward(held.eval(), example, 48.0)
    assert all(torch.equal(base[name], value) for name, value in gradients(held).items())
    assert not held.routing.usage_LE.any()


@pytest.mark.parametrize("which", ["balance", "router_z"])
def test_the_gradient_is_that_of_the_loss_times_its_factor(which) -> None:
    """Read off by differences along the routers' own weights, in float64, where no choice changes."""
    example, width = example_of(Masked()), 1e-4
    model = sparse(RouterLosses(**{"balance": 0.0, "router_z": 0.0, which: 1.0})).double()
    gate = model.inner.model.layers[-1].mlp.gate.weight
    backward(model, example, 48.0)
    with_loss = gate.grad.clone()
    model.zero_grad()
    model.routing.losses = RouterLosses(0.0, 0.0)
    backward(model, example, 48.0)
    extra, values = with_loss - gate.grad, []
    for sign in (1, -1):
        model.routing.forget()
        with torch.no_grad():
            gate += sign * width * extra
            index, arguments = (
                tiny.tensor(example.reads_R),
                (tiny.tensor(example.inputs_BN), tiny.tensor(example.positions_BN)),
            )
            model(
                *arguments,
                tiny.plan_of(model, example),
                index,
                tiny.tensor(example.targets_R),
                tiny.tensor(example.weights_R),
                48.0,
            )
            gate -= sign * width * extra
        values.append(float(model.routing.losses_2[["balance", "router_z"].index(which)]))
    slope = (values[0] - values[1]) / (2 * width)
    assert slope == pytest.approx(float(extra.square().sum()), rel=0.02)


def test_a_sparse_model_that_is_balanced_uses_its_experts_more_evenly() -> None:
    entropies = []
    for factor in (0.0, 1.0):
        model = sparse(RouterLosses(balance=factor, router_z=0.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(40):
            model.routing.forget()
            backward(model, example_of(Autoregressive(), seed=step), 48.0)
            optimizer.step()
            optimizer.zero_grad()
        entropies.append(routing_row(model.routing.take())["expert_usage"]["entropy"])
    assert entropies[1] > entropies[0] + 0.02 and entropies[1] > 0.95


def test_the_log_says_how_experts_were_used() -> None:
    routing = Routing(RouterLosses(), layers=2, experts=4)
    routing.usage_LE += torch.tensor([[5.0, 5, 5, 5], [20, 0, 0, 0]])
    routing.losses_2 += torch.tensor([2.5, 3.0])
    row = routing_row(routing.take())
    assert row["expert_usage"] == {"least": 0.0, "most": 4.0, "entropy": 0.5}
    assert row["balance_loss"] == 2.5 and row["router_z_loss"] == 3.0
    assert not routing.usage_LE.any() and not routing.losses_2.any()
    assert routing_row(None) == {} and list(routing.state_dict()) == []


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_gradients_reach_every_router_and_every_expert(objective) -> None:
    model = sparse(RouterLosses())
    for seed in range(4):
        backward(model, example_of(objective, windows=16, seed=seed), 512.0)
    for name, parameter in model.inner.named_parameters():
        if ".experts." in name:
            assert (parameter.grad.flatten(1).abs().amax(1) > 0).all(), f"{name}: an expert without a gradient"
        if name.endswith("gate.weight"):
            assert (parameter.grad.abs().amax(1) > 0).all(), f"{name}: an expert that is never chosen or left out"


def test_a_single_choice_teaches_the_router_too() -> None:
    """Normalised over one choice, its weight would be 1 whatever the router says."""
    model = sparse(experts_per_token=1)
    backward(model, example_of(Autoregressive()), 48.0)
    assert float(model.inner.model.layers[0].mlp.gate.weight.grad.norm()) > 1e-6


def test_dropout_of_experts_is_at_their_sum() -> None:
    shape = tiny.shape("qwen3_moe", WORDS.size)
    model = build(shape, WORDS, context=8, seed=0, residual_dropout=0.25).train()
    seen = []
    model.inner.model.layers[0].mlp.experts.register_forward_hook(lambda _, inputs, output: seen.append(output))
    ids = torch.randint(0, 9, (40, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model.states(ids, torch.arange(8)[None], model.plan(Pattern("causal"), 8))
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient_and_counts_once(dropout) -> None:
    results = []
    for checkpointed in (False, True):
        shape = tiny.shape("qwen3_moe", WORDS.size)
        model = build(shape, WORDS, context=8, seed=0, residual_dropout=dropout, router_losses=RouterLosses()).train()
        model.pieces = Pieces(checkpointed=checkpointed)
        torch.manual_seed(1)
        backward(model, example_of(Masked()), 48.0)
        results.append([model.routing.take(), *gradients(model).values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_training_pass_with_routers_waits_for_nothing_on_the_device(objective) -> None:
    """On the meta device every look at a value is an error."""
    example = example_of(objective)
    model = sparse(RouterLosses()).to("meta", torch.bfloat16)

    def place(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else tiny.tensor(array).to("meta")

    arrays = (example.inputs_BN, example.positions_BN, example.reads_R, example.targets_R, example.weights_R)
    inputs, positions, index, targets, weights = map(place, arrays)
    # A dense pattern stands for all: what is looked at here is not attention.
    plan = tiny.Plan(Pattern("full"), "sdpa")
    model(inputs, positions, plan, index, targets, weights, 48.0, 1.0).backward()
    assert model.routing.take().shape == (5,)


@pytest.mark.filterwarnings("ignore")
def test_traced_pieces_compute_the_same() -> None:
    """A graph of a piece stops at the experts, whose rows are counted, and goes on behind them."""
    objective, results = Masked(), []
    for compiled in (False, True):
        model = sparse(RouterLosses())
        if compiled:
            wrap = partial(torch.compile, backend="eager", dynamic=True)
            model.pieces = replace(model.pieces, leave=wrap(model.pieces.leave))
        loss = backward(model, example_of(objective), 48.0)
        results.append([loss, model.routing.take(), *gradients(model).values()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", [AutoregressiveSampler(Picking(temperature=0.0)), BlockSampler(4)], ids=repr)
def test_samplers_with_a_cache_draw_what_they_draw_without(sampler) -> None:
    words = tiny.vocabulary(12)
    for seed in range(4):
        model = tiny.model(words, 24, "qwen3_moe", seed=seed)
        with_cache, without = (
            replace(sampler, cached=cached).sample(model, [[1, 2, 3]], 12, seed) for cached in (True, False)
        )
        assert with_cache[0].ids == without[0].ids and len(with_cache[0].ids) > 0
        model.pieces = None  # as transformers runs its own layers
        assert sampler.sample(model, [[1, 2, 3]], 12, seed)[0].ids == without[0].ids


def test_coefficients_left_out_are_those_that_were_published() -> None:
    assert losses_of(ModelRecipe()) is None
    recipe = ModelRecipe(preset="sparse-1m", family="qwen3_moe")
    assert losses_of(recipe) == RouterLosses(0.01, 0.001)
    assert losses_of(replace(recipe, balance_coefficient=0.0, router_z_coefficient=2.0)) == RouterLosses(0.0, 2.0)
