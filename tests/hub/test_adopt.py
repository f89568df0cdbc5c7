"""Models from elsewhere: what they say does not change, the mask is new, and what cannot be carried is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import strangers
from crossover.data.tokenizer import FACTS, Tokenizer
from crossover.errors import CheckpointError, CrossoverError, RecipeError, RunError
from crossover.hub.adopt import adopt, begin_from, open_model
from crossover.hub.llama2c import read_llama2c_tokenizer
from crossover.hub.start import adopting
from crossover.model.backbone import Backbone, build
from crossover.model.shapes import shape_of
from crossover.recipe import resolve
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.picking import Picking
from crossover.sections import ModelRecipe

CASES = [(family, tied) for family in ("llama", "qwen3", "qwen3_moe") for tied in (True, False)]
TEXT = "naïve words ½ and  spaces\n\tand <|mask|>, <s> as text"


def logits(model: Backbone, ids: torch.Tensor) -> torch.Tensor:
    count = ids.shape[1]
    with torch.no_grad():
        return model.logits(model.states(ids, torch.arange(count)[None], model.plan(Pattern("causal"), count)))


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_an_adopted_model_says_what_it_said(tmp_path, family, tied) -> None:
    theirs = strangers.folder(tmp_path / "source", family, tied=tied)
    build, facts = adopt(str(tmp_path / "source"), tmp_path / "out")
    model, tokenizer, kept = open_model(tmp_path / "out")
    assert kept == facts and kept["adopted"]["source"] == "source"
    assert len(kept["adopted"]["source_sha256"]) == 64
    ids = torch.from_numpy(tokenizer.encode(TEXT)[None, :40])
    with torch.no_grad():
        wanted = theirs(ids).logits[..., :258]
    torch.testing.assert_close(logits(model, ids)[..., :258], wanted, rtol=0, atol=1e-5)
    assert float(wanted.std()) > 0.5
    assert (build.norm_eps, build.rope_theta, build.positions) == (1e-6, 5e5, 64)
    assert model.inner.config.rms_norm_eps == 1e-6 and model.context == 63


def test_ids_stay_and_a_mask_comes_after_them(tmp_path) -> None:
    strangers.folder(tmp_path / "source")
    engine = strangers.tokenizer_file(tmp_path / "source" / "tokenizer.json")
    adopt(str(tmp_path / "source"), tmp_path / "out")
    tokenizer, words = Tokenizer.load(tmp_path / "out"), Tokenizer.load(tmp_path / "out").vocabulary
    assert tokenizer.encode("any text").tolist() == engine.encode("any text", add_special_tokens=False).ids
    assert (words.bos_id, words.eos_id) == (256, 257), "its own pieces"
    assert words.mask_id == words.predictable == 272 and words.size == 320
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_and_takes_next_to_nothing(tmp_path, tied) -> None:
    """Jensen: exp of a mean logit is at most the mean of exp, so a new piece is never likelier than the average."""
    theirs = strangers.folder(tmp_path / "source", tied=tied, rows=300)
    adopt(str(tmp_path / "source"), tmp_path / "out")
    model, _, _ = open_model(tmp_path / "out")
    rows_VD = theirs.get_input_embeddings().weight[:258]
    made_VD = model.inner.get_input_embeddings().weight
    torch.testing.assert_close(made_VD[:258], rows_VD)
    torch.testing.assert_close(made_VD[258:], rows_VD.mean(0).expand(len(made_VD) - 258, -1))
    chances = torch.softmax(logits(model, torch.randint(0, 256, (8, 32))), -1)
    new, old = chances[..., 258:], chances[..., :258]
    assert bool((new <= old.mean(-1, keepdim=True) * 1.0001).all())


def test_one_piece_that_begins_and_ends_becomes_two(tmp_path) -> None:
    """Where documents began behind the end of another one, BOS begins as that end's row."""
    strangers.folder(tmp_path / "source")
    names = {"bos_token": {"content": "</s>"}, "eos_token": "</s>"}
    strangers.tokenizer_file(tmp_path / "source" / "tokenizer.json", ("<other>", "</s>"))
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(names))
    adopt(str(tmp_path / "source"), tmp_path / "out")
    model, tokenizer, _ = open_model(tmp_path / "out")
    words, rows_VD = tokenizer.vocabulary, model.inner.get_input_embeddings().weight
    assert words.eos_id == 257 and words.bos_id >= 258
    assert torch.equal(rows_VD[words.bos_id], rows_VD[words.eos_id])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_what_was_adopted_can_be_adopted_again(tmp_path, family) -> None:
    strangers.folder(tmp_path / "source", family)
    adopt(str(tmp_path / "source"), tmp_path / "first")
    weights = load_file(tmp_path / "first" / "model.safetensors")
    weights["model.embed_tokens.weight"][272] = 7.0  # a mask that was trained
    save_file(weights, tmp_path / "first" / "model.safetensors", metadata={"format": "pt"})
    adopt(str(tmp_path / "first"), tmp_path / "second")
    again = load_file(tmp_path / "second" / "model.safetensors")
    assert again.keys() == weights.keys()
    for name in weights:
        assert torch.equal(weights[name][:273], again[name][:273])
    assert Tokenizer.load(tmp_path / "first").hash == Tokenizer.load(tmp_path / "second").hash


def test_weights_in_half_precision_stay_so(tmp_path) -> None:
    strangers.folder(tmp_path / "source").to(torch.bfloat16).save_pretrained(tmp_path / "source", max_shard_size="9KB")
    assert (tmp_path / "source" / "model.safetensors.index.json").exists()
    (tmp_path / "source" / "model.safetensors").unlink(missing_ok=True)
    adopt(str(tmp_path / "source"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert next(open_model(tmp_path / "out")[0].parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; llama, qwen3, qwen3_moe are"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "of type 'linear'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"hidden_size": 32, "head_dim": 16}, r"no 'model.embed_tokens.weight' of shape \(262, 32\)"),
        ({"num_hidden_layers": 4000}, "weights where config.json says"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, "no place for: model.layers.1"),
        ({"num_attention_heads": "many"}, "is no llama configuration"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(tmp_path, changes, message) -> None:
    strangers.folder(tmp_path / "source", **changes)
    with pytest.raises(CheckpointError, match=message):
        adopt(str(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ],
)
def test_what_only_qwen3_has_is_refused_by_name(tmp_path, family, changes, message) -> None:
    strangers.folder(tmp_path / "source", family, **changes)
    with pytest.raises(CheckpointError, match=message):
        adopt(str(tmp_path / "source"), tmp_path / "out")


class Runs:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_a_pickle_is_never_read(tmp_path) -> None:
    strangers.folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "kept")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        adopt(str(tmp_path / "source"), tmp_path / "out")
    index = {"weight_map": {"a": "../kept"}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no \.safetensors file of this folder"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


def test_biases_that_the_configuration_hides_are_found(tmp_path) -> None:
    strangers.folder(tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
    save_file(weights, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(tmp_path) -> None:
    strangers.folder(tmp_path / "source", rows=257)
    with pytest.raises(CheckpointError, match="258 pieces, but the model's embedding has 257 rows"):
        adopt(str(tmp_path / "source"), tmp_path / "out")


@pytest.mark.parametrize("name", ["no/where", "no/where@main", "/no/where", "nowhere.bin"])
def test_what_is_not_there_is_said_to_be_missing(tmp_path, monkeypatch, name) -> None:
    """Tests run without a network: a hub name is looked for in the cache alone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        adopt(name, tmp_path / "out")


def test_only_what_was_adopted_is_replaced(tmp_path) -> None:
    strangers.folder(tmp_path / "source")
    with pytest.raises(RunError, match="left alone"):
        adopt(str(tmp_path / "source"), tmp_path / "source")
    for _ in range(2):
        adopt(str(tmp_path / "source"), tmp_path / "out")


def test_llama2c_pieces_join_by_their_scores(tmp_path) -> None:
    """The best score first, spaces as SentencePiece has them, bytes for what has no piece."""
    pieces = [(-2.0, " ab"), (-0.0, "ab"), (-1.0, "bc"), (-3.0, " "), (-4.0, "a"), (-5.0, "b"), (-6.0, "c")]
    path = strangers.llama2c_tokenizer(tmp_path / "tok.bin", pieces)
    tokenizer = Tokenizer.with_specials(read_llama2c_tokenizer(path))
    ids = {piece: 259 + number for number, (_, piece) in enumerate(pieces)}
    assert tokenizer.encode("abc").tolist() == [ids[" ab"], ids["c"]]
    assert tokenizer.encode("c bc é").tolist() == [262, ids["c"], 262, ids["bc"], 262, 3 + 0xC3, 3 + 0xA9]
    for text in ("abc", "c bc é", "  two spaces ", "\n", "<s>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.document_bytes(tokenizer.encode("abc é")).sum() == len("abc é".encode())


@pytest.mark.parametrize("cut", [0, 3, 10, 3000, -1])
def test_a_damaged_llama2c_tokenizer_is_refused(tmp_path, cut) -> None:
    path = strangers.llama2c_tokenizer(tmp_path / "tok.bin", [(-1.0, "a")])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"tok\.bin: cannot be read as a llama2\.c tokenizer"):
        read_llama2c_tokenizer(path)


def test_stories260k_tells_its_story_after_adoption(tmp_path, shared_data) -> None:
    """llama2.c's own reference: the ids of three texts, and 200 greedy ids."""
    source = shared_data / "models" / "stories260K"
    reference = json.loads((source / "reference.json").read_text("utf-8"))
    build, _ = adopt(str(source / "stories260K.bin"), tmp_path / "out")
    model, tokenizer, _ = open_model(tmp_path / "out")
    assert build.positions == 512 and tokenizer.vocabulary.mask_id == 512 and model.shape.vocabulary == 576
    for check in reference["nll_checks"]:
        assert tokenizer.encode(check["text"]).tolist() == check["ids"][1:]
    told = reference["greedy_from_bos_200_ids"]
    assert AutoregressiveSampler(Picking(temperature=0)).generate(model, [], 200, seed=0) == told[1:201]


def adopted(tmp_path):
    strangers.folder(tmp_path / "source")
    build, _ = adopt(str(tmp_path / "source"), tmp_path / "out")
    return tmp_path / "out", build


def fresh(settings: ModelRecipe, tokenizer: Tokenizer, context: int = 32) -> Backbone:
    shape = shape_of(settings, tokenizer.vocabulary.size)
    sizes = {"context": context, "rope_theta": settings.rope_theta, "norm_eps": settings.norm_eps}
    return build(shape, tokenizer.vocabulary, seed=0, **sizes)


def test_a_run_begins_with_the_folders_weights_and_says_so(tmp_path) -> None:
    out, made = adopted(tmp_path)
    tree = adopting(out, made, "f" * 64)
    settings = ModelRecipe(**{**tree["model"], "adopt_sha256": None})
    tokenizer = Tokenizer.load(out)
    model = fresh(settings, tokenizer)
    found = begin_from(model, settings, tokenizer)
    wanted, _, _ = open_model(out)
    for mine, theirs in zip(model.inner.parameters(), wanted.inner.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert found["folder"] == str(out) and len(found["sha256"]) == 64
    assert found["source"] == "source" and len(found["source_sha256"]) == 64


def test_changed_weights_are_an_error_when_a_run_begins_and_not_when_it_goes_on(tmp_path) -> None:
    out, made = adopted(tmp_path)
    settings = ModelRecipe(**adopting(out, made, "f" * 64)["model"])
    tokenizer = Tokenizer.load(out)
    with pytest.raises(CheckpointError, match=r"sha256 .* but f{16}\.\.\. in model\.adopt_sha256"):
        begin_from(fresh(settings, tokenizer), settings, tokenizer)
    recorded = {"adopted": {"sha256": "e" * 64, "folder": "gone"}}
    with pytest.raises(CheckpointError, match="when this run began"):
        begin_from(fresh(settings, tokenizer), settings, tokenizer, recorded)
    assert begin_from(fresh(settings, tokenizer), settings, tokenizer, recorded, resumes=True) == recorded["adopted"]


def test_another_shape_tokenizer_or_window_is_refused_with_what_to_set(tmp_path) -> None:
    out, made = adopted(tmp_path)
    right = {**adopting(out, made, "f" * 64)["model"], "adopt_sha256": None}
    tokenizer = Tokenizer.load(out)
    for key, other in {"depth": 3, "norm_eps": 1e-5, "rope_theta": 1e4, "mlp_width": 40}.items():
        settings = ModelRecipe(**{**right, key: other})
        with pytest.raises(RecipeError, match=f"set model.{key}={right[key]}"):
            begin_from(fresh(settings, tokenizer), settings, tokenizer)
    settings = ModelRecipe(**right)
    with pytest.raises(RecipeError, match="64 is more than the 63"):
        begin_from(fresh(settings, tokenizer, 64), settings, tokenizer)
    strangers.tokenizer_file(tmp_path / "tokenizer.json", ("[BOS]", "[EOS]"))
    with pytest.raises(RecipeError, match=r"data\.tokenizer: is not that of model\.adopt; set it to file"):
        begin_from(fresh(settings, tokenizer), settings, Tokenizer.load(tmp_path))
    for name in ("nowhere", str(tmp_path / "source")):
        with pytest.raises(CheckpointError, match=r"model\.adopt"):
            begin_from(fresh(settings, tokenizer), ModelRecipe(**{**right, "adopt": name}), tokenizer)


def test_the_recipe_is_fixed_where_the_model_fixes_it(tmp_path) -> None:
    out, made = adopted(tmp_path)
    tree = adopting(out, made, "f" * 64, settings=["seed=7", "controller=online", "model.residual_dropout=0.1"])
    recipe = resolve(tree)
    assert recipe.seed == 7 and recipe.model.residual_dropout == 0.1 and recipe.name == "out"
    assert recipe.model.adopt == str(out) and recipe.data.context == 32, "the power of two that has positions"
    for setting in ("model.width=3", "data.tokenizer=bytes", "model.adopt=x"):
        with pytest.raises(RecipeError, match="is fixed by the model"):
            adopting(out, made, "f" * 64, settings=[setting])
    with pytest.raises(RecipeError, match="more than the 63"):
        adopting(out, made, "f" * 64, settings=["data.context=128"])
    base = tmp_path / "base.yaml"
    base.write_text("name: base\nmodel: {preset: 5m, width: 12, attention_dropout: 0.1}\nbudget: {tokens: 1M}\n")
    recipe = resolve(adopting(out, made, "f" * 64, recipe=base))
    assert (recipe.name, recipe.model.width, recipe.model.attention_dropout) == ("base", 16, 0.1)
    with pytest.raises(CrossoverError, match="adopt_sha256 has no effect without adopt"):
        resolve({"model": {"adopt_sha256": "0"}})
    assert (out / FACTS).exists()


@pytest.mark.slow
def test_a_pretrained_model_learns_to_unmask_and_still_reads_left_to_right(root, shared_data) -> None:
    """Twenty seconds: the masked bound falls by more than three standard errors, and `ar` stays within 5%."""
    model = shared_data / "models" / "stories260K" / "stories260K.bin"
    short = ["--minutes", "0.3", "--tokens", "40000", "--windows", "32"]
    command = [sys.executable, str(root / "benchmarks" / "adopt.py"), str(model), *short]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nelbo fell by" in done.stdout
