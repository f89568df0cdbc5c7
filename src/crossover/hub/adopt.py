"""Models from elsewhere as folders of ours: opened, made ready for training, and taken up by a run.

Suffixes: V rows of the embedding, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from crossover.data.tokenizer import Tokenizer
from crossover.errors import CheckpointError, CrossoverError, RecipeError, RunError
from crossover.folders import sha256_of
from crossover.hub.export import export, facts_of
from crossover.hub.foreign import Build, locate, read_build
from crossover.hub.llama2c import read_llama2c
from crossover.hub.sources import read_source
from crossover.hub.weights import EMBEDDING, HEAD, SINGLE, put_weights, read_weights
from crossover.model.backbone import Backbone, make_config, wrap
from crossover.model.shapes import parameters
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded
from crossover.records import Vocabulary
from crossover.sections import ModelRecipe

__all__ = ["adopt", "begin_from", "open_model", "put_weights", "read_llama2c"]

# What `adopt` says of a source.
_SAID = {"source", "source_sha256"}


def open_model(folder: Path) -> tuple[Backbone, Tokenizer, dict[str, Any]]:
    """Open a model folder that a run left.

    Args:
        folder: `model/` of a run, or a copy of it.

    Returns:
        The model, its tokenizer, and what the folder says about itself.

    Raises:
        CheckpointError: The folder is missing, incomplete or not one of ours.
    """
    try:
        facts = parse_json(read_bounded(folder / "config.json", LARGEST_JSON_BYTES)).get("crossover")
        if not isinstance(facts, dict):
            raise CheckpointError(f"{folder}: config.json has no 'crossover' section; it was not left by a run")
        tokenizer, weights = Tokenizer.load(folder), load_file(folder / SINGLE)
        # Before anything of the size that config.json states is made: it may be a stranger's.
        stated, held = parameters(read_build(folder).shape), sum(value.numel() for value in weights.values())
        if held < stated:
            raise CheckpointError(f"{folder}: {SINGLE} holds {held:,} weights where config.json says {stated:,}")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.dtype = torch.float32  # whatever the file has them in
        separate = not facts.get("documents_see_each_other", True)
        model = wrap(config, replace(tokenizer.vocabulary, separate_documents=separate))
        put_weights(model, weights, folder)
    except CrossoverError:
        raise
    except Exception as error:  # transformers checks by whatever it likes to raise
        raise CheckpointError(f"{folder}: cannot be opened as a model: {str(error)[:500]}") from None
    return model.eval(), tokenizer, facts


def adopt(
    source: str,
    out: Path,
    *,
    tokenizer: Path | None = None,
    before: Callable[[Build], None] = lambda _: None,
    beside: Callable[[Build, Path, str], Mapping[str, str]] = lambda *_: {},
) -> tuple[Build, dict[str, Any]]:
    """Write a model from elsewhere as a folder that training can begin from.

    Its tokenizer keeps its ids; a mask comes after them (and BOS, and the end of a document, where it has none). A new
    row of the embedding is the mean of the rows that were trained: a mask stands for any token, so its state begins
    where an average token's does, in the region that the layers know; and by Jensen's inequality the logit of a mean
    row is never likelier than the average token, so that what is new takes almost nothing from what was learnt
    (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021). The mask's own logit is left out
    everywhere, as in every model here.

    Args:
        source: A Hugging Face folder of Llama, Qwen3 or Qwen3-MoE, a hub name, or a llama2.c file.
        out: Where to; an adopted folder that stands there is replaced.
        tokenizer: llama2.c's tokenizer file, or a tokenizer.json, where it does not lie beside the weights.
        before: Called with what the backbone has to be, before anything is written.
        beside: Given that, the written weights and what the source is called, makes texts that go beside the weights,
            by file name.

    Returns:
        What the backbone has to be (with the new vocabulary), and the section `crossover` of the folder's config.json.

    Raises:
        CheckpointError: The source is missing, damaged, or asks for what the backbone cannot carry.
        RunError: `out` holds something else, or cannot be written.
    """
    _refuse_others(out)
    path, name = locate(source)
    found = read_source(path, tokenizer)
    words = found.tokenizer.vocabulary
    build = replace(found.build, shape=replace(found.build.shape, vocabulary=words.size))
    before(build)
    weights = {
        key: _grown(value, words, found.known) if key in (EMBEDDING, HEAD) else value
        for key, value in found.weights.items()
    }
    context = build.positions - 1
    config = make_config(build.shape, words, context=context, rope_theta=build.rope_theta, norm_eps=build.norm_eps)
    facts = facts_of(["ar"], "ar", words, context, ["autoregressive"])
    facts["adopted"] = {"source": name, "source_sha256": found.sha256}
    export(out, config, weights, found.tokenizer, facts, lambda folder: beside(build, folder / SINGLE, name))
    return build, facts


def _grown(rows_VD: Tensor, words: Vocabulary, known: int) -> Tensor:
    """Give an embedding or a head the rows of the new vocabulary."""
    mean_D = rows_VD[:known].float().mean(0).to(rows_VD.dtype)
    grown_VD = mean_D.repeat(words.size, 1)
    kept = min(known, words.size)
    grown_VD[:kept] = rows_VD[:kept]
    if words.bos_id >= known > words.eos_id:
        # Where documents began behind the end of another, that end is what a window should begin with.
        grown_VD[words.bos_id] = rows_VD[words.eos_id]
    return grown_VD


def _refuse_others(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        facts = parse_json(read_bounded(out / "config.json", LARGEST_JSON_BYTES))["crossover"]
        # Runs that began from an adopted model say so as well, with more, and exports of them have a card.
        ours = set(facts["adopted"]) == _SAID and not (out / "README.md").exists()
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise RunError(f"{out}: holds something that `crossover adopt` did not write; it is left alone, name another")


def begin_from(
    model: Backbone,
    settings: ModelRecipe,
    tokenizer: Tokenizer,
    recorded: Mapping[str, Any] | None = None,
    *,
    resumes: bool = False,
) -> dict[str, Any]:
    """Give a run's fresh model the weights of the folder that its recipe adopts.

    Args:
        model: The model, changed in place.
        settings: The recipe's section, with `adopt`.
        tokenizer: The run's tokenizer.
        recorded: The manifest of an earlier start, or None.
        resumes: Whether a checkpoint will take the weights' place, so that the folder need not be there any more.

    Returns:
        What was adopted, for the manifest.

    Raises:
        CheckpointError: The folder is missing or damaged, or its weights are not those that the run began with.
        RecipeError: The recipe's model or tokenizer is not the folder's.
    """
    began = (recorded or {}).get("adopted")
    if began is not None and resumes:
        return dict(began)
    folder = Path(settings.adopt or "").expanduser()
    try:
        facts = parse_json(read_bounded(folder / "config.json", LARGEST_JSON_BYTES))["crossover"]
        # A run's folder says of what that run began from; of its own weights only the file itself can tell.
        origin = {key: value for key, value in facts.get("adopted", {}).items() if key in _SAID}
        found = {**origin, "folder": str(settings.adopt), "sha256": sha256_of(folder / SINGLE)}
    except KeyError:
        advice = "write one that is: `crossover adopt SOURCE FOLDER`"
        raise CheckpointError(f"model.adopt: {folder} is no folder of Crossover's; {advice}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"model.adopt: {folder} cannot be read: {error}") from None
    wanted = began["sha256"] if began else settings.adopt_sha256
    if wanted not in (None, found["sha256"]):
        when = "when this run began" if began else "in model.adopt_sha256"
        raise CheckpointError(
            f"model.adopt: the weights in {folder} have sha256 {found['sha256'][:16]}..., but {wanted[:16]}... {when}; "
            "restore them, or adopt the model again for a run of its own"
        )
    _require_same(folder, model, tokenizer)
    put_weights(model, read_weights(folder), folder)
    return found


def _require_same(folder: Path, model: Backbone, tokenizer: Tokenizer) -> None:
    """Refuse a folder whose model is another one than the recipe's."""
    if Tokenizer.load(folder).hash != tokenizer.hash:
        raise RecipeError(f"data.tokenizer: is not that of model.adopt; set it to file({folder})")
    build, config = read_build(folder), model.inner.config
    rope = float(config.rope_parameters["rope_theta"])
    mine = Build(model.shape, float(config.rms_norm_eps), rope, build.positions)
    wanted, have = build.section(), mine.section()
    wrong = [f"model.{key}={value}" for key, value in wanted.items() if have.get(key) != value]
    if wrong:
        raise RecipeError(f"model: is not the shape of model.adopt {folder}; set {' '.join(wrong)}")
    if model.context >= build.positions:
        most = build.positions - 1
        raise RecipeError(f"data.context: {model.context} is more than the {most} that {folder} has positions for")
