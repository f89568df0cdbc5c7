"""What this machine can do and what would be chosen here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from crossover.model.attention import choose_back_end
from crossover.records import Pattern
from crossover.training import machine

LENGTHS = (128, 512, 2048)


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
    how = {"cpu": "the pieces of a layer, once for all patterns", "cuda": "the whole model, a graph per pattern"}[
        device
    ]
    if compiler:
        yield f"compiled, where a run is long enough to repay it: {how}"
    kept = "keeps freed memory for the next step" if machine.keep_memory() else "gives freed memory back at once"
    yield f"memory: the C library {kept}"
    for pattern in (Pattern("causal"), Pattern("full"), Pattern("two_stream", 16, 496, "block_causal")):
        ends = [choose_back_end(pattern, inputs, torch.device(device), low_precision=fast) for inputs in LENGTHS]
        told = ", ".join(f"{end} at {inputs:,}" for end, inputs in zip(ends, LENGTHS, strict=True))
        yield f"attention, {pattern.kind.replace('_', ' ')}: {told} inputs"
