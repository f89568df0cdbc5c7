"""From a recipe to everything that a run works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from crossover.control.asking import unreachable_change
from crossover.data.loader import Loader
from crossover.data.shards import PreparedText
from crossover.errors import RecipeError
from crossover.hub.adopt import begin_from
from crossover.model.attention import choose_back_end
from crossover.model.backbone import Backbone, build
from crossover.model.routing import losses_of
from crossover.model.shapes import Shape, active_parameters, parameters, shape_of, training_flops
from crossover.model.sharding import ALONE, World, shard
from crossover.recipe import Recipe
from crossover.registry import component_of
from crossover.scoring.cost import modes_of
from crossover.streams import stream
from crossover.training import machine
from crossover.training.compilation import compile_model
from crossover.training.evaluate import Evaluator
from crossover.training.machine import Choices, decide, matmul_flops_per_second
from crossover.training.parallel import check_slices
from crossover.training.room import require_room
from crossover.training.state import Budget
from crossover.training.step import Stepper

# Share of a matrix product's rate that a whole training step reaches; only used to guess how long a run takes.
EXPECTED_SHARE = 0.5


@dataclass(frozen=True)
class Workshop:
    """What a run works with.

    Args:
        recipe: Its recipe.
        text: Its text.
        shape: Its model's shape.
        model: The model.
        stepper: The step.
        evaluator: The measurements.
        choices: How it computes.
        budget: What it may spend.
        flops_per_token: Useful training FLOPs of a data token under each objective.
        gear_prices: The same, and that of objectives that the controller only looks at.
        train_tokens: Tokens of text that it trains on (control text included unless a controller needs it).
        adopted: What its first weights were taken from, or None for fresh ones.
    """

    recipe: Recipe
    text: PreparedText
    shape: Shape
    model: Backbone
    stepper: Stepper
    evaluator: Evaluator
    choices: Choices
    budget: Budget
    flops_per_token: Mapping[str, float]
    gear_prices: Mapping[str, float]
    train_tokens: int
    adopted: Mapping[str, Any] | None = None

    def price(self, mix: Mapping[str, float]) -> float:
        """Useful training FLOPs of a data token under a mix."""
        return sum(share * self.flops_per_token[name] for name, share in mix.items())


def build_workshop(
    recipe: Recipe,
    text: PreparedText,
    recorded: Mapping[str, Any] | None,
    world: World = ALONE,
    notify: Callable[[str], None] = lambda _: None,
    resumes: bool = False,
) -> Workshop:
    """Build all parts of a run.

    Args:
        recipe: The resolved recipe.
        text: The prepared text.
        recorded: The manifest of a run that is resumed (its choices and budget hold), or None.
        world: The processes that train it together.
        notify: Where a sentence about how they share the work goes.
        resumes: Whether a checkpoint will take the place of the first weights.

    Returns:
        The parts, with fresh weights, or those that the recipe adopts.

    Raises:
        RecipeError: Settings do not fit together.
    """
    worn, fresh = getattr(recipe.controller, "worn_dropout", None), recipe.model.residual_dropout
    if worn is not None and not 0 < fresh < worn:
        raise RecipeError(f"controller.worn_dropout: {worn:g} must be above model.residual_dropout {fresh:g}, above 0")
    objectives = {name: component_of("objective", name) for name in recipe.controller.objectives()}
    shape = shape_of(recipe.model, text.vocabulary.size)
    require_room(recipe, shape, world.size)
    prices = _prices(recipe, shape, text, objectives)
    # What is measured differs a little from process to process; the leader's word holds.
    choices = world.agree(machine.from_row(recorded["choices"]) if recorded else _choose(recipe, prices))
    torch.set_num_threads(choices.threads)
    machine.keep_memory()
    model, adopted = _first_model(recipe, text, shape, recorded, resumes)
    model = shard(model if world.size > 1 else model.to(choices.device), world)
    if recipe.training.activation_checkpointing:
        if model.pieces is None:
            raise RecipeError(f"training.activation_checkpointing: has no effect on model.family {shape.family}")
        model.pieces = replace(model.pieces, checkpointed=True)
    stepper = _stepper(recipe, text, model, objectives, choices)
    check_slices(world.size, stepper.loader.slices_per_step, notify)
    budget = world.agree(Budget(**recorded["budget"]) if recorded else _budget(recipe, stepper, prices))
    if not (recorded and recorded.get("branch")):
        # A branch may be too short for a change that its trunk reaches.
        _refuse_unreachable(recipe, budget, min(prices.values()), len(stepper.loader.tokens_U))
    evaluator = Evaluator(recipe, text, shape, modes_of(tuple(objectives), recipe.data.context), choices.precision)
    evaluator.check()
    tokens = len(stepper.loader.tokens_U)
    watching = recipe.controller.watching
    looked_at = {name: component_of("objective", name) for name in (watching.gears if watching else ())}
    gear_prices = _prices(recipe, shape, text, {**objectives, **looked_at})
    return Workshop(
        recipe, text, shape, model, stepper, evaluator, choices, budget, prices, gear_prices, tokens, adopted
    )


def _first_model(
    recipe: Recipe, text: PreparedText, shape: Shape, recorded: Mapping[str, Any] | None, resumes: bool
) -> tuple[Backbone, Mapping[str, Any] | None]:
    """Build the model with fresh weights, or with those that the recipe adopts; says what was adopted."""
    model = build(
        shape,
        text.vocabulary,
        context=recipe.data.context,
        seed=recipe.seed,
        rope_theta=recipe.model.rope_theta,
        norm_eps=recipe.model.norm_eps,
        residual_dropout=recipe.model.residual_dropout,
        attention_dropout=recipe.model.attention_dropout,
        router_losses=losses_of(recipe.model),
    )
    if recipe.model.adopt is None:
        return model, None
    return model, begin_from(model, recipe.model, text.tokenizer, recorded, resumes=resumes)


def _refuse_unreachable(recipe: Recipe, budget: Budget, cheapest: float, train_tokens: int) -> None:
    """A change of the mix that the budget cannot reach would be a setting without effect."""
    wanted, decay_from = recipe.controller.first_change_epochs, recipe.training.learning_rate.decay_from
    if why := unreachable_change(wanted, budget.tokens(cheapest), decay_from, train_tokens):
        raise RecipeError(why)


def _prices(recipe: Recipe, shape: Shape, text: PreparedText, objectives: Mapping[str, Any]) -> dict[str, float]:
    context, head_rows = recipe.data.context, text.vocabulary.predictable
    try:
        return {
            name: training_flops(shape, objective.workload(context), head_rows=head_rows) / context
            for name, objective in objectives.items()
        }
    except ValueError as error:
        raise RecipeError(f"controller: {error} (data.context)") from None


def _choose(recipe: Recipe, prices: Mapping[str, float]) -> Choices:
    torch.set_num_threads(recipe.training.threads or torch.get_num_threads())
    quick = decide(recipe.training, expected_seconds=0.0)
    budget, price = recipe.budget, max(prices.values())
    rate = EXPECTED_SHARE * matmul_flops_per_second(quick.precision, quick.device)
    flops = budget.amount if budget.currency == "flops" else budget.amount * price
    seconds = budget.amount * 60 if budget.currency == "minutes" else flops / rate
    return decide(recipe.training, expected_seconds=seconds)


def _stepper(
    recipe: Recipe, text: PreparedText, model: Backbone, objectives: Mapping[str, Any], choices: Choices
) -> Stepper:
    training, mix = recipe.training, recipe.mix
    loader = Loader(
        text.train_tokens(with_control=not recipe.controller.uses_control_text),
        context=recipe.data.context,
        batch_tokens=training.batch_tokens,
        slice_tokens=mix.slice_tokens or training.batch_tokens,
        seed=recipe.seed,
    )
    return Stepper(
        model=model,
        forward=compile_model(model) if choices.compile else model,
        objectives=objectives,
        loader=loader,
        vocabulary=text.vocabulary,
        optimizers=tuple(training.optimizer.build(model.inner.named_parameters())),
        seed=recipe.seed,
        micro_batch_slices=mix.micro_batch_slices,
        clip_norm=training.clip_norm,
        precision=choices.precision,
        parameter_noise=recipe.model.parameter_noise,
    )


def _budget(recipe: Recipe, stepper: Stepper, prices: Mapping[str, float]) -> Budget:
    budget = recipe.budget
    stated = {budget.currency: budget.amount}
    if budget.currency != "minutes":
        return Budget(budget.currency, budget.amount, stated)
    first = next(iter(prices))
    rate = _measure(stepper, first, prices[first])
    return Budget("flops", rate * budget.amount * 60, {**stated, "measured_flops_per_second": rate})


def _measure(stepper: Stepper, kind: str, price: float, repeats: int = 5) -> float:
    """Measure useful FLOPs per second of a step without changing weights or optimizer."""
    import time

    kinds = (kind,) * stepper.loader.slices_per_step
    tokens = stepper.loader.context * stepper.loader.windows_per_slice * len(kinds)
    saved = {name: value.detach().clone() for name, value in stepper.model.state_dict().items()}
    seconds = []
    for step in range(repeats + 1):
        start = time.perf_counter()
        float(replace(stepper, optimizers=()).run(step, kinds, 0.0).loss)
        seconds.append(time.perf_counter() - start)
        stepper.model.zero_grad(set_to_none=True)
    stepper.model.load_state_dict(saved)
    return tokens * price / sorted(seconds[1:])[repeats // 2]


def manifest_of(workshop: Workshop, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write everything that holds for the whole run.

    Args:
        workshop: The run's parts.
        facts: The machine and its versions.

    Returns:
        The manifest's tree.
    """
    text, budget = workshop.text, workshop.budget
    return {
        "data_hash": text.data_hash,
        "data_source": workshop.recipe.data.source.describe(),
        "unique_tokens": text.unique_tokens,
        "train_tokens": workshop.train_tokens,
        "data_order": workshop.stepper.loader.data_order_hash(),
        "tokenizer_hash": text.tokenizer.hash,
        "parameters": parameters(workshop.shape),
        "active_parameters": active_parameters(workshop.shape),
        "flops_per_token": dict(workshop.gear_prices),
        "vocabulary": {"size": text.vocabulary.size, "predictable": text.vocabulary.predictable},
        "budget": {"currency": budget.currency, "amount": budget.amount, "stated": dict(budget.stated)},
        "choices": {**machine.as_row(workshop.choices), "attention": _attention(workshop)},
        "modes": list(workshop.evaluator.modes),
        "processes": workshop.model.world.size,
        **({"adopted": dict(workshop.adopted)} if workshop.adopted else {}),
        **facts,
    }


def _attention(workshop: Workshop) -> dict[str, str]:
    """Name the attention back end of each pattern that the run trains on."""
    context, words = workshop.recipe.data.context, workshop.text.vocabulary
    dropout = workshop.recipe.model.attention_dropout
    chosen = {}
    for objective in workshop.stepper.objectives.values():
        example = objective.corrupt(np.zeros((2, context), np.int64), stream(0, "look"), words)
        chosen[example.pattern.kind] = choose_back_end(
            example.pattern,
            example.inputs_BN.shape[1],
            workshop.model.device,
            low_precision=workshop.choices.precision == "bfloat16",
            dropout=dropout,
        )
    return chosen
