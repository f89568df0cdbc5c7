"""Weights & Biases, online or offline: one run of theirs for one run folder, however often it is resumed."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crossover.errors import RunError
from crossover.evidence.files import plain
from crossover.evidence.sinks.view import Place, load_package
from crossover.registry import register

# A network that does not answer may hold a run up for so long at its start, and for so long at its end.
INIT_SECONDS, FINISH_SECONDS = 30.0, 120.0


@register("sink", "wandb")
@dataclass(frozen=True)
class WeightsAndBiases:
    """A run at Weights & Biases.

    Args:
        project: Their project.
        entity: Their user or team; None leaves it to the account.
        mode: "online", "offline" (files to be sent later by `wandb sync`) or "disabled"; None asks WANDB_MODE.
        run_name: The run's name there; None for the recipe's.
        group: Runs of one group are shown together.
        tags: Tags.
    """

    project: str = "crossover"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    run_name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Name the place: entity and project."""
        return f"{self.entity or ''}/{self.project}"

    def require(self) -> None:
        """Refuse a run on a machine without the package, or online without a key.

        Raises:
            RunError: The package or the key is missing.
        """
        package = load_package("wandb", "wandb")
        if (self._mode() or "online") == "online" and not _has_key(package):
            raise RunError(
                "sinks: wandb: is online and has no API key; run `wandb login`, set WANDB_API_KEY, or write "
                "{name: wandb, mode: offline} and send the files later with `wandb sync`"
            )

    def _mode(self) -> str | None:
        # Asked here: the package looks only once in the life of a process.
        return self.mode or os.environ.get("WANDB_MODE")

    def open(self, place: Place) -> WandbRun:
        """Begin a run there, or go on with the one of this run folder.

        Args:
            place: The run.

        Returns:
            The view.
        """
        package = load_package("wandb", "wandb")
        settings = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS}
        if "finish_timeout" in package.Settings.model_fields:
            settings["finish_timeout"] = FINISH_SECONDS
        place.folder.mkdir(parents=True, exist_ok=True)
        run = package.init(
            entity=self.entity,
            project=self.project,
            name=self.run_name or place.run,
            group=self.group,
            tags=list(self.tags),
            mode=self._mode(),
            id=str(place.memory.get("id") or secrets.token_hex(4)),
            resume="allow" if place.memory else None,
            dir=str(place.folder),
            config={"recipe": plain(place.recipe), "manifest": plain(place.facts)},
            allow_val_change=True,
            reinit="create_new",
            settings=package.Settings(**settings),
        )
        return WandbRun(package, run, place)


def _has_key(package: Any) -> bool:
    """Ask whether they know who we are, without asking the person at the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    kept = sys.stdin
    with open(os.devnull) as nobody:
        sys.stdin = nobody
        try:
            return bool(package.login())
        except package.errors.UsageError:
            return False
        except package.Error:
            # There is a key that could not be checked now; whether it serves is seen when the run begins.
            return True
        finally:
            sys.stdin = kept


def allowed_name(name: str) -> str:
    """Write a name in the characters that their charts and filters take: `mix/block(16)` as `mix/block_16`."""
    return "/".join(re.sub(r"[^A-Za-z0-9_]+", "_", part).strip("_") or "_" for part in name.split("/"))


class WandbRun:
    """A run at Weights & Biases.

    Args:
        package: The package.
        run: Their run.
        place: The run here.
    """

    def __init__(self, package: Any, run: Any, place: Place) -> None:
        self._package, self._run, self._place = package, run, place
        self._texts: list[list[Any]] = [list(row) for row in place.memory.get("texts", ())]
        # Their own step counter only rises, and drops what comes again after a resume; ours is a field like any other.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    @property
    def where(self) -> str:
        """Say the address, or the command that sends the files."""
        mode = self._run.settings.mode
        if mode != "offline":
            return str(self._run.url) if mode == "online" else str(mode)
        return f"offline; wandb sync {self._place.folder / 'wandb'}/offline-run-*-{self._run.id}"

    @property
    def lag_seconds(self) -> float:
        """Allow for their process, which writes its file every 15 s and cannot be asked to."""
        return 30.0

    @property
    def memory(self) -> Mapping[str, Any]:
        """Give their id, by which a resumed run is the same run there, and the sentences of the table at its end."""
        return {"id": self._run.id, "texts": self._texts}

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._run.log({"step": step, **{allowed_name(name): value for name, value in values.items()}})

    def text(self, step: int, name: str, text: str) -> None:
        """Log a sentence, and keep it for the table."""
        self._texts.append([step, name, text])
        self._run.log({"step": step, f"{allowed_name(name)}/text": text})

    def cut_back(self, step: int) -> None:
        """Forget later sentences; numbers that come again are the same ones, so their curves stay what they were."""
        self._texts = [row for row in self._texts if row[0] <= step]

    def flush(self) -> None:
        """Do nothing: their own process writes when it does."""

    def close(self, failed: bool) -> None:
        """Add the table of sentences and end the run there."""
        try:
            if self._texts:
                table = self._package.Table(columns=["step", "what", "text"], data=self._texts)
                self._run.log({"decisions/table": table})
        finally:
            self._run.finish(exit_code=1 if failed else 0)
