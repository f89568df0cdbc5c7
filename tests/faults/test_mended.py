"""What faults have shown to be broken, each in the smallest form that shows it."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest
import torch

import tiny_runs
from crossover.cli.entry import MACHINE
from crossover.data.prepare import prepare
from crossover.data.shards import PreparedText
from crossover.errors import CheckpointError, DataError
from crossover.recipe import resolve
from crossover.training import checkpoint
from crossover.training.machine import matmul_flops_per_second


def test_any_number_of_a_manifest_is_vouched_for(tmp_path):
    source = tiny_runs.write_text(tmp_path / "text.jsonl")
    text = prepare(resolve(tiny_runs.tree(source)).data, seed=0, cache=tmp_path / "cache")
    path = text.folder / "manifest.json"
    whole = json.loads(path.read_text("utf-8"))
    for key in ("control_offset", "control_tokens", "unique_tokens", "seed", "inexact_documents"):
        path.write_text(json.dumps({**whole, key: whole[key] ^ 1}), "utf-8")
        with pytest.raises(DataError, match=r"manifest\.json: .*the text is prepared again"):
            PreparedText.open(text.folder)
    # What an earlier version prepared vouches for its shards alone, and is read as before.
    del whole["manifest_sha256"]
    path.write_text(json.dumps(whole), "utf-8")
    assert PreparedText.open(text.folder).data_hash == text.data_hash


def test_a_machine_that_is_suspended_while_it_is_measured_has_a_speed(monkeypatch):
    ticks = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert matmul_flops_per_second("float32", "cpu", size=8) > 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EFBIG])
def test_a_failing_disk_and_a_limit_are_no_defects_of_the_program(number):
    assert MACHINE[number], os.strerror(number)


@pytest.mark.parametrize("kind", ["best/ar", "kept/step-000000007"])
def test_weights_of_a_moment_that_is_past_are_not_said_to_have_a_stand_in(tmp_path, kind):
    place = tmp_path / "run" / kind
    place.parent.mkdir(parents=True)
    for path in (place, place.with_name("step-000000003")):
        checkpoint.write_folder(path, {"model": {"weight": torch.ones(2)}}, {"step": 7})
    (place / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"delete \S+run/checkpoints to start the run anew"):
        checkpoint.load(place, ["model"])
