"""From the answers of a task's items to numbers with standard errors.

Suffixes: I items of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import DataError
from crossover.scoring.likelihood import ratio
from crossover.scoring.pairs import scored_bytes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A number over items.

    Args:
        value: The number.
        standard_error: Its standard error over items; None for a single one.
    """

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Item:
    """What is kept of one item of a task.

    Args:
        values: Metrics of this item that are averaged, such as "acc".
        gold_nats: Nats of the gold continuation (or of the whole text), or None where text is written.
        gold_bytes: UTF-8 bytes of exactly the text that these nats are of.
    """

    values: Mapping[str, float]
    gold_nats: float | None = None
    gold_bytes: int = 0


def items_of(task: Any, samples: Sequence[Mapping[str, Any]], *, greedy: bool) -> list[Item]:
    """Read the logged samples of a task.

    A task that reads an answer in several ways logs each document once for each; a metric's name then says which.

    Args:
        task: The task.
        samples: What `lm_eval.evaluate` logged.
        greedy: Whether `is_greedy` means something.

    Returns:
        An item per document.
    """
    ways = list(dict.fromkeys(sample.get("filter") for sample in samples))
    if len(ways) < 2:
        return [item_of(task, sample, greedy=greedy) for sample in samples]
    documents: dict[Any, Item] = {}
    for sample in samples:
        item = item_of(task, sample, greedy=greedy)
        named = {f"{name} ({sample['filter']})": value for name, value in item.values.items()}
        before = documents.get(sample["doc_id"], replace(item, values={}))
        documents[sample["doc_id"]] = replace(before, values={**before.values, **named})
    return list(documents.values())


def item_of(task: Any, sample: Mapping[str, Any], *, greedy: bool) -> Item:
    """Read one logged sample of lm-evaluation-harness.

    Bits per byte come from here, not from a metric inside the task definitions, so that they are the same for every
    task, packaged or not.

    Args:
        task: The task.
        sample: What `lm_eval.evaluate` logged of one document.
        greedy: Whether `is_greedy` means something; if not, a metric that rests on it is left out.

    Returns:
        The item.

    Raises:
        DataError: The document's answer is none of its choices.
    """
    answers, asked = sample["filtered_resps"], sample["arguments"]
    values = {name: float(sample[name]) for name in sample["metrics"] if _is_number(sample[name])}
    if task.OUTPUT_TYPE == "multiple_choice":
        # Further requests, such as those of endings without their context, come behind the choices.
        logs = [float(answer[0]) for answer in answers[: len(task.doc_to_choice(sample["doc"]))]]
        gold = _gold(task, sample["doc"])
        values["acc_bytes"] = float(_byte_choice(task, asked, logs) == gold)
        values.pop("exact_match", None)
        return Item(values, -logs[gold], scored_bytes(*asked[gold]))
    if task.OUTPUT_TYPE == "loglikelihood":
        values = {name: value for name, value in values.items() if name == "acc" and greedy}
        return Item(values, -float(answers[0][0]), scored_bytes(*asked[0]))
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Item({}, -float(answers[0]), len(str(asked[0][0]).encode("utf-8", "surrogatepass")))
    return Item(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(float(value))


def _gold(task: Any, document: Mapping[str, Any]) -> int:
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0]
    choices = task.doc_to_choice(document)
    if gold in choices if isinstance(gold, str) else 0 <= int(gold) < len(choices):
        return choices.index(gold) if isinstance(gold, str) else int(gold)
    raise DataError(f"{task.config.task}: the answer {gold!r} is none of the {len(choices)} choices of {document}")


def _byte_choice(task: Any, asked: Sequence[Sequence[str]], logs: Sequence[float]) -> int:
    # As the harness counts `acc_bytes`: without what stands between question and answer. Where the choices stand in the
    # contexts, all continuations are the same and nothing is normalised.
    delimiter = str(task.config.target_delimiter)
    sizes = [len(pair[1].removeprefix(delimiter).encode("utf-8", "surrogatepass")) for pair in asked[: len(logs)]]
    return int(np.argmax([log / max(size, 1) for log, size in zip(logs, sizes, strict=True)]))


def measures_of(tasks: Sequence[Sequence[Item]]) -> dict[str, Measure]:
    """Put the items of a task, or of the tasks of a group, together.

    A group counts every item alike. Means have the standard error of a sample that is stratified by task; bits per byte
    are total bits over total bytes, with the linearised standard error of a ratio over items.

    Args:
        tasks: Items of each task.

    Returns:
        "bits_per_byte" and every metric that all items have, by name.
    """
    items = [item for members in tasks for item in members]
    names = [name for name in items[0].values if all(name in item.values for item in items)]
    found = {name: _mean([np.array([item.values[name] for item in members]) for members in tasks]) for name in names}
    known = [(item.gold_nats, item.gold_bytes) for item in items if item.gold_nats is not None]
    if len(known) == len(items) and sum(size for _, size in known) > 0:
        nats_I, bytes_I = np.array(known, dtype=np.float64).T
        found["bits_per_byte"] = _bits_per_byte(nats_I, bytes_I)
    return found


def answers_of(items: Sequence[Item]) -> dict[str, list[float]]:
    """List what is known of a task's items, to be kept.

    Args:
        items: The items, in the task's order.

    Returns:
        Lists over items by metric, and `gold_nats` and `gold_bytes` where all items have them; nats to 6 digits.
    """
    names = [name for name in items[0].values if all(name in item.values for item in items)]
    found: dict[str, list[float]] = {name: [item.values[name] for item in items] for name in names}
    nats = [item.gold_nats for item in items if item.gold_nats is not None]
    if len(nats) == len(items):
        found["gold_nats"] = [float(f"{value:.6g}") for value in nats]
        found["gold_bytes"] = [item.gold_bytes for item in items]
    return found


def _mean(tasks: Sequence[Floats]) -> Measure:
    total = sum(len(values_I) for values_I in tasks)
    value = float(sum(values_I.sum() for values_I in tasks) / total)
    if total < 2:
        return Measure(value, None)
    # A task of one item says nothing about its spread: then the items are taken as one sample.
    strata = tasks if all(len(values_I) > 1 for values_I in tasks) else [np.concatenate(tasks)]
    variance = sum((len(values_I) / total) ** 2 * values_I.var(ddof=1) / len(values_I) for values_I in strata)
    return Measure(value, math.sqrt(float(variance)))


def _bits_per_byte(nats_I: Floats, bytes_I: Floats) -> Measure:
    if len(nats_I) < 2:
        return Measure(float(nats_I.sum() / math.log(2) / bytes_I.sum()), None)
    return Measure(*ratio(nats_I / math.log(2), bytes_I))
