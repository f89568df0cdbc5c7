"""Trackio: a local database that its own dashboard shows, or a Hugging Face Space."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.errors import RunError
from crossover.evidence.files import plain
from crossover.evidence.sinks.view import Place, load_package
from crossover.registry import register


@register("sink", "trackio")
@dataclass(frozen=True)
class Trackio:
    """A run in Trackio's database.

    Args:
        project: Its project.
        run_name: The run's name there, to which four characters are added that keep it apart; None for the recipe's.
        group: Runs of one group are shown together.
        folder: Where the database lies; None for Trackio's own place (TRACKIO_DIR, or the Hugging Face cache).
        space: A Hugging Face Space to write to instead, such as "user/space".
    """

    project: str = "crossover"
    run_name: str | None = None
    group: str | None = None
    folder: str | None = None
    space: str | None = None

    @property
    def identity(self) -> str:
        """Name the place: project, and where the database lies."""
        return f"{self.space or self.folder or ''}/{self.project}"

    def require(self) -> None:
        """Refuse a run on a machine without the package.

        Raises:
            RunError: It is not installed, or looks into another folder already.
        """
        self._package()

    def _package(self) -> Any:
        if self.folder is not None:
            # It reads this once, when it is imported.
            os.environ["TRACKIO_DIR"] = str(Path(self.folder).absolute())
        package = load_package("trackio", "trackio")
        if self.folder is not None and Path(package.TRACKIO_DIR) != Path(self.folder).absolute():
            raise RunError(
                f"sinks: trackio: folder: is {self.folder}, but this process uses {package.TRACKIO_DIR} already; "
                f"set TRACKIO_DIR before the program starts, or leave folder out"
            )
        return package

    def open(self, place: Place) -> TrackioRun:
        """Begin a run there, or go on with the one of this run folder.

        Args:
            place: The run.

        Returns:
            The view.
        """
        package = self._package()
        # It finds a run by its name, and two folders may hold runs of one name.
        name = str(place.memory.get("name") or f"{self.run_name or place.run}-{secrets.token_hex(2)}")
        with redirect_stdout(io.StringIO()):
            run = package.init(
                project=self.project,
                name=name,
                group=self.group,
                space_id=self.space,
                config={"recipe": plain(place.recipe), "manifest": plain(place.facts)},
                resume="allow" if place.memory else "never",
                embed=False,
                auto_log_gpu=False,
            )
        return TrackioRun(package, run, self)


class TrackioRun:
    """A run in Trackio's database.

    Args:
        package: The package.
        run: Its run.
        sink: The settings.
    """

    def __init__(self, package: Any, run: Any, sink: Trackio) -> None:
        self._package, self._run, self._sink = package, run, sink

    @property
    def where(self) -> str:
        """Say the command that shows it."""
        if self._sink.space is not None:
            return f"the Space {self._sink.space}"
        place = f"TRACKIO_DIR={Path(self._sink.folder).absolute()} " if self._sink.folder else ""
        return f'{place}trackio show --project "{self._sink.project}"'

    @property
    def lag_seconds(self) -> float:
        """Allow for its thread, which writes every half second and cannot be asked to."""
        return 5.0

    @property
    def memory(self) -> Mapping[str, Any]:
        """Give the name, by which a resumed run is the same run there."""
        return {"name": self._run.name}

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """Log Markdown for the reports tab."""
        self._run.log({name: self._package.Markdown(text)}, step=step)

    def cut_back(self, step: int) -> None:
        """Do nothing: rows that come again are the same rows, and curves stay what they were."""

    def flush(self) -> None:
        """Do nothing: its own thread writes when it does."""

    def close(self, failed: bool) -> None:
        """End the run there."""
        with redirect_stdout(io.StringIO()):
            self._package.finish()
