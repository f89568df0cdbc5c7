"""The one loop: ask the controller, take a step, score, save; until the budget is spent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crossover.data.shards import PreparedText
from crossover.errors import CrossoverError, RunError
from crossover.folders import step_folder
from crossover.model.routing import routing_row
from crossover.model.shapes import active_parameters
from crossover.model.sharding import ALONE, World, gathered, local
from crossover.objectives.mixing import Dealer
from crossover.recipe import Recipe
from crossover.records import Recorder
from crossover.stopping import Stopped, Stopping
from crossover.training import checkpoint, forks, machine
from crossover.training.build import Workshop, build_workshop, manifest_of
from crossover.training.compilation import WarmUp, graphs, warm_up
from crossover.training.evaluate import eval_row, improves, swapped
from crossover.training.finish import finish
from crossover.training.running import (
    Run,
    check_agreement,
    clock,
    first_average,
    newest_checkpoint,
    restore,
    resume,
    settle_clock,
    snapshot,
)
from crossover.training.saving import Saver
from crossover.training.state import State
from crossover.training.steering import Wheel, ask, build_wheel, measures, probe, record_spread, rewarmed

# Device values are read together every so many steps: one host sync instead of one per step.
LOG_STEPS = 16
# So many steps in a row without a finite gradient send the weights back to the last checkpoint, so many times.
BAD_STEPS, MOST_ROLLBACKS = 8, 3
CHECKPOINTS = 20


def train(
    recipe: Recipe,
    text: PreparedText,
    folder: Path,
    recorder: Recorder,
    recorded: Mapping[str, Any] | None,
    notify: Callable[[str], None] = lambda _: None,
    fork_for: Sequence[float] = (),
    stop: Stopping | None = None,
    world: World = ALONE,
) -> None:
    """Run a recipe to the end of its budget, from its newest checkpoint if there is one.

    Args:
        recipe: The resolved recipe.
        text: The prepared text.
        folder: The run folder; `checkpoints/`, `best/` and `model/` are written here.
        recorder: Where records go.
        recorded: The manifest of an earlier start of this run, or None.
        notify: Where a sentence about how the run computes goes.
        fork_for: Smaller budgets, in the recipe's currency, for whose runs a checkpoint is kept in `forks/`.
        stop: Who is asked between two steps whether the run is to be saved and left; None: nobody.
        world: The processes that train it together; only the leader's recorder writes.

    Raises:
        CrossoverError: The run cannot start or go on.
        Stopped: It was asked to stop, and the present step is saved.
    """
    forks.check(recipe.budget, fork_for)
    resumes = world.agree(bool(checkpoint.existing(folder / "checkpoints")))
    workshop = build_workshop(recipe, text, world.agree(recorded), world, notify, resumes)
    notify(f"{workshop.choices.device}, {workshop.choices.threads} thread(s); {workshop.choices.reason}")
    recorder.manifest(manifest_of(workshop, machine.facts()))
    wheel = build_wheel(workshop, text)
    average, warm = first_average(workshop), _warm_up(workshop, notify)
    # On a GPU, and where several processes have to meet, training goes on while a checkpoint is written.
    saver = Saver(world, beside=world.size > 1 or workshop.choices.device == "cuda")
    run = Run(workshop, folder, recorder, State(), average, warm, saver, wheel.prober)
    resume(run)
    try:
        _spend(run, wheel, stop or Stopping(), fork_for)
    except CrossoverError:
        saver.settle()
        raise
    saver.wait()
    finish(workshop, folder, recorder, run.state.best)
    if world.leads:
        # Weights that a shift might have gone back to; none will any more.
        shutil.rmtree(folder / "kept", ignore_errors=True)


def _spend(run: Run, wheel: Wheel, stop: Stopping, fork_for: Sequence[float]) -> None:
    budget = run.workshop.budget
    with stop.deferred():
        while budget.fraction(run.state) < 1:
            if wanted := forks.due(run, fork_for):
                _flush(run)
                settle_clock(run)
                forks.keep(run, wanted)
            ask(run, wheel)
            probe(run, wheel, _step(run, wheel))
            done = budget.fraction(run.state) >= 1
            if done or run.state.data_tokens >= run.state.next_evaluation:
                _evaluate(run)
            # Read once, after what takes long: what is asked for later is heard after the next step.
            asked = _asked(run, stop)
            if done or asked or run.state.data_tokens >= run.state.next_checkpoint:
                _save(run)
            if asked:
                run.saver.wait()
                # A launcher that sees one process end may end the others before their time.
                run.world.wait()
                raise Stopped(f"{asked} asked it to stop; step {run.state.step} is saved")


def _asked(run: Run, stop: Stopping) -> str | None:
    """Read who asked for the end; if any process was asked, all of them stop at the same step."""
    asked = stop.requested()
    return asked or "another process" if run.world.largest(bool(asked)) else None


def _warm_up(workshop: Workshop, notify: Callable[[str], None]) -> WarmUp:
    if not workshop.choices.compile:
        return WarmUp(0, 0.0, graphs())
    warm = warm_up(workshop.stepper)
    notify(f"compiled {warm.graphs} graphs for all objectives in {warm.seconds:.1f} s")
    return warm


def _step(run: Run, wheel: Wheel) -> tuple[str, ...]:
    workshop, state = run.workshop, run.state
    training, loader = workshop.recipe.training, workshop.stepper.loader
    dealer, kinds = Dealer(state.debts).deal(state.present_mix, loader.slices_per_step)
    slice_tokens = training.batch_tokens // loader.slices_per_step
    fraction = workshop.budget.fraction(state)
    factor = training.learning_rate.factor(state.data_tokens + training.batch_tokens, fraction) * rewarmed(run)
    result = workshop.stepper.run(state.step, kinds, factor, measure=measures(run, wheel))
    _average(run)
    counts = {kind: kinds.count(kind) * slice_tokens for kind in dict.fromkeys(kinds)}
    flops = {kind: count * workshop.flops_per_token[kind] for kind, count in counts.items()}
    whole = 6.0 * active_parameters(workshop.shape) * training.batch_tokens
    run.state = replace(state.spent(counts, flops, whole), debts=dict(dealer.debts))
    row = {**clock(run), "learning_rate": factor * training.optimizer.learning_rate}
    if result.parts:
        record_spread(run, wheel, result.parts)
    run.pending.append((row, result))
    if len(run.pending) >= LOG_STEPS:
        _flush(run)
    return kinds


@torch.no_grad()
def _average(run: Run) -> None:
    if run.averaged is None:
        return
    decay = run.workshop.recipe.training.ema_decay or 0.0
    for name, value in run.workshop.model.inner.named_parameters():
        local(run.averaged[name]).lerp_(local(value), 1 - decay)


def _flush(run: Run) -> None:
    """Read the device values of the last steps, record them, and act on those that were not finite."""
    if not run.pending:
        return
    rows, last_loss, roll_back = [], 0.0, False
    for row, result in run.pending:
        finite = bool(result.finite)
        last_loss = float(result.loss)
        run.bad_steps = 0 if finite else run.bad_steps + 1
        roll_back = roll_back or run.bad_steps >= BAD_STEPS
        losses = {kind: float(value) for kind, value in result.losses.items()}
        norm = float(result.gradient_norm)
        measured = {"loss_nats": last_loss, "losses": losses, "grad_norm": norm, "skipped": not finite}
        rows.append({**row, **measured, **routing_row(result.routing)})
    run.pending.clear()
    run.state = replace(run.state, skipped=run.state.skipped + sum(row["skipped"] for row in rows))
    for row in rows:
        run.recorder.step(row)
    _show(run, last_loss)
    if roll_back:
        _roll_back(run)


def _show(run: Run, loss_nats: float) -> None:
    now, state = time.monotonic() - run.started, run.state
    before, tokens = run.flushed
    rate = (state.data_tokens - tokens) / max(now - before, 1e-9)
    fraction = run.workshop.budget.fraction(state)
    left = run.workshop.budget.tokens(run.workshop.price(state.mix)) * max(0.0, 1 - fraction) / max(rate, 1e-9)
    run.flushed = (now, state.data_tokens)
    run.recorder.progress(
        {
            "step": state.step,
            "data_tokens": state.data_tokens,
            "epochs": state.data_tokens / run.workshop.train_tokens,
            "loss_nats": loss_nats,
            "tokens_per_second": rate,
            "mix": dict(state.mix),
            "budget_fraction": fraction,
            "seconds_left": left,
        }
    )


def _roll_back(run: Run) -> None:
    """Send weights, optimizer and averages back to the last checkpoint; clock, ledger and data order go on."""
    newest = newest_checkpoint(run)
    why = f"{BAD_STEPS} steps in a row had no finite loss or gradient (last at step {run.state.step})"
    if newest is None or run.state.rollbacks >= MOST_ROLLBACKS:
        raise RunError(f"{run.folder}: {why}; lower training.optimizer.learning_rate or look at the data")
    tree = restore(run, newest)
    run.bad_steps = 0
    run.state = replace(run.state, rollbacks=run.state.rollbacks + 1)
    reason = f"{why}: weights and optimizer go back to step {tree['state']['step']}, the clock goes on"
    run.recorder.decision({**clock(run), "before": dict(run.state.mix), "reason": reason, "details": {}})


def _evaluate(run: Run) -> None:
    _flush(run)
    check_agreement(run)
    workshop = run.workshop
    every, began = workshop.evaluator.every_tokens, time.monotonic()
    # Evaluations lie on multiples of the interval, so that the curves of all arms share their grid.
    due = run.state.data_tokens // every * every + every
    with swapped(workshop.model, run.averaged if workshop.recipe.scoring.weights == "ema" else None):
        cards, flops = workshop.evaluator.dev(workshop.model)
        best = dict(run.state.best)
        for name, card in cards.items():
            run.recorder.evaluation(eval_row(card, clock(run)))
            if improves(best, name, card):
                best[name] = {"step": run.state.step, "bits_per_byte": card.bits_per_byte}
                _keep_best(run, name, best[name])
    run.state = replace(
        run.state,
        best=best,
        next_evaluation=due,
        evaluation_flops=run.state.evaluation_flops + flops,
        evaluation_seconds=run.state.evaluation_seconds + time.monotonic() - began,
    )


def _keep_best(run: Run, name: str, row: Mapping[str, float]) -> None:
    weights = gathered(dict(run.workshop.model.inner.named_parameters()), run.world)
    if run.world.leads:
        checkpoint.write_folder(run.folder / "best" / name, {"model": weights}, {**row, "procedure": name})


def _save(run: Run) -> None:
    _flush(run)
    recipe, workshop = run.workshop.recipe, run.workshop
    whole = workshop.budget.tokens(workshop.price(run.state.mix))
    every = recipe.training.checkpoint_every_tokens or max(recipe.training.batch_tokens, int(whole / CHECKPOINTS))
    run.state = replace(run.state, next_checkpoint=run.state.data_tokens // every * every + every)
    settle_clock(run)
    # Records first: a checkpoint must never be ahead of them.
    run.recorder.flush()
    run.recorder.ledger(_ledger(run))
    place, keep = run.folder / "checkpoints", recipe.training.keep_checkpoints
    run.saver.save(step_folder(place, run.state.step), *snapshot(run), lambda: checkpoint.forget(place, keep))


def _ledger(run: Run) -> dict[str, Any]:
    state = run.state
    return {
        "unique_tokens": run.workshop.train_tokens,
        "data_tokens": state.data_tokens,
        "epochs": state.data_tokens / run.workshop.train_tokens,
        "exposures": dict(state.exposures),
        "flops": state.flops,
        "flops_6nd": state.flops_6nd,
        "flops_by_objective": dict(state.flops_by_objective),
        "probe_flops": state.probe_flops,
        "probe_seconds": round(state.probe_seconds, 3),
        "evaluation_flops": state.evaluation_flops,
        "evaluation_seconds": round(state.evaluation_seconds, 3),
        "graphs": {
            "before_first_step": run.warm.total,
            "seconds": round(run.warm.seconds, 3),
            "later": graphs() - run.warm.total,
        },
        "skipped_steps": state.skipped,
        "rollbacks": state.rollbacks,
        "retreats": state.retreats,
        "seconds": state.seconds,
    }
