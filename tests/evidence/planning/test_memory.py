"""Memory of a GPU: parts that add up, shards that shrink, activations that agree with what autograd keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossover.evidence.planning import memory
from crossover.evidence.planning.fit import WITHIN_A_STEP
from crossover.evidence.planning.memory import (
    GIB,
    MARGIN,
    Demand,
    activation_bytes,
    layer_activation_bytes,
    optimizer_bytes,
)
from crossover.model import loss
from crossover.model.backbone import build
from crossover.model.noise import noisy_names
from crossover.model.shapes import Shape, Workload, parameters, shape_of
from crossover.records import Vocabulary
from crossover.registry import component_of
from crossover.sections import ModelRecipe
from crossover.training.spread import Spread

DENSE = shape_of(ModelRecipe(preset="1b"), 32832)
SPARSE = shape_of(ModelRecipe(preset="8b-a1b", family="qwen3_moe"), 32832)


def demand(shape=DENSE, **changes):
    base = Demand(shape, 32784, "adamw", False, False, (Workload(2048, 2048, 0), Workload(2049, 1024.5, 0)))
    return replace(base, **changes)


shapes = st.builds(
    Shape,
    family=st.sampled_from(["llama", "qwen3"]),
    vocabulary=st.integers(64, 200_000),
    width=st.integers(8, 8192),
    depth=st.integers(1, 80),
    heads=st.integers(1, 64),
    kv_heads=st.integers(1, 64),
    head_width=st.integers(8, 256),
    mlp_width=st.integers(8, 30_000),
    tied=st.booleans(),
)


def test_parts_add_up_and_those_that_are_sharded_shrink_with_the_gpus():
    one, eight = demand(averaged=True).on(1, 4), demand(averaged=True).on(8, 4)
    values = vars(one)
    assert one.total == pytest.approx(sum(values.values())) and len(values) == 9
    for name in ("weights", "gradients", "optimizer", "averaged"):
        assert getattr(eight, name) == pytest.approx(getattr(one, name) / 8)
    assert (eight.activations, eight.loss) == (one.activations, one.loss)


@pytest.mark.parametrize("shape", [DENSE, SPARSE])
def test_states_are_four_numbers_a_parameter_and_one_more_for_averaged_weights(shape):
    parts = demand(shape, averaged=True).on(1, 1)
    states = parts.weights + parts.gradients + parts.optimizer + parts.averaged
    # Weights, gradients, two moments and the average in float32; all experts count, whoever is sent to them.
    assert states == 5 * 4 * parameters(shape)


@pytest.mark.parametrize(
    "model",
    [
        ModelRecipe(preset="250k"),
        ModelRecipe(preset="250k", family="qwen3", tied=False),
        ModelRecipe(preset="sparse-1m", family="qwen3_moe", width=32, heads=2, experts=4, expert_width=16),
    ],
    ids=lambda model: model.family,
)
def test_optimizer_states_are_as_large_as_those_of_torch(model):
    words = Vocabulary(320, 272, 256, 257, 272)
    shape = shape_of(model, 320)
    named = list(build(shape, words, context=32, seed=0).inner.named_parameters())
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    for name in ("adamw", "muon"):
        optimizers = component_of("optimizer", name).build(named)
        for optimizer in optimizers:
            optimizer.step()
        kept = [v for o in optimizers for s in o.state.values() for v in s.values() if v.ndim > 0]
        assert optimizer_bytes(shape, name) == sum(value.numel() * value.element_size() for value in kept)


@given(shapes, st.sampled_from(["adamw", "muon"]), st.booleans(), st.integers(1, 64), st.integers(1, 63))
def test_more_gpus_never_need_more_memory_each(shape, optimizer, averaged, windows, gpus):
    asked = demand(shape, optimizer=optimizer, averaged=averaged)
    # Norms and biases apart, which are a rounding of the whole.
    assert asked.on(gpus + 1, windows).total <= asked.on(gpus, windows).total * 1.001


@given(shapes, st.booleans(), st.integers(1, 200), st.floats(1, 200))
def test_the_largest_micro_batch_fits_and_the_next_does_not(shape, checkpointed, gpus, memory_gib):
    asked = demand(shape, checkpointed=checkpointed)
    most = asked.most_windows(gpus, memory_gib)
    assert most == 0 or asked.fits(gpus, most, memory_gib)
    assert most == 2**20 or not asked.fits(gpus, most + 1, memory_gib)


@given(shapes, st.integers(1, 64))
def test_checkpointing_saves_where_there_is_more_than_one_layer(shape, windows):
    inputs = windows * 512
    saved = activation_bytes(shape, inputs, checkpointed=True)
    assert saved <= activation_bytes(shape, inputs, checkpointed=False) or shape.depth == 1


def test_the_smallest_number_that_fits_is_the_smallest():
    counts, memory_gib = range(1, 65), 40
    fewest = demand(SPARSE).fewest_gpus(counts, lambda _: 1, memory_gib)
    assert fewest is not None and demand(SPARSE).fits(fewest, 1, memory_gib)
    assert not demand(SPARSE).fits(fewest - 1, 1, memory_gib)
    assert demand(SPARSE).on(fewest, 1).total <= (1 - MARGIN) * memory_gib * GIB
    assert demand(SPARSE).fewest_gpus(counts, lambda _: 1, 1) is None


def test_chunks_of_logits_are_those_of_the_loss():
    assert (memory.CHUNK_LOGITS, memory.FEWEST_STATES) == (loss.CHUNK_LOGITS_GPU, loss.FEWEST_STATES)


def kept_bytes(shape, inputs, checkpointed=False):
    """Count what autograd keeps of one next-token pass under autocast, weights and their copies apart."""
    words = Vocabulary(shape.vocabulary, 500, 500, 501, 502)
    model = build(shape, words, context=inputs, seed=0)
    if checkpointed:
        assert model.pieces is not None
        model.pieces = replace(model.pieces, checkpointed=True)
    copies = {
        parameter.detach().to(kind).flatten().sum().item(): parameter
        for parameter in model.parameters()
        for kind in (torch.float32, torch.bfloat16)
    }
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    rng = np.random.default_rng(0)
    example = component_of("objective", "autoregressive").corrupt(rng.integers(0, 500, (2, inputs)), rng, words)
    plan = model.plan(example.pattern, inputs)
    arrays = (example.inputs_BN, example.positions_BN, example.targets_R, example.weights_R)
    ids, positions, targets, weights = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(ids, positions, plan, None, targets, weights, 1.0)
    sums = set(copies)
    return sum(size for size, tensor in held.values() if tensor.detach().flatten().sum().item() not in sums)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("width", "heads", "head_width", "mlp_width"), [(160, 4, 40, 352), (96, 3, 64, 512)])
def test_a_layer_keeps_what_autograd_keeps(family, width, heads, head_width, mlp_width):
    shape = Shape(family, 512, width, 2, heads, heads, head_width, mlp_width, True)
    layer = (kept_bytes(replace(shape, depth=3), 150) - kept_bytes(shape, 150)) / 300
    assert layer_activation_bytes(shape) == pytest.approx(layer, rel=0.05)


def test_a_checkpointed_layer_keeps_its_input():
    shape = Shape("llama", 512, 160, 2, 4, 4, 40, 352, True)
    deeper = kept_bytes(replace(shape, depth=4), 150, checkpointed=True)
    assert (deeper - kept_bytes(shape, 150, checkpointed=True)) / 300 == pytest.approx(2 * 4 * 160, rel=0.01)
    counted = [activation_bytes(replace(shape, depth=depth), 300, checkpointed=True) for depth in (2, 4)]
    assert (counted[1] - counted[0]) / 300 == 2 * 4 * 160


def test_experts_that_are_not_chosen_cost_no_activations():
    assert parameters(replace(SPARSE, experts=256)) > 1.9 * parameters(SPARSE)
    more = layer_activation_bytes(replace(SPARSE, experts=256)) - layer_activation_bytes(SPARSE)
    assert more < 0.01 * layer_activation_bytes(SPARSE)


def test_noise_sets_the_matrices_of_the_layers_aside():
    shape = shape_of(ModelRecipe(preset="250k"), 320)
    model = build(shape, Vocabulary(320, 272, 256, 257, 272), context=32, seed=0).inner
    named = dict(model.named_parameters())
    aside = sum(named[name].numel() * named[name].element_size() for name in noisy_names(model))
    assert demand(shape, noisy=True).on(1, 1).noise == aside and demand(shape).on(1, 1).noise == 0
    assert demand(shape, noisy=True).on(4, 1).noise == aside / 4


def test_probes_hold_gradients_and_take_the_room_of_noise():
    quiet, noisy = demand(probe_gradients=4).on(2, 1), demand(probe_gradients=2, noisy=True).on(2, 1)
    assert quiet.probes == 4 * quiet.gradients and demand().on(2, 1).probes == 0
    assert noisy.noise + noisy.probes == 2 * noisy.gradients


def test_a_step_that_is_looked_at_holds_what_is_planned():
    """One gradient of what went before, one micro-batch's own, and a sum for each of two objectives."""
    model = torch.nn.Linear(50, 50, bias=False)
    spread = Spread(model, ("ar", "masked") * 2)
    for kind in ("ar", "masked", "ar", "masked"):
        model(torch.ones(2, 50)).sum().backward()
        spread.note(kind, 1)
    held = [*spread.before.values(), *(tensor for kept in spread.sums.values() for tensor in kept)]
    assert len(held) + 1 == WITHIN_A_STEP + 2
