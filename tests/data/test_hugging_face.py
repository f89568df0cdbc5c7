"""Data sets of the hub: streamed file by file, offline from a folder, and refused in a sentence without a network."""

import json
from pathlib import Path

import pytest

from crossover.data.corpus import parts_of
from crossover.data.files import Unreachable
from crossover.data.hugging_face import Datasets
from crossover.data.prepare import prepare
from crossover.errors import DataError
from crossover.registry import component_of, label
from crossover.sections import DataRecipe

pytest.importorskip("datasets")
arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
TEXTS = [f"document {number}: " + "a few more words " * (number % 7) for number in range(60)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "stories"
    place.mkdir()
    for index in range(3):
        part = TEXTS[index * 20 : index * 20 + 20]
        table = arrow.table({"body": part, "number": list(range(20))})
        parquet.write_table(table, place / f"train-{index:05}.parquet", row_group_size=7)
    (place / "validation.jsonl").write_text('{"body": "held out"}\n')
    return place


@pytest.fixture(params=["parquet", "jsonl"])
def source(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Datasets:
    if request.param == "parquet":
        (folder / "validation.jsonl").unlink()
        return Datasets(str(folder), column="body")
    lines = tmp_path / "lines"
    lines.mkdir()
    for index in range(3):
        rows = (json.dumps({"body": text, "n": 1}) + "\n" for text in TEXTS[index * 20 : index * 20 + 20])
        (lines / f"train-{index}.jsonl").write_text("".join(rows))
    return Datasets(str(lines), column="body")


def test_a_folder_is_read_in_order_with_the_file_and_row_of_each_text(source: Datasets) -> None:
    found = list(source.documents(10))
    assert [document.text for document in found] == TEXTS
    assert [found[0].name, found[-1].name] == ["0:0", "2:19"]


def test_files_can_be_left_out_unread(source: Datasets) -> None:
    parts = list(parts_of(source, 10))
    assert len(parts) == 3
    assert [document.text for document in parts[2]] == TEXTS[40:]


def test_it_is_prepared_like_files_of_the_same_text(source: Datasets, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    hashes = {
        prepare(DataRecipe(source=corpus, tokenizer="bytes"), seed=0, cache=tmp_path / "cache").data_hash
        for corpus in (source, str(path))
    }
    assert len(hashes) == 1


def test_a_recipe_names_it(folder: Path) -> None:
    made = component_of("corpus", f'datasets("{folder}", split=validation, column=body)')
    assert made == Datasets(str(folder), split="validation", column="body")
    assert component_of("corpus", label(made)) == made
    assert made.describe() == f"{folder}, validation"
    assert Datasets("roneneldan/TinyStories").signature()["revision"] is None


def test_a_changed_folder_is_another_text(folder: Path) -> None:
    before = Datasets(str(folder)).signature()
    assert before == Datasets(str(folder)).signature()
    (folder / "train-00003.parquet").write_bytes((folder / "train-00000.parquet").read_bytes())
    assert before != Datasets(str(folder)).signature()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"column": "text"}, r"no column 'text', found body, number; set data\.source\.column"),
        ({"column": "number"}, "file 0, row 0: 'number' is int, no string"),
        ({"column": "body", "split": "tset"}, "tset"),
        ({"column": "body", "config": "other"}, "other"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, settings: dict[str, str], said: str) -> None:
    (folder / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=said) as caught:
        list(Datasets(str(folder), **settings).documents(10))
    assert not isinstance(caught.value, Unreachable) and str(folder) in str(caught.value)


def test_a_link_that_leads_nowhere_is_no_crash(folder: Path) -> None:
    before = Datasets(str(folder)).signature()
    (folder / "note").symlink_to("nowhere")
    assert Datasets(str(folder)).signature() != before


def test_null_rows_are_named_and_blank_ones_left_out(tmp_path: Path) -> None:
    place = tmp_path / "rows"
    place.mkdir()
    (place / "a.jsonl").write_text('{"text": "one"}\n{"text": "  "}\n{"text": null}\n')
    rows = Datasets(str(place)).documents(10)
    assert next(rows).text == "one"
    with pytest.raises(DataError, match="row 2: 'text' is null"):
        next(rows)


def test_archives_and_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "archive"
    place.mkdir()
    (place / "a.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(DataError, match="read by 'webdataset', not by one of: parquet, json"):
        list(Datasets(str(place)).documents(10))


def test_without_a_network_a_name_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = Datasets("roneneldan/TinyStories")
    with pytest.raises(Unreachable, match=r"TinyStories, train: cannot be read: .*hub needs a network, a folder of"):
        list(source.documents(10))
    with pytest.raises(DataError, match="hub needs a network"):
        prepare(DataRecipe(source=source), seed=0, cache=tmp_path / "cache")


def test_a_name_is_read_at_the_commit_that_it_had_when_preparation_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    read: list[str | None] = []
    asked = iter(["a" * 40, "b" * 40])

    class Answer:
        def __init__(self) -> None:
            self.sha = next(asked)

    def rows(source: Datasets) -> None:
        read.append(source.revision)
        raise Unreachable("the line is dead")

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, revision: Answer())
    monkeypatch.setattr(Datasets, "_rows", rows)
    for _ in range(2):
        with pytest.raises(Unreachable):
            prepare(DataRecipe(source=Datasets("some/name")), seed=0, cache=tmp_path / "cache")
    assert read == ["a" * 40, "a" * 40], "the interrupted preparation goes on at its own commit"
    assert Datasets("some/name", revision="c" * 40).newest() == "c" * 40


def test_a_hub_that_is_busy_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it answers 429 or 503, the library says that there is no such file."""
    import datasets

    def busy(*given: object, **options: object) -> None:
        raise FileNotFoundError("Couldn't find 'some/name' on the Hugging Face Hub either: LocalEntryNotFoundError")

    monkeypatch.setattr(datasets, "load_dataset_builder", busy)
    with pytest.raises(Unreachable, match="hub needs a network"):
        prepare(DataRecipe(source=Datasets("some/name", revision="c" * 40)), seed=0, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob(".text-*.work/progress.json")), "what is done is kept"
