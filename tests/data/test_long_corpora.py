"""Corpora that take hours and millions of documents: refused early where possible, and little memory for each."""

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossover.data.corpus import Files
from crossover.data.files import Document
from crossover.data.prepare import _Preparation, prepare
from crossover.data.workplace import Workplace
from crossover.errors import DataError
from crossover.sections import DataRecipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dev_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        ({"near_duplicates": 0.8}, "needs datasketch"),
        ({"tokenizer": "broken.json"}, "is no Hugging Face tokenizer.json"),
    ],
    ids=["shares", "library", "tokenizer"],
)
def test_what_can_be_refused_early_is_refused_before_the_text_is_read(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours of reading, all that was read would be thrown away with the error."""

    def reading(*given: Any) -> Any:
        raise AssertionError("the text is read")

    monkeypatch.setattr("crossover.data.corpus.read_documents", reading)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{}")
    Path("a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=said):
        prepare(DataRecipe(source=Files("a.jsonl"), **changes), seed=0, cache=tmp_path / "cache")


def test_splits_take_as_much_memory_for_each_document_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/howto/corpora.md says 64 bytes; lists of Python's numbers alone would take 36."""
    count = 20_000
    monkeypatch.setattr("crossover.data.splits.digest", lambda seed, name, number: number * 0x9E3779B97F4A7C15 % 2**128)
    monkeypatch.setattr("crossover.data.spool._ROWS", 1 << 10)

    class Many:
        def __len__(self) -> int:
            return count

        def digests(self) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng(0)
            return rng.integers(2**64, size=count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)

        def size(self, number: int) -> int:
            return 10

    preparation: Any = _Preparation(DataRecipe(), 0, Workplace(Path("none"), {}), lambda message: None)
    preparation._splits(Many())  # what is made once is not counted
    tracemalloc.start()
    splits, _ = preparation._splits(Many())
    assert tracemalloc.get_traced_memory()[1] < 64 * count
    tracemalloc.reset_peak()
    preparation._admitted(Many(), splits["train"])
    assert tracemalloc.get_traced_memory()[1] < 16 * count
    tracemalloc.stop()


def test_a_text_that_utf8_cannot_write_is_named(tmp_path: Path) -> None:
    """Corpora of others may read as they like."""

    class Theirs(Files):
        def parts(self, document_bytes: int) -> Any:
            yield iter([Document("page 7", "half \ud800")])

    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="page 7: its text has half a surrogate pair at character 5"):
        prepare(DataRecipe(source=Theirs(str(tmp_path / "a.jsonl"))), seed=0, cache=tmp_path / "c")
