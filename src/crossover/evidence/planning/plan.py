"""The plan of a run: what a recipe is, costs and should reach on a machine, without building it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crossover.evidence.planning.advice import advice_of
from crossover.evidence.planning.fit import Fit, demand_of, fit_of
from crossover.evidence.planning.forecast import Book, Forecast, forecast
from crossover.evidence.planning.machines import Machine
from crossover.evidence.planning.problems import notes_of, problems_of
from crossover.evidence.planning.spending import Spending, spending_of
from crossover.evidence.planning.text import TextFacts, text_facts
from crossover.model.shapes import Shape, active_parameters, body_parameters, parameters, shape_of
from crossover.recipe import Recipe

# A layer that is computed again in the backward pass makes four passes of three.
CHECKPOINTING_WORK = 4 / 3


@dataclass(frozen=True)
class Sizes:
    """What the model has.

    Args:
        total: All parameters.
        active: Those that take part in one token: all but the experts that are not chosen.
        body: Those outside embedding and head.
    """

    total: int
    active: int
    body: int


@dataclass(frozen=True)
class Price:
    """What the run takes.

    Args:
        mfu: Part of the peak that training is assumed to reach.
        hours: Wall-clock hours of training; evaluations come on top.
        gpu_hours: Times the number of GPUs.
        cost: Times the price of a GPU's hour; None where none was given.
    """

    mfu: float
    hours: float
    gpu_hours: float
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before it begins.

    Args:
        recipe: The recipe.
        shape: Its backbone.
        sizes: Its parameters.
        text: Its text.
        spending: What its budget buys.
        machine: The machine.
        fit: What fits there.
        price: What it takes.
        forecast: What it should reach.
        problems: Why it cannot run so, each with what to change.
        notes: What else a reader should know.
        advice: Which training to choose, and why.
    """

    recipe: Recipe
    shape: Shape
    sizes: Sizes
    text: TextFacts
    spending: Spending
    machine: Machine
    fit: Fit
    price: Price
    forecast: Forecast
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    advice: tuple[str, ...]


def plan_of(recipe: Recipe, machine: Machine, book: Book, *, price_per_gpu_hour: float | None = None) -> Plan:
    """Plan a run.

    Args:
        recipe: The resolved recipe; its text need not be there.
        machine: Where it should run.
        book: The laws to predict by.
        price_per_gpu_hour: What a GPU costs an hour, in any currency.

    Returns:
        The plan.

    Raises:
        RecipeError: The shape or an objective does not fit, or nothing says how much text there is.
        DataError: The tokenizer's file cannot be read.
    """
    text = text_facts(recipe)
    shape = shape_of(recipe.model, text.vocabulary)
    demand = demand_of(recipe, shape, text)
    fit = fit_of(recipe, demand, machine)
    rate = machine.flops_per_second(fit.gpus, sparse=bool(shape.experts)) / _work(recipe)
    spending = spending_of(recipe, text, shape, flops_per_second=rate)
    expected = forecast(
        book,
        spending,
        parameters=active_parameters(shape),
        unique_tokens=text.unique_tokens,
        train_tokens=text.train_tokens,
        guessing_nats=math.log(text.predictable),
        sparse=bool(shape.experts),
        hybrid=len(recipe.controller.objectives()) > 1,
    )
    problems = problems_of(recipe, text, spending, machine, demand, fit)
    hours = spending.flops / rate / 3600
    cost = None if price_per_gpu_hour is None else hours * fit.gpus * price_per_gpu_hour
    return Plan(
        recipe=recipe,
        shape=shape,
        sizes=Sizes(parameters(shape), active_parameters(shape), body_parameters(shape)),
        text=text,
        spending=spending,
        machine=machine,
        fit=fit,
        price=Price(machine.reached(sparse=bool(shape.experts)), hours, hours * fit.gpus, cost),
        forecast=expected,
        problems=problems,
        notes=notes_of(recipe, text, spending, fit),
        advice=advice_of(spending, expected),
    )


def _work(recipe: Recipe) -> float:
    return CHECKPOINTING_WORK if recipe.training.activation_checkpointing else 1.0
