"""Machines by name and by settings, and what is wrong with a description."""

from __future__ import annotations

import pytest

from crossover.errors import RecipeError
from crossover.evidence.planning.machines import DENSE_MFU, SPARSE_MFU, known_machines, machine_of


def test_a_name_settings_and_both():
    assert machine_of("h200").memory_gib == 139
    described = machine_of("gpus=8,memory_gib=141,tflops=990,mfu=0.5")
    assert (described.gpus, described.memory_gib, described.peak_tflops, described.mfu) == (8, 141, 990, 0.5)
    changed = machine_of("h200, gpus=4, memory_gib=100")
    assert (changed.gpus, changed.memory_gib, changed.peak_tflops) == (4, 100, 989)
    assert "as given" in changed.source and "data sheet" in changed.source
    assert machine_of(None).name == "h100" and machine_of(None).gpus is None


def test_a_cpu_has_the_rate_that_is_stated():
    assert machine_of("cpu,gflops=40").flops_per_second(1, sparse=False) == pytest.approx(40e9)
    assert "assumed" in machine_of("cpu").source


def test_the_reached_part_is_an_assumption_that_can_be_replaced():
    machine = machine_of("a100-80")
    assert machine.flops_per_second(2, sparse=False) == pytest.approx(2 * 312e12 * DENSE_MFU)
    assert machine.flops_per_second(2, sparse=True) == pytest.approx(2 * 312e12 * SPARSE_MFU)
    assert machine_of("a100-80,mfu=0.6").flops_per_second(1, sparse=True) == pytest.approx(312e12 * 0.6)


def test_every_named_machine_says_where_its_numbers_are_from():
    assert {"h100", "h200", "a100-40", "a100-80", "b200", "rtx-4090", "cpu"} == set(known_machines())
    assert all(machine.source and machine.memory_gib > 0 for machine in known_machines().values())


@pytest.mark.parametrize(
    ("text", "gpus", "told"),
    [
        ("h10", None, "did you mean 'h100'"),
        ("h100,memory=80", None, "did you mean 'memory_gib'"),
        ("h100,mfu=40", None, "mfu=40: expected a part of the peak"),
        ("h100,gpus=1.5", None, "gpus=1.5: expected a whole number"),
        ("h100,tflops=many", None, "tflops=many: expected"),
        ("h100,tflops=inf", None, "tflops=inf: expected"),
        ("h100,gpus=2,gpus=4", None, "gpus is given twice"),
        ("tflops=900", None, "lacks memory_gib"),
        ("memory_gib=80", None, "lacks tflops"),
        ("memory_gib=80,tflops=1,gflops=1", None, "tflops or gflops, not both"),
        ("h100,gpus=8", 4, "give one of them"),
        ("h100", 0, "expected a whole number from 1 on"),
        ("cpu", 2, "no meaning for a CPU"),
    ],
)
def test_what_is_wrong_is_named(text, gpus, told):
    with pytest.raises(RecipeError, match=told):
        machine_of(text, gpus=gpus)
