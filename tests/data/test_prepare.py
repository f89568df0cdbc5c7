"""Preparation: exact budgets, no document in two splits, every byte counted, nothing half-written."""

import dataclasses
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossover.data.corpus import Files
from crossover.data.prepare import PreparedText, default_cache, prepare
from crossover.data.shards import rarity
from crossover.data.tokenizer import Bpe
from crossover.errors import DataError
from crossover.sections import DataRecipe

WORDS = (
    "the",
    "model",
    "reads",
    "a",
    "text",
    "again",
    "and",
    "learns",
    "naïve",
    "日本",
    "words;",
    "(x)",
    "\n   ",
    "for",
)


def document(seed: int) -> str:
    source = random.Random(seed)
    return f"{seed}: " + " ".join(source.choice(WORDS) for _ in range(source.randint(20, 120)))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe(path: Path, **changes: Any) -> DataRecipe:
    data = DataRecipe(source=Files(str(path)), tokenizer=Bpe(300), unique_tokens=2000, dev_share=0.1, test_share=0.1)
    return dataclasses.replace(data, **changes)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write(tmp_path / "text.jsonl", [document(number) for number in range(150)])


@pytest.fixture
def prepared(text: Path, tmp_path: Path) -> PreparedText:
    return prepare(recipe(text), seed=0, cache=tmp_path / "cache")


def split_texts(prepared: PreparedText) -> dict[str, list[str]]:
    """Decode every split, with the training stream cut at each EOS."""
    decode, eos_id = prepared.tokenizer.decode, prepared.vocabulary.eos_id
    train = np.asarray(prepared.train_tokens(True)).astype(np.int64)
    parts = np.split(train, np.flatnonzero(train == eos_id) + 1)
    found = {"train": [decode(part) for part in parts if len(part)]}
    for split in ("dev", "test"):
        found[split] = [decode(held.tokens) for held in prepared.documents(split)]
    return found


def test_the_token_budget_is_met_exactly(text: Path, tmp_path: Path) -> None:
    for budget in (1, 777, 2000):
        prepared = prepare(recipe(text, unique_tokens=budget), seed=0, cache=tmp_path)
        assert prepared.unique_tokens == budget == len(prepared.train_tokens(True))
    everything = prepare(recipe(text, unique_tokens=None), seed=0, cache=tmp_path)
    assert everything.unique_tokens > 2000
    assert everything.train_tokens(True)[-1] == everything.vocabulary.eos_id
    exact = prepare(recipe(text, unique_tokens=everything.unique_tokens), seed=0, cache=tmp_path)
    assert np.array_equal(exact.train_tokens(True), everything.train_tokens(True))


def test_too_little_text_says_how_much_there_is(text: Path, tmp_path: Path) -> None:
    everything = prepare(recipe(text, unique_tokens=None), seed=0, cache=tmp_path)
    with pytest.raises(DataError, match=f"have {everything.unique_tokens:,} tokens"):
        prepare(recipe(text, unique_tokens=everything.unique_tokens + 1), seed=0, cache=tmp_path)


def test_every_byte_is_counted_in_each_document_and_in_total(text: Path, tmp_path: Path) -> None:
    prepared = prepare(recipe(text, unique_tokens=None), seed=0, cache=tmp_path)
    bytes_V, originals = prepared.tokenizer.token_bytes_V, {document(number) for number in range(150)}
    total = 0
    for split in ("dev", "test"):
        for held in prepared.documents(split):
            original = prepared.tokenizer.decode(held.tokens)
            assert original in originals
            assert held.text_bytes == bytes_V[held.tokens].sum() == len(original.encode())
            assert held.tokens[-1] == prepared.vocabulary.eos_id
            total += held.text_bytes
    total += int(bytes_V[prepared.train_tokens(True)].sum())
    assert total == sum(len(original.encode()) for original in originals) == sum(prepared.manifest["bytes"].values())
    assert sorted([*itertools.chain.from_iterable(split_texts(prepared).values())]) == sorted(originals)


def test_bytes_of_a_document_cut_by_the_budget_are_those_of_what_is_left(prepared: PreparedText) -> None:
    kept = int(prepared.tokenizer.token_bytes_V[prepared.train_tokens(True)].sum())
    assert prepared.manifest["bytes"]["train"] == kept
    assert prepared.manifest["bytes_per_token"] == kept / 2000


def test_duplicates_are_dropped_counted_and_never_in_two_splits(tmp_path: Path) -> None:
    originals = [document(number) for number in range(60)]
    path = write(tmp_path / "text.jsonl", originals + originals[:25] + originals[5:7])
    prepared = prepare(recipe(path, unique_tokens=None), seed=0, cache=tmp_path)
    found = [*itertools.chain.from_iterable(split_texts(prepared).values())]
    assert prepared.manifest["duplicates_removed"] == 27
    assert len(found) == len(set(found)) == 60


def test_adding_documents_moves_none_to_another_split(tmp_path: Path) -> None:
    before = [document(number) for number in range(150)]
    after = [document(number) for number in range(150, 300)] + before
    splits = []
    for name, texts in (("a", before), ("b", after)):
        path = write(tmp_path / f"{name}.jsonl", texts)
        found = split_texts(prepare(recipe(path, unique_tokens=None), seed=1, cache=tmp_path))
        splits.append({text: split for split, members in found.items() for text in members})
    assert {text: splits[1][text] for text in before} == splits[0]
    assert set(splits[0].values()) == {"train", "dev", "test"}


def test_too_few_documents_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", ["one", "two", "two"])
    with pytest.raises(DataError, match=r"2 distinct document.*data\.document_bytes"):
        prepare(recipe(path), seed=0, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-written stays behind"


def test_the_control_part_is_the_end_of_the_stream_and_begins_with_a_document(text: Path, tmp_path: Path) -> None:
    prepared = prepare(recipe(text, control_share=0.2), seed=0, cache=tmp_path)
    everything, kept = prepared.train_tokens(True), prepared.train_tokens(False)
    assert len(kept) + prepared.control_tokens == 2000
    assert abs(prepared.control_tokens - 400) <= 100
    assert kept[-1] == prepared.vocabulary.eos_id
    documents = prepared.control_documents()
    assert len(documents) > 1
    assert np.array_equal(np.concatenate([held.tokens for held in documents]), everything[len(kept) :])
    assert all(held.tokens[-1] == prepared.vocabulary.eos_id for held in documents[:-1])
    sizes = [int(prepared.tokenizer.token_bytes_V[held.tokens].sum()) for held in documents]
    assert [held.text_bytes for held in documents] == sizes


def test_a_control_part_inside_one_long_document_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [f"{number} " + "word " * 5000 for number in range(12)])
    prepared = prepare(recipe(path, control_share=0.1), seed=0, cache=tmp_path)
    assert prepared.control_tokens == 200
    none = prepare(recipe(path, control_share=0.0), seed=0, cache=tmp_path)
    assert none.control_tokens == 0 and none.control_documents() == []


def test_the_tokenizer_is_trained_on_training_text_alone(tmp_path: Path) -> None:
    texts = [document(number) for number in range(150)]
    plain = prepare(recipe(write(tmp_path / "a.jsonl", texts), unique_tokens=None), seed=0, cache=tmp_path)
    held_out = {text for split in ("dev", "test") for text in split_texts(plain)[split]}
    without = [text for text in texts if text in held_out]
    train = [text for text in texts if text not in held_out]
    expected = Bpe(300).fit(train)
    assert without and plain.tokenizer.hash == expected.hash


def test_rarity_ranks_what_the_training_text_holds(prepared: PreparedText) -> None:
    counts = np.bincount(prepared.train_tokens(True), minlength=prepared.vocabulary.size)
    rarity_V = prepared.vocabulary.rarity_V
    assert rarity_V is not None and rarity_V.shape == counts.shape and rarity_V.dtype == np.float32
    assert rarity_V[counts.argmax()] == 0
    assert np.all(rarity_V[counts == 0] == 1)
    assert rarity(np.array([5, 1, 9, 1, 0]), 4).tolist() == pytest.approx([1 / 3, 1, 0, 1, 1])


def test_a_second_preparation_finds_the_first(text: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare(recipe(text), seed=0, cache=tmp_path, notify=said.append)
    assert any("training documents" in line for line in said)
    said.clear()
    second = prepare(recipe(text, context=64), seed=0, cache=tmp_path, notify=said.append)
    assert said == [f"prepared text found: {first.folder}"]
    assert second.folder == first.folder and second.data_hash == first.data_hash
    borders = prepare(recipe(text, attend_across_documents=False), seed=0, cache=tmp_path)
    assert borders.vocabulary.separate_documents and not first.vocabulary.separate_documents
    assert borders.data_hash == first.data_hash


def test_the_same_text_gives_the_same_hash_wherever_it_lies(text: Path, tmp_path: Path) -> None:
    first = prepare(recipe(text), seed=0, cache=tmp_path / "a")
    text.rename(tmp_path / "renamed.jsonl")
    again = prepare(recipe(tmp_path / "renamed.jsonl"), seed=0, cache=tmp_path / "b")
    assert again.data_hash == first.data_hash
    assert prepare(recipe(tmp_path / "renamed.jsonl"), seed=1, cache=tmp_path / "b").data_hash != first.data_hash


def test_changed_text_is_prepared_anew(text: Path, tmp_path: Path) -> None:
    first = prepare(recipe(text, unique_tokens=None), seed=0, cache=tmp_path)
    write(text, [document(number) for number in range(1, 151)])
    assert prepare(recipe(text, unique_tokens=None), seed=0, cache=tmp_path).data_hash != first.data_hash


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["train.bin", "dev_offsets.npy", "tokenizer/tokenizer.json"])
def test_damage_is_found_and_named(prepared: PreparedText, name: str, damage: str) -> None:
    path = prepared.folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    with pytest.raises(DataError, match=f"{name}.*delete .*{prepared.folder.name}"):
        PreparedText.open(prepared.folder)


def test_a_damaged_manifest_is_found(prepared: PreparedText) -> None:
    path = prepared.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "data_hash": "0"}))
    with pytest.raises(DataError, match="data_hash"):
        PreparedText.open(prepared.folder)
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        PreparedText.open(prepared.folder)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        PreparedText.open(prepared.folder)


PREPARE = """
import sys
from pathlib import Path
from crossover.data.prepare import prepare
from crossover.recipe import resolve
tree = {"data": {"source": sys.argv[1], "tokenizer": "bpe(300)"}}
print(prepare(resolve(tree).data, seed=0, cache=Path(sys.argv[2])).data_hash)
"""


def test_two_processes_at_once_both_end_well(text: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", PREPARE, str(text), str(cache)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {worker.communicate(timeout=120)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(hashes) == 1
    assert len(list(cache.iterdir())) == 1


def test_losing_the_race_takes_what_the_winner_wrote(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = prepare(recipe(text), seed=0, cache=tmp_path / "cache")
    existing = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != winner.folder and existing(path))
    said: list[str] = []
    loser = prepare(recipe(text), seed=0, cache=tmp_path / "cache", notify=said.append)
    assert len(said) > 1, "it did prepare"
    assert loser.data_hash == winner.data_hash
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [winner.folder.name]


def test_a_tokenizer_that_changes_the_text_gives_no_bits_per_byte(tmp_path: Path) -> None:
    prepared = prepare(recipe(write(tmp_path / "a.jsonl", [document(n) for n in range(30)])), seed=0, cache=tmp_path)
    prepared.tokenizer.save(tmp_path / "composing")
    (tmp_path / "composing" / "crossover_tokenizer.json").unlink()
    path = tmp_path / "composing" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "NFC"}}))
    recipes = {
        name: recipe(
            write(tmp_path / f"{name}.jsonl", [f"{n} caf{accent} " * 20 for n in range(30)]), unique_tokens=None
        )
        for name, accent in (("composed", "\u00e9"), ("decomposed", "e\u0301"))
    }
    opened = {
        name: prepare(dataclasses.replace(data, tokenizer=str(path)), seed=0, cache=tmp_path)
        for name, data in recipes.items()
    }
    assert opened["composed"].tokenizer.token_bytes_V.any()
    assert opened["decomposed"].manifest["inexact_documents"] == 30
    with pytest.raises(DataError, match="30 document"):
        _ = opened["decomposed"].tokenizer.token_bytes_V


def test_large_vocabularies_are_stored_wide(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = prepare(recipe(text), seed=0, cache=tmp_path / "a")
    monkeypatch.setattr("crossover.data.writing.stored_as", lambda size: "<u4")
    wide = prepare(recipe(text), seed=0, cache=tmp_path / "b")
    assert (narrow.train_tokens(True).dtype, wide.train_tokens(True).dtype) == (np.uint16, np.uint32)
    assert np.array_equal(narrow.train_tokens(True), wide.train_tokens(True))


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CROSSOVER_CACHE", raising=False)
    assert default_cache() == tmp_path / "xdg" / "crossover"
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"


def test_the_default_recipe_prepares_the_standard_library(tmp_path: Path) -> None:
    prepared = prepare(DataRecipe(unique_tokens=20_000, tokenizer="bytes"), seed=0, cache=tmp_path)
    assert prepared.unique_tokens == 20_000
    assert prepared.manifest["source"]["signature"]["corpus"] == "stdlib"
    assert len(prepared.documents("dev")) > 5
