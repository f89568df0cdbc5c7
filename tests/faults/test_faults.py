"""Whatever happens to a run, the same command goes on, and what it leaves is what it would have left.

Not repeated here: damage to each file of a checkpoint and of prepared text (`training/test_checkpoint.py`,
`data/test_prepare.py`), full and sealed disks in this process (`bad_input/test_full_disks.py`), other recipes, other
text, damaged checkpoints and a second writer in this process (`bad_input/test_run_folders.py`), kills in a ramp of an
online run (`training/test_resume.py`), steps that are not finite (`training/test_loop.py`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from injected import damage, ends
from injected.kinds import KINDS
from injected.scene import state_of
from injected.subject import BENCHMARKS
from injected.verdict import compare


def test_the_comparison_sees_a_byte(stage, tmp_path):
    whole = stage.reference("whole")
    assert compare(whole, whole).wrong == ()
    for name, change, word in (
        ("model/model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "differs"),
        ("steps.jsonl", lambda content: content[: content.rindex(b'{"step"')], "1 rows missing, 0 others"),
        ("scores/test-ar.json", lambda content: content.replace(b'"loss_nats": ', b'"loss_nats": 1'), "differs"),
        ("evals.jsonl", lambda content: content.replace(b'"step": 1,', b'"step": 2,', 1), "1 rows missing, 1 others"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        verdict = compare(copy, whole)
        assert len(verdict.wrong) == 1 and name in verdict.wrong[0] and word in verdict.wrong[0]
        assert (verdict.lost_bytes > 0) == ("0 others" in word)
        shutil.rmtree(copy)
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "scores" / "dev-ar.json").unlink()
    verdict = compare(copy, whole)
    assert verdict.lost_bytes > 100 and verdict.wrong == ("scores/dev-ar.json is missing",)


def test_a_run_goes_on_after_each_of_these(stage, goes_on):
    # In one test, since the undisturbed run and the process that starts runs are made once per worker.
    changes = stage.changes
    for name, share in (("checkpoint", 0.5), ("end", 0.97)):
        assert goes_on(ends.killed_in_write, name=name, at=int(changes * share)) == 1
    assert goes_on(ends.asked_to_stop, name="asked", at=int(changes * 0.4)) == 1
    assert goes_on(ends.asked_twice, name="twice") == 1
    assert goes_on(ends.stale_lock, name="stale") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_fault(goes_on, possible, name, seed):
    possible(name)
    goes_on(KINDS[name], seed)


@pytest.mark.slow
def test_fifty_kills_at_random_instants(goes_on):
    assert sum(goes_on(ends.killed, seed, f"run-{seed}") for seed in range(40)) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_a_kill_before_every_change_of_the_file_system(stage, goes_on, quarter):
    whole = stage.changes
    for at in range(quarter + 1, whole + 1, 4):
        assert goes_on(ends.killed_in_write, name=f"run-{at}", at=at) == 1
    # How far a run is gets written by the clock, so a slow machine changes a file or two more than were counted.
    assert goes_on(ends.killed_in_write, name="late", at=whole + 20) == 0, "there were more changes than were counted"


@pytest.mark.slow
def test_a_kill_before_every_change_while_text_is_prepared(goes_on):
    at = 1
    while goes_on(ends.killed_in_prepare, name=f"run-{at}", at=at):
        at += 1
    assert at > 15


@pytest.mark.slow
def test_a_write_refused_from_every_tenth_change_on(stage, goes_on):
    for at in range(1, stage.changes, 10):
        goes_on(damage.write_refused, at, f"run-{at}", at=at)


@pytest.mark.slow
def test_the_same_from_a_shell(stage, tmp_path):
    """A fresh interpreter with `python -m crossover`, killed and stopped by what its environment preloads."""
    whole, run, subject = stage.reference("whole"), tmp_path / "run", stage.subject
    (tmp_path / "sitecustomize.py").write_text(
        "import json, os\nfrom injected.injection import install\ninstall(json.loads(os.environ['FAULT']))\n"
    )
    command = [sys.executable, "-m", "crossover", "train", str(subject.recipe), "--run-dir", str(run)]
    codes = []
    for fault in ({"at": 100, "do": "SIGKILL"}, {"at": 90, "do": "SIGTERM"}, {"at": 20, "do": "ENOSPC"}, {}):
        env = {**subject.environment(), "PYTHONPATH": f"{tmp_path}:{BENCHMARKS}", "OMP_NUM_THREADS": "1"}
        env["FAULT"] = json.dumps({"under": str(run), **fault} if fault else {})
        done = subprocess.run(command, env=env, cwd=subject.folder, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr
    assert codes == [-9, 130, 2, 0] and state_of(run) == "finished"
    assert compare(run, whole).wrong == ()
