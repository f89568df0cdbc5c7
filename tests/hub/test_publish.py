"""What a published folder says of a run is true of that run, and says nothing of the machine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

import tiny
from crossover.data.tokenizer import Bytes
from crossover.errors import CheckpointError
from crossover.folders import read_sums, write_sums
from crossover.hub.export import export, facts_of
from crossover.hub.publish import publish

TOKENIZER = Bytes().fit([])
MODES = ["ar", "nelbo"]


def score(procedure: str, *, headline: bool) -> dict:
    numbers = {"bits_per_byte": 1.5, "standard_error_bits": 0.1, "loss_nats": 2.0, "standard_error_nats": 0.2}
    counts = {"perplexity": 7.39, "tokens": 10, "documents": 2}
    facts = {"split": "dev", "procedure": procedure, "exact": procedure == "ar", "headline": headline}
    return {**numbers, **counts, **facts, "conditions": {"checkpoint": f"best/{procedure}"}}


@pytest.fixture
def run(tmp_path):
    """What a run leaves, as far as publishing reads it."""
    folder = tmp_path / "run"
    (folder / "scores").mkdir(parents=True)
    model = tiny.model(TOKENIZER.vocabulary, 16)
    words = replace(TOKENIZER.vocabulary, separate_documents=True)
    facts = facts_of(MODES, "nelbo", words, 16, ["autoregressive", "masked"])
    facts["adopted"] = {"folder": str(tmp_path / "run0" / "model"), "sha256": "a" * 64}
    export(folder / "model", model.inner.config, dict(model.inner.named_parameters()), TOKENIZER, facts)
    (folder / "best" / "nelbo").mkdir(parents=True)
    save_file(dict(model.inner.named_parameters()), folder / "best" / "nelbo" / "model.safetensors")
    write_sums(folder / "best" / "nelbo")
    digest = read_sums(folder / "best" / "nelbo")["model.safetensors"]
    for mode in MODES:
        card = score(mode, headline=mode == "nelbo")
        card["conditions"]["checkpoint_sha256"] = digest if mode == "nelbo" else "0" * 64
        (folder / "scores" / f"dev-{mode}.json").write_text(json.dumps(card), "utf-8")
    (folder / "manifest.json").write_text(json.dumps({"adopted": facts["adopted"]}), "utf-8")
    return folder


def test_a_mode_by_choice_is_not_said_to_have_won(run, tmp_path) -> None:
    publish(run, tmp_path / "out")
    assert "Mode `nelbo` was best on dev. `exact`" in (tmp_path / "out" / "README.md").read_text("utf-8")
    publish(run, tmp_path / "out", mode="ar", weights="final")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "declares mode `ar` as its best by choice; mode `nelbo` was best on dev" in card
    assert "`ar` was best" not in card


def test_a_model_that_never_saw_across_documents_says_so(run, tmp_path) -> None:
    assert publish(run, tmp_path / "out")["documents_see_each_other"] is False
    tree = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert tree["crossover"]["documents_see_each_other"] is False


@pytest.mark.parametrize("part", ["", "model"])
def test_the_card_says_that_a_run_began_from_a_run_and_not_where(run, tmp_path, part) -> None:
    publish(run / part, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"Began from `another run`, sha256 `{'a' * 64}`" in card
    for item in ("config.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "out" / item).read_text("utf-8"), "nothing of this machine"


def test_a_model_that_is_not_the_scored_one_is_not_published_as_it(run, tmp_path) -> None:
    """One flipped bit makes no file that cannot be read."""
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not those in .*nelbo, which were scored.* --weights best/nelbo"):
        publish(run, tmp_path / "out")
    publish(run, tmp_path / "out", weights="best/nelbo")
    assert "| dev | nelbo | bound |" in (tmp_path / "out" / "README.md").read_text("utf-8")
