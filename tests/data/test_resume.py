"""Interrupted preparation: it goes on where it stopped, trusts nothing half-written, and ends in the same shards."""

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossover.data import workplace
from crossover.data.appended import Appended, Damaged
from crossover.data.corpus import Files
from crossover.data.files import Unreachable, read_documents
from crossover.data.prepare import PreparedText, prepare
from crossover.data.tokenizer import Bpe, TokenizerFile
from crossover.data.workplace import Workplace
from crossover.errors import DataError
from crossover.sections import DataRecipe

WORDS = ("the", "model", "reads", "a", "text", "again", "and", "learns", "naïve", "日本", "words;", "for", "(x)")


def texts(count: int) -> list[str]:
    source = random.Random(0)
    return [
        f"{number}: " + " ".join(source.choice(WORDS) for _ in range(source.randint(20, 60))) for number in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of several files, with exact and near-duplicates in it."""
    place = tmp_path / "text"
    place.mkdir()
    all_texts = texts(60)
    all_texts += all_texts[3:9] + [text + " again" for text in all_texts[20:24]]
    for index in range(3):
        rows = (json.dumps({"text": text}) + "\n" for text in all_texts[index::3])
        (place / f"{index}.jsonl").write_text("".join(rows))
    return place


@pytest.fixture(autouse=True)
def small_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "MARK_BYTES", 3000)
    # These tests end processes and not the power; what the system was told is on its way.
    monkeypatch.setattr(os, "fsync", lambda number: None)


def recipe(folder: Path, **changes: Any) -> DataRecipe:
    data = DataRecipe(source=Files(str(folder)), tokenizer=Bpe(280), dev_share=0.1, test_share=0.1, near_duplicates=0.8)
    return dataclasses.replace(data, **changes)


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, before: bool, how: BaseException) -> Iterator[None]:
    """Stop at the at-th note of progress, just before it is written or just after."""
    note, left = Workplace.note, [at]

    def refuse(place: Workplace, stage: str, facts: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] < 0 and before:
            raise how
        note(place, stage, facts)
        if left[0] < 0:
            raise how

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "note", refuse)
        yield


def file_hashes(prepared: PreparedText) -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in prepared.manifest["files"].items()}


def working(cache: Path) -> Path:
    (found,) = cache.glob(".text-*.work")
    return found


def test_every_file_is_the_same_wherever_it_was_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(recipe(folder), seed=0, cache=tmp_path / "whole")
    assert (whole.manifest["duplicates_removed"], whole.manifest["near_duplicates_removed"]) == (6, 4)
    for at in range(100):
        cache = tmp_path / f"cut-{at}"
        try:
            with interrupted(monkeypatch, at, True, KeyboardInterrupt()):
                prepare(recipe(folder), seed=0, cache=cache)
            break
        except KeyboardInterrupt:
            assert not list(cache.glob("text-*"))
        said: list[str] = []
        resumed = prepare(recipe(folder), seed=0, cache=cache, notify=said.append)
        assert file_hashes(resumed) == file_hashes(whole)
        assert [path.name for path in cache.iterdir()] == [resumed.folder.name]
    assert at > 12, "there were many notes to stop at"


def test_a_preparation_that_is_interrupted_again_and_again_ends(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two notes of progress each time, so that it must go on from what was done before."""
    whole = prepare(recipe(folder), seed=0, cache=tmp_path / "whole")
    attempts, resumed = 0, None
    while resumed is None:
        attempts += 1
        with contextlib.suppress(KeyboardInterrupt), interrupted(monkeypatch, 2, False, KeyboardInterrupt()):
            resumed = prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
    assert 5 < attempts < 60
    assert file_hashes(resumed) == file_hashes(whole)


def prepare_counting(data: DataRecipe, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PreparedText, int]:
    """Prepare without interruption, and count the notes of progress."""
    note, stages = Workplace.note, []

    def count(place: Workplace, stage: str, facts: dict[str, Any]) -> None:
        stages.append(stage)
        note(place, stage, facts)

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "note", count)
        return prepare(data, seed=0, cache=cache), len(stages)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 3],
    "flipped": lambda content: content[:5] + bytes([content[5] ^ 1]) + content[6:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("spool", -4),
        ("index", 3),
        ("minima", -5),
        ("train_ends", -2),
        ("text/train.bin", -2),
        ("text/tokenizer/tokenizer.json", -2),
        ("progress.json", 5),
    ],
)
def test_what_was_damaged_meanwhile_is_not_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int, damage: str
) -> None:
    whole, notes = prepare_counting(recipe(folder), tmp_path / "whole", monkeypatch)
    cache, at = tmp_path / "cache", at % notes
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, at, False, KeyboardInterrupt()):
        prepare(recipe(folder), seed=0, cache=cache)
    path = working(cache) / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    said: list[str] = []
    resumed = prepare(recipe(folder), seed=0, cache=cache, notify=said.append)
    assert file_hashes(resumed) == file_hashes(whole)
    if name != "progress.json":
        assert any("starts anew" in line and name in line for line in said), said


def test_what_follows_a_mark_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = Appended(path)
    file.append(b"kept")
    mark = file.mark()
    file.append(b" and lost")
    file.close()
    again = Appended(path, mark)
    again.append(b" again")
    assert again.mark()["bytes"] == 10 and path.read_bytes() == b"kept again"
    assert again.read(5, 5) == b"again"
    with pytest.raises(Damaged, match="shorter"):
        again.read(5, 50)
    again.close()
    path.write_bytes(b"else")
    with pytest.raises(Damaged, match="not what was written"):
        Appended(path, mark)
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        Appended(path, mark)


def test_changed_text_or_recipe_starts_anew_with_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(data: DataRecipe) -> None:
        with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, 6, False, KeyboardInterrupt()):
            prepare(data, seed=0, cache=tmp_path / "cache", notify=said.append)

    said: list[str] = []
    stop(recipe(folder))
    stop(recipe(folder, unique_tokens=500))
    assert "data.unique_tokens changed since preparation was interrupted: it starts anew" in said
    with open(folder / "1.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    fresh = prepare(recipe(folder, unique_tokens=500), seed=0, cache=tmp_path / "other")
    found = prepare(recipe(folder, unique_tokens=500), seed=0, cache=tmp_path / "cache", notify=said.append)
    assert "the text changed since preparation was interrupted: it starts anew" in said
    assert found.data_hash == fresh.data_hash
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.folder.name]


def test_text_that_changes_while_it_is_read_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touching(path: Path, name: str, document_bytes: int) -> Iterator[Any]:
        yield from read_documents(path, name, document_bytes)
        path.write_text(path.read_text() + "\n")

    monkeypatch.setattr("crossover.data.corpus.read_documents", touching)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_was_read_before_the_source_was_lost_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(recipe(folder), seed=0, cache=tmp_path / "whole")
    read: list[str] = []

    def listed(path: Path, name: str, document_bytes: int) -> Iterator[Any]:
        read.append(name)
        yield from read_documents(path, name, document_bytes)

    def lost(path: Path, name: str, document_bytes: int) -> Iterator[Any]:
        if name.startswith("2"):
            raise Unreachable("the line is dead")
        yield from listed(path, name, document_bytes)

    monkeypatch.setattr("crossover.data.corpus.read_documents", lost)
    with pytest.raises(DataError, match="the line is dead"):
        prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
    monkeypatch.setattr("crossover.data.corpus.read_documents", listed)
    read.clear()
    assert file_hashes(prepare(recipe(folder), seed=0, cache=tmp_path / "cache")) == file_hashes(whole)
    assert read == ["1.jsonl", "2.jsonl"], "files that were read to their end are not opened again"


CHILD = """
import dataclasses, sys
from pathlib import Path
from crossover.data import workplace
from crossover.data.prepare import prepare
from crossover.recipe import resolve
workplace.MARK_BYTES = 3000
tree = {"data": {"source": sys.argv[1], "tokenizer": "bpe(280)"}}
print("ready", flush=True)
print(prepare(resolve(tree).data, seed=0, cache=Path(sys.argv[2])).data_hash)
"""


def start(folder: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(cache)], stdout=subprocess.PIPE, text=True)


def test_killed_at_any_instant_it_goes_on(folder: Path, tmp_path: Path) -> None:
    source = random.Random(1)
    plain = recipe(folder, near_duplicates=None, dev_share=0.05, test_share=0.05)
    whole = prepare(plain, seed=0, cache=tmp_path / "whole").data_hash
    kills = 0
    for _ in range(3):
        child = start(folder, tmp_path / "cache")
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(source.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    again = start(folder, tmp_path / "cache").communicate(timeout=60)[0]
    assert again.split() == ["ready", whole] and kills > 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_a_process_left_that_was_killed_at_the_very_end_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text stands in its place; the spool, as large as the corpus, was about to be removed."""

    def killed(place: Workplace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Workplace, "remove", killed)
        prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
    left = working(tmp_path / "cache")
    with open(left / ".lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
        assert left.exists(), "the other process may be at it"
    found = prepare(recipe(folder), seed=0, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found.folder.name]


def test_the_lock_is_held_until_all_else_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a process that begins meanwhile would take the folder for its own, and lose its files."""
    place, left = Workplace(tmp_path / "work", {}), []
    (place.text / "tokenizer").mkdir(parents=True)
    for name in (".lock", "spool", "progress.json", "text/train.bin"):
        (place.folder / name).touch()
    rmtree = shutil.rmtree

    def removing(folder: Path, **options: Any) -> None:
        if folder == place.folder:
            left.extend(path.name for path in folder.iterdir())
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", removing)
    place.remove()
    assert left == [".lock"] and not place.folder.exists()


def test_a_tokenizer_that_changes_meanwhile_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is named after the tokenizer that there was at first."""
    Bpe(280).fit(texts(20)).save(tmp_path / "tokenizer")

    def replacing(path: Path, name: str, document_bytes: int) -> Iterator[Any]:
        yield from read_documents(path, name, document_bytes)
        Bpe(270).fit(texts(20)).save(tmp_path / "tokenizer")

    monkeypatch.setattr("crossover.data.corpus.read_documents", replacing)
    data = recipe(folder, tokenizer=TokenizerFile(str(tmp_path / "tokenizer")))
    with pytest.raises(DataError, match="tokenizer: the file changed while text was prepared"):
        prepare(data, seed=0, cache=tmp_path / "cache")
