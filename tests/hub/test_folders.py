"""Models go out to transformers and come back, bit for bit, and other people's files come in or are refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from crossover.data.tokenizer import Bpe, Bytes
from crossover.errors import CheckpointError, CrossoverError, RunError
from crossover.hub.adopt import open_model, read_llama2c
from crossover.hub.export import export
from crossover.model.backbone import Backbone
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.picking import Picking

FACTS = {"mask_id": 3, "modes": ["ar", "nelbo"], "best_mode": "ar"}
TEXT = "naïve words ½ and  spaces\n\tand <|mask|> as text"
NAMES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
CASES = [(family, tied) for family in ("llama", "qwen3", "qwen3_moe") for tied in (True, False)]


def logits(model: Backbone, ids: torch.Tensor) -> torch.Tensor:
    count = ids.shape[1]
    with torch.no_grad():
        return model.logits(model.states(ids, torch.arange(count)[None], model.plan(Pattern("causal"), count)))


def written(folder, family="llama", tied=True, tokenizer=None):
    tokenizer = tokenizer or Bytes().fit([])
    model = tiny.model(tokenizer.vocabulary, 32, family, tied=tied)
    export(folder, model.inner.config, dict(model.inner.named_parameters()), tokenizer, FACTS)
    return model, tokenizer


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_transformers_loads_the_folder_and_says_the_same(tmp_path, family, tied) -> None:
    model, tokenizer = written(tmp_path / "model", family, tied)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(theirs).__name__ == NAMES[family]
    assert theirs.config._attn_implementation != "crossover"
    assert theirs.config.tie_word_embeddings is tied
    reader = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = reader(TEXT, add_special_tokens=False, return_tensors="pt").input_ids[:, :32]
    assert ids[0].tolist() == tokenizer.encode(TEXT)[:32].tolist()
    assert (reader.bos_token_id, reader.mask_token_id) == (tokenizer.vocabulary.bos_id, tokenizer.vocabulary.mask_id)
    with torch.no_grad():
        wanted = theirs(ids).logits[..., : tokenizer.vocabulary.predictable]
    torch.testing.assert_close(logits(model, ids), wanted, rtol=0, atol=1e-5)
    assert float(wanted.std()) > 0.1


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_a_folder_opens_as_the_model_that_was_written(tmp_path, family, tied) -> None:
    model, tokenizer = written(tmp_path / "model", family, tied, Bpe(300).fit([TEXT] * 3))
    opened, reader, facts = open_model(tmp_path / "model")
    assert facts == FACTS and reader.hash == tokenizer.hash and not opened.training
    assert opened.vocabulary == model.vocabulary
    pairs = zip(model.inner.named_parameters(), opened.inner.named_parameters(), strict=True)
    for (name, mine), (other, theirs) in pairs:
        assert name == other and torch.equal(mine, theirs)
    ids = torch.from_numpy(tokenizer.encode(TEXT)[None, :32])
    assert torch.equal(logits(model, ids), logits(opened, ids))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied


def test_a_stranger_needs_nothing_of_ours_to_load_it(tmp_path) -> None:
    written(tmp_path / "model")
    tree = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    facts = tree.pop("crossover")
    assert facts == FACTS
    assert "crossover" not in json.dumps(tree), "neither our attention nor our code is asked for"
    assert "auto_map" not in tree and not any("attn_implementation" in key for key in tree)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in stored.values()) and tree["dtype"] == "float32"
    assert tree["attention_dropout"] == 0 and tree["max_position_embeddings"] == 33


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    first, _ = written(tmp_path / "model")
    monkeypatch.setattr("crossover.hub.export.save_file", full_disk)
    with pytest.raises(RunError, match="model: cannot be written: No space left"):
        written(tmp_path / "model", "qwen3")
    assert [item.name for item in tmp_path.iterdir()] == ["model"], "nothing half-written stays"
    opened, _, _ = open_model(tmp_path / "model")
    ids = torch.arange(5, 12)[None]
    assert torch.equal(logits(opened, ids), logits(first, ids)), "the old folder is as it was"
    monkeypatch.undo()
    written(tmp_path / "model", "qwen3")
    assert open_model(tmp_path / "model")[0].inner.config.model_type == "qwen3"


class Killed(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_the_old_folder_and_the_new_one_loses_neither(tmp_path, monkeypatch, renames) -> None:
    """After so many renames the process is gone; the next export of the folder finds the old one or its place."""
    first, _ = written(tmp_path / "model")
    made, rename = [], type(tmp_path).rename

    def killed(path, target):
        if len(made) == renames:
            raise Killed
        made.append(target)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "rename", killed)
        with pytest.raises(Killed):
            written(tmp_path / "model", "qwen3")
    (left,) = tmp_path.iterdir()
    opened, _, _ = open_model(left)
    ids = torch.arange(5, 12)[None]
    assert torch.equal(logits(opened, ids), logits(first, ids)), "the old model is still there"
    monkeypatch.setattr("crossover.hub.export.save_file", full_disk)
    with pytest.raises(RunError, match="No space left"):
        written(tmp_path / "model", "qwen3")
    assert [item.name for item in tmp_path.iterdir()] == ["model"], "and under its name"
    assert torch.equal(logits(open_model(tmp_path / "model")[0], ids), logits(first, ids))


def test_only_what_dead_processes_left_is_cleared_up(tmp_path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = {f".model.{gone.pid}.tmp", f".model.{gone.pid}.old", f".model.{os.getpid()}.tmp"}
    others = {f".model.{os.getppid()}.tmp", ".model.of-mine.tmp", f".models.{gone.pid}.tmp", "model.5.old"}
    for name in stale | others:
        (tmp_path / name).mkdir()
    written(tmp_path / "model")
    written(tmp_path / "model", "qwen3")
    assert {item.name for item in tmp_path.iterdir()} == {"model", *others}


def full_disk(*_, **__) -> None:
    raise OSError(28, "No space left on device")


def cut_weights(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def foreign(folder) -> None:
    tree = json.loads((folder / "config.json").read_text())
    del tree["crossover"]
    (folder / "config.json").write_text(json.dumps(tree))


def other_size(size: int):
    def change(folder) -> None:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**tree, "intermediate_size": size}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be opened"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be opened"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be opened"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (cut_weights, "cannot be opened"),
        (foreign, "no 'crossover' section"),
        (other_size(20), r"no 'model.layers.0.mlp.gate_proj.weight' of shape \(20, 16\)"),
        (other_size(40), r"holds 9,040 weights where config.json says 10,576"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, message) -> None:
    written(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CrossoverError, match=message):
        open_model(tmp_path / "model")


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K in the real data")
    return folder


def test_a_llama2c_model_reads_back_its_own_story(stories) -> None:
    """The 200 greedy ids that llama2.c's own test expects, and losses computed elsewhere in float64."""
    reference = json.loads((stories / "reference.json").read_text("utf-8"))
    model = read_llama2c(stories / "stories260K.bin")
    told = reference["greedy_from_bos_200_ids"]
    assert AutoregressiveSampler(Picking(temperature=0)).generate(model, [], 200, seed=0) == told[1:201]
    for check in reference["nll_checks"]:
        ids = torch.tensor([check["ids"]])
        said = torch.log_softmax(logits(model, ids[:, :-1])[0].double(), -1)
        nats = -said[range(ids.shape[1] - 1), ids[0, 1:]].mean()
        assert float(nats) == pytest.approx(check["mean_nll_nats"], abs=1e-4)


def llama2c(model: Backbone, context: int) -> bytes:
    """Write a tiny model in llama2.c's legacy format, its rotary rows as interleaved pairs."""
    shape, weights = model.inner.config, dict(model.inner.named_parameters())
    tied = shape.tie_word_embeddings
    head = [shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, shape.num_attention_heads]
    head += [shape.num_key_value_heads, shape.vocab_size if tied else -shape.vocab_size, context]
    half = shape.head_dim // 2

    def layer(name: str) -> list[np.ndarray]:
        rows = [weights[f"model.layers.{i}.{name}.weight"].detach().numpy() for i in range(shape.num_hidden_layers)]
        if name.endswith(("q_proj", "k_proj")):
            rows = [part.reshape(-1, 2, half, part.shape[1]).swapaxes(1, 2).reshape(part.shape) for part in rows]
        return rows

    names = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names += ["post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"]
    parts = [weights["model.embed_tokens.weight"].detach().numpy(), *(part for name in names for part in layer(name))]
    parts += [weights["model.norm.weight"].detach().numpy(), np.zeros((2, context, half), np.float32)]
    parts += [] if tied else [weights["lm_head.weight"].detach().numpy()]
    return np.array(head, "<i4").tobytes() + b"".join(part.astype("<f4").tobytes() for part in parts)


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama2c_file_with_shared_keys_and_a_head_of_its_own(tmp_path, tied) -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, 16, kv_heads=1, tied=tied)
    (tmp_path / "m.bin").write_bytes(llama2c(model, 16))
    read = read_llama2c(tmp_path / "m.bin")
    ids = torch.arange(9)[None]
    torch.testing.assert_close(logits(read, ids)[..., :9], logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 10, 28, 30, 1000, -4, -3])
def test_a_truncated_llama2c_file_is_refused(tmp_path, cut: int) -> None:
    content = llama2c(tiny.model(tiny.vocabulary(9), 16), 16)
    (tmp_path / "m.bin").write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match=r"m\.bin"):
        read_llama2c(tmp_path / "m.bin")


def test_what_is_no_llama2c_file_is_refused(tmp_path) -> None:
    content = llama2c(tiny.model(tiny.vocabulary(9), 16), 16)
    for name, data in {"text": b"Once upon a time " * 99, "longer": content + b"more", "zero": bytes(4000)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_llama2c(tmp_path / name)
    with pytest.raises(CheckpointError, match="nowhere"):
        read_llama2c(tmp_path / "nowhere")
