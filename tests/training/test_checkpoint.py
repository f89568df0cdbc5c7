"""A checkpoint is there whole or not at all, and gives back every bit."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_runs
from crossover import folders
from crossover.errors import CheckpointError, RunError
from crossover.folders import step_folder
from crossover.model.sharding import ALONE
from crossover.training import checkpoint
from crossover.training.saving import Saver
from crossover.training.state import State


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def save(folder: Path, step: int, tensors: Any, tree: Any, *, keep: int) -> Path:
    """Write a run's checkpoint as its loop does."""
    place = step_folder(folder, step)
    Saver(ALONE).save(place, tensors, tree, lambda: checkpoint.forget(folder, keep))
    return place


def groups(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer.{index}": torch.randn(5, 3, generator=generator) for index in range(3)}
    return {"model": weights, "optimizer": {"0.0.step": torch.tensor(7.0)}}


def visible_and_hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_read_is_what_was_written(tmp_path):
    written = groups()
    path = save(tmp_path, 12, written, {"note": "é", "number": 0.1}, keep=2)
    tensors, tree = checkpoint.load(path, ["model", "optimizer"])
    assert tree == {"note": "é", "number": 0.1} == checkpoint.load_state(path)
    for name, group in written.items():
        assert list(tensors[name]) == sorted(group)
        assert all(torch.equal(tensors[name][key], value) for key, value in group.items())
    assert visible_and_hidden(tmp_path) == ["step-000000012"]


def test_the_newest_are_kept(tmp_path):
    for step in (1, 20, 300, 4000):
        save(tmp_path, step, groups(), {"step": step}, keep=2)
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-000000300", "step-000004000"]


def test_a_folder_of_the_same_name_is_replaced_whole(tmp_path):
    first, second = groups(0), groups(1)
    checkpoint.write_folder(tmp_path / "best", first, {"step": 1})
    checkpoint.write_folder(tmp_path / "best", {"model": second["model"]}, {"step": 2})
    tensors, tree = checkpoint.load(tmp_path / "best", ["model"])
    assert tree == {"step": 2}
    assert torch.equal(tensors["model"]["layer.0"], second["model"]["layer.0"])
    assert visible_and_hidden(tmp_path) == ["best"]
    assert not (tmp_path / "best" / "optimizer.safetensors").exists()


@pytest.mark.parametrize("stage", ["checkpoint.save_file", "folders.sha256_of", "folders.synchronise"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, stage, problem):
    save(tmp_path, 1, groups(), {"step": 1}, keep=1)
    calls = []

    def fail(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise problem

    with monkeypatch.context() as broken:
        module, name = stage.split(".")
        broken.setattr({"checkpoint": checkpoint, "folders": folders}[module], name, fail)
        expected = KeyboardInterrupt if isinstance(problem, KeyboardInterrupt) else RunError
        with pytest.raises(expected) as raised:
            save(tmp_path, 2, groups(1), {"step": 2}, keep=1)
    assert calls
    if expected is RunError:
        assert "step-000000002" in str(raised.value) and "No space left" in str(raised.value)
        assert "free some space" in str(raised.value)
    assert visible_and_hidden(tmp_path) == ["step-000000001"]
    assert checkpoint.load(tmp_path / "step-000000001", ["model"])[1] == {"step": 1}
    # Once there is space again, the same write succeeds.
    save(tmp_path, 2, groups(1), {"step": 2}, keep=1)
    assert visible_and_hidden(tmp_path) == ["step-000000002"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    checkpoint.write_folder(tmp_path / "best", groups(0), {"step": 1})
    rename = Path.rename

    def fail_on_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fail_on_new)
        with pytest.raises(RunError):
            checkpoint.write_folder(tmp_path / "best", groups(1), {"step": 2})
    assert checkpoint.load(tmp_path / "best", ["model"])[1] == {"step": 1}
    assert visible_and_hidden(tmp_path) == ["best"]


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_goes_away(tmp_path, gone):
    old = save(tmp_path, 1, groups(), {"step": 1}, keep=1)
    shutil.copytree(old, tmp_path / f".step-000000002.{gone}.tmp")
    (tmp_path / f".step-000000002.{gone}.tmp" / "checksums.json").unlink()
    shutil.copytree(old, tmp_path / f".step-000000000.{gone}.old")
    assert checkpoint.existing(tmp_path) == [old]
    save(tmp_path, 3, groups(), {"step": 3}, keep=2)
    assert visible_and_hidden(tmp_path) == ["step-000000001", "step-000000003"]


NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_damage_is_found_and_named(tmp_path, name, damage):
    save(tmp_path, 1, groups(), {"step": 1}, keep=9)
    path = save(tmp_path, 2, groups(), {"step": 2}, keep=9)
    content = bytearray((path / name).read_bytes())
    if damage == "missing":
        (path / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        shorter = {"truncated": content[:-3], "flipped": content, "empty": b""}
        (path / name).write_bytes(bytes(shorter[damage]))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as raised:
        checkpoint.load(path, ["model", "optimizer"])
    assert "step-000000002" in str(raised.value)
    # The message says which checkpoint is left to go on from.
    assert "go on from step-000000001" in str(raised.value)
    assert checkpoint.load(tmp_path / "step-000000001", ["model", "optimizer"])[1] == {"step": 1}


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"state.json": 3}'])
def test_a_damaged_list_of_checksums_is_an_error_too(tmp_path, content):
    path = save(tmp_path, 1, groups(), {"step": 1}, keep=1)
    (path / "checksums.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step-000000001.*start the run anew"):
        checkpoint.load(path, ["model"])


def test_a_state_of_another_version_is_refused():
    tree = State(step=3).to_tree()
    assert State.from_tree(json.loads(json.dumps(tree))) == State(step=3)
    with pytest.raises(CheckpointError, match=r"another version.*phase"):
        State.from_tree({**tree, "phase": "moon"})
    del tree["skipped"]
    with pytest.raises(CheckpointError, match=r"another version.*skipped"):
        State.from_tree(tree)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_written_once_and_stay_tied(tmp_path, workshop, tied):
    model = workshop(model__tied=tied).model
    named = dict(model.inner.named_parameters())
    assert ("lm_head.weight" in named) == (not tied)
    checkpoint.write_folder(tmp_path / "one", {"model": named}, {})
    other = workshop(model__tied=tied, seed=5).model
    before = other.inner.get_input_embeddings().weight.detach().clone()
    tensors, _ = checkpoint.load(tmp_path / "one", ["model"])
    with torch.no_grad():
        for name, parameter in other.inner.named_parameters():
            parameter.copy_(tensors["model"][name])
    assert not torch.equal(before, other.inner.get_input_embeddings().weight)
    assert torch.equal(other.inner.get_output_embeddings().weight, model.inner.get_output_embeddings().weight)
    same = other.inner.get_output_embeddings().weight is other.inner.get_input_embeddings().weight
    assert same == tied


def test_on_a_disk_that_is_really_full_the_old_checkpoint_stays_whole(tmp_path):
    small_disk = tmp_path / "disk"

    def of_size(floats: int) -> dict[str, dict[str, Tensor]]:
        return {"model": {"weight": torch.arange(floats, dtype=torch.float32)}}

    with tiny_runs.mounted(small_disk, "size=1m"):
        save(small_disk, 1, of_size(60_000), {"step": 1}, keep=1)
        with pytest.raises(RunError, match=r"step-000000002: cannot be written.*free some space"):
            save(small_disk, 2, of_size(400_000), {"step": 2}, keep=1)
        assert visible_and_hidden(small_disk) == ["step-000000001"]
        tensors, tree = checkpoint.load(small_disk / "step-000000001", ["model"])
        assert tree == {"step": 1} and torch.equal(tensors["model"]["weight"], of_size(60_000)["model"]["weight"])
        save(small_disk, 2, of_size(100_000), {"step": 2}, keep=1)
        assert visible_and_hidden(small_disk) == ["step-000000002"]


def test_a_folder_that_stepped_aside_comes_back_if_the_new_one_never_came(tmp_path, gone):
    checkpoint.write_folder(tmp_path / "ar", {}, {"step": 1})
    # A kill between the two renames of a replacement.
    (tmp_path / "ar").rename(tmp_path / f".ar.{gone}.old")
    (tmp_path / f".nelbo.{gone}.old").mkdir()
    checkpoint.write_folder(tmp_path / "nelbo", {}, {"step": 2})
    checkpoint.write_folder(tmp_path / "nelbo", {}, {"step": 3})
    assert checkpoint.load_state(tmp_path / "ar") == {"step": 1}
    assert checkpoint.load_state(tmp_path / "nelbo") == {"step": 3}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
