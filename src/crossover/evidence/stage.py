"""What stands around a recorded stream when it is folded again: the recipe, the controller, prices, the rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.control.signals.fold import fold_of
from crossover.errors import RecipeError, RunError
from crossover.evidence.checked import check_manifest, check_signals
from crossover.evidence.files import read_json, read_rows
from crossover.evidence.record import read_recipe
from crossover.model.shapes import shape_of, training_flops
from crossover.recipe import Recipe, resolve
from crossover.records import Watching
from crossover.registry import component_of, label, trust_imports
from crossover.trees import apply

Row = Mapping[str, Any]
# What a row must tell for its controller to be asked again.
ASKED = ("step", "data_tokens", "epochs", "budget_fraction", "planned_epochs", "exposures")


@dataclass(frozen=True)
class Stage:
    """What holds for a whole replay.

    Args:
        path: The run folder.
        recipe: The run's recipe.
        controller: The controller that is replayed.
        foreign: Whether that is another one than the run's.
        train_tokens: Distinct tokens that the run trained on.
        budget_flops: FLOPs of its budget, or None where that is in tokens.
        prices: Useful training FLOPs of a data token by objective.
        unpriced: Objectives whose price is not known.
        rows: Rows of signals.jsonl in order.
    """

    path: Path
    recipe: Recipe
    controller: Any
    foreign: bool
    train_tokens: int
    budget_flops: float | None
    prices: Mapping[str, float]
    unpriced: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def watching(self) -> Watching | None:
        """What the controller looks at, or None where nothing would be measured for it."""
        watching: Watching | None = self.controller.watching
        return None if watching is None or watching.share == 0 else watching


def read_stage(run: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Stage:
    """Read all that a replay needs of a run.

    Args:
        run: The run folder.
        overrides: `controller=...` or `controller.key=...`, as on the train command line; empty for the run's own.
        trust: Whether the recipe's `imports` may run.

    Returns:
        The stage.

    Raises:
        RunError: It is no run folder, recorded no signals, or a row is broken.
        RecipeError: An override is not of the controller, or is wrong.
    """
    tree = read_recipe(run)
    trust_imports(tree.get("imports") or (), trust=trust, origin=str(run / "recipe.yaml"))
    recipe = resolve(tree, origin=str(run / "recipe.yaml"))
    controller = _other(tree, overrides) if overrides else recipe.controller
    manifest, rows = _records(run)
    prices, unpriced = _prices(recipe, manifest, controller)
    budget = manifest.get("budget") or {}
    return Stage(
        path=run,
        recipe=recipe,
        controller=controller,
        foreign=controller != recipe.controller,
        train_tokens=manifest["train_tokens"],
        budget_flops=float(budget["amount"]) if budget.get("currency") == "flops" else None,
        prices=prices,
        unpriced=unpriced,
        rows=rows,
    )


def _other(tree: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """Resolve the run's recipe with another controller."""
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        key = override.split("=")[0]
        if key.split(".")[0] != "controller":
            raise RecipeError(f"{key}: cannot be replayed, only another controller can; to change more, train again")
        apply(changed, override)
    return resolve(changed, origin="replay").controller


def _records(run: Path) -> tuple[dict[str, Any], tuple[Row, ...]]:
    for name in ("manifest.json", "signals.jsonl"):
        if not (run / name).exists():
            raise RunError(
                f"{run}: has no {name}, so there is nothing to fold again: the run has not begun, or an earlier "
                f"version made it; train it again to replay it"
            )
    manifest, rows = read_json(run / "manifest.json"), read_rows(run / "signals.jsonl")
    check_manifest(run / "manifest.json", manifest)
    if not isinstance(manifest.get("train_tokens"), int) or manifest["train_tokens"] < 1:
        raise RunError(f"{run / 'manifest.json'}: has no train_tokens; restore the file")
    for number, row in enumerate(rows, 1):
        lacking = [key for key in ASKED if row.get("asked") and row.get(key) is None]
        if lacking:
            raise RunError(f"{run / 'signals.jsonl'}, line {number}: lacks {', '.join(lacking)}; restore the file")
    budget = manifest.get("budget") or {}
    if budget.get("currency") == "flops" and budget.get("amount") is None:
        raise RunError(f"{run / 'manifest.json'}: budget has no amount; restore the file")
    check_signals(run / "signals.jsonl", rows)
    if not any(row.get("asked") for row in rows):
        raise RunError(f"{run / 'signals.jsonl'}: the controller was never asked; let the run begin")
    return manifest, rows


def _prices(recipe: Recipe, manifest: Row, controller: Any) -> tuple[dict[str, float], tuple[str, ...]]:
    """Give the price of every objective that the controller knows of, and name those that cannot be priced."""
    prices: dict[str, float] = dict(manifest.get("flops_per_token") or {})
    wanted = dict.fromkeys([*controller.objectives(), *(controller.watching.gears if controller.watching else ())])
    missing = tuple(name for name in wanted if name not in prices)
    rows = _head_rows(recipe, manifest) if missing else None
    if rows is not None:
        prices |= {name: _price(recipe, name, rows) for name in missing}
    # No more than a run of this controller would have told it.
    return {name: prices[name] for name in wanted if name in prices}, () if rows is not None else missing


def _price(recipe: Recipe, objective: str, head_rows: int) -> float:
    context = recipe.data.context
    try:
        work = component_of("objective", objective).workload(context)
    except ValueError as error:
        raise RecipeError(f"controller: {error} (data.context)") from None
    # The rows of the embedding cost nothing; those that the head computes do.
    return training_flops(shape_of(recipe.model, head_rows), work, head_rows=head_rows) / context


def _head_rows(recipe: Recipe, manifest: Row) -> int | None:
    """Count the rows that the head computes: what the manifest says, else what its first price implies."""
    told = (manifest.get("vocabulary") or {}).get("predictable")
    if told is not None:
        return int(told)
    # A price is linear in the head's rows.
    for name, price in (manifest.get("flops_per_token") or {}).items():
        try:
            none, one = _price(recipe, name, 0), _price(recipe, name, 1)
        except RecipeError:
            # An objective that this version does not know; another one tells the same.
            continue
        rows = (price - none) / (one - none)
        # A version that counts otherwise gives no whole number.
        return round(rows) if rows > 0 and abs(rows - round(rows)) < 1e-3 else None
    return None


def shortcomings(stage: Stage) -> tuple[str, ...]:
    """Say what another controller would have liked to see and the run did not record.

    Args:
        stage: The run and the controller.

    Returns:
        Sentences; none for the run's own controller.
    """
    if not stage.foreign:
        return ()
    notes = [f"what a token of {name} costs is not recorded; it has no price here" for name in stage.unpriced]
    own, other = stage.recipe.controller, stage.controller
    if own.uses_control_text != other.uses_control_text:
        held, trained = ("the run", label(other)) if own.uses_control_text else (label(other), "the run")
        notes.append(f"{trained} trains on the control text, {held} holds it out: the two do not see the same text")
    watching = stage.watching
    if watching is None:
        return tuple(notes)
    probes = [row for row in stage.rows if "probe" in row]
    kinds = {row["probe"] for row in probes}
    for signal in fold_of(watching.signals).signals:
        lacking = [kind for kind in signal.probes if kind not in kinds]
        if lacking:
            notes.append(f"the run recorded no {' and no '.join(lacking)} probes; {label(signal)} stays not ready")
    seen = {row.get("gear") for row in probes if row["probe"] == "gradient"}
    unseen = [gear for gear in watching.gears if seen and gear not in seen]
    notes += [f"the run recorded no gradient probes of {gear}; what needs them stays not ready" for gear in unseen]
    modes = {mode for row in probes if row["probe"] == "loss" for mode in row["control"]}
    if modes and watching.target not in ("best", *modes):
        notes.append(f"the run's loss probes have no {watching.target}; the target stays not ready")
    return tuple(notes)
