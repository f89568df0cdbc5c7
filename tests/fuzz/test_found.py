"""What fuzzing has found, each case kept: the file as it was, made small."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from fuzz import seeds


def changed(content: bytes, *path: str, to: Any) -> bytes:
    """Put another value at a place of a JSON file; `...` takes the key away."""
    tree = node = json.loads(content)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    if to is ...:
        del node[path[-1]]
    return json.dumps(tree).encode() + b"\n"


CHANGED: list[tuple[str, tuple[str, ...], Any]] = [
    ("study", ("tunable",), 5),
    ("study", ("tune",), {"grid": 3, "trials": 1}),
    ("run/decisions.jsonl", ("epochs",), ...),
    ("run/decisions.jsonl", ("details",), {"phase": "ramp", "way": "far"}),
    ("run/decisions.jsonl", ("details",), [1]),
    ("run/scores/summary.json", ("headline",), ["ar"]),
    ("run/status.json", ("state",), ["running"]),
    ("replay/manifest.json", ("flops_per_token",), [1.0]),
    ("replay/manifest.json", ("budget", "amount"), ...),
    ("replay/manifest.json", ("vocabulary", "predictable"), "many"),
    ("checkpoint/state.json", ("state",), [1]),
    ("checkpoint/state.json", ("state", "rewarm"), 0),
    ("checkpoint/state.json", ("state", "mix"), {"masked": "all"}),
    ("checkpoint/state.json", ("state", "step"), 1e999),
    ("checkpoint/checksums.json", ("state.json",), {"sha256": 1}),
    ("shards/manifest.json", ("files", "train.bin", "sha256"), ...),
    ("shards/manifest.json", ("dtype",), "O"),
    ("shards/manifest.json", ("control_offset",), "none"),
    ("shards/manifest.json", ("inexact_documents",), {}),
    ("model/config.json", ("intermediate_size",), "block(16)"),
    ("model/config.json", ("hidden_size",), 10**30),
    ("model/crossover_tokenizer.json", ("bos",), None),
    ("task scores", ("measures", "acc"), {}),
    ("task scores", ("answers", "blimp", "gold_bytes"), [0.0, 0.0, 0.0]),
    ("score card", ("document_bytes",), [0, 0, 0]),
    ("score card", ("document_tokens",), [0, 5, 5]),
    ("task scores", ("answers", "blimp"), {"acc": [], "gold_nats": [], "gold_bytes": []}),
    ("task scores", ("answers",), {"other": {"acc": [1.0]}}),
    ("task scores", ("answers", "blimp"), {"acc": [1.0]}),
    ("study", ("set",), {"": 1}),
    ("recipe", ("extends",), "/etc/passwd"),
    ("model/config.json", ("attention_dropout",), "x" * 100_000),
    ("adopt/config.json", ("intermediate_size",), -8),
    ("adopt/config.json", ("num_hidden_layers",), 0),
    ("score card", ("document_nats",), ["many", 1.0, 2.0]),
    ("score card", ("conditions",), {"draws": "x" * 100_000}),
]
# These are read twice: as they are, and with their sums made to agree, as one who means harm would.
VOUCHED = ("checkpoint/checksums.json", "shards/manifest.json")
# What is only shown is left out where it cannot be.
SHOWN = ("run/steps.jsonl", "adopt/tokenizer_config.json")
DEEP = b"[" * 100_000
WHOLE: list[tuple[str, bytes]] = [
    ("recipe", b'{"name": "half \\ud800"}'),
    ("recipe", b'{"data": {"source": "half \\ud800"}}'),
    # The YAML library's work grows with the square of the depth: seconds for these few bytes.
    ("recipe", b'{"controller": ' + b"[" * 3000 + b"]" * 3000 + b"}"),
    ("override", b"name=2001-99-99"),
    ("override", b"name=" + b"[" * 3000),
    ("override", b"controller.mix=!!int ''"),
    ("run/recipe.yaml", b"name: 2001-99-99"),
    ("run/recipe.yaml", b"seed: 0 sourc"),
    ("run/recipe.yaml", b"a: " + b"[" * 3000),
    ("study.yaml", b"arms: " + b"{a: " * 3000),
    ("replay/signals.jsonl", b'{"asked": true, "step": 1, "data_tokens": 0, "epochs": 0, "budget_fraction": 0, '
     b'"planned_epochs": 1, "exposures": {}}\n{"probe": "loss", "control": null}\n'),
    ("checkpoint/state.json", DEEP),
    ("checkpoint/checksums.json", DEEP),
    ("checkpoint/model.safetensors", struct.pack("<Q", 1 << 60)),
    ("shards/train.bin", b"\x01"),
    ("shards/train.bin", b"\xff\xff" * 40),
    ("shards/dev_offsets.npy", b"\x93NUMPY\x01\x00\x02\x00{}"),
    ("shards/dev_names.json", b'["one"]'),
    ("shards/dev_names.json", b""),
    ("shards/rarity.npy", seeds.npy(np.zeros(3))),
    ("tokenizer.json", DEEP),
    ("adopt/tokenizer_config.json", b'{"bos_token": "\\ud800", "eos_token": "<|eos|>"}'),
    ("adopt/model.safetensors.index.json", b'{"weight_map": "' + b"\xff" * 100_000),
    ("curves.csv", b"x" * 200_000 + b",tokens\n1,2\n"),
    ("points.csv", b"parameters,unique_tokens,tokens,loss_nats,family," + b"x" * 200_000 + b"\n1\n"),
    ("run/steps.jsonl", b'{"step": 4, "grad_norm": ' + b"9" * 400 + b"}\n"),
    ("prompts.jsonl", DEEP),
    ("calibration.json", DEEP),
    ("curves.csv", b"step,tokens,flops,loss\n1,1,1,1e999\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "to"), CHANGED)
def test_a_value_of_another_kind(shooting, name, path, to):
    target = shooting(name)
    content = next(content for content in target.contents if content[:1] == b"{")
    outcome = target.give(changed(content.splitlines()[0] if name.endswith("jsonl") else content, *path, to=to), 30.0)
    assert not outcome.defect and (outcome.kind != "read" or name in (*VOUCHED, *SHOWN)), outcome


@pytest.mark.parametrize(("name", "content"), WHOLE)
def test_another_file(shooting, name, content):
    outcome = shooting(name).give(content, 30.0)
    assert not outcome.defect and (outcome.kind != "read" or name in (*VOUCHED, *SHOWN)), outcome


def test_a_price_of_an_objective_that_there_is_not(shooting):
    target = shooting("replay/manifest.json")
    outcome = target.give(changed(target.contents[0], "flops_per_token", to={"": 1.0}), 30.0)
    assert not outcome.defect, outcome


def test_a_column_whose_name_is_no_text(shooting):
    target = shooting("corpus .parquet")
    whole = seeds.parquet(compression="none")
    for at in (begin for begin in range(len(whole)) if whole[begin : begin + 6] == b"number"):
        outcome = target.give(whole[:at] + b"\xff" + whole[at + 1 :], 30.0)
        assert not outcome.defect, outcome
