"""Why a recipe cannot run as it stands, and what to change; and what a reader should know though it can."""

from __future__ import annotations

from crossover.control.asking import unreachable_change
from crossover.evidence.planning.fit import Fit, slices_of
from crossover.evidence.planning.machines import Machine
from crossover.evidence.planning.memory import GIB, MARGIN, Demand
from crossover.evidence.planning.spending import Spending
from crossover.evidence.planning.text import TextFacts
from crossover.recipe import Recipe


def problems_of(
    recipe: Recipe, text: TextFacts, spending: Spending, machine: Machine, demand: Demand, fit: Fit
) -> tuple[str, ...]:
    """List why a recipe cannot run as it stands.

    Args:
        recipe: The recipe.
        text: Its text.
        spending: What its budget buys.
        machine: Where it should run.
        demand: What its memory depends on.
        fit: What fits there.

    Returns:
        A sentence each, with what to change; none when all is well.
    """
    found = [*_memory(recipe, machine, demand, fit), *_sharing(recipe, fit), *_budget(recipe, text, spending)]
    return tuple(found)


def _memory(recipe: Recipe, machine: Machine, demand: Demand, fit: Fit) -> list[str]:
    if fit.fits:
        return []
    free = (1 - MARGIN) * machine.memory_gib
    needs = f"does not fit: {fit.parts.total / GIB:.1f} GiB a GPU on {fit.gpus}, of which {free:.1f} GiB may be filled"
    ways = []
    if fit.fewest_gpus is not None and fit.fewest_gpus > fit.gpus:
        ways.append(f"take {fit.fewest_gpus} GPUs or more")
    if not demand.checkpointed and fit.most_windows_other >= fit.windows:
        ways.append("set training.activation_checkpointing=true")
    if fit.most_windows:
        tokens = fit.most_windows * recipe.data.context
        ways.append(f"lower mix.slice_tokens x mix.micro_batch_slices to {tokens:,} ({fit.most_windows} window(s))")
    return [f"{needs}; {', or '.join(ways) or 'take a smaller model.preset or GPUs with more memory'}"]


def _sharing(recipe: Recipe, fit: Fit) -> list[str]:
    if fit.shared:
        return []
    batch, context = recipe.training.batch_tokens, recipe.data.context
    smaller = batch // fit.gpus
    advice = f"set mix.slice_tokens={smaller}" if smaller and batch % fit.gpus == 0 and smaller % context == 0 else (
        f"choose training.batch_tokens and mix.slice_tokens so that a step has a multiple of {fit.gpus} slices"
    )  # fmt: skip
    told = f"a step has {slices_of(recipe)} slice(s), which {fit.gpus} GPUs cannot share out alike"
    return [f"mix.slice_tokens: {told}; {advice}"]


def _budget(recipe: Recipe, text: TextFacts, spending: Spending) -> list[str]:
    found, training = [], recipe.training
    if text.train_tokens < recipe.data.context:
        found.append(
            f"data.unique_tokens: {text.train_tokens:,} tokens are fewer than one window, data.context "
            f"{recipe.data.context:,}; give more text or a shorter context"
        )
    wanted = spending.wanted_tokens
    if wanted < training.batch_tokens:
        found.append(
            f"budget.{spending.currency}: buys {wanted:,.0f} tokens, less than one step of training.batch_tokens "
            f"{training.batch_tokens:,}; raise the one or lower the other"
        )
    warmup = training.learning_rate.warmup_tokens
    if warmup >= spending.tokens:
        found.append(
            f"training.learning_rate.warmup_tokens: {warmup:,} is no shorter than the run of {spending.tokens:,.0f} "
            f"tokens, so the peak is never reached; lower it to {int(spending.tokens / 20):,}, or raise the budget"
        )
    wants, most = recipe.controller.first_change_epochs, spending.tokens_under(_cheapest(recipe, spending))
    unreachable = unreachable_change(wants, most, training.learning_rate.decay_from, text.train_tokens)
    return [*found, unreachable] if unreachable else found


def _cheapest(recipe: Recipe, spending: Spending) -> str:
    return min(recipe.controller.objectives(), key=lambda name: spending.flops_per_token[name])


def notes_of(recipe: Recipe, text: TextFacts, spending: Spending, fit: Fit) -> tuple[str, ...]:
    """List what a reader should know though the recipe can run.

    Args:
        recipe: The recipe.
        text: Its text.
        spending: What its budget buys.
        fit: What fits where it should run.

    Returns:
        Sentences.
    """
    found = []
    if fit.gpus > 1:
        found.append("training on several GPUs is not part of this version yet; this is what it would take")
    rate = recipe.training.learning_rate
    if spending.tokens > rate.warmup_tokens >= spending.tokens * rate.decay_from:
        found.append(
            f"training.learning_rate: the warm-up of {rate.warmup_tokens:,} tokens ends after the decay has begun, at "
            f"{spending.tokens * rate.decay_from:,.0f}; shorten one of them"
        )
    if spending.epochs < 1:
        found.append(f"the budget sees {spending.epochs:.2f} of the text once; nothing is repeated")
    if not text.counted and recipe.data.unique_tokens is not None:
        found.append("unique tokens are as declared; `crossover prepare` counts them")
    return tuple(found)
