"""Near-duplicates: pairs of known similarity are dropped above the threshold, kept below it, and always alike."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data import near
from crossover.data.corpus import Files
from crossover.data.near import SHINGLE_WORDS, jaccard, shingles
from crossover.data.prepare import PreparedText, prepare
from crossover.errors import DataError, RecipeError
from crossover.recipe import resolve
from crossover.sections import DataRecipe

pytest.importorskip("datasketch")
THRESHOLD = 0.8


def words(seed: object, count: int) -> list[str]:
    source = random.Random(str(seed))
    return [f"w{source.randrange(50_000)}" for _ in range(count)]


def pair(seed: int, shared: int, own: int) -> tuple[str, str]:
    """Two texts with so many shingles in common, and so many of its own in each."""
    common, first, second = words(seed, shared + SHINGLE_WORDS - 1), words(f"a{seed}", own), words(f"b{seed}", own)
    return " ".join(common + first), " ".join(common + second)


def prepared(tmp_path: Path, texts: list[str], near: float | None = THRESHOLD) -> PreparedText:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = DataRecipe(source=Files(str(path)), tokenizer="bytes", near_duplicates=near)
    return prepare(data, seed=0, cache=tmp_path / "cache")


def kept_names(text: PreparedText) -> set[str]:
    files = (text.folder / f"{split}_names.json" for split in ("train", "dev", "test"))
    return {name for file in files for name in json.loads(file.read_text())}


@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(0, 40))
def test_the_similarity_is_jaccards_over_runs_of_five_words(seed: int, shared: int, own: int) -> None:
    one, other = pair(seed, shared, own)
    sets = [{tuple(text.split()[i : i + 5]) for i in range(len(text.split()) - 4)} for text in (one, other)]
    assert jaccard(shingles(one), [shingles(other)])[0] == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_what_stands_between_words_and_capitals_do_not_count() -> None:
    plain = "one two three four five six"
    assert np.array_equal(shingles(plain), shingles("One  two, THREE\nfour... (five) six!"))
    assert not np.array_equal(shingles(plain), shingles("one two three four five seven"))
    assert len(shingles("too short")) == 1
    assert len(shingles("日本語の文章です")) == 4, "letters of scripts without spaces are words of their own"
    assert len(shingles("उसने वह किताब कल शाम को पढ़ी थी")) == 4, "vowel signs do not end a word"
    assert not np.array_equal(shingles("एक दो तीन चार की"), shingles("एक दो तीन चार का")), "nor are they left out"
    assert len(shingles("nai\u0308ve cafe\u0301 one two three four")) == 2, "an accent may stand for itself"
    assert not np.array_equal(shingles("..."), shingles("!!!")), "texts of no words are not alike"


@pytest.mark.parametrize(
    ("shared", "own", "least", "most"),
    [(150, 3, 60, 60), (150, 11, 60, 60), (150, 18, 56, 60), (150, 20, 0, 0), (150, 40, 0, 0), (30, 150, 0, 0)],
    ids=["0.96", "0.87", "0.81", "0.79", "0.65", "0.09"],
)
def test_planted_pairs_above_the_threshold_are_found_and_none_below(
    tmp_path: Path, shared: int, own: int, least: int, most: int
) -> None:
    """Found with 98% near the threshold and all but surely above it; what is found is compared exactly."""
    pairs = [pair(seed, shared, own) for seed in range(60)]
    similarity = shared / (shared + 2 * own)
    texts = [one for one, _ in pairs] + [other for _, other in pairs]
    text = prepared(tmp_path, texts)
    removed = text.manifest["near_duplicates_removed"]
    assert least <= removed <= most
    assert sum(text.manifest["documents"].values()) == 120 - removed
    assert {f"text.jsonl:{number}" for number in range(1, 61)} <= kept_names(text), "the first of a pair is kept"
    for example in text.manifest["near_duplicates"]:
        first, second = (int(example[key].split(":")[1]) for key in ("for", "dropped"))
        assert second == first + 60 and example["similarity"] == pytest.approx(similarity, abs=1e-4)
    assert len(text.manifest["near_duplicates"]) == min(3, removed)


def test_each_dropped_document_is_like_one_that_is_kept(tmp_path: Path) -> None:
    """In a chain of small changes the ends differ: what is like a dropped document alone stays."""
    chain = [" ".join(words("chain", 400)[index * 20 : index * 20 + 200]) for index in range(8)]
    alike = jaccard(shingles(chain[0]), [shingles(text) for text in chain])
    assert alike[1] > THRESHOLD > alike[2]
    text = prepared(tmp_path, chain + [" ".join(words(seed, 100)) for seed in range(20)])
    assert [int(name.split(":")[1]) for name in kept_names(text) if int(name.split(":")[1]) <= 8] != []
    kept = {int(name.split(":")[1]) for name in kept_names(text)} & set(range(1, 9))
    assert kept == {1, 3, 5, 7}


def test_many_copies_of_one_template_leave_one(tmp_path: Path) -> None:
    template = words("template", 300)
    copies = [" ".join([*template[:150], f"number{index}", *template[150:]]) for index in range(80)]
    text = prepared(tmp_path, copies + [" ".join(words(seed, 100)) for seed in range(20)])
    assert text.manifest["near_duplicates_removed"] == 79
    assert "text.jsonl:1" in kept_names(text)


def test_without_the_setting_nothing_is_looked_for_and_the_folder_is_the_old_one(tmp_path: Path) -> None:
    texts = [text for seed in range(10) for text in pair(seed, 150, 3)]
    plain, searched = prepared(tmp_path, texts, None), prepared(tmp_path, texts)
    assert "near_duplicates_removed" not in plain.manifest and "near_duplicates" not in plain.manifest["data"]
    assert sum(plain.manifest["documents"].values()) == 20
    assert plain.folder != searched.folder and plain.data_hash != searched.data_hash


def test_a_missing_library_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(DataError, match=r"data\.near_duplicates: needs datasketch; pip install 'crossover-lm\[data\]'"):
        prepared(tmp_path, ["one", "two", "three", "four"])


@pytest.mark.parametrize("threshold", [0.3, 1.0, -1])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: float) -> None:
    with pytest.raises(RecipeError, match=r"data\.near_duplicates"):
        resolve({"data": {"near_duplicates": threshold}, "budget": {"tokens": 1}})


def test_texts_that_are_almost_alike_are_each_read_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of one template, all pairs of them just below the threshold, once took a reading for each pair."""
    counted: list[int] = []

    def counting(text: str) -> np.ndarray:
        counted.append(len(text))
        return shingles(text)

    monkeypatch.setattr(near, "shingles", counting)
    template = words("template", 200)
    text = prepared(tmp_path, [" ".join(template + words(seed, 35)) for seed in range(80)])
    assert text.manifest["near_duplicates_removed"] == 0
    assert len(counted) <= 2 * 80


def test_what_is_found_does_not_depend_on_what_is_held_or_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the texts lie above the threshold and half below it."""
    texts = []
    for seed in range(30):
        template = words(f"template{seed % 3}", 200)
        texts.append(" ".join(template + words(seed, 35 if seed % 2 else 15)))
    plain = prepared(tmp_path, texts)
    assert 3 < plain.manifest["near_duplicates_removed"] < 20
    for name, value in (("_KEPT_BYTES", 4000), ("_AT_ONCE", 2), ("_AT_ONCE_BYTES", 1), ("_GAP", 1), ("_ROWS", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(near, name, value)
            (tmp_path / name).mkdir()
            other = prepared(tmp_path / name, texts)
        assert other.data_hash == plain.data_hash
        assert other.manifest["near_duplicates"] == plain.manifest["near_duplicates"]
