"""Disks that are full or sealed: what was there stays whole, and the run goes on once there is space."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from tiny_runs import SHORT, leftovers, rows, works


class FullDisk:
    """A disk that is full from the n-th write to be made durable on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.patch = after, monkeypatch.context()
        self.fsync = os.fsync

    def __enter__(self) -> None:
        self.patch.__enter__().setattr(os, "fsync", self.refuse)

    def __exit__(self, *what: Any) -> None:
        self.patch.__exit__(*what)

    def refuse(self, number: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(number)


def test_a_full_disk_loses_nothing(here, recipe, refused, train, monkeypatch):
    recipe(budget={"tokens": 10_240}, training__checkpoint_every_tokens=2000)
    works(train)
    whole = here / "whole"
    (here / "run").rename(whole)
    refusals = 0
    # From the first write of the run folder, over records and checkpoints, to the model folder at the end.
    for after in itertools.chain((0, 1), itertools.count(3, 6)):
        with FullDisk(monkeypatch, after):
            code, _, said = train()
        if code == 0:
            break
        refusals += 1
        assert code == 2 and said.startswith("error: ") and "Traceback" not in said
        assert "the disk is full" in said or "No space left" in said
        assert "free some space" in said or "Free space" in said
        assert leftovers(here / "run") == []
    assert refusals > 5
    works(train)
    assert (here / "run/model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    for one, two in zip(rows(here / "run"), rows(whole), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_disk_that_is_full_while_text_is_prepared(here, recipe, refused, train, monkeypatch):
    monkeypatch.setenv("CROSSOVER_CACHE", str(here / "cache"))
    recipe(**SHORT)
    for after in (4, 8, 16):
        with FullDisk(monkeypatch, after):
            said = refused()
        assert "No space left on device" in said and "CROSSOVER_CACHE" in said and "is kept" in said
        assert [path.name for path in (here / "cache").iterdir() if not path.name.startswith(".")] == []
    works(train)


def test_a_disk_that_is_really_full(here, recipe, refused, train):
    recipe()
    with tiny_runs.mounted(here / "run", "size=900k"):
        said = refused()
        assert "step-" in said or "the disk is full" in said or "cannot be written" in said
        kept = sorted((here / "run" / "checkpoints").iterdir())
        assert kept and all((path / "checksums.json").exists() for path in kept)
        subprocess.run(["mount", "-o", "remount,size=16m", str(here / "run")], check=True)
        works(train)
        assert [row["step"] for row in rows(here / "run")] == list(range(1, 41))


def test_a_folder_that_cannot_be_written(here, recipe, refused, train):
    recipe(**SHORT)
    with tiny_runs.mounted(here / "sealed", "ro,size=1m"):
        assert "sealed/run: Read-only file system; make it writable or name another folder" in refused(
            "--run-dir", "sealed/run"
        )
        said = refused("--run-dir", "sealed")
        assert "sealed" in said and "Read-only file system" in said
    works(train)


def test_a_cache_that_cannot_be_written(here, recipe, refused, train, monkeypatch):
    recipe(**SHORT, data__unique_tokens=5000)
    (here / "file").write_text("")
    with monkeypatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(here / "file" / "cache"))
        said = refused()
    assert "cannot be written" in said and "set CROSSOVER_CACHE" in said
    works(train)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_what_the_machine_refuses_is_no_traceback(here, recipe, refused, train, monkeypatch, error):
    recipe(**SHORT)

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        said = refused()
    assert "run: " in said and (os.strerror(error) in said or "the disk is full" in said)
    works(train)
