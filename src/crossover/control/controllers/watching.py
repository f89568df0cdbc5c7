"""The types of settings that controllers share: gears, targets, signals."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator

from crossover.records import Mix
from crossover.registry import build, label


def _gear(value: Any) -> str:
    return label(build("objective", value))


def _gears(value: tuple[Any, ...]) -> tuple[str, ...]:
    gears = tuple(_gear(item) for item in value)
    if not gears or len(set(gears)) < len(gears):
        raise ValueError(f"expected one or more different objectives, not {list(gears)}")
    return gears


def _signals(value: tuple[Any, ...]) -> tuple[str, ...]:
    built = [build("signal", item) for item in value]
    if len({type(signal) for signal in built}) < len(built):
        raise ValueError(f"a signal stands twice in {list(value)}")
    return tuple(label(signal) for signal in built)


Gear = Annotated[Any, AfterValidator(_gear)]
Gears = Annotated[tuple[Any, ...], AfterValidator(_gears)]
SignalNames = Annotated[tuple[Any, ...], AfterValidator(_signals)]
Target = Literal["ar", "l2r", "nelbo", "best"]
ProbeShare = Annotated[float, pydantic.Field(ge=0, le=0.5)]
Epochs = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


def names_of(*mixes: Mix) -> tuple[str, ...]:
    """List the objectives of mixes, each once."""
    return tuple(dict.fromkeys(name for mix in mixes for name, _ in mix.shares))
