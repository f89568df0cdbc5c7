"""TensorBoard: event files in the run folder, written without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from crossover.evidence.files import plain
from crossover.evidence.sinks.view import Place, load_package
from crossover.registry import register

_WRITER = "tensorboard.summary.writer.event_file_writer"
_PROTOCOL = "tensorboard.compat.proto"


@register("sink", "tensorboard")
@dataclass(frozen=True)
class TensorBoard:
    """Event files in `sinks/tensorboard/` of the run folder: `tensorboard --logdir runs` shows all runs."""

    @property
    def identity(self) -> str:
        """Name the place: the run folder itself."""
        return "run folder"

    def require(self) -> None:
        """Refuse a run on a machine without the package.

        Raises:
            RunError: It is not installed.
        """
        load_package(_WRITER, "tensorboard")

    def open(self, place: Place) -> EventFiles:
        """Begin an event file beside those of earlier starts, with recipe and manifest as text.

        Args:
            place: The run.

        Returns:
            The view.
        """
        begun = (place.folder / "tensorboard").exists()
        files = EventFiles(place)
        for name, tree in (("recipe", place.recipe), ("manifest", place.facts)):
            if begun:
                break
            written = yaml.safe_dump(plain(tree), sort_keys=False, allow_unicode=True)
            # Four spaces: Markdown then shows it as it is.
            files.text(0, name, "\n".join("    " + line for line in written.splitlines()))
        return files


class EventFiles:
    """The event files of one run.

    Args:
        place: The run.
    """

    def __init__(self, place: Place) -> None:
        self._folder = place.folder / "tensorboard"
        self._event = load_package(f"{_PROTOCOL}.event_pb2", "tensorboard")
        self._summary = load_package(f"{_PROTOCOL}.summary_pb2", "tensorboard")
        self._tensor = load_package(f"{_PROTOCOL}.tensor_pb2", "tensorboard")
        self._string = load_package(f"{_PROTOCOL}.types_pb2", "tensorboard").DT_STRING
        self._writer = load_package(_WRITER, "tensorboard").EventFileWriter(str(self._folder))

    @property
    def where(self) -> str:
        """Say the command that shows it."""
        return f"tensorboard --logdir {self._folder}"

    @property
    def lag_seconds(self) -> float:
        """Promise that what is flushed is in the file."""
        return 0.0

    @property
    def memory(self) -> Mapping[str, Any]:
        """Give nothing: the files are found by their folder."""
        return {}

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        self._write(step, [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

    def text(self, step: int, name: str, text: str) -> None:
        """Write Markdown for the text tab."""
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensor.TensorProto(dtype=self._string, string_val=[text.encode()])
        metadata = self._summary.SummaryMetadata(plugin_data=plugin)
        self._write(step, [self._summary.Summary.Value(tag=name, metadata=metadata, tensor=tensor)])

    def _write(self, step: int, values: list[Any]) -> None:
        self._writer.add_event(self._event_of(step, summary=self._summary.Summary(value=values)))

    def _event_of(self, step: int, **content: Any) -> Any:
        return self._event.Event(wall_time=time.time(), step=step, **content)

    def cut_back(self, step: int) -> None:
        """Have TensorBoard drop what earlier files say of later steps (its own rule for a restarted program)."""
        log = self._event.SessionLog(status=self._event.SessionLog.START)
        self._writer.add_event(self._event_of(step + 1, session_log=log))

    def flush(self) -> None:
        """Write the queue to disk."""
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Close the file."""
        self._writer.close()
