"""Models that look at generated text: judges say how likely it is, embeddings say what it is like.

Suffixes: N tokens of a text, E texts, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from crossover.errors import CheckpointError
from crossover.hub.adopt import open_model
from crossover.records import Pattern

Floats = NDArray[np.float64]
# Where configurations say how many positions a model has, and what is taken where they do not (as MDLM's code does).
_WINDOWS, _WINDOW = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"), 1024
# A prediction that moves by more than this when the future changes has seen it.
_LEAK_NATS = 1e-3


@dataclass(frozen=True)
class Judge:
    """An autoregressive model that says how likely a text is.

    Args:
        name: What to call it: its folder and the hash of its weights.
        window_tokens: Most tokens of a text that it sees at once, the token that begins a text apart.
        encode: Turns text into its ids, without special ones.
        decode: Turns its ids back into text.
        nats: Gives the nats [N] of at most `window_tokens` ids, each from the begin of text and the ids before it.
    """

    name: str
    window_tokens: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    nats: Callable[[list[int]], Floats]


@dataclass(frozen=True)
class Embedding:
    """A model that turns texts into points.

    Args:
        name: What to call it: its folder and the hash of its weights.
        embed: Turns texts into points [E, D].
    """

    name: str
    embed: Callable[[Sequence[str]], Floats]


def open_judge(folder: Path | str, *, device: str = "cpu") -> Judge:
    """Open a model folder as a judge: a run of ours that has an `ar` mode, or a causal Hugging Face model.

    Args:
        folder: A model folder, or a run folder; only safetensors are read, and no code in it is run.
        device: Where it computes, in float32.

    Returns:
        The judge.

    Raises:
        CheckpointError: The folder is no model, needs code of its own, or does not predict from left to right.
    """
    folder = _model_folder(Path(folder))
    judge = _ours(folder, device) if "crossover" in _config(folder) else _theirs(folder, device)
    told = [judge.nats([0, later, 0])[0] for later in (1, 2)]
    if not np.isfinite(told).all():
        raise CheckpointError(f"{folder}: cannot judge: its scores are not finite, so its weights are not usable")
    if abs(told[0] - told[1]) > _LEAK_NATS:
        raise CheckpointError(f"{folder}: cannot judge: it sees the tokens that it should predict; is it causal?")
    return judge


def _ours(folder: Path, device: str) -> Judge:
    model, tokenizer, facts = open_model(folder)
    if "ar" not in facts["modes"]:
        raise CheckpointError(f"{folder}: cannot judge: it has no mode `ar`, only {', '.join(facts['modes'])}")
    model.to(device)
    window = model.context

    @torch.inference_mode()
    def nats(ids: list[int]) -> Floats:
        row = torch.tensor([tokenizer.vocabulary.bos_id, *ids], device=device)
        places, plan = torch.arange(len(ids), device=device), model.plan(Pattern("causal"), len(ids))
        return model.nll(row[None, :-1], places[None], plan, None, row[1:]).double().cpu().numpy()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).tolist()

    return Judge(_name(folder), window, encode, tokenizer.decode, nats)


def _theirs(folder: Path, device: str) -> Judge:
    model, reader = _load(folder, AutoModelForCausalLM, device)
    begin = reader.eos_token_id if reader.bos_token_id is None else reader.bos_token_id
    if begin is None:
        raise CheckpointError(f"{folder}: cannot judge: its tokenizer declares no token that begins or ends a text")

    @torch.inference_mode()
    def nats(ids: list[int]) -> Floats:
        row = torch.tensor([begin, *ids], device=device)
        logits_NV = model(row[None, :-1]).logits[0].float()
        return cross_entropy(logits_NV, row[1:], reduction="none").double().cpu().numpy()

    def encode(text: str) -> list[int]:
        # What spells a special token is text.
        return reader(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids

    def decode(ids: list[int]) -> str:
        return reader.decode(ids, clean_up_tokenization_spaces=False)

    return Judge(_name(folder), _window(model) - 1, encode, decode, nats)


def open_embedding(folder: Path | str, *, device: str = "cpu") -> Embedding:
    """Open a Hugging Face model folder as an embedding: the mean of its last states over a text's tokens.

    Args:
        folder: An encoder or a language model; only safetensors are read, and no code in it is run.
        device: Where it computes, in float32.

    Returns:
        The embedding; a text longer than the model's window is cut to it.

    Raises:
        CheckpointError: The folder is no model, or needs code of its own.
    """
    folder = _model_folder(Path(folder))
    model, reader = _load(folder, AutoModel, device)
    window = min(_window(model), int(min(reader.model_max_length, 10**6)))

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Floats:
        points = []
        for text in texts:
            # One at a time: a point must not depend on the texts beside it.
            ids = reader(text, truncation=True, max_length=window, verbose=False).input_ids
            if not ids:
                raise CheckpointError(f"{folder}: its tokenizer finds no token in a text; take another embedding")
            states_ND = model(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]
            points.append(states_ND.double().mean(0).cpu().numpy())
        return np.stack(points)

    return Embedding(_name(folder), embed)


def _model_folder(folder: Path) -> Path:
    inner = folder / "model"
    return inner if (inner / "config.json").exists() else folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: is no model folder: {error}; expected what a run or transformers saves"
        ) from None
    if not isinstance(config, dict) or "auto_map" in config:
        raise CheckpointError(f"{folder}: config.json asks for code of its own, which is never run; take another model")
    return config


def _load(folder: Path, kind: Any, device: str) -> tuple[Any, Any]:
    _config(folder)
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, loaded = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        reader = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be opened as a model: {error}") from None
    # What a folder lacks, transformers fills with random numbers. Nothing here reads a pooler.
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
    if missing:
        raise CheckpointError(f"{folder}: lacks {len(missing)} weights that it needs here, such as {missing[0]}")
    return model.to(device).eval(), reader


def _window(model: Any) -> int:
    return next((int(getattr(model.config, key)) for key in _WINDOWS if getattr(model.config, key, None)), _WINDOW)


def _name(folder: Path) -> str:
    """Name a model by its folder (of a run, its own and the one around it, as studies call them) and its weights."""
    weights = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as content:
            weights.update(hashlib.file_digest(content, "sha256").digest())
    place = folder.resolve()
    called = "/".join(place.parts[-3:-1]) if place.name == "model" else place.name
    return f"{called} (sha256 {weights.hexdigest()[:16]})"
