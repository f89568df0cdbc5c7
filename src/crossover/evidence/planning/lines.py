"""A plan in lines for a person, and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from crossover.evidence.planning.forecast import USED_UP_NATS, Expected, Optimum
from crossover.evidence.planning.memory import GIB, MARGIN
from crossover.evidence.planning.plan import Plan
from crossover.records import Mix

WAYS = {"autoregressive": "next-token", "masked": "masked", "hybrid": "this recipe"}


def facts_of(plan: Plan) -> dict[str, Any]:
    """Give a plan as plain values, ready for JSON.

    Args:
        plan: The plan.

    Returns:
        One mapping per part; the same plan gives the same mapping.
    """
    fit, machine = asdict(plan.fit), asdict(plan.machine)
    parts = {name: value / GIB for name, value in fit.pop("parts").items()}
    by_gpus = {str(count): value / GIB for count, value in fit.pop("bytes_by_gpus").items()}
    return {
        "recipe": plan.recipe.name,
        "runs": not plan.problems,
        "problems": list(plan.problems),
        "advice": list(plan.advice),
        "notes": list(plan.notes),
        "shape": asdict(plan.shape),
        "parameters": asdict(plan.sizes),
        "text": asdict(plan.text),
        "spending": asdict(plan.spending),
        "machine": {**machine, "mfu": plan.price.mfu, "gpus": fit.pop("gpus")},
        "memory_gib": {**parts, "total": plan.fit.parts.total / GIB, "kept_free": MARGIN * plan.machine.memory_gib},
        "memory_gib_by_gpus": by_gpus,
        "fit": fit,
        "price": asdict(plan.price),
        "forecast": asdict(plan.forecast),
    }


def lines_of(plan: Plan) -> list[str]:
    """Give a plan in lines for a person.

    Args:
        plan: The plan.

    Returns:
        Lines, part by part.
    """
    parts = [_model(plan), _spending(plan), _memory(plan), _price(plan), _forecast(plan)]
    lines = [f"plan of {plan.recipe.name}", *(line for part in parts for line in part)]
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"cannot run: {problem}" for problem in plan.problems]
    return [*lines, f"advice: {'. '.join(_begun(sentence) for sentence in plan.advice)}."]


def _begun(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def count_told(value: float) -> str:
    """Write a large number with its unit, such as 1.72B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _model(plan: Plan) -> list[str]:
    shape, sizes = plan.shape, plan.sizes
    active = f", {sizes.active:,} active for a token" if sizes.active != sizes.total else ""
    inside = (
        f"{shape.experts} experts of {shape.expert_width}, {shape.experts_per_token} for a token"
        if shape.experts
        else f"MLP {shape.mlp_width}"
    )
    return [
        f"model: {sizes.total:,} parameters{active}, {sizes.body:,} outside the embeddings",
        f"  {shape.family}, {shape.depth} layers of width {shape.width}, {shape.heads} heads of {shape.head_width} "
        f"({shape.kv_heads} for keys and values), {inside}, {shape.vocabulary:,} rows{' (tied)' if shape.tied else ''}",
    ]


def _spending(plan: Plan) -> list[str]:
    text, spent = plan.text, plan.spending
    held = text.unique_tokens - text.train_tokens
    kept = f", {count_told(held)} of them held out for the controller" if held else ""
    probes = f" ({spent.probe_flops:.2g} of them for probes)" if spent.probe_flops else ""
    lines = [
        f"text: {count_told(text.unique_tokens)} unique tokens{kept} ({text.told})",
        f"budget: {count_told(spent.tokens)} tokens, {spent.epochs:.4g} epochs, {spent.steps:,} steps of "
        f"{plan.recipe.training.batch_tokens:,}; {spent.flops:.3g} useful FLOPs{probes}, {spent.flops_6nd:.3g} by 6ND",
        f"  FLOPs a token: {', '.join(f'{name} {value:.3g}' for name, value in spent.flops_per_token.items())}; "
        f"this recipe's mix {spent.own_flops_per_token:.3g}",
    ]
    if len(plan.recipe.controller.objectives()) > 1:
        seen = ", ".join(f"{name} {epochs:.3g}" for name, epochs in spent.exposures.items())
        lines.append(f"  epochs by objective: {seen}{f' ({spent.unplanned})' if spent.unplanned else ''}")
        first, last = spent.phases[0], spent.phases[-1]
        lines.append(f"  begins: {first.reason}")
        if last is not first:
            lines.append(f"  ends with {Mix(tuple(last.mix.items())).describe()}, from epoch {last.from_epochs:.3g} on")
    return lines


def _memory(plan: Plan) -> list[str]:
    fit, machine, context = plan.fit, plan.machine, plan.recipe.data.context
    room = "fits" if fit.fits else "does not fit"
    parts = ", ".join(f"{name} {value / GIB:.3g}" for name, value in asdict(fit.parts).items() if value)
    by_gpus = ", ".join(f"{count}: {value / GIB:.3g}" for count, value in fit.bytes_by_gpus.items())
    chosen = "as asked for" if fit.stated else "the smallest number that fits and shares a step's slices alike"
    on = "with" if plan.recipe.training.activation_checkpointing else "without"
    off = "without" if on == "with" else "with"
    fewest = "no number up to 1,024 fits" if fit.fewest_gpus is None else f"{fit.fewest_gpus} at least"
    numbers = [] if machine.name == "cpu" else [f"  GiB on each by number: {by_gpus}"]
    return [
        f"memory: {fit.parts.total / GIB:.3g} GiB on each of {fit.gpus} {machine.name} of {machine.memory_gib:g} GiB: "
        f"{room} ({chosen}; by memory alone {fewest})",
        f"  GiB: {parts}",
        *numbers,
        f"  micro-batch: {fit.windows} windows of {context:,}; at most {fit.most_windows:,} fit {on} activation "
        f"checkpointing, {fit.most_windows_other:,} {off}",
        f"  an estimate; {MARGIN:.0%} of the memory is kept free for what it leaves out: fragmentation, buffers",
    ]


def _price(plan: Plan) -> list[str]:
    price, machine = plan.price, plan.machine
    again = ", layers computed twice" if plan.recipe.training.activation_checkpointing else ""
    cost = "" if price.cost is None else f"; {price.cost:,.2f} at the price given"
    return [
        f"time: {_hours(price.hours)} on {plan.fit.gpus}, {price.gpu_hours:,.3g} device hours{cost}; "
        "evaluations come on top (a tenth at most by default)",
        f"  assumed: {price.mfu:.0%} of {machine.peak_tflops:g} TFLOP/s ({machine.source}){again}",
    ]


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} seconds"
    if hours < 1:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:,.3g} hours" if hours < 72 else f"{hours / 24:,.3g} days"


def _forecast(plan: Plan) -> list[str]:
    found = plan.forecast
    lines = [f"expected loss, nats per token of the laws' own text and tokenizer ({found.source}):"]
    for each in found.expected:
        lines += _expected(each)
    critical = found.critical
    lines.append(f"critical compute of masked training: {_critical(plan)}")
    lines.append(f"  {critical.told}")
    lines += [_optimum(best) for best in found.optima]
    return [*lines, *(f"  of the law: {note}" for note in found.notes)]


def _expected(each: Expected) -> list[str]:
    seen = f"{count_told(each.tokens)} tokens, {each.epochs:.4g} epochs"
    if each.loss_nats is None or each.interval is None or each.run_interval is None:
        return [f"  {WAYS[each.family]}: {seen}: {each.told}"]
    (low, high), (least, most) = each.interval, each.run_interval
    lines = [
        f"  {WAYS[each.family]}: {each.loss_nats:.3f} [{low:.3f}, {high:.3f}]{_bound(each)}, one run "
        f"[{least:.3f}, {most:.3f}], "
        f"after {seen}; {each.told}"
    ]
    if each.useful_epochs is not None:
        what = "the law turns up" if each.turns_up else f"all further ones are worth less than {USED_UP_NATS:g} nats"
        lines.append(f"    useful epochs: {each.useful_epochs:.3g}, where {what}")
    if each.extrapolation:
        unknown = f"; rests on {', '.join(each.rests_on_unknown)}, not pinned down" if each.rests_on_unknown else ""
        lines.append(f"    extrapolation: {'; '.join(each.extrapolation)}{unknown}")
    return lines


def _critical(plan: Plan) -> str:
    critical = plan.forecast.critical
    budget = f"the budget is {critical.budget_flops:.2e} FLOPs by 6ND"
    if critical.flops is None or critical.ratio is None:
        return f"{critical.status}; {budget}"
    side = "above" if critical.ratio >= 1 else "below"
    return f"{critical.flops:.2e} FLOPs; {budget}, {critical.ratio:.2g} times that: {side} it"


def _optimum(best: Optimum) -> str:
    low, high = best.interval
    far = "" if best.inside else " (beyond the law's data)"
    return (
        f"best size for {WAYS[best.family]} training at this compute: {count_told(best.parameters)} parameters, "
        f"{best.epochs:.3g} epochs, {best.loss_nats:.3f} [{low:.3f}, {high:.3f}]{_bound(best)}{far}"
    )


def _bound(each: Expected | Optimum) -> str:
    return " (an upper bound)" if each.is_bound else ""
