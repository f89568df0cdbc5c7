"""Recipes whose text is declared and not there, and a pair of laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossover.evidence.planning.forecast import Book, read_book
from crossover.evidence.planning.machines import machine_of
from crossover.evidence.planning.plan import plan_of
from crossover.evidence.scaling.book import published_laws
from crossover.recipe import resolve
from crossover.trees import merge


@pytest.fixture(autouse=True)
def nothing_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def recipe_of():
    """Make a recipe of 100M tokens seen 8 times by 25M parameters, changed as asked."""

    def make(**changes):
        base = {
            "name": "planned",
            "data": {"source": "nowhere/", "unique_tokens": "100M", "tokenizer": "bpe(8192)", "context": 512},
            "model": {"preset": "25m"},
            "budget": {"tokens": "800M"},
            "mix": {"slice_tokens": 8192},
            "training": {"batch_tokens": 131072, "learning_rate": "wsd(warmup_tokens=1000000)"},
        }
        return resolve(merge(base, changes))

    return make


@pytest.fixture(scope="session")
def published():
    return read_book(None)


@pytest.fixture(scope="session")
def pair():
    """The published law, and one for masked training that is worse at first and reuses text 16 times longer."""
    holder = published_laws()["autoregressive"]
    factors = {"data_reuse": 16.0, "size_reuse": 23.0, "size_coefficient": 1.2, "data_coefficient": 1.3}
    constants = replace(holder.constants, **{n: getattr(holder.constants, n) * by for n, by in factors.items()})
    draws_KP = np.repeat(constants.theta()[None], 20, axis=0)
    challenger = replace(holder, family="masked", constants=constants, draws_KP=draws_KP)
    holder = replace(holder, draws_KP=np.repeat(holder.constants.theta()[None], 20, axis=0))
    return Book({"autoregressive": holder, "masked": challenger}, "a pair")


@pytest.fixture(scope="session")
def plan(published):
    """Plan a recipe on a machine."""

    def make(recipe, machine="h100", gpus=None, book=None, price=None):
        return plan_of(recipe, machine_of(machine, gpus=gpus), book or published, price_per_gpu_hour=price)

    return make
