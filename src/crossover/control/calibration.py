"""Calibrated numbers: when a reading is evidence, and which runs that was learnt from; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import ConfigDict, TypeAdapter

from crossover.errors import RecipeError, nearest
from crossover.parsing import parse_json
from crossover.registry import explain

SHIPPED = "calibration.json"

Probability = Annotated[float, pydantic.Field(ge=0.5, lt=1)]
Times = Annotated[int, pydantic.Field(ge=1)]
Nats = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Above = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@dataclass(frozen=True)
class Thresholds:
    """When a reading is evidence for a shift.

    Args:
        rising_probability: Probability above which the held-out loss is taken to be rising.
        rising_evaluations: So many evaluations in a row.
        slope_delta_nats: A slope above minus this, in nats per unit of ln(tokens), counts as rising.
        alignment_ratio: So many times more must another gear's gradient help the held-out loss per FLOP.
        alignment_probes: So many probes in a row.
        novelty_floor: Least share of new exposures of a gear that is worth its FLOPs.
        most_ar_exposures: Most times that next-token training sees the text (about 16, arXiv 2512.14549).
        noise_ratio: Noise scale in batches above which a gradient counts as noise.
        gap_nats: Held-out minus training loss above which the text is memorised, or null for no such rule.
        critical_compute_factor: Below so many times the published critical compute a run stays with its start; 0 only
            logs that compute, which at small scale is an extrapolation by decades.
    """

    rising_probability: Probability = 0.9
    rising_evaluations: Times = 2
    slope_delta_nats: Nats = 0.0
    alignment_ratio: Above = 1.0
    alignment_probes: Times = 2
    novelty_floor: Share = 0.1
    most_ar_exposures: Above = 16.0
    noise_ratio: Above = 8.0
    gap_nats: Nats | None = None
    critical_compute_factor: Nats = 0.0
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Calibration:
    """Thresholds and where they come from.

    Args:
        thresholds: The thresholds.
        provenance: Status, runs, grid, regrets, versions: JSON values.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@lru_cache(maxsize=8)
def load_calibration(path: str | None = None) -> Calibration:
    """Read a calibration file.

    Args:
        path: What `crossover calibrate` wrote; None means the file that is shipped with the program.

    Returns:
        The calibration.

    Raises:
        RecipeError: The file cannot be read, is not JSON, or a threshold is missing, unknown or out of range.
    """
    origin = path or SHIPPED
    try:
        file = resources.files("crossover.control").joinpath(SHIPPED) if path is None else Path(path)
        tree = parse_json(file.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"{origin}: cannot be read ({error.strerror or error}); expected what `crossover calibrate` writes"
        ) from None
    except ValueError as error:
        raise RecipeError(f"{origin}: is not JSON ({error}); expected what `crossover calibrate` writes") from None
    missing = [name for name in ("thresholds", "provenance") if not isinstance(tree, dict) or name not in tree]
    if missing:
        raise RecipeError(f"{origin}: has no {' and no '.join(missing)}; expected what `crossover calibrate` writes")
    try:
        return TypeAdapter(Calibration).validate_python(tree)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{origin}: {_first(error)}") from None


def shipped_thresholds() -> Thresholds:
    """Give the thresholds that are shipped with the program."""
    return load_calibration(None).thresholds


def read_thresholds(value: Any) -> Any:
    """Read thresholds as a recipe names them.

    Args:
        value: A mapping (what it leaves out is as shipped), the path of a calibration file, or `Thresholds`.

    Returns:
        `Thresholds`, or a mapping of all thresholds that has yet to be validated.

    Raises:
        RecipeError: The file at the path cannot be used.
    """
    if isinstance(value, str):
        return load_calibration(value).thresholds
    if isinstance(value, Mapping):
        known = [item.name for item in dataclasses.fields(Thresholds)]
        for name in value:
            if name not in known:
                raise ValueError(f"no threshold called '{name}'; {nearest(str(name), known)}")
        return {**dataclasses.asdict(shipped_thresholds()), **value}
    return value


def _first(error: pydantic.ValidationError) -> str:
    """Say the first thing that is wrong, after its dotted key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {explain(first, [item.name for item in dataclasses.fields(Thresholds)])}"
