"""A folder unmasks in plain transformers what the project's own samplers unmask on the same weights."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import tiny
from crossover.data.tokenizer import Bytes
from crossover.hub import custom_generate
from crossover.hub.export import export, facts_of
from crossover.model.backbone import Backbone
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import Confidence, LeftToRight

T = 24
MODES = ["ar", "nelbo", "l2r", "nelbo(8)", "nelbo(4, causal)"]
GREEDY = Picking(temperature=0)
TOKENIZER = Bytes().fit([])
WORDS = TOKENIZER.vocabulary
MASK = WORDS.mask_id
SAMPLERS = {
    "masked": lambda policy: MaskedSampler(GREEDY, policy),
    "block(8)": lambda policy: BlockSampler(8, GREEDY, policy),
    "block(4)": lambda policy: BlockSampler(4, GREEDY, policy, "causal"),
}


def exported(folder: Path, family: str, *, modes: list[str] = MODES, end: float = 1.0):
    """Write a random model out and load it in transformers; `end` makes ends of documents likelier."""
    model = tiny.model(WORDS, T, family)
    with torch.no_grad():
        model.inner.get_output_embeddings().weight[WORDS.eos_id] *= end
    facts = facts_of(modes, "nelbo", WORDS, T, ["autoregressive", "masked"])
    export(folder, model.inner.config, dict(model.inner.named_parameters()), TOKENIZER, facts)
    return model, AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    return *exported(folder, request.param), folder


def ours(sampler, model, prompts, count):
    return [list(text.window_ids) for text in sampler.sample(model, prompts, count, 0)]


def theirs(model, folder, prompts, count, **settings):
    """Generate a batch of unequal prompts, padded on the left; each text up to its end, without BOS."""
    longest = max(map(len, prompts))
    rows = [[WORDS.eos_id] * (longest - len(row)) + [WORDS.bos_id, *row] for row in prompts]
    kept = [[0] * (longest - len(row)) + [1] * (1 + len(row)) for row in prompts]
    made = model.generate(
        torch.tensor(rows), attention_mask=torch.tensor(kept), custom_generate=str(folder), trust_remote_code=True,
        max_new_tokens=count, **settings,
    )  # fmt: skip
    texts = []
    for row, prompt in zip(made.tolist(), prompts, strict=True):
        assert row[0] == WORDS.bos_id
        ends = [place for place in range(1 + len(prompt), len(row)) if row[place] in (WORDS.eos_id, WORDS.bos_id)]
        texts.append(row[1 : min([*ends, 1 + len(prompt) + count, len(row)])])
    return texts


@pytest.mark.parametrize("mode", SAMPLERS)
@pytest.mark.parametrize("each", [1, 3])
def test_greedy_text_is_that_of_the_projects_own_sampler(pair, mode, each) -> None:
    model, other, folder = pair
    prompts = [[97, 98, 99], [], list(range(60, 70)), [100] * 5]
    wanted = ours(SAMPLERS[mode](Confidence(each)), model, prompts, 13)
    assert theirs(other, folder, prompts, 13, mode=mode, tokens_per_pass=each) == wanted
    wanted = ours(SAMPLERS[mode](LeftToRight(each)), model, prompts, 13)
    assert theirs(other, folder, prompts, 13, mode=mode, tokens_per_pass=each, order="left_to_right") == wanted


@pytest.mark.parametrize("mode", SAMPLERS)
def test_a_text_ends_where_the_projects_own_sampler_ends_it(tmp_path, mode) -> None:
    """Where an end of document is likely: nothing is drawn behind it, and the others of the batch go on."""
    model, other = exported(tmp_path / "m", "llama", end=10.0)
    prompts = [[97 + index, 98 + index] for index in range(12)]
    wanted = ours(SAMPLERS[mode](Confidence(1)), model, prompts, 14)
    assert theirs(other, tmp_path / "m", prompts, 14, mode=mode) == wanted
    assert len({len(text) for text in wanted}) > 1, "texts end at different places"


@pytest.mark.parametrize("mode", SAMPLERS)
def test_holes_are_filled_as_the_projects_own_sampler_fills_them(pair, mode) -> None:
    model, other, folder = pair
    prompts = [[97, MASK, MASK, 98, 99, MASK, *range(60, 70), MASK, 70]]
    wanted = ours(SAMPLERS[mode](Confidence(1)), model, prompts, 0)
    assert theirs(other, folder, prompts, 0, mode=mode) == wanted
    assert len(wanted[0]) == len(prompts[0]), "no document ends where text goes on"
    assert [a for a, b in zip(wanted[0], prompts[0], strict=True) if b != MASK] == [x for x in prompts[0] if x != MASK]


@pytest.mark.parametrize("mode", SAMPLERS)
def test_nothing_is_seen_across_documents_where_the_model_was_trained_so(pair, mode) -> None:
    """Two documents before the place that is drawn, and an end of document behind a hole."""
    model, other, folder = pair
    eos, apart = WORDS.eos_id, Backbone(model.inner, replace(WORDS, separate_documents=True))
    prompts = [[97, 98, eos, 99, 100], [eos, 101, MASK, 102, eos, 103, MASK, 104, 105, eos, 106]]
    wanted = ours(SAMPLERS[mode](Confidence(1)), apart, prompts, 8)
    assert wanted != ours(SAMPLERS[mode](Confidence(1)), model, prompts, 8)
    said = dict(other.config.crossover)
    other.config.crossover = {**said, "documents_see_each_other": False}
    try:
        made = theirs(other, folder, prompts, 8, mode=mode, token_type_ids=torch.zeros(2, 12))
    finally:
        other.config.crossover = said
    assert made == wanted


def test_weights_that_are_no_numbers_write_nothing(tmp_path) -> None:
    _, other = exported(tmp_path / "m", "llama")
    with torch.no_grad():
        other.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        custom_generate.generate(other, torch.tensor([[97]]), max_new_tokens=2)


def test_a_configuration_may_say_how_many_tokens(pair) -> None:
    _, other, _ = pair
    made = custom_generate.generate(other, torch.tensor([[97]]), GenerationConfig(max_new_tokens=3))
    assert made.shape[1] <= 4


def test_left_to_right_text_is_that_of_plain_transformers(pair) -> None:
    """The mask and padding rows are barred by generation_config.json, BOS comes from the tokenizer."""
    model, other, _ = pair
    prompt = [97, 98, 99, 32, 100]
    made = other.generate(torch.tensor([[WORDS.bos_id, *prompt]]), max_new_tokens=16, do_sample=False)[0].tolist()
    wanted = ours(AutoregressiveSampler(GREEDY), model, [prompt], 16)[0]
    assert made[1 : 1 + len(wanted)] == wanted
    assert all(token in (WORDS.eos_id, WORDS.bos_id) for token in made[1 + len(wanted) : 2 + len(wanted)])
    drawn = other.generate(
        torch.tensor([[WORDS.bos_id, *prompt]] * 64), max_new_tokens=8, do_sample=True, temperature=50.0
    )
    assert int(drawn.max()) < WORDS.predictable


@pytest.mark.parametrize("order", custom_generate.ORDERS)
def test_every_order_reveals_all_and_never_predicts_the_mask(tmp_path, order) -> None:
    _, other = exported(tmp_path / "m", "llama")
    settings = {"mode": "block(8)", "order": order, "temperature": 30.0, "steps": 3, "seed": 5}
    given = {"custom_generate": str(tmp_path / "m"), "trust_remote_code": True, "max_new_tokens": 20}
    ids = torch.tensor([[WORDS.bos_id, 97]] * 8)
    first, again = (other.generate(ids, **given, **settings) for _ in range(2))
    assert torch.equal(first, again) and int(first.max()) < WORDS.predictable and first.shape[1] <= 22
    assert not torch.equal(first, other.generate(ids, **given, **{**settings, "seed": 6}))


def test_the_window_that_is_seen_is_the_one_that_was_trained() -> None:
    """One block as long as the window sees all of it; a block sees itself and what lies before it."""
    facts = facts_of(MODES, "nelbo(8)", WORDS, T, [])
    assert facts["window"] == T and facts["shift"] == 1
    assert facts["masked"] and [block["size"] for block in facts["blocks"]] == [8, 4]
    assert [block["clean"] for block in facts["blocks"]] == ["block_causal", "causal"]
    assert not facts_of(["ar"], "ar", WORDS, T, [])["masked"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "block(6)"}, "no mode of unmasking 'block"),
        ({"order": "sideways"}, "no order called"),
        ({"order": "ancestral"}, "needs steps"),
        ({"steps": 2, "tokens_per_pass": 2}, "not both"),
        ({"tokens_per_pass": 0}, "at least 1"),
        ({"num_beams": 4}, "num_beams"),
        ({"max_new_tokens": 40}, "window of 24"),
        ({"temperature": float("nan")}, "temperature"),
        ({"streamer": object()}, "no effect here: streamer"),
        ({"generation_config": GenerationConfig(do_sample=True, top_p=0.5)}, "no effect here: do_sample, top_p"),
    ],
)
def test_what_makes_no_sense_is_refused(pair, settings, message) -> None:
    _, other, _ = pair
    with pytest.raises(ValueError, match=message):
        custom_generate.generate(other, torch.tensor([[WORDS.bos_id, 97]]), **{"max_new_tokens": 4, **settings})


def test_a_model_of_one_direction_has_no_unmasking(tmp_path) -> None:
    _, other = exported(tmp_path / "m", "llama", modes=["ar"])
    assert not (tmp_path / "m" / "custom_generate").exists()
    with pytest.raises(ValueError, match="left to right alone"):
        custom_generate.generate(other, torch.tensor([[97]]))


def test_the_file_in_a_folder_is_this_one_and_needs_nothing_of_ours(pair) -> None:
    text = (pair[2] / "custom_generate" / "generate.py").read_text("utf-8")
    assert text == Path(custom_generate.__file__).read_text("utf-8")
    tree = ast.parse(text)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in modules} <= {
        "__future__", "collections", "re", "torch", "transformers", "typing",
    }  # fmt: skip
