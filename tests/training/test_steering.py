"""The wheel: decisions are obeyed, probes are paid for, and what the steps say about noise is true."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crossover.objectives.mixing import micro_batches
from crossover.records import Decision, Mix, Progress, Reading
from crossover.registry import register
from crossover.training import checkpoint, steering
from crossover.training import train as loop
from crossover.training.spread import Spread

AR, MASKED = Mix((("autoregressive", 1.0),)), Mix((("masked", 1.0),))
WATCHED = {"name": "watch", "controller": {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}}
QUIET = {"scoring__every_tokens": 10**6, "budget": {"tokens": 8192}}


@register("controller", "there_and_back_of_test")
@dataclass(frozen=True)
class ThereAndBack:
    """Keeps the weights at one question, trains masked, and goes back at another."""

    keep_at: int = 3
    back_at: int = 8
    uses_control_text = False
    first_change_epochs = 0.0
    watching = None

    def objectives(self) -> tuple[str, ...]:
        return ("autoregressive", "masked")

    def decide(
        self, state: Mapping[str, Any], readings: Mapping[str, Reading], progress: Progress
    ) -> tuple[Mapping[str, Any], Decision]:
        asked = state.get("asked", 0) + 1
        kept = progress.step if asked == self.keep_at else state.get("kept", -1)
        after = {"asked": asked, "kept": kept}
        if asked == self.keep_at:
            return after, Decision(MASKED, "there", {}, "keep", rewarm_tokens=2048, residual_dropout=0.25)
        if asked == self.back_at:
            return after, Decision(AR, "and back", {}, "back", kept)
        return after, Decision(MASKED if self.keep_at < asked < self.back_at else AR, "on")


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.workshop.model.inner.named_parameters()}


def test_a_retreat_brings_back_weights_optimizer_and_averages_while_the_clock_goes_on(trained, monkeypatch):
    seen: dict[str, Any] = {}
    ask = steering.ask

    def spy(run: Any, wheel: Any) -> None:
        before, step = run.state, run.state.step
        ask(run, wheel)
        if run.state.controller.get("asked") != before.controller.get("asked"):
            name = {3: "kept", 8: "back"}.get(run.state.controller["asked"])
            if name is not None:
                optimizer = checkpoint.optimizer_tensors(run.workshop.stepper.optimizers)
                optimizer = {key: value.clone() for key, value in optimizer.items()}
                averaged = {key: value.clone() for key, value in run.averaged.items()}
                seen[name] = (weights(run), optimizer, averaged, run.state, step)

    monkeypatch.setattr(loop, "ask", spy)
    notes = trained(
        controller={"name": "there_and_back_of_test"}, training__ema_decay=0.9, model__residual_dropout=0.1, **QUIET
    )
    for kept, back in zip(seen["kept"][:3], seen["back"][:3], strict=True):
        assert kept.keys() == back.keys() and all(torch.equal(kept[name], back[name]) for name in kept)
    state, step = seen["back"][3:]
    assert step > seen["kept"][4] and state.data_tokens == step * 512 and state.retreats == 1
    assert state.flops > seen["kept"][3].flops, "what was spent stays charged"
    assert [row["mark"] for row in notes.decisions] == ["", "keep", "back"]
    rows = [row["data_tokens"] for row in notes.steps]
    assert rows == sorted(rows) and notes.ledgers[-1]["retreats"] == 1


def test_dropout_and_a_second_warm_up_are_obeyed_and_survive_a_resume(trained, tmp_path):
    notes = trained(controller={"name": "there_and_back_of_test", "back_at": 99}, model__residual_dropout=0.1, **QUIET)
    at = next(row["step"] for row in notes.decisions if row["mark"] == "keep")
    rates = {row["step"]: row["learning_rate"] for row in notes.steps}
    # From a tenth of the rate, over 2,048 tokens of 512 a step; the first warm-up is not quite over at the first.
    assert [rates[at + index] / 3e-3 for index in range(5)] == pytest.approx([0.1 * 0.768, 0.325, 0.55, 0.775, 1.0])
    tree = json.loads(next(iter(sorted(Path(tmp_path).rglob("checkpoints/*/state.json"), reverse=True))).read_text())
    assert tree["state"]["residual_dropout"] == 0.25 and tree["state"]["rewarm"] == [(at - 1) * 512, 2048]


def test_weights_to_go_back_to_are_forgotten_when_the_run_ends(trained, tmp_path):
    trained(controller={"name": "there_and_back_of_test"}, **QUIET)
    assert not list(tmp_path.rglob("kept"))


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_probes_are_charged_and_stay_within_their_share(trained, share):
    notes = trained(
        controller={**WATCHED, "probe_share": share}, data__control_share=0.2, scoring__every_tokens=10**6,
        budget={"flops": 1.5e10},
    )  # fmt: skip
    ledger = notes.ledgers[-1]
    trained_flops = sum(ledger["flops_by_objective"].values())
    assert ledger["flops"] == pytest.approx(trained_flops + ledger["probe_flops"])
    assert 0 < ledger["probe_flops"] <= share * trained_flops
    assert ledger["probe_flops"] == pytest.approx(sum(row.get("flops", 0.0) for row in notes.signals if "probe" in row))
    assert 1.5e10 <= ledger["flops"] < 1.55e10, "the budget pays for probes too"


def test_a_watched_run_trains_as_one_that_is_not(trained):
    quiet = {"scoring__every_tokens": 10**6, "budget": {"tokens": 16_384}, "data__control_share": 0.2}
    runs = [trained(f"run {share}", controller={**WATCHED, "probe_share": share}, **quiet) for share in (0.3, 0.0)]
    losses = [[(row["step"], row["loss_nats"], row["grad_norm"]) for row in notes.steps] for notes in runs]
    assert losses[0] == losses[1]
    assert any("probe" in row for row in runs[0].signals) and not any("probe" in row for row in runs[1].signals)


def test_every_question_is_recorded_with_where_the_run_stood(trained):
    notes = trained(controller={"name": "constant", "mix": "autoregressive"}, **QUIET)
    asked = [row for row in notes.signals if row.get("asked")]
    assert len(asked) > 3 and all({"budget_fraction", "planned_epochs", "exposures"} <= set(row) for row in asked)
    # The step that a decision takes effect in: after a resume from the checkpoint before it, it is asked anew.
    assert all(row["data_tokens"] == 512 * (row["step"] - 1) for row in asked)


# --- noise seen on the way -------------------------------------------------------------------------------------------


def test_the_spread_of_a_step_is_that_of_its_micro_batches(workshop):
    shop = workshop(controller=WATCHED["controller"])
    stepper, kinds = replace(shop.stepper, optimizers=(), micro_batch_slices=1), ("masked", "autoregressive") * 2
    model = stepper.model
    result = stepper.run(0, kinds, 1.0, measure=True)
    model.zero_grad(set_to_none=True)
    for kind in ("masked", "autoregressive"):
        gradients = []
        for name, slices in micro_batches(kinds, 1):
            if name == kind:
                model.zero_grad(set_to_none=True)
                example = stepper.example(0, name, slices)
                stepper.loss(example, float(example.data_tokens)).backward()
                parts = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
                gradients.append(torch.cat(parts))
        wanted = [float(gradient.square().sum()) for gradient in gradients]
        mean = float(torch.stack(gradients).mean(0).square().sum())
        slices, norms = result.parts[kind]
        assert slices == 1 and norms.tolist() == pytest.approx([*wanted, mean], rel=1e-4)


def test_one_micro_batch_says_nothing_of_noise(workshop):
    shop = workshop(controller=WATCHED["controller"])
    stepper = replace(shop.stepper, optimizers=(), micro_batch_slices=4)
    assert stepper.run(0, ("masked",) * 4, 1.0, measure=True).parts == {}
    assert Spread(stepper.model, ("masked",)).parts() == {}


def test_micro_batches_give_variance_rows_that_cost_nothing(trained):
    notes = trained(controller=WATCHED, mix__micro_batch_slices=1, data__control_share=0.2, **QUIET)
    rows = [row for row in notes.signals if row.get("probe") == "gradient" and row["along_M"] is None]
    assert {row["gear"] for row in rows} == {"autoregressive", "masked"}
    assert all(row["flops"] == 0 and row["parts"] == 2 and row["part_tokens"] == 128 for row in rows)


def test_steps_with_router_losses_are_no_measure_of_what_probes_measure(trained):
    """Their gradient is that of another loss; the probes themselves go on."""
    model = {"preset": "sparse-1m", "family": "qwen3_moe", "width": 32, "depth": 2, "heads": 2, "head_width": 16,
             "experts": 4, "experts_per_token": 2, "expert_width": 16}  # fmt: skip
    changes = {"controller": {**WATCHED, "probe_share": 0.3}, "mix__micro_batch_slices": 1, "data__control_share": 0.2}
    notes = trained(model=model, **changes, **QUIET)
    rows = [row for row in notes.signals if "probe" in row]
    assert rows and all(row["along_M"] is not None for row in rows if row["probe"] == "gradient")
