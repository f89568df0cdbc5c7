"""Disks that are full or sealed, damaged files, bad batches, and what changes under a run: recipe, tokenizer, text."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from injected.scene import ROLLBACK, Scene, content, mounted, state_of, steps_kept
from injected.subject import read

REFUSALS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")


def write_refused(scene: Scene, at: int | None = None) -> int:
    """From some change on the system refuses every write: no space, no quota, read-only, no right, a broken disk."""
    problem = scene.chance.choice(REFUSALS)
    at = at or scene.chance.randint(1, scene.stage.changes)
    started = scene.subject.train(scene.run, **scene.how(under=str(scene.run), at=at, do=problem))
    code, said = started.wait(), started.said()
    if code == 0:
        # It came after the last write.
        return 0
    assert code == 2 and "error: " in said and "Traceback" not in said, f"{problem} at {at} ended with {code}:\n{said}"
    return 1


def file_too_large(scene: Scene) -> int:
    """No file grows beyond a limit (`ulimit -f`): a write of tensors breaks off in its middle."""
    # Beyond what text is prepared to, below what a checkpoint needs.
    scene.stage.reference("whole")
    said = scene.subject.refused(scene.run, **scene.how(file_bytes=scene.chance.randrange(8_000, 100_000)))
    assert "cannot be written" in said or "File too large" in said, said
    return 1


def disk_full(scene: Scene) -> int:
    """A small file system that is really full; it is made larger, and the run goes on in it."""
    scene.stage.reference("whole")
    holder = scene.run.with_name(f"{scene.run.name}-disk")
    size = scene.chance.randrange(200, 1100)
    with mounted(holder, "-t", "tmpfs", "-o", f"size={size}k", "tmpfs"):
        said = scene.subject.refused(holder / "run", **scene.how())
        assert "full" in said or "No space" in said or "cannot be written" in said, said
        subprocess.run(["mount", "-o", "remount,size=32m", str(holder)], check=True)
        shutil.copytree(holder / "run", scene.run)
    return 1


def sealed(scene: Scene) -> int:
    """A run folder that became read-only."""
    run = scene.from_half()
    with mounted(run, "--bind", str(run)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run)], check=True)
        before = content(run)
        said = scene.subject.refused(run, **scene.how())
        assert "Read-only file system" in said, said
        assert content(run) == before
    return 1


def harm(scene: Scene, path: Path) -> None:
    """Flip a bit of a file, cut it short, empty it or remove it."""
    whole, way = path.read_bytes(), scene.chance.choice(("flip", "flip", "cut", "empty", "remove"))
    if way == "remove":
        path.unlink()
    elif way == "flip":
        place = scene.chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << scene.chance.randrange(8))]) + whole[place + 1 :])
    else:
        path.write_bytes(whole[: scene.chance.randrange(len(whole))] if way == "cut" else b"")


def checkpoint_damaged(scene: Scene, name: str | None = None) -> int:
    """A file of the newest checkpoint is damaged; what the message tells to delete is deleted."""
    run = scene.from_half()
    newest = run / "checkpoints" / f"step-{steps_kept(run)[-1]:09d}"
    path = newest / (name or scene.chance.choice(sorted(item.name for item in newest.iterdir())))
    harm(scene, path)
    said = scene.subject.refused(run, **scene.how())
    assert newest.name in said and "delete that folder to go on from" in said, said
    shutil.rmtree(newest)
    return 1


def best_damaged(scene: Scene) -> int:
    """Weights that were best on the way are damaged, which is found before they are scored or exported."""
    run = scene.from_half()
    path = scene.chance.choice(sorted((run / "best").rglob("model.safetensors")))
    harm(scene, path)
    started = scene.subject.train(run, **scene.how())
    code, said = started.wait(), started.said()
    if code == 0:
        # Better weights came later and took their place.
        (run / "scores" / "summary.json").unlink()
        return 1
    assert code == 2 and path.parent.name in said and "Traceback" not in said, said
    told = re.search(r"delete (\S+/checkpoints)", said)
    assert told is not None, f"it does not say what to delete: {said}"
    shutil.rmtree(told[1])
    return 1


def shard_damaged(scene: Scene, name: str | None = None) -> int:
    """A file of the prepared text is damaged; what the message tells to delete is deleted."""
    scene.from_half()
    scene.cache = scene.run.with_name(f"{scene.run.name}-cache")
    mine = Path(shutil.copytree(scene.stage.text, scene.cache / scene.stage.text.name))
    files = sorted(path for path in mine.rglob("*") if path.is_file() and path.stat().st_size)
    path = mine / name if name else scene.chance.choice(files)
    harm(scene, path)
    said = scene.subject.refused(scene.run, **scene.how())
    assert f"delete {mine} and the text is prepared again" in said, said
    shutil.rmtree(mine)
    return 1


def nan_batch(scene: Scene) -> int:
    """A batch whose loss is no number, and a kill: the step is skipped, in the resumed run as in the other."""
    scene.reference, scene.fault = "nan", {"nan_steps": [7, 7]}
    assert read(scene.stage.reference("nan") / "ledger.json")["skipped_steps"] == 1
    return 1 + _killed_between(scene)


def nan_batches(scene: Scene) -> int:
    """A run of such batches, and a kill: weights go back to a checkpoint, in the resumed run as in the other."""
    scene.reference, scene.fault = "nans", {"nan_steps": list(ROLLBACK)}
    ledger = read(scene.stage.reference("nans") / "ledger.json")
    assert ledger["rollbacks"] == 1 and ledger["skipped_steps"] == ROLLBACK[1] - ROLLBACK[0] + 1, ledger
    return 1 + _killed_between(scene)


def _killed_between(scene: Scene) -> int:
    at = scene.chance.randint(1, scene.stage.changes)
    started = scene.subject.train(scene.run, **scene.how(under=str(scene.run), at=at, do="SIGKILL"))
    return int(started.wait() == -9)


def recipe_changed(scene: Scene) -> int:
    """A setting is changed under a run, which is refused by its name and changes nothing; then it is changed back."""
    run = scene.from_half()
    before = content(run)
    setting, key = scene.chance.choice(
        (("training.clip_norm=2", "training.clip_norm"), ("seed=5", "seed"), ("data.context=16", "data.context"))
    )
    said = scene.subject.refused(run, setting, **scene.how())
    assert "belongs to a run of another recipe" in said and f"{key}:" in said, said
    assert content(run) == before
    return 1


def text_changed(scene: Scene) -> int:
    """Other text under the same name; then the first one again."""
    run = scene.from_half()
    before = content(run)
    scene.subject.write_text("omega")
    try:
        said = scene.subject.refused(run, **scene.how())
        assert "manifest.json: data_hash was" in said and "Restore the data" in said, said
        assert content(run) == before
    finally:
        scene.subject.write_text()
    return 1


def tokenizer_changed(scene: Scene) -> int:
    """Another tokenizer in the same file; then the first one again."""
    whole = scene.stage.reference("whole")
    path = scene.subject.folder / "tokenizer.json"
    shutil.copy(whole / "model" / "tokenizer.json", path)
    scene.overrides, scene.reference = (f"data.tokenizer={path}",), "with-tokenizer"
    scene.stage.reference("with-tokenizer", *scene.overrides)
    at = scene.stage.changes // 2
    scene.subject.train(scene.run, *scene.overrides, **scene.how(under=str(scene.run), at=at, do="SIGKILL")).wait()
    before, first = content(scene.run), path.read_text("utf-8")
    changed = first.replace('"th"', '"zz"', 1) if '"th"' in first else first.replace('"e"', '"\\u00e9\\u00e9"', 1)
    path.write_text(changed, "utf-8")
    try:
        started = scene.subject.train(scene.run, *scene.overrides, **scene.how())
        assert started.wait() == 2 and "Traceback" not in started.said(), started.said()
        assert content(scene.run) == before and state_of(scene.run) == "failed"
    finally:
        path.write_text(first, "utf-8")
    return 1
