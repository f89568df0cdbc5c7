"""The folder of a study: made for one study, and taken up again for the same one only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crossover.errors import RunError
from crossover.evidence.definition import Study
from crossover.evidence.files import write_text
from crossover.parsing import LARGEST_YAML_BYTES, parse_yaml, read_bounded
from crossover.trees import differences


def folder_of(study: Study, folder: str | Path | None) -> Path:
    """Say where a study lives.

    Args:
        study: The study.
        folder: What was asked for; None means `runs/<study name>`.

    Returns:
        Its folder.
    """
    return Path(folder) if folder is not None else Path("runs") / study.name


def take_folder(study: Study, folder: Path, threads: int) -> int:
    """Make the folder for a study, or take it up again if it was made for the same one or for fewer of its seeds.

    Args:
        study: The study.
        folder: Its folder.
        threads: CPU threads of each run, should the folder be new.

    Returns:
        CPU threads of each run: what the folder was made with, since they change rounding.

    Raises:
        RunError: The folder belongs to another study or holds something else.
    """
    path = folder / "study.yaml"
    if path.exists():
        before = _read(path)
        if not isinstance(before, dict) or not isinstance(before.get("threads"), int):
            raise RunError(f"{path}: is not what a study leaves; restore it, or name another folder")
        threads = before["threads"]
        # Through YAML and back, so that tuples and lists do not count as a difference.
        now = yaml.safe_load(yaml.safe_dump(study.definition(threads)))
        changed = differences(before, now)
        if list(changed) == ["seeds"] and set(before["seeds"]) < set(now["seeds"]):
            # More seeds of the same runs change none that exists.
            write_text(path, yaml.safe_dump(study.definition(threads), sort_keys=False, allow_unicode=True))
            changed = {}
        if changed:
            lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
            raise RunError(
                f"{folder}: belongs to another study; {len(changed)} setting(s) differ:\n{lines}\n"
                f"Name another folder (--folder), undo the change, or delete the folder if its runs are not needed"
            )
        return threads
    # Hidden files are a lock, or what a command was writing when it was killed.
    if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        raise RunError(f"{folder}: holds files but no study.yaml, so it is no study's folder; name another folder")
    write_text(path, yaml.safe_dump(study.definition(threads), sort_keys=False, allow_unicode=True))
    return threads


def _read(path: Path) -> Any:
    try:
        return parse_yaml(read_bounded(path, LARGEST_YAML_BYTES).decode("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not what a study leaves ({error}); restore it, or name another folder") from None
