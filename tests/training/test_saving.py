"""Writing beside the training: what is written is what was, whatever happens meanwhile, and a failure is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossover.errors import CheckpointError, RunError
from crossover.model.sharding import ALONE
from crossover.training import checkpoint
from crossover.training.saving import Saver, check, fill


def weights(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((300, 200), value), "b": torch.full((3,), value)}}


def test_what_is_written_beside_the_training_is_what_was(tmp_path: Path) -> None:
    saver, order = Saver(ALONE, beside=True), []
    trained = weights(1.0)
    saver.save(tmp_path / "one", trained, {"step": 1}, lambda: order.append("one"))
    trained["model"]["a"].fill_(2.0)
    saver.save(tmp_path / "two", trained, {"step": 2}, lambda: order.append("two"))
    trained["model"]["a"].fill_(3.0)
    saver.wait()
    assert order == ["one", "two"]
    for name, value in (("one", 1.0), ("two", 2.0)):
        tensors, tree = checkpoint.load(tmp_path / name, ["model"])
        assert torch.equal(tensors["model"]["a"], torch.full((300, 200), value))
        assert tree == {"step": value}


def test_a_failure_beside_the_training_is_told_at_the_next_turn(tmp_path: Path) -> None:
    saver = Saver(ALONE, beside=True)
    (tmp_path / "file").write_text("not a folder")
    saver.save(tmp_path / "file" / "one", weights(1.0), {}, lambda: None)
    with pytest.raises(RunError, match="cannot be written"):
        saver.save(tmp_path / "two", weights(1.0), {}, lambda: None)
    saver.wait()
    assert not (tmp_path / "two").exists()


def test_tensors_are_put_back_in_place_and_only_if_they_fit(tmp_path: Path) -> None:
    Saver(ALONE).save(tmp_path / "one", weights(1.0), {"step": 1}, lambda: None)
    assert check(tmp_path / "one", ["model"], ALONE) == {"step": 1}
    place = weights(0.0)["model"]
    before = place["a"].data_ptr()
    fill(tmp_path / "one", "model", place)
    assert place["a"].data_ptr() == before and bool((place["a"] == 1).all())
    with pytest.raises(CheckpointError, match=r"'b' is of shape \(3,\), not \(4,\)"):
        fill(tmp_path / "one", "model", {"b": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        fill(tmp_path / "one", "model", {"c": torch.zeros(4)})
    (tmp_path / "one" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="truncated or altered"):
        check(tmp_path / "one", ["model"], ALONE)
