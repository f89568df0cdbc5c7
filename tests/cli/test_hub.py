"""Models out of finished runs, and runs that begin from models of others, as commands."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import strangers
import tiny_runs
from crossover.hub.adopt import open_model
from crossover.hub.custom_generate import generate
from crossover.records import Pattern
from tiny_runs import read, rows


def logits(folder, ids):
    model, _, _ = open_model(folder)
    count = ids.shape[1]
    with torch.no_grad():
        return model.logits(model.states(ids, torch.arange(count)[None], model.plan(Pattern("causal"), count)))


def test_an_export_is_a_folder_for_anyone(crossover, place):
    code, out, _ = crossover("export", "run", "out")
    assert code == 0 and "modes ar, nelbo, l2r" in out and "licence" in out
    names = {item.name for item in (place / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    model = AutoModelForCausalLM.from_pretrained(place / "out")
    ids = AutoTokenizer.from_pretrained(place / "out")("alpha beta gamma", return_tensors="pt").input_ids
    facts = model.config.crossover
    assert int(ids[0, 0]) == model.config.bos_token_id
    with torch.no_grad():
        wanted = logits(place / "run" / "model", ids)
        torch.testing.assert_close(model(ids).logits[..., : facts["predictable"]], wanted, rtol=0, atol=1e-5)
    assert facts["objectives"] == ["autoregressive", "masked"] and facts["masked"] and facts["window"] == 32
    assert generate(model, ids, max_new_tokens=6).shape[1] <= ids.shape[1] + 6
    # An export is replaced, and opens as a model of ours.
    assert crossover("export", "run", "out", "--mode", "nelbo")[0] == 0
    assert read(place / "out" / "config.json")["crossover"]["best_mode"] == "nelbo"
    assert crossover("sample", "out", "--mode", "masked", "--tokens", 4)[0] == 0


def test_every_number_of_the_card_has_its_procedure_and_its_weights(crossover, place):
    assert crossover("export", "run", "carded", "--weights", "best/ar")[0] == 0
    card = (place / "carded" / "README.md").read_text("utf-8")
    digest = read(place / "run" / "best" / "ar" / "checksums.json")["model.safetensors"]
    for path in sorted((place / "run" / "scores").glob("[dt]*-*.json")):
        score = read(path)
        number = f"{score['bits_per_byte']:.4f} ± {score['standard_error_bits']:.4f}"
        (line,) = [
            line for line in card.splitlines() if line.startswith(f"| {score['split']} | {score['procedure']} |")
        ]
        assert number in line and ("exact" if score["exact"] else "bound") in line
        assert ("these" in line) is (score["conditions"]["checkpoint_sha256"] == digest)
        (told,) = [line for line in card.splitlines() if line.startswith(f"- {score['split']} {score['procedure']}:")]
        assert f"context {score['conditions']['context']}" in told and "checkpoint_sha256" in told
    assert "draws 2" in card and "positions 2" in card
    assert read(place / "run" / "manifest.json")["data_hash"] in card
    assert card.count("**Fill in**") == 3 and "license: other" in card
    assert str(place) not in card, "nothing of this machine"


def test_nothing_else_is_overwritten(crossover, refused, place):
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("mine")
    assert "holds something that is no export" in refused("export", "run", "mine")
    assert "is where the run keeps its model" in refused("export", "run", "run/model")
    assert "has no weights 'best/none'; it has final, best/ar" in refused(
        "export", "run", "o", "--weights", "best/none"
    )
    assert "was not trained for mode 'nelbo(4)'" in refused("export", "run", "o", "--mode", "nelbo(4)")
    assert "holds no finished model" in refused("export", "mine", "o")
    assert not (place / "o").exists()


def test_damaged_weights_are_not_exported(crossover, refused, place):
    shutil.copytree(place / "run", place / "hurt", ignore=shutil.ignore_patterns("checkpoints"))
    path = place / "hurt" / "best" / "nelbo" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "is not what was written" in refused("export", "hurt", "o", "--weights", "best/nelbo")


@pytest.fixture(scope="module")
def stranger(place):
    """A small Qwen3 of somebody else."""
    strangers.folder(place / "stranger", "qwen3", rows=258)
    return place / "stranger"


SHORT = (
    "data.source=text.jsonl", "data.unique_tokens=6000", "data.context=32", "budget.tokens=4096",
    "mix={slice_tokens: 128, micro_batch_slices: 2}", "training.batch_tokens=512", "training.threads=1",
    "training.compile=off", "training.precision=float32", "training.checkpoint_every_tokens=1000",
    "scoring={every_tokens: 2000, dev_windows: 4, dev_draws: 2, dev_positions: 0, test_windows: 4, test_draws: 2, "
    "test_positions: 2}",
    "controller.to_epochs=0.3",
)  # fmt: skip


def test_a_run_begins_from_a_strangers_model_and_goes_on_without_it(crossover, refused, stranger, place):
    code, out, _ = crossover("adopt", "stranger", "begun", *SHORT)
    assert code == 0 and "qwen3, width 16" in out and "crossover train begun/recipe.yaml" in out
    assert crossover("train", "begun/recipe.yaml", "--run-dir", "adopting")[0] == 0
    found, recipe = read(place / "adopting" / "manifest.json")["adopted"], read_recipe(place / "adopting")
    assert found["source"] == "stranger" and recipe["model"]["adopt"] == "begun"
    assert recipe["model"]["adopt_sha256"] == found["sha256"]
    facts = read(place / "adopting" / "model" / "config.json")
    assert facts["crossover"]["adopted"] == found and facts["rms_norm_eps"] == 1e-6
    kinds = [set(row["losses"]) for row in rows(place / "adopting")]
    assert any({"masked", "autoregressive"} <= kind for kind in kinds), "both directions are trained"
    mixes = [row["mix"].get("masked", 0.0) for row in rows(place / "adopting")]
    assert mixes[-1] == 0.75 and mixes == sorted(mixes), "the shares are ramped"
    assert crossover("export", "adopting", "sent")[0] == 0
    assert "Began from `stranger`" in (place / "sent" / "README.md").read_text("utf-8")
    # Taken up in the middle, with neither the stranger's model nor the adopted weights there.
    finished = read(place / "adopting" / "ledger.json")["data_tokens"]
    shutil.rmtree(place / "adopting" / "scores")
    shutil.rmtree(sorted((place / "adopting" / "checkpoints").iterdir())[-1])
    (place / "begun" / "model.safetensors").rename(place / "hidden")
    (place / "stranger").rename(place / "away")
    assert crossover("train", "begun/recipe.yaml", "--run-dir", "adopting")[0] == 0
    assert read(place / "adopting" / "manifest.json")["adopted"] == found
    assert read(place / "adopting" / "ledger.json")["data_tokens"] == finished
    # A first start needs them, as they were.
    assert "model.adopt: begun cannot be read" in refused_start(crossover)
    content = bytearray((place / "hidden").read_bytes())
    content[-3] ^= 1
    (place / "begun" / "model.safetensors").write_bytes(content)
    assert "in model.adopt_sha256" in refused_start(crossover)


def refused_start(crossover) -> str:
    code, _, said = crossover("train", "begun/recipe.yaml", "--run-dir", "another")
    assert code == 2
    return said


def read_recipe(run):
    return yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))


def test_what_cannot_be_adopted_ends_in_one_sentence(crossover, refused, place):
    assert "no such file or folder" in refused("adopt", "nowhere/there", "o")
    (place / "odd").mkdir()
    (place / "odd" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "model_type 'mamba' is not supported" in refused("adopt", "odd", "o")
    assert "one recipe to go by is given already" in refused("adopt", "odd", "o", "a.yaml", "b.yaml")
    assert not (place / "o").exists()


def test_a_run_may_begin_from_a_run(crossover, place):
    """A run's own model folder is adopted as it is: shape, tokenizer and weights are there."""
    source, run = place / "text.jsonl", place / "again"
    tokenizer = {"name": "file", "path": "run/model"}
    recipe = tiny_runs.write_recipe(
        place / "again.yaml", source, model__adopt="run/model", data__tokenizer=tokenizer, budget={"tokens": 512}
    )
    assert crossover("train", recipe, "--run-dir", run)[0] == 0
    first = rows(run)[0]["loss_nats"]
    assert first < 0.8 * rows(place / "run")[0]["loss_nats"], "it goes on from what was learnt"
