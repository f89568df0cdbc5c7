"""What this machine can do, decided once at the start of a run and written into its manifest."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

import torch

from crossover.sections import TrainingRecipe

# A cold compilation takes up to half a minute of a CPU core; see docs/performance.md for what it saves.
COMPILE_FROM_SECONDS = 600.0
# glibc's mallopt: its parameters' numbers, and what a training step wants of them.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_THRESHOLD, TOP_PAD, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 2**26, 2**25


@dataclass(frozen=True)
class Choices:
    """How a run computes; reused when it resumes, so that it computes the same.

    Args:
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16" compute; weights are float32 always.
        compile: Whether the step's forward is compiled.
        threads: CPU threads.
        reason: Why precision and compilation are as they are.
    """

    device: str
    precision: str
    compile: bool
    threads: int
    reason: str


def fast_bfloat16(device: str) -> tuple[bool, str]:
    """Say whether bfloat16 products are faster than float32 ones here, and why.

    Args:
        device: "cpu" or "cuda".

    Returns:
        The answer and a sentence fragment.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False), "the GPU's own bfloat16"
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512-BF16"
    return False, "the CPU has neither AMX nor AVX512-BF16, where bfloat16 is slower than float32"


def compiler() -> str | None:
    """Find the C++ compiler that torch.compile needs on a CPU, or None."""
    wanted = os.environ.get("CXX")
    return shutil.which(wanted) if wanted else shutil.which("g++") or shutil.which("clang++")


def decide(training: TrainingRecipe, *, expected_seconds: float) -> Choices:
    """Decide how a run computes.

    Args:
        training: What the recipe asks for.
        expected_seconds: Length of the run if nothing were compiled.

    Returns:
        The choices.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast, why = fast_bfloat16(device)
    precision = training.precision if training.precision != "auto" else "bfloat16" if fast else "float32"
    compiled, because = _compilation(training.compile, device, expected_seconds)
    return Choices(
        device=device,
        precision=precision,
        compile=compiled,
        # torch reads OMP_NUM_THREADS, by which a study gives each of its workers a part of the machine.
        threads=training.threads or torch.get_num_threads(),
        reason=f"{precision}: {why if training.precision == 'auto' else 'asked for'}; {because}",
    )


def _compilation(wanted: str, device: str, expected_seconds: float) -> tuple[bool, str]:
    if wanted == "off":
        return False, "eager: asked for"
    if device == "cpu" and compiler() is None:
        return False, "eager: no C++ compiler was found (install g++ or set CXX, or keep it so)"
    if wanted == "on":
        return True, "compiled: asked for"
    if expected_seconds < COMPILE_FROM_SECONDS:
        return False, f"eager: a run of about {expected_seconds:.0f} s would not repay compilation"
    return True, f"compiled: repays itself in a run of about {expected_seconds:.0f} s"


def keep_memory() -> bool:
    """Have the C library keep freed memory for the next step instead of giving it back to the system.

    A step frees what it allocated, and fresh memory is paid for page by page: without this, a small model's step takes
    some tens of thousands of page faults (`python benchmarks/step.py --usual-memory` shows what that costs).

    Returns:
        Whether the C library took the settings; only glibc has them.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = (
        (M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD),
        (M_TRIM_THRESHOLD, LARGEST_THRESHOLD),
        (M_TOP_PAD, TOP_PAD),
    )
    return all([tune(name, value) for name, value in settings])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def matmul_flops_per_second(precision: str, device: str, *, size: int = 512, seconds: float = 0.15) -> float:
    """Measure the rate of a square matrix product.

    Args:
        precision: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        size: Rows and columns.
        seconds: How long to measure.

    Returns:
        FLOPs per second with torch's present number of threads.
    """
    import time

    left = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    torch.matmul(left, left)
    count, start = 0, time.perf_counter()
    # At least one: a machine may be suspended between two looks at its clock.
    while count == 0 or time.perf_counter() - start < seconds:
        torch.matmul(left, left)
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return count * 2 * size**3 / (time.perf_counter() - start)


def facts() -> dict[str, Any]:
    """Describe the machine and the versions that a result depends on."""
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {
            "processor": platform.machine(),
            "system": platform.system(),
            "cores": _cores(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpu": gpu,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def as_row(choices: Choices) -> dict[str, Any]:
    """Write the choices as the manifest holds them."""
    return asdict(choices)


def from_row(row: Mapping[str, Any]) -> Choices:
    """Read the choices of an earlier start of a run from its manifest."""
    return Choices(**{item.name: row[item.name] for item in fields(Choices)})
