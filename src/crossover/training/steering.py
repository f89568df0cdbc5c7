"""The wheel: the controller is told what the probes measured, asked for the mix, and obeyed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from crossover.control.asking import DECISIONS_PER_EPOCH
from crossover.control.signals.fold import Fold, fold_of
from crossover.control.signals.scene import Scene
from crossover.data.shards import PreparedText
from crossover.errors import RunError
from crossover.folders import step_folder
from crossover.model.shapes import active_parameters
from crossover.records import Decision, Mix, Progress
from crossover.training.build import Workshop
from crossover.training.probes.prober import Prober, build_prober
from crossover.training.running import Run, clock, restore, tensors
from crossover.training.state import progress_of

SPREADS_PER_EPOCH = 4
# A learning rate that rises again after a shift begins here.
REWARM_FROM = 0.1


@dataclass(frozen=True)
class Wheel:
    """What lies between probes and controller.

    Args:
        prober: The probes, or None when the controller looks at nothing.
        fold: Its signals.
        share: Largest part of the training FLOPs that probes may take.
        kinds: Kinds of probes that the signals read.
    """

    prober: Prober | None
    fold: Fold
    share: float
    kinds: frozenset[str] = frozenset()


def build_wheel(workshop: Workshop, text: PreparedText) -> Wheel:
    """Build the probes and signals that a run's controller asks for.

    Args:
        workshop: The run's parts.
        text: Its text.

    Returns:
        The wheel.

    Raises:
        RecipeError: A signal or its probe does not exist, or no gear can be scored by the target.
        DataError: There is too little control text.
    """
    watching = workshop.recipe.controller.watching
    if watching is None or watching.share == 0:
        return Wheel(None, Fold(()), 0.0)
    fold = fold_of(watching.signals)
    kinds = frozenset(kind for signal in fold.signals for kind in signal.probes)
    if not kinds:
        return Wheel(None, fold, 0.0)
    prices = workshop.gear_prices
    prober = build_prober(text, workshop.shape, workshop.stepper, prices, watching, kinds)
    return Wheel(prober, fold, watching.share, kinds)


def ask(run: Run, wheel: Wheel) -> None:
    """Ask the controller when it is due and the learning rate does not decay yet, and do what it says.

    Args:
        run: The run.
        wheel: Its signals.
    """
    workshop, state = run.workshop, run.state
    frozen = workshop.budget.fraction(state) >= workshop.recipe.training.learning_rate.decay_from
    if state.mix and (frozen or state.data_tokens < state.next_decision):
        return
    progress = _progress(run)
    # The step that it takes effect in: a run that resumes from the checkpoint before it asks anew.
    row = {**clock(run), "step": state.step + 1}
    asked = {name: getattr(progress, name) for name in ("budget_fraction", "planned_epochs", "exposures")}
    run.recorder.signal({**row, "asked": True, **asked})
    readings = wheel.fold.readings(state.signals, _scene(run))
    memory, decision = workshop.recipe.controller.decide(state.controller, readings, progress)
    mix = dict(decision.mix.shares)
    every = max(1, workshop.train_tokens // DECISIONS_PER_EPOCH)
    due = state.data_tokens // every * every + every
    run.state = replace(state, mix=mix, controller=dict(memory), next_decision=due)
    _obey(run, decision)
    if mix != state.mix or decision.mark:
        row = {**row, "mix": mix, "before": dict(state.mix), "reason": decision.reason}
        run.recorder.decision({**row, "details": dict(decision.details), "mark": decision.mark})


def _progress(run: Run) -> Progress:
    workshop, state, recipe = run.workshop, run.state, run.workshop.recipe
    price = workshop.price(state.mix) if state.mix else max(workshop.flops_per_token.values())
    return progress_of(state, recipe, workshop.budget, workshop.train_tokens, price, workshop.gear_prices)


def _scene(run: Run) -> Scene:
    workshop, state = run.workshop, run.state
    watching = workshop.recipe.controller.watching
    return Scene(
        context=workshop.recipe.data.context,
        unique_tokens=workshop.train_tokens,
        gears=watching.gears if watching is not None else (),
        flops_per_token=workshop.gear_prices,
        mix=Mix(tuple(state.mix.items())) if state.mix else Mix((("autoregressive", 1.0),)),
    )


def _obey(run: Run, decision: Decision) -> None:
    """Do what a decision says besides the mix."""
    state = run.state
    if decision.rewarm_tokens:
        run.state = replace(state, rewarm=(state.data_tokens, decision.rewarm_tokens))
    if decision.residual_dropout is not None:
        run.state = replace(run.state, residual_dropout=decision.residual_dropout)
        run.workshop.model.residual_dropout = decision.residual_dropout
    kept = run.folder / "kept"
    if decision.mark == "keep":
        run.saver.save(step_folder(kept, state.step), tensors(run), {"step": state.step}, lambda: None)
    elif decision.mark == "back":
        place = step_folder(kept, decision.to_step)
        run.saver.wait()
        run.world.wait()
        if not run.world.agree(place.is_dir()):
            raise RunError(f"{place}: the weights to go back to are gone; restore the folder, or set retreat=false")
        restore(run, place)
        # A checkpoint soon, so that a rescue from bad steps does not undo the retreat.
        run.state = replace(run.state, retreats=state.retreats + 1, next_checkpoint=0)


def rewarmed(run: Run) -> float:
    """Give the factor on the learning rate after a shift: 1, or rising from a tenth over its tokens."""
    began, tokens = run.state.rewarm
    if tokens == 0:
        return 1.0
    return min(1.0, REWARM_FROM + (1 - REWARM_FROM) * (run.state.data_tokens - began) / tokens)


def probe(run: Run, wheel: Wheel, kinds: tuple[str, ...]) -> None:
    """Note what a step's tokens were seen in, make the probe that is due, and charge it to the budget.

    Args:
        run: The run, the step already counted.
        wheel: Its probes and signals.
        kinds: Objective of each slice of the step.
    """
    frozen = run.workshop.budget.fraction(run.state) >= run.workshop.recipe.training.learning_rate.decay_from
    if wheel.prober is None or frozen:
        # Nobody will be asked again: what is measured now would be paid for nothing.
        return
    began, state = time.monotonic(), run.state
    wheel.prober.observe(state.step - 1, kinds)
    # Training that has been paid for earns credit; what probes took is spent credit.
    credit = wheel.share * (state.flops - state.probe_flops) - state.probe_flops
    now = {"step": state.step, "data_tokens": state.data_tokens, "mix": state.mix}
    rows, turn, flops = wheel.prober.take(state.probe_turn, credit, now)
    per_flop = 6.0 * active_parameters(run.workshop.shape) / run.workshop.price(state.mix)
    run.state = replace(
        state,
        flops=state.flops + flops,
        flops_6nd=state.flops_6nd + flops * per_flop,
        probe_flops=state.probe_flops + flops,
        probe_turn=turn,
    )
    for row in rows:
        _record(run, wheel, row)
    run.state = replace(run.state, probe_seconds=run.state.probe_seconds + time.monotonic() - began)


def measures(run: Run, wheel: Wheel) -> bool:
    """Whether the next step's micro-batches should be compared: a few times an epoch, where a signal reads it."""
    # Probes look at the model without dropout and at the objectives' loss alone; a step with dropout would measure
    # another noise, and one with routers another loss, as theirs are in its gradient.
    model, routing = run.workshop.recipe.model, run.workshop.model.routing
    noisy = model.residual_dropout or model.attention_dropout or model.parameter_noise or routing is not None
    if wheel.prober is None or "gradient" not in wheel.kinds or noisy:
        return False
    state, every = run.state, max(1, run.workshop.train_tokens // SPREADS_PER_EPOCH)
    return state.data_tokens // every != (state.data_tokens + run.workshop.recipe.training.batch_tokens) // every


def record_spread(run: Run, wheel: Wheel, parts: Mapping[str, tuple[int, Tensor]]) -> None:
    """Record what the micro-batches of a step said about the noise of their gradients; it cost no FLOPs.

    Args:
        run: The run, the step already counted.
        wheel: Its signals.
        parts: By objective: slices of a part, and squared norms of the parts and of their mean.
    """
    loader, training = run.workshop.stepper.loader, run.workshop.recipe.training
    slice_tokens = training.batch_tokens // loader.slices_per_step
    for gear, (slices, norms) in parts.items():
        *each, mean = norms.tolist()
        row = {
            "probe": "gradient",
            "gear": gear,
            "target": "",
            "parts": len(each),
            "part_tokens": slice_tokens * slices,
            "norm2_M": each,
            "mean_norm2": mean,
            "along_M": None,
            "control_norm2": None,
            "mask_half_distance2": None,
            "pair_tokens": 0,
            "flops_per_token": run.workshop.gear_prices.get(gear),
            "flops": 0.0,
        }
        _record(run, wheel, row)


def _record(run: Run, wheel: Wheel, row: dict[str, Any]) -> None:
    # A wall-clock time differs between two runs of one recipe, so no signal may read it.
    told = {**clock(run), **row}
    run.recorder.signal(told)
    run.state = replace(run.state, signals=wheel.fold.update(run.state.signals, told))
