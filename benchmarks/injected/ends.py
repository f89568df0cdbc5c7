"""Ends that come from outside: kills, requests to stop, a second writer, a lock that a dead process left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from injected.scene import Scene, state_of, steps_kept
from injected.subject import read

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def killed(scene: Scene) -> int:
    """SIGKILL at random instants, up to three times in one run."""
    hits = 0
    for _ in range(scene.chance.randint(1, 3)):
        started = scene.subject.train(scene.run, **scene.how())
        time.sleep(scene.chance.uniform(0, scene.stage.seconds))
        hits += started.send(signal.SIGKILL)
        started.wait()
    return hits


def killed_in_write(scene: Scene, at: int | None = None) -> int:
    """SIGKILL before a change of the file system, checkpoints, scores and the exported model included."""
    at = at or scene.chance.randint(1, scene.stage.changes)
    started = scene.subject.train(scene.run, **scene.how(under=str(scene.run), at=at, do="SIGKILL"))
    return int(started.wait() == -signal.SIGKILL)


def killed_in_prepare(scene: Scene, at: int | None = None) -> int:
    """SIGKILL before a change of the file system while text is prepared."""
    scene.stage.reference("whole")
    scene.cache = scene.run.with_name(f"{scene.run.name}-cache")
    at = at or scene.chance.randint(1, 40)
    fault = scene.how(under=str(scene.cache), at=at, do="SIGKILL")
    code = scene.subject.start("prepare", scene.subject.recipe, **fault).wait()
    assert code in (0, -signal.SIGKILL)
    return int(code != 0)


def asked_to_stop(scene: Scene, at: int | None = None) -> int:
    """SIGTERM, SIGINT or SIGUSR1 at a change of the file system; sometimes twice within an instant."""
    number = scene.chance.choice(REQUESTS)
    at = at or scene.chance.randint(1, scene.stage.changes)
    started = scene.subject.train(scene.run, **scene.how(under=str(scene.run), at=at, do=number.name))
    assert started.wait() == 130, started.said()
    check_stopped(scene, started.said())
    return 1


def asked_at_an_instant(scene: Scene) -> int:
    """SIGTERM at a random instant, as `timeout` delivers it: twice within an instant."""
    started = scene.subject.train(scene.run, **scene.how())
    while not (scene.run / "manifest.json").exists() and started.poll() is None:
        time.sleep(0.005)
    time.sleep(scene.chance.uniform(0, scene.stage.seconds))
    hit = started.send(signal.SIGTERM)
    time.sleep(scene.chance.uniform(0, 0.05))
    started.send(signal.SIGTERM)
    code = started.wait()
    assert code == 130 or (code == 0 and state_of(scene.run) == "finished"), f"{code}: {started.said()}"
    if code == 130:
        check_stopped(scene, started.said())
    return int(hit and code == 130)


def check_stopped(scene: Scene, said: str) -> None:
    """Hold a run that was asked to stop to what it says: the step that is saved is there."""
    status = read(scene.run / "status.json")
    if status["state"] == "finished":
        # The word came after the run's own last one; the same command then says that nothing is left to do.
        return
    assert status["state"] == "interrupted" and "the same command goes on" in status["why"], status
    assert "Traceback" not in said and "the same command goes on where it stopped" in said, said
    if found := re.search(r"step (\d+) is saved", status["why"]):
        step = int(found[1])
        assert steps_kept(scene.run)[-1] == step, "the step that it names is not the newest checkpoint"
        rows = (scene.run / "steps.jsonl").read_text("utf-8").splitlines()
        assert f'"step": {step},' in rows[-1], "steps.jsonl does not end with the step that was saved"


def asked_twice(scene: Scene) -> int:
    """A second request while a long step is taken: the run ends at once, and goes on from its last checkpoint."""
    step = scene.chance.randint(5, 20)
    started = scene.subject.train(scene.run, **scene.how(slow_steps=[step, step], seconds=60))
    while len(steps_kept(scene.run)) < 1 or steps_kept(scene.run)[-1] < step - 4:
        assert started.poll() is None, started.said()
        time.sleep(0.01)
    time.sleep(0.4)
    started.send(signal.SIGTERM)
    time.sleep(0.7)
    assert started.poll() is None, "the first request is to wait for the step"
    started.send(signal.SIGTERM)
    assert started.wait(5) == 130
    check_stopped(scene, started.said())
    return 1


def second_writer(scene: Scene) -> int:
    """The same command given twice: the second is refused and told who writes, the first does not notice."""
    first = scene.subject.train(scene.run, **scene.how())
    while not (scene.run / ".lock").exists() or not (scene.run / ".lock").read_bytes():
        time.sleep(0.002)
    said = scene.subject.refused(scene.run)
    assert f"process {first.pid} is writing here" in said, said
    assert first.wait() == 0, first.said()
    # Finished: what follows compares it as it is.
    (scene.run / "scores" / "summary.json").unlink()
    return 1


def stale_lock(scene: Scene) -> int:
    """A lock with the number of a process that is dead, or that is another one's by now."""
    run = scene.from_half()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    number = scene.chance.choice((dead.pid, os.getpid(), 1))
    (run / ".lock").write_text(str(number))
    (run / "status.json").write_text(f'{{"state": "running", "why": "", "pid": {number}}}\n')
    # What it was writing when it died stands there, too.
    older = run / "checkpoints" / f"step-{steps_kept(run)[0]:09d}"
    for name in ("step-000000012", "step-000000099"):
        shutil.copytree(older, older.with_name(f".{name}.{dead.pid}.tmp"))
    return 1


def clocks_jump(scene: Scene) -> int:
    """Clocks that leap, through a kill and a resume."""
    scene.fault = {"clock": scene.chance.randrange(10**6)}
    return killed_in_write(scene) + 1


def rank_killed(scene: Scene) -> int:
    """One of two processes of a distributed run dies; the launcher starts both again and the run goes on."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2",
              "--standalone", "-m", "crossover", "train", str(scene.subject.recipe), *scene.overrides]  # fmt: skip
    environment = {**os.environ, **scene.subject.environment(), "OMP_NUM_THREADS": "1",
                   "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # fmt: skip
    whole = scene.subject.folder / "ranks"
    options = {
        "cwd": scene.subject.folder,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    if "ranks" not in scene.stage.made:
        subprocess.run([*launch, "--run-dir", str(whole)], check=True, timeout=300, **options)
        scene.stage.made["ranks"] = whole
    scene.reference = "ranks"
    process = subprocess.Popen([*launch, "--run-dir", str(scene.run)], **options)
    deadline = time.monotonic() + 120
    while not steps_kept(scene.run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = [int(line) for line in _children(process.pid)]
    assert len(ranks) >= 2, "the launcher has no two processes"
    os.kill(scene.chance.choice(ranks), signal.SIGKILL)
    assert process.wait(timeout=300) == 0 and state_of(scene.run) == "finished"
    return 1


def _children(number: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True, text=True, check=False)
    return listed.stdout.split()
