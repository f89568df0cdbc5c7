"""What this machine can do and what would be chosen here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from crossover.model.attention import choose_back_end
from crossover.records import Pattern
from crossover.training import machine


def examine() -> Iterator[str]:
    """Look at the machine.

    Yields:
        Lines for a person.
    """
    facts = machine.facts()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield "versions: " + ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    yield f"device: {device} ({facts['machine']['gpu'] or facts['machine']['cpu_capability']})"
    yield f"threads: {torch.get_num_threads()} of {facts['machine']['cores']} cores"
    for precision in ("float32", "bfloat16"):
        rate = machine.matmul_flops_per_second(precision, device)
        yield f"matrix products in {precision}: {rate / 1e9:,.1f} GFLOP/s (512 x 512, measured now)"
    fast, why = machine.fast_bfloat16(device)
    yield f"compute in {'bfloat16' if fast else 'float32'}: {why}; weights are float32"
    compiler = machine.compiler()
    yield f"compile: {f'possible with {compiler}' if compiler else 'no C++ compiler, so runs are eager'}"
    for inputs in (129, 513, 2049):
        chosen = choose_back_end(Pattern("full"), inputs, torch.device(device), low_precision=fast)
        yield f"attention of {inputs} inputs: {chosen}"
