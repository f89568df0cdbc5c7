"""Numbers over items, checked against their definitions written out."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossover.errors import DataError
from crossover.scoring.tasks.metrics import Item, item_of, items_of, measures_of


def choice_task(gold: int, choices: list[str], **more: Any) -> Any:
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=0,
        doc_to_target=lambda _: gold,
        doc_to_choice=lambda _: choices,
        config=SimpleNamespace(target_delimiter=" ", task="swag"),
        **more,
    )


def sample(choices: list[str], logs: list[float], **metrics: float) -> dict[str, Any]:
    return {
        "doc": {},
        "arguments": [("context", f" {choice}") for choice in choices],
        "filtered_resps": [(log, False) for log in logs],
        "metrics": list(metrics),
        **metrics,
    }


def test_bits_per_byte_are_of_the_gold_ending() -> None:
    choices = ["no", "yes indeed", "é"]
    item = item_of(choice_task(2, choices), sample(choices, [-3.0, -9.0, -1.5], acc=1.0), greedy=False)
    assert item.gold_nats == 1.5 and item.gold_bytes == len(" é".encode())
    # By bytes: -1.5 of 2, -9 of 10, -3 of 2.
    assert item.values == {"acc": 1.0, "acc_bytes": 1.0}
    item = item_of(choice_task(1, choices), sample(choices, [-3.0, -5.0, -1.5], acc=0.0), greedy=False)
    assert item.values == {"acc": 0.0, "acc_bytes": 1.0}


def test_the_harness_counts_by_bytes_in_the_same_way() -> None:
    task_module = pytest.importorskip("lm_eval.api.task")
    rng = np.random.default_rng(0)
    for _ in range(50):
        choices = ["".join(rng.choice(list("aé ½b"), rng.integers(1, 9))) for _ in range(4)]
        logs = (-rng.exponential(5, 4)).tolist()
        task = choice_task(
            int(rng.integers(4)), choices, _metric_fn_list={"acc": None, "acc_bytes": None}, multiple_target=0
        )
        task.config.process_results = None
        theirs = task_module.ConfigurableTask.process_results(task, {}, [(log, False) for log in logs])
        item = item_of(task, sample(choices, logs, **theirs), greedy=False)
        assert item.values["acc_bytes"] == theirs["acc_bytes"] and item.values["acc"] == theirs["acc"]


def test_one_text_behind_several_contexts_is_not_normalised() -> None:
    task = choice_task(0, ["a long context", "short"])
    task.multiple_input, task.doc_to_text, task.doc_to_target = 2, lambda _: 1, lambda _: "the end"
    asked = sample(["the end", "the end"], [-4.0, -2.0], acc=1.0)
    item = item_of(task, asked, greedy=True)
    assert item.values == {"acc": 1.0, "acc_bytes": 1.0} and item.gold_nats == 2.0
    assert item.gold_bytes == len(" the end")


def test_a_greedy_match_counts_where_it_is_defined() -> None:
    task = SimpleNamespace(OUTPUT_TYPE="loglikelihood")
    logged = {
        "arguments": [("She sat. ", "down")],
        "filtered_resps": [(-2.0, True)],
        "metrics": ["perplexity", "acc"],
        "perplexity": -2.0,
        "acc": 1,
    }
    assert item_of(task, logged, greedy=True) == Item({"acc": 1.0}, 2.0, len(" down"))
    assert item_of(task, logged, greedy=False) == Item({}, 2.0, len(" down"))


def test_a_whole_text_has_the_bytes_of_all_of_it() -> None:
    task = SimpleNamespace(OUTPUT_TYPE="loglikelihood_rolling")
    logged = {"arguments": [("naïve",)], "filtered_resps": [-7.0], "metrics": ["x"], "x": (-7.0, 6)}
    assert item_of(task, logged, greedy=True) == Item({}, 7.0, 6)


def test_means_and_ratios_have_the_standard_errors_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    right, nats, size = rng.integers(0, 2, 40), rng.exponential(9, 40), rng.integers(3, 60, 40)
    items = [Item({"acc": float(a)}, float(b), int(c)) for a, b, c in zip(right, nats, size, strict=True)]
    found = measures_of([items])
    assert found["acc"].value == pytest.approx(right.mean())
    assert found["acc"].standard_error == pytest.approx(right.std(ddof=1) / math.sqrt(40))
    bits = nats.sum() / math.log(2) / size.sum()
    assert found["bits_per_byte"].value == pytest.approx(bits)
    rest = nats / math.log(2) - bits * size
    assert found["bits_per_byte"].standard_error == pytest.approx(math.sqrt(40 / 39 * (rest**2).sum()) / size.sum())


def test_the_error_of_a_group_leaves_out_what_lies_between_its_tasks() -> None:
    easy, hard = [Item({"acc": 1.0})] * 9 + [Item({"acc": 0.0})], [Item({"acc": 0.0})] * 29 + [Item({"acc": 1.0})]
    found = measures_of([easy, hard])["acc"]
    assert found.value == pytest.approx(10 / 40)
    variance = (1 / 4) ** 2 * 0.1 / 10 + (3 / 4) ** 2 * (29 / 870) / 30
    assert found.standard_error == pytest.approx(math.sqrt(variance))


def test_a_single_item_has_no_standard_error() -> None:
    found = measures_of([[Item({"acc": 1.0}, 2.0, 4)]])
    assert found["acc"].standard_error is None and found["bits_per_byte"].standard_error is None
    assert measures_of([[Item({"acc": 1.0})], [Item({"acc": 0.0})]])["acc"].standard_error == pytest.approx(0.5)


def test_a_measure_that_some_items_lack_is_not_given() -> None:
    assert measures_of([[Item({"acc": 1.0}, 2.0, 4), Item({})]]) == {}


@pytest.mark.parametrize("gold", [-1, 3, "maybe"])
def test_an_answer_that_is_no_choice_is_refused(gold) -> None:
    """A label of -1, as hidden test sets have it, must not count the last choice as right."""
    with pytest.raises(DataError, match=r"swag: the answer .* is none of the 3 choices"):
        item_of(choice_task(gold, ["a", "b", "c"]), sample(["a", "b", "c"], [-1.0, -2.0, -3.0], acc=0.0), greedy=False)


def test_a_document_that_is_read_in_two_ways_is_one_item() -> None:
    task = SimpleNamespace(OUTPUT_TYPE="generate_until")
    logged = [
        {
            "doc_id": document,
            "filter": way,
            "arguments": [("q", {})],
            "filtered_resps": ["4"],
            "metrics": ["exact_match"],
            "exact_match": float(way == "flexible"),
        }
        for way in ("strict", "flexible")
        for document in range(3)
    ]
    found = items_of(task, logged, greedy=True)
    assert found == [Item({"exact_match (strict)": 0.0, "exact_match (flexible)": 1.0})] * 3
    assert items_of(task, logged[:3], greedy=True) == [Item({"exact_match": 0.0})] * 3
