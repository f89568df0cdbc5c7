"""Files that contradict themselves or what was asked are refused; nothing of them is left out in silence."""

from __future__ import annotations

import json
import struct
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer

import strangers
import tiny
from crossover.data.tokenizer import Bytes, Tokenizer
from crossover.errors import CheckpointError, RecipeError, RunError
from crossover.hub.adopt import adopt, begin_from, open_model
from crossover.hub.export import export, facts_of
from crossover.hub.llama2c import read_llama2c, read_llama2c_tokenizer
from crossover.hub.start import adopting, make_ready
from crossover.model.backbone import Backbone, build
from crossover.model.shapes import Shape, parameters, shape_of
from crossover.sections import ModelRecipe


def edit(folder, change) -> None:
    """Change a folder's weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path, kind) -> None:
    """Such as quantized ones, whose scales nobody would apply."""
    strangers.folder(tmp_path / "source")
    edit(tmp_path / "source", lambda weights: weights.update({key: value.to(kind) for key, value in weights.items()}))
    with pytest.raises(CheckpointError, match=f"is of type {str(kind)[6:]}, as of quantized weights"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_that_is_called_tied_and_is_another_is_refused(tmp_path, factor) -> None:
    """transformers uses both where they differ; one that is the same is only said twice."""
    strangers.folder(tmp_path / "source")
    edit(
        tmp_path / "source",
        lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] * factor}),
    )
    refused = pytest.raises(CheckpointError, match=r"ties the head .* set tie_word_embeddings to false")
    with nullcontext() if factor == 1 else refused:
        adopt(str(tmp_path / "source"), tmp_path / "out")
    assert (tmp_path / "out").exists() is (factor == 1)


def test_a_model_that_sees_both_ways_is_no_next_token_model(tmp_path) -> None:
    strangers.folder(tmp_path / "source", is_causal=False)
    with pytest.raises(CheckpointError, match="is_causal false"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


def test_ids_with_gaps_are_refused(tmp_path) -> None:
    """The library numbers new pieces by their count: the first of them would take the row of `</s>`."""
    strangers.folder(tmp_path / "source")
    path = tmp_path / "source" / "tokenizer.json"
    tree = json.loads(path.read_text("utf-8"))
    pieces = tree["model"]["vocab"]
    tree["model"]["vocab"] = {key: id_ for key, id_ in pieces.items() if id_ != 100} | {"<s>": 256, "</s>": 257}
    path.write_text(json.dumps(tree), "utf-8")
    with pytest.raises(CheckpointError, match="257 pieces do not have the ids 0 to 256, each once"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


def test_one_piece_for_both_ends_is_not_guessed(tmp_path) -> None:
    strangers.folder(tmp_path / "source")
    strangers.tokenizer_file(tmp_path / "source" / "tokenizer.json", ("<|endoftext|>", "<x>"))
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    with pytest.raises(CheckpointError, match="would begin and end texts; name eos_token in"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


@pytest.mark.parametrize("bos", ["<begin of text>", "<b:1>", "$A"])
def test_whatever_bos_is_called_other_programs_begin_with_it(tmp_path, bos) -> None:
    strangers.folder(tmp_path / "source")
    strangers.tokenizer_file(tmp_path / "source" / "tokenizer.json")
    path = tmp_path / "source" / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"<s>"', json.dumps(bos)), "utf-8")
    tree = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**tree, "post_processor": None}), "utf-8")
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": "</s>"}))
    adopt(str(tmp_path / "source"), tmp_path / "out")
    reader, plain = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.load(tmp_path / "out")
    assert reader("ab").input_ids == [256, *plain.encode("ab").tolist()] and reader.bos_token == bos
    pair = Engine.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("a", "b")
    assert (pair.ids[0], pair.ids[2], pair.type_ids) == (256, 256, [0, 0, 1, 1])


def test_other_programs_find_the_base_of_the_positions(tmp_path) -> None:
    """transformers before version 5 knows no `rope_parameters`, and would take 10,000."""
    strangers.folder(tmp_path / "source")
    adopt(str(tmp_path / "source"), tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert tree["rope_theta"] == tree["rope_parameters"]["rope_theta"] == 5e5


def test_a_width_that_cannot_turn_is_refused(tmp_path) -> None:
    shape = Shape("llama", 9, 3, 1, 1, 1, 3, 4, True)
    header = struct.pack("7i", 3, 4, 1, 1, 1, 9, 8)
    (tmp_path / "odd.bin").write_bytes(header + bytes(4 * (parameters(shape) + 8 * 3)))
    with pytest.raises(CheckpointError, match=r"odd\.bin: .* width 3 is not an even number for each of 1 heads"):
        read_llama2c(tmp_path / "odd.bin")


def test_a_piece_of_absurd_length_fills_no_memory(tmp_path) -> None:
    """Every cut of 60,000 characters would be 4 GB."""
    path = strangers.llama2c_tokenizer(tmp_path / "tok.bin", [(-1.0, "x" * 60_000)])
    with pytest.raises(CheckpointError, match="makes no sense"):
        read_llama2c_tokenizer(path)


def adopted(tmp_path):
    strangers.folder(tmp_path / "source")
    made, _ = adopt(str(tmp_path / "source"), tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out")
    return tmp_path / "out", made, tokenizer


def fresh(settings: ModelRecipe, tokenizer: Tokenizer) -> Backbone:
    sizes = {"context": 32, "rope_theta": settings.rope_theta, "norm_eps": settings.norm_eps}
    return build(shape_of(settings, tokenizer.vocabulary.size), tokenizer.vocabulary, seed=0, **sizes)


def as_of_a_run(folder) -> None:
    """Let a folder say of where it came from what the model of a run says that began from an adopted one."""
    tree = json.loads((folder / "config.json").read_text("utf-8"))
    tree["crossover"]["adopted"] |= {"folder": "elsewhere", "sha256": "f" * 64}
    (folder / "config.json").write_text(json.dumps(tree), "utf-8")


def test_a_pin_holds_the_file_and_not_what_the_folder_says_of_itself(tmp_path) -> None:
    """A run's folder says what that run began from, by the same names."""
    out, made, tokenizer = adopted(tmp_path)
    as_of_a_run(out)
    settings = ModelRecipe(**adopting(out, made, "f" * 64)["model"])
    with pytest.raises(CheckpointError, match=r"sha256 .* but f{16}\.\.\. in model\.adopt_sha256"):
        begin_from(fresh(settings, tokenizer), settings, tokenizer)
    settings = ModelRecipe(**{**adopting(out, made, "f" * 64)["model"], "adopt_sha256": None})
    found = begin_from(fresh(settings, tokenizer), settings, tokenizer)
    assert found["sha256"] != "f" * 64 and found["folder"] == str(out) and found["source"] == "source"


def test_a_folder_without_a_pin_is_looked_at_all_the_same(tmp_path) -> None:
    out, made, tokenizer = adopted(tmp_path)
    settings = ModelRecipe(**{**adopting(out, made, "f" * 64)["model"], "adopt_sha256": None})
    edit(out, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}))
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"):
        begin_from(fresh(settings, tokenizer), settings, tokenizer)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        begin_from(fresh(settings, tokenizer), settings, tokenizer)


def test_a_folder_that_holds_more_than_it_says_is_not_opened(tmp_path) -> None:
    out, _, _ = adopted(tmp_path)
    strangers.change(out, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.1"):
        open_model(out)


def test_the_model_of_a_run_that_began_from_another_is_not_replaced(tmp_path) -> None:
    out, _, _ = adopted(tmp_path)
    as_of_a_run(out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="left alone"):
        adopt(str(tmp_path / "source"), out)
    assert (out / "model.safetensors").read_bytes() == before


def test_the_recipe_appears_with_its_folder_or_neither_does(tmp_path, monkeypatch) -> None:
    strangers.folder(tmp_path / "source")
    make_ready(str(tmp_path / "source"), tmp_path / "out")
    assert (tmp_path / "out" / "recipe.yaml").exists()
    (tmp_path / "out" / "mark").touch()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crossover.hub.start.yaml.safe_dump", full)
    with pytest.raises(RunError, match="out: cannot be written: No space left"):
        make_ready(str(tmp_path / "source"), tmp_path / "out")
    assert (tmp_path / "out" / "mark").exists(), "what stood there is as it was"
    assert {item.name for item in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize(
    "setting", ["model={width: 3}", "model=1m", "data={tokenizer: bytes}", "data.tokenizer.path=x", "model.tied=true"]
)
def test_what_the_model_fixes_is_fixed_however_it_is_written(tmp_path, setting) -> None:
    out, made, _ = adopted(tmp_path)
    with pytest.raises(RecipeError, match="is fixed by the model"):
        adopting(out, made, "f" * 64, settings=[setting])


@pytest.mark.parametrize("separate", [True, False])
def test_borders_of_documents_come_back_with_the_folder(tmp_path, separate) -> None:
    """A model that never saw across them is scored and sampled as it was trained."""
    words = tiny.vocabulary(3, separate=separate)
    tokenizer = Bytes().fit([])
    model = tiny.model(tokenizer.vocabulary, 8)
    facts = facts_of(["ar"], "ar", words, 8, ["autoregressive"])
    export(tmp_path / "m", model.inner.config, dict(model.inner.named_parameters()), tokenizer, facts)
    opened, _, _ = open_model(tmp_path / "m")
    assert opened.vocabulary.separate_documents is separate
