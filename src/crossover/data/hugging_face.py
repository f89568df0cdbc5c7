"""Data sets of the Hugging Face hub, or folders laid out like them, read as a stream."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossover.data.files import Document, Unreachable
from crossover.errors import DataError
from crossover.registry import register

# What reads rows of text. Others unpack archives or pictures; scripts are refused by the library itself.
_READERS = ("parquet", "json", "text", "csv", "arrow")
_ROWS = 64
_COMMIT = re.compile("[0-9a-f]{40}")


@register("corpus", "datasets")
@dataclass(frozen=True)
class Datasets:
    """A data set of the Hugging Face hub, streamed: it is never on this disk as a whole, and never in memory.

    A folder of parquet, JSON lines or CSV on this machine is read the same way, without a network. A name on the hub is
    read at one commit: that of `revision`, or else the newest when preparation began. The name alone identifies
    prepared text, so a later commit is prepared only if `revision` names it.

    Args:
        dataset: A name on the hub, such as "roneneldan/TinyStories", or a folder.
        config: Which of the data set's configurations; null where it has one.
        split: Which of its splits.
        column: The column that holds the text.
        revision: A branch, tag or commit on the hub; null is its main branch.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield each row's text, rows of blank text left out, whatever `document_bytes` says.

        Raises:
            DataError: The data set cannot be read, has no such split or column, or a row holds no string.
        """
        for part in self.parts(document_bytes):
            yield from part

    def parts(self, document_bytes: int) -> Iterator[Iterator[Document]]:
        """Give the rows file by file of the data set; a file that is left out is not fetched."""
        rows = self._rows()
        for index in range(rows.num_shards):
            yield self._texts(rows, index)

    def describe(self) -> str:
        """Name the data set, its configuration and its split."""
        return ", ".join(filter(None, (self.dataset, self.config, self.split)))

    def signature(self) -> dict[str, Any]:
        """Identify the text by name and revision, or by the names, sizes and times of a folder's files."""
        named = {"corpus": "datasets", "dataset": self.dataset}
        if not self._folder.is_dir():
            return {**named, "revision": self.revision}
        listing = hashlib.sha256()
        for path in sorted(Path(root, name) for root, _, names in os.walk(self._folder) for name in names):
            # A link that leads nowhere may be none of the data; if it is, reading says so.
            facts = path.stat() if path.exists() else path.lstat()
            line = f"{path.relative_to(self._folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
            listing.update(line.encode("utf-8", "surrogateescape"))
        return {**named, "listing": listing.hexdigest()[:16]}

    def newest(self) -> str | None:
        """Ask the hub for the commit that `revision` means now; None of a folder.

        Raises:
            Unreachable: The hub does not answer.
        """
        if self._folder.is_dir() or _COMMIT.fullmatch(self.revision or ""):
            return self.revision
        with self._explained():
            import huggingface_hub

            return huggingface_hub.HfApi().dataset_info(self.dataset, revision=self.revision).sha

    def pinned(self, revision: str | None) -> Datasets:
        """Give the same data set at a commit."""
        return replace(self, revision=revision)

    @property
    def _folder(self) -> Path:
        return Path(self.dataset).expanduser()

    def _rows(self) -> Any:
        with self._explained():
            import datasets

            is_local = self._folder.is_dir()
            name = str(self._folder) if is_local else self.dataset
            where: dict[str, Any] = {} if is_local else {"revision": self.revision}
            builder = datasets.load_dataset_builder(name, self.config, **where)
            reader = type(builder).__module__.split(".")
            if reader[:2] != ["datasets", "packaged_modules"] or reader[2] not in _READERS:
                raise DataError(f"{self._where}: is read by '{reader[-1]}', not by one of: {', '.join(_READERS)}")
            if reader[2] == "parquet":
                # The library would hold a row group at a time.
                where |= {"batch_size": _ROWS} | (_buffered() if is_local else {})
            rows = datasets.load_dataset(name, self.config, split=self.split, streaming=True, **where)
            if rows.column_names is not None and self.column not in rows.column_names:
                raise DataError(self._no_column(rows.column_names))
            if reader[2] == "parquet":
                # Only now: a column that is not there would be told of in the library's own words.
                where |= {"columns": [self.column]}
                rows = datasets.load_dataset(name, self.config, split=self.split, streaming=True, **where)
            return rows

    def _texts(self, rows: Any, index: int) -> Iterator[Document]:
        with self._explained():
            for number, row in enumerate(rows.shard(num_shards=rows.num_shards, index=index)):
                if self.column not in row:
                    raise DataError(self._no_column(row))
                text = row[self.column]
                if not isinstance(text, str):
                    kind = "null" if text is None else type(text).__name__
                    raise DataError(f"{self._where}, file {index}, row {number}: '{self.column}' is {kind}, no string")
                if text.strip():
                    yield Document(f"{index}:{number}", text)

    @property
    def _where(self) -> str:
        return f"data.source: {self.describe()}"

    def _no_column(self, columns: Any) -> str:
        return f"{self._where}: no column '{self.column}', found {', '.join(map(str, columns))}; set data.source.column"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the library raises, which is of many kinds, into a sentence about the data set."""
        try:
            yield
        except (DataError, GeneratorExit):
            raise
        except ImportError as error:
            raise DataError(f"{self._where}: needs {error.name}; pip install 'crossover-lm[data]'") from None
        except Exception as error:
            said = f"{self._where}: cannot be read: {str(error).strip() or type(error).__name__}"
            # The library says that a name cannot be found also where the hub is merely busy.
            if self._folder.is_dir() or isinstance(error, ValueError):
                raise DataError(f"{said}; expected a folder, or a name on the Hugging Face hub") from None
            raise Unreachable(
                f"{said}; a name on the Hugging Face hub needs a network, a folder of parquet or JSON lines needs none"
            ) from None


def _buffered() -> dict[str, Any]:
    """Let a row group that is larger than the memory be read piece by piece from this machine's disk."""
    import pyarrow.dataset

    options = pyarrow.dataset.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False
    )
    return {"fragment_scan_options": options}
