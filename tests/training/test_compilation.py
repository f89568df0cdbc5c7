"""Everything is compiled before the first step, and once for all objectives."""

import platform
from dataclasses import replace

import pytest
import torch

from crossover.training import compilation, machine

OBJECTIVES = ("autoregressive", "block(4)", "block(16)", "masked")


# The compiler warns of its own insides.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(machine.compiler() is None, reason="needs a C++ compiler")
def test_no_handover_compiles_and_the_compiled_step_is_the_eager_one(workshop) -> None:
    shop = workshop(controller="block_growth(0.2, sizes=[1, 4, 16, 0])")
    eager = shop.stepper
    wanted = {kind: eager.loss(eager.example(3, kind, (0, 1, 2, 3)), 64.0).detach() for kind in OBJECTIVES}
    before = {name: value.clone() for name, value in eager.model.state_dict().items()}
    compiled = replace(eager, forward=compilation.compile_model(eager.model))
    before_warm = compilation.graphs()
    warm = compilation.warm_up(compiled)
    assert 2 <= warm.graphs <= compilation.GRAPHS_AT_MOST and warm.seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in eager.model.state_dict().items())
    assert all(parameter.grad is None for parameter in eager.model.parameters())
    for kind in OBJECTIVES:
        found = compiled.loss(compiled.example(3, kind, (0, 1, 2, 3)), 64.0)
        torch.testing.assert_close(found.detach(), wanted[kind], rtol=1e-5, atol=1e-6)
    mixed = [OBJECTIVES, (*OBJECTIVES[:2], *OBJECTIVES[:2]), OBJECTIVES[:1] * 3 + OBJECTIVES[3:]]
    for step, kinds in enumerate([(kind,) * 4 for kind in OBJECTIVES] + mixed):
        compiled.run(step, kinds, 0.1)
    with torch.no_grad():
        shop.evaluator.dev(eager.model)
    assert compilation.graphs() == before_warm + warm.graphs, "a handover or a score compiled something"


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert machine.keep_memory() == (platform.libc_ver()[0] == "glibc")
