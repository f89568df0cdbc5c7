"""Machines to plan for: what a GPU holds, how fast it is at most, and what part of that a training run reaches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from crossover.errors import RecipeError, nearest

# Part of the peak that training reaches. Dense: the 38 to 43% of Llama 3 405B (arXiv 2407.21783, table 4), taken as 0.4
# for all sizes. Sparse: routing and small products cost more; a guess, to be replaced by a measurement.
DENSE_MFU, SPARSE_MFU = 0.4, 0.25
DEFAULT = "h100"


@dataclass(frozen=True)
class Machine:
    """A number of equal devices.

    Args:
        name: What it is called.
        memory_gib: Memory of one device, in GiB, as a program sees it.
        peak_tflops: Highest rate of dense bfloat16 products of one device, 1e12 FLOPs per second.
        source: Where these numbers are from.
        gpus: How many devices; None: as many as the recipe needs.
        mfu: Part of the peak that training reaches; None: `DENSE_MFU` or `SPARSE_MFU`.
    """

    name: str
    memory_gib: float
    peak_tflops: float
    source: str
    gpus: int | None = None
    mfu: float | None = None

    def reached(self, *, sparse: bool) -> float:
        """Give the part of the peak that training is assumed to reach."""
        return self.mfu if self.mfu is not None else SPARSE_MFU if sparse else DENSE_MFU

    def flops_per_second(self, gpus: int, *, sparse: bool) -> float:
        """Give the useful FLOPs per second that so many devices are assumed to reach together."""
        return gpus * self.peak_tflops * 1e12 * self.reached(sparse=sparse)


def known_machines() -> dict[str, Machine]:
    """List the machines that have a name.

    Returns:
        Machines by name. Memory is what torch reports of such a device, rounded down; peaks are those of dense
        bfloat16 products with float32 sums, without the factor of two for sparse matrices.
    """
    sheets = {
        "a100-40": (39.0, 312.0, "NVIDIA A100 data sheet, SXM"),
        "a100-80": (79.0, 312.0, "NVIDIA A100 data sheet, SXM"),
        "h100": (79.0, 989.0, "NVIDIA H100 data sheet, SXM"),
        "h200": (139.0, 989.0, "NVIDIA H200 data sheet, SXM"),
        "b200": (178.0, 2250.0, "NVIDIA HGX B200 data sheet"),
        "rtx-4090": (23.5, 165.0, "NVIDIA Ada architecture white paper"),
    }
    named = {name: Machine(name, *facts) for name, facts in sheets.items()}
    # A CPU's rate is the one that training reaches, so that no part of a peak is taken.
    assumed = "assumed: 100 GFLOP/s reached by all cores together, 16 GiB; measure with `crossover doctor`"
    named["cpu"] = Machine("cpu", 16.0, 0.1, assumed, gpus=1, mfu=1.0)
    return named


def machine_of(text: str | None, *, gpus: int | None = None) -> Machine:
    """Read what a person says about a machine.

    Args:
        text: A name, settings, or both: `h200`, `h200,gpus=8,mfu=0.5`, `gpus=8,memory_gib=141,tflops=990`,
            `cpu,gflops=40`; None means one of `DEFAULT`.
        gpus: How many devices, if not said in the text.

    Returns:
        The machine.

    Raises:
        RecipeError: A name or a setting is unknown, a value is no positive number, or a machine without a name lacks
            its memory or its rate.
    """
    known = known_machines()
    parts = [part.strip() for part in (text or DEFAULT).split(",")]
    name = parts.pop(0) if "=" not in parts[0] else None
    if name is not None and name not in known:
        raise RecipeError(
            f"--machine: no machine called '{name}'; {nearest(name, known)}; or describe one: "
            '"gpus=8,memory_gib=141,tflops=990"'
        )
    settings = _settings(parts)
    if name is None and (lacking := _lacking(settings)):
        raise RecipeError(
            f"--machine: '{text}' lacks {' and '.join(lacking)}; or begin with a name: {', '.join(known)}"
        )
    machine = known[name] if name is not None else Machine("described", 0.0, 0.0, "as described")
    return _counted(_changed(machine, settings), gpus)


def _lacking(settings: dict[str, float]) -> list[str]:
    memory = [] if "memory_gib" in settings else ["memory_gib"]
    return memory + ([] if {"tflops", "gflops"} & set(settings) else ["tflops"])


def _settings(parts: list[str]) -> dict[str, float]:
    """Read `key=value` parts."""
    checks: dict[str, tuple[Callable[[float], bool], str]] = {
        "gpus": (lambda value: value >= 1 and value == int(value), "a whole number from 1 on"),
        "memory_gib": (lambda value: value > 0, "GiB of one device"),
        "tflops": (lambda value: value > 0, "1e12 FLOPs per second of one device"),
        "gflops": (lambda value: value > 0, "1e9 FLOPs per second of one device"),
        "mfu": (lambda value: 0 < value <= 1, "a part of the peak, above 0 and at most 1"),
    }
    found: dict[str, float] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in checks:
            raise RecipeError(f"--machine: no setting called '{key}'; {nearest(key, checks)}")
        fits, expected = checks[key]
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and fits(number)):
            raise RecipeError(f"--machine: {key}={value}: expected {expected}")
        if key in found:
            raise RecipeError(f"--machine: {key} is given twice")
        found[key] = number
    if {"tflops", "gflops"} <= set(found):
        raise RecipeError("--machine: give tflops or gflops, not both")
    return found


def _changed(machine: Machine, settings: dict[str, float]) -> Machine:
    changed = machine
    if "memory_gib" in settings:
        changed = replace(changed, memory_gib=settings["memory_gib"])
    if {"tflops", "gflops"} & set(settings):
        rate = settings["tflops"] if "tflops" in settings else settings["gflops"] / 1000
        changed = replace(changed, peak_tflops=rate)
    if "mfu" in settings:
        changed = replace(changed, mfu=settings["mfu"])
    if "gpus" in settings:
        changed = replace(changed, gpus=int(settings["gpus"]))
    given = [key for key in ("memory_gib", "tflops", "gflops") if key in settings]
    return replace(changed, source=f"{machine.source}; {', '.join(given)} as given") if given else changed


def _counted(machine: Machine, gpus: int | None) -> Machine:
    if gpus is None:
        return machine
    if gpus < 1:
        raise RecipeError(f"--gpus: {gpus}: expected a whole number from 1 on")
    if machine.name == "cpu" and gpus > 1:
        raise RecipeError(f"--gpus: {gpus} has no meaning for a CPU; name a GPU with --machine")
    if machine.gpus not in (None, 1, gpus):
        raise RecipeError(f"--gpus: {gpus}, but --machine says gpus={machine.gpus}; give one of them")
    return replace(machine, gpus=gpus)
