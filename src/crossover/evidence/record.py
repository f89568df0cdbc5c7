"""A run folder as it was read: what a run said about itself, held against what a run folder must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crossover.errors import RunError
from crossover.evidence.checked import check_ledger, check_manifest, read_decisions, read_evaluations, read_score
from crossover.evidence.files import read_json
from crossover.folders import is_locked
from crossover.parsing import LARGEST_YAML_BYTES, parse_yaml, read_bounded


@dataclass(frozen=True)
class RunRecord:
    """A run folder as it was read: plain mappings only.

    Args:
        path: The folder.
        recipe: The resolved recipe.
        manifest: Data hash, versions, choices; empty before the run has begun.
        evals: Rows of evals.jsonl.
        decisions: Rows of decisions.jsonl.
        ledger: Exposures and FLOPs; empty before the first flush.
        status: `state` and `why`; a run that was killed reads as interrupted.
        scores: Score cards by file stem such as "test-ar", and "summary".
        tuning: Trials that chose this run's settings, `{"trials": 0}` where there was no tuning.
    """

    path: Path
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    evals: tuple[Mapping[str, Any], ...]
    decisions: tuple[Mapping[str, Any], ...]
    ledger: Mapping[str, Any]
    status: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]
    tuning: Mapping[str, Any] = field(default_factory=lambda: {"trials": 0})

    @property
    def finished(self) -> bool:
        """Whether the run has spent its budget and was scored."""
        return self.status.get("state") == "finished"


def read_run(path: str | Path) -> RunRecord:
    """Read a run folder.

    Args:
        path: The folder.

    Returns:
        Everything in it but steps, checkpoints and weights; what an unfinished run lacks is empty.

    Raises:
        RunError: It is no run folder, a file is broken or says what it cannot, or a finished run lacks a file.
    """
    path = Path(path)
    recipe, status = read_recipe(path), read_status(path)
    needed = ("manifest.json", "evals.jsonl", "ledger.json") if status["state"] == "finished" else ()
    missing = [name for name in needed if not (path / name).exists()]
    if missing:
        raise RunError(f"{path}: says that it is finished but lacks {', '.join(missing)}; restore it or run it again")
    cards = sorted((path / "scores").glob("[!.]*.json"))
    manifest = read_json(path / "manifest.json") if (path / "manifest.json").exists() else {}
    ledger = read_json(path / "ledger.json") if (path / "ledger.json").exists() else {}
    check_manifest(path / "manifest.json", manifest)
    check_ledger(path / "ledger.json", ledger)
    return RunRecord(
        path=path,
        recipe=recipe,
        manifest=manifest,
        evals=read_evaluations(path / "evals.jsonl", finished=bool(needed)),
        decisions=read_decisions(path / "decisions.jsonl"),
        ledger=ledger,
        status=status,
        scores={card.stem: read_score(card) for card in cards},
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the resolved recipe of a run folder.

    Raises:
        RunError: There is none, or it is not YAML.
    """
    try:
        recipe = parse_yaml(read_bounded(path / "recipe.yaml", LARGEST_YAML_BYTES).decode("utf-8"))
    except FileNotFoundError:
        why = "is no run folder (it has no recipe.yaml)" if path.is_dir() else "there is no such folder"
        raise RunError(f"{path}: {why}; expected what `train` leaves") from None
    except OSError as error:
        raise RunError(f"{path / 'recipe.yaml'}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path / 'recipe.yaml'}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(recipe, dict) or type(recipe.get("seed", 0)) is not int:
        raise RunError(f"{path / 'recipe.yaml'}: expected `key: value` lines, and a whole number as seed")
    return recipe


def read_status(path: Path) -> dict[str, Any]:
    """Read how a run stands; one that says `running` while nobody holds its lock was interrupted."""
    if not (path / "status.json").exists():
        return {"state": "interrupted", "why": "it never began"}
    status = _said(path)
    if status["state"] == "running" and not is_locked(path):
        # It may have ended between the two looks; then its last word is there by now.
        status = _said(path)
        if status["state"] == "running":
            why = "its process ended without a word (killed, or the power cut)"
            return {**status, "state": "interrupted", "why": why}
    return status


def _said(path: Path) -> dict[str, Any]:
    status = {"state": "failed", "why": "", **read_json(path / "status.json")}
    if not isinstance(status["state"], str):
        raise RunError(f"{path / 'status.json'}: state is no text; restore the file")
    return status
