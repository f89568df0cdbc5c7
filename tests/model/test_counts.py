"""Closed forms of parameters and FLOPs against the model itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from crossover.errors import RecipeError
from crossover.model import shapes
from crossover.model.attention import make_plan
from crossover.model.backbone import build
from crossover.model.shapes import Workload
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.records import Pattern, Vocabulary
from crossover.sections import ModelRecipe
from crossover.streams import stream

FAMILIES = ["llama", "qwen3", "qwen3_moe"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_parameters_are_those_of_the_model(family, tied, kv_heads) -> None:
    words = tiny.vocabulary(30)
    shape = tiny.shape(family, words.size, kv_heads=kv_heads, tied=tied)
    model = build(shape, words, context=8, seed=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert shapes.parameters(shape) == count
    head = 0 if tied else model.inner.get_output_embeddings().weight.numel()
    assert shapes.body_parameters(shape) == count - model.inner.get_input_embeddings().weight.numel() - head


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("reads", [24, 10])
def test_flops_are_those_that_torch_counts(family, tied, kv_heads, reads) -> None:
    inputs, rows, words = 24, 37, Vocabulary(40, 37, 1, 2, 37)
    shape = replace(tiny.shape(family, 40, kv_heads=kv_heads, tied=tied), width=32, head_width=16)
    model = build(shape, words, context=inputs, seed=0)
    ids = torch.zeros(1, inputs, dtype=torch.long)
    plan = make_plan(Pattern("full"), inputs, ids.device, torch.float32, "tiled")
    work = Workload(inputs, reads, inputs * inputs, inputs * inputs)
    index = None if reads == inputs else torch.arange(reads)
    with FlopCounterMode(display=False) as scoring, torch.no_grad():
        model.nll(ids, ids, plan, index, ids[0, :reads])
    # Queries are projected for all states, since any of them may be read; what is counted leaves the unread ones out.
    unread = 2 * shape.width * shape.heads * shape.head_width * (inputs - reads)
    assert shapes.forward_flops(shape, work, head_rows=rows) == scoring.get_total_flops() - unread
    with FlopCounterMode(display=False) as training:
        model(ids, ids, plan, index, ids[0, :reads], torch.ones(reads), 1.0).backward()
    assert shapes.training_flops(shape, work, head_rows=rows) == training.get_total_flops() - 3 * unread


@pytest.mark.parametrize(
    "objective",
    [
        Autoregressive(),
        Autoregressive(input_mask_rate=0.3, masked_input_weight=0.4),
        Masked(),
        Masked(attention="causal"),
        Masked(count="bernoulli"),
        Block(2),
        Block(4, clean="causal"),
        Block(4, clean="causal", autoregressive_weight=0.1),
        Block(2, count="bernoulli"),
        Block(1),
        Block(8),
    ],
)
def test_an_objective_asks_for_the_work_that_it_says(objective) -> None:
    context, windows, words = 8, 4000, tiny.vocabulary(9)
    tokens = stream(0, "text").integers(0, 9, (windows, context))
    example = objective.corrupt(tokens, stream(0, "mask"), words)
    work = objective.workload(context)
    rows = example.inputs_BN.shape[0] / windows
    assert example.inputs_BN.shape[1] * rows == work.inputs
    entries = tiny.allowed(example.pattern, example.inputs_BN.shape[1]).sum()
    assert entries * rows == work.entries
    assert (example.weights_R > 0).sum() / windows == pytest.approx(work.reads, rel=0.02)
    inputs = example.inputs_BN.shape[1]
    live = np.arange(example.inputs_BN.size) if example.reads_R is None else example.reads_R[example.weights_R > 0]
    keys_N = tiny.allowed(example.pattern, inputs).sum(1)
    read_entries = work.entries if work.read_entries is None else work.read_entries
    assert keys_N[live % inputs].sum() / windows == pytest.approx(read_entries, rel=0.02)


UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


def preset(name: str, **changes) -> ModelRecipe:
    return ModelRecipe(preset=name, family="qwen3_moe" if name in shapes.PRESET_EXPERTS else "qwen3", **changes)


@pytest.mark.parametrize("name", shapes.PRESETS)
def test_presets_have_the_size_that_their_name_says(name) -> None:
    """A sparse model's name says what it has in all and what is active, or what is active alone."""
    shape = shapes.shape_of(preset(name), 4096)
    said = name.removeprefix("sparse-").replace("-a", "-").split("-")
    stated = [float(part[:-1]) * UNITS[part[-1]] for part in said]
    met = shapes.active_parameters(replace(shape, vocabulary=0))
    assert met == pytest.approx(stated[-1], rel=0.25)
    assert len(stated) == 1 or shapes.body_parameters(shape) == pytest.approx(stated[0], rel=0.1)
    assert (met < shapes.body_parameters(shape)) == bool(shape.experts)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", shapes.PRESETS)
def test_every_preset_has_the_parameters_of_its_model(name, family) -> None:
    """Also the large ones: on the meta device weights have a shape and take no room."""
    words = Vocabulary(50_257, 50_255, 50_255, 50_254, 50_256)
    family = "qwen3_moe" if name in shapes.PRESET_EXPERTS else family
    for tied in (True, False):
        shape = shapes.shape_of(ModelRecipe(preset=name, family=family, tied=tied), words.size)
        with torch.device("meta"):
            model = build(shape, words, context=2048, seed=0)
        assert model.shape == shape
        weights = dict(model.inner.named_parameters())
        count = sum(weight.numel() for weight in weights.values())
        assert shapes.parameters(shape) == count
        experts = sum(weight.numel() for key, weight in weights.items() if ".experts." in key)
        met = count - experts + (experts * shape.experts_per_token // shape.experts if experts else 0)
        assert shapes.active_parameters(shape) == met
        layer = [w.numel() for key, w in weights.items() if ".layers.0." in key and w.dim() >= 2]
        assert shapes.layer_matrix_parameters(shape) == sum(layer)


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no preset called '1mm'.*did you mean '1m'"):
        shapes.shape_of(ModelRecipe(preset="1mm"), 100)
    with pytest.raises(RecipeError, match="does not divide"):
        shapes.shape_of(ModelRecipe(preset="1m", heads=4, kv_heads=3), 100)
    with pytest.raises(RecipeError, match="must be even"):
        shapes.shape_of(ModelRecipe(preset="1m", head_width=7), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "8b-a1b"}, "model.family: 'llama' has no experts.*set model.family to qwen3_moe"),
        ({"experts": 8}, "model.experts: 8 has no effect on family 'llama'"),
        ({"experts_per_token": 2}, "model.experts_per_token: 2 has no effect"),
        ({"expert_width": 64}, "model.expert_width: 64 has no effect"),
        ({"balance_coefficient": 0.0}, "model.balance_coefficient: 0 has no effect"),
        ({"router_z_coefficient": 0.1}, "model.router_z_coefficient: 0.1 has no effect"),
        ({"family": "qwen3_moe", "preset": "sparse-1m", "mlp_width": 64}, "mlp_width: 64 has no effect.*expert_width"),
        ({"family": "qwen3_moe", "experts": 8}, "model.experts_per_token: preset '1m' has no experts; give"),
        ({"family": "qwen3_moe", "preset": "sparse-1m", "experts_per_token": 8}, "8 must be below model.experts 8"),
        ({"family": "qwen3_moe", "preset": "sparse-1m", "expert_width": 100}, "100 must be a multiple of 8.*try 96"),
    ],
)
def test_a_setting_of_experts_without_effect_is_refused(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        shapes.shape_of(ModelRecipe(**changes), 100)


def test_a_dense_preset_becomes_sparse_by_three_settings() -> None:
    changes = {"experts": 8, "experts_per_token": 2, "expert_width": 176}
    made = shapes.shape_of(ModelRecipe(preset="1m", family="qwen3_moe", **changes), 100)
    assert made == shapes.shape_of(preset("sparse-1m"), 100)
    # As many active weights in the products as the dense model has, but for the router's.
    dense = shapes.shape_of(ModelRecipe(preset="1m", family="qwen3"), 100)
    assert shapes.active_parameters(made) - shapes.active_parameters(dense) == 4 * 128 * 8
