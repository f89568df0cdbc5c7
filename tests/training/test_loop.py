"""The loop: budgets, decisions, evaluations, averages, and what happens to steps that are not finite."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossover.errors import RunError
from crossover.training import checkpoint
from crossover.training import train as loop
from crossover.training.saving import Saver
from crossover.training.step import Stepper
from tiny_runs import Notes, read

MIX = {"autoregressive": 0.5, "masked": 0.5}
SHORT = {"budget": {"tokens": 4096}, "scoring__every_tokens": 100_000}


@pytest.mark.parametrize("tokens", [1, 512, 513, 20_000])
def test_a_budget_of_tokens_is_met_within_a_step(trained, tokens):
    notes = trained(budget={"tokens": tokens}, scoring__every_tokens=100_000)
    spent = notes.steps[-1]["data_tokens"]
    assert tokens <= spent < tokens + 512
    assert spent == notes.ledgers[-1]["data_tokens"] == 512 * len(notes.steps)


def test_a_budget_of_flops_is_met_within_a_step(trained):
    notes = trained(budget={"flops": 4e9}, controller={"name": "constant", "mix": MIX}, scoring__every_tokens=100_000)
    prices, ledger = notes.facts["flops_per_token"], notes.ledgers[-1]
    step = 512 * max(prices.values())
    assert 4e9 <= ledger["flops"] < 4e9 + step
    parts = {name: ledger["exposures"][name] * price for name, price in prices.items()}
    assert ledger["flops_by_objective"] == pytest.approx(parts)
    assert ledger["flops"] == pytest.approx(sum(parts.values()))
    assert ledger["flops_6nd"] == 6 * notes.facts["parameters"] * ledger["data_tokens"]


def test_the_learning_rate_follows_the_budget_in_either_currency(trained):
    in_tokens = trained("one", budget={"tokens": 8192}, scoring__every_tokens=100_000)
    price = in_tokens.facts["flops_per_token"]["autoregressive"]
    in_flops = trained("two", budget={"flops": 8192 * price}, scoring__every_tokens=100_000)
    rates = [[row["learning_rate"] for row in notes.steps] for notes in (in_tokens, in_flops)]
    assert rates[0] == pytest.approx(rates[1]) and len(rates[0]) == 16
    assert rates[0][0] == pytest.approx(3e-3 * 512 / 2000)
    assert rates[0][5:12] == pytest.approx([3e-3] * 7)
    assert 0 < rates[0][-1] < 3e-3 / 2
    assert [row["loss_nats"] for row in in_tokens.steps] == [row["loss_nats"] for row in in_flops.steps]


def test_minutes_are_converted_once(monkeypatch, trained):
    rates = iter([1e9, 5e9])
    measured = []

    def measure(*arguments: Any, **options: Any) -> float:
        measured.append(next(rates))
        return measured[-1]

    monkeypatch.setattr("crossover.training.build._measure", measure)
    changes = {"budget": {"minutes": 0.05}, "scoring__every_tokens": 10**9, "training__checkpoint_every_tokens": 1000}
    stop_at(monkeypatch, 4)
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        trained(notes=notes, **changes)
    budget = notes.facts["budget"]
    assert budget["currency"] == "flops" and budget["amount"] == pytest.approx(1e9 * 0.05 * 60)
    assert budget["stated"] == {"minutes": 0.05, "measured_flops_per_second": 1e9}
    monkeypatch.undo()
    # The machine is measured no second time: the fraction that is spent, and so the decay, would jump.
    trained(notes=notes, recorded=notes.facts, **changes)
    assert measured == [1e9] and notes.facts["budget"] == budget
    flops = notes.ledgers[-1]["flops"]
    assert budget["amount"] <= flops < budget["amount"] + 512 * notes.facts["flops_per_token"]["autoregressive"]


def test_measuring_changes_nothing(monkeypatch, workshop):
    from crossover.training import build

    shop, fresh = workshop(budget={"minutes": 0.01}), workshop()
    assert build._measure(shop.stepper, "autoregressive", 1.0) > 0
    assert shop.budget.currency == "flops" and shop.budget.stated["measured_flops_per_second"] > 0
    for (name, value), (_, other) in zip(shop.model.named_parameters(), fresh.model.named_parameters(), strict=True):
        assert torch.equal(value, other), name
        assert value.grad is None
    assert checkpoint.optimizer_tensors(shop.stepper.optimizers) == {}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the run when it is about to take a step."""
    run = Stepper.run

    def stopping(self: Stepper, number: int, *arguments: Any, **options: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return run(self, number, *arguments, **options)

    monkeypatch.setattr(Stepper, "run", stopping)


RAMP = {"name": "ramp", "from_epochs": 0, "to_epochs": 100, "before": "autoregressive", "after": "masked"}


@pytest.mark.parametrize("decay", [0.25, 0.5])
def test_the_mix_is_frozen_once_the_decay_starts(trained, decay):
    schedule = f"wsd(warmup_tokens=0, decay_fraction={decay})"
    notes = trained(controller=RAMP, training__learning_rate=schedule, budget={"tokens": 20_480})
    mixes = [row["mix"] for row in notes.steps]
    first = next(index for index, row in enumerate(notes.steps) if (row["data_tokens"] - 512) / 20_480 >= 1 - decay)
    assert first == 40 * (1 - decay)
    assert len({str(mix) for mix in mixes[first:]}) == 1
    assert len({str(mix) for mix in mixes[:first]}) > first / 2
    assert {row["step"] for row in notes.decisions} <= set(range(first + 1))


def test_a_decision_says_what_changed_and_why(trained):
    switch = {"name": "switch", "at_epochs": 0.5, "before": "autoregressive", "after": "masked"}
    notes = trained(controller=switch, budget={"tokens": 8192})
    assert [row["before"] for row in notes.decisions] == [{}, {"autoregressive": 1.0}]
    assert "0.5" in notes.decisions[1]["reason"] and "masked" in notes.decisions[1]["reason"]
    changed = notes.decisions[1]["step"]
    assert [set(row["losses"]) for row in notes.steps[changed - 2 : changed]] == [{"autoregressive"}, {"masked"}]
    text = notes.facts["train_tokens"]
    assert 0.5 <= notes.steps[changed - 2]["epochs"] < 0.5 + 1 / 16 + 512 / text


def test_all_objectives_are_evaluated_at_the_same_points(trained):
    grids = {}
    for controller in ("constant(autoregressive)", "constant(masked)", "constant(block(8))", RAMP):
        notes = trained(str(len(grids)), controller=controller, scoring__every_tokens=3000, budget={"tokens": 12_000})
        grids[str(controller)] = sorted({row["data_tokens"] for row in notes.evaluations})
    assert len({tuple(grid) for grid in grids.values()}) == 1
    grid = next(iter(grids.values()))
    # The first step after each multiple of the interval, the first step and the last.
    assert grid == [512, 3072, 6144, 9216, 12_288]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_averaged_weights_follow_their_recursion(monkeypatch, trained, tmp_path, decay):
    seen: list[dict[str, Tensor]] = []
    average = loop._average

    def watch(run: loop.Run) -> None:
        if not seen:
            seen.append({name: value.clone() for name, value in (run.averaged or {}).items()})
        average(run)
        named = run.workshop.model.inner.named_parameters()
        seen.append({name: value.detach().clone() for name, value in named})

    monkeypatch.setattr(loop, "_average", watch)
    trained(training__ema_decay=decay, scoring__weights="ema", **SHORT)
    expected, *raw = seen
    assert len(raw) == 8
    for weights in raw:
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    newest = checkpoint.existing(tmp_path / "run" / "checkpoints")[-1]
    kept = checkpoint.load(newest, ["ema", "model"])[0]
    assert kept["ema"].keys() == expected.keys()
    for name, value in kept["ema"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(kept["model"][name], value) for name, value in raw[-1].items())
    # What is scored and exported is the declared set of weights: the averaged ones, as they were when they were best.
    best = checkpoint.load(tmp_path / "run" / "best" / "ar", ["model"])[0]["model"]
    from safetensors.torch import load_file

    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], best[name]) for name in exported)


def spoil(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of some steps infinite."""
    run, compute, now = Stepper.run, Stepper.loss, [0]

    def noting(self: Stepper, step: int, *arguments: Any, **options: Any) -> Any:
        now[0] = step
        return run(self, step, *arguments, **options)

    def spoilt(self: Stepper, *arguments: Any) -> Tensor:
        return compute(self, *arguments) * (float("inf") if now[0] in bad else 1.0)

    monkeypatch.setattr(Stepper, "run", noting)
    monkeypatch.setattr(Stepper, "loss", spoilt)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_bad_step_is_skipped_and_logged(monkeypatch, trained, optimizer):
    spoil(monkeypatch, {3, 4, 20})
    notes = trained(training__optimizer=optimizer)
    assert [row["step"] for row in notes.steps if row["skipped"]] == [4, 5, 21]
    assert notes.ledgers[-1]["skipped_steps"] == 3 and notes.ledgers[-1]["rollbacks"] == 0
    # The clock went on: a skipped step is paid for.
    assert [row["step"] for row in notes.steps] == list(range(1, 41))
    assert [row["data_tokens"] for row in notes.steps] == [512 * step for step in range(1, 41)]
    assert notes.steps[-1]["loss_nats"] < notes.steps[0]["loss_nats"] - 1


def test_a_run_of_bad_steps_goes_back_to_the_checkpoint(monkeypatch, trained):
    first_bad = 12
    spoil(monkeypatch, set(range(first_bad, first_bad + loop.BAD_STEPS)))
    restored: list[tuple[int, int]] = []
    restore = loop.restore

    def watch(run: loop.Run, folder: Any) -> Any:
        tree = restore(run, folder)
        restored.append((run.state.step, tree["state"]["step"]))
        saved = checkpoint.load(folder, ["model", "optimizer", "ema"])[0]
        for name, value in run.workshop.model.inner.named_parameters():
            assert torch.equal(value, saved["model"][name])
        for name, value in checkpoint.optimizer_tensors(run.workshop.stepper.optimizers).items():
            assert torch.equal(value, saved["optimizer"][name])
        assert run.averaged is not None
        assert all(torch.equal(value, saved["ema"][name]) for name, value in run.averaged.items())
        return tree

    monkeypatch.setattr(loop, "restore", watch)
    notes = trained(training__ema_decay=0.9)
    assert len(restored) == 1
    noticed, back_to = restored[0]
    assert back_to < first_bad + loop.BAD_STEPS <= noticed
    assert notes.ledgers[-1]["rollbacks"] == 1 and notes.ledgers[-1]["skipped_steps"] == loop.BAD_STEPS
    said = [row for row in notes.decisions if "in a row" in row["reason"]]
    assert len(said) == 1 and f"go back to step {back_to}, the clock goes on" in said[0]["reason"]
    assert [row["data_tokens"] for row in notes.steps] == [512 * step for step in range(1, 41)]


def test_one_bad_step_less_does_not_roll_back(monkeypatch, trained):
    lengths = [loop.BAD_STEPS - 1, loop.BAD_STEPS - 1]
    bad = set(range(5, 5 + lengths[0])) | set(range(20, 20 + lengths[1]))
    spoil(monkeypatch, bad)
    notes = trained()
    assert notes.ledgers[-1]["rollbacks"] == 0 and notes.ledgers[-1]["skipped_steps"] == sum(lengths)


def test_a_run_that_stays_bad_ends_with_advice(monkeypatch, trained, tmp_path):
    spoil(monkeypatch, set(range(1, 10_000)))
    notes = Notes()
    with pytest.raises(RunError, match=r"in a row had no finite loss.*lower training\.optimizer\.learning_rate"):
        trained(notes=notes, budget={"tokens": 200_000}, scoring__every_tokens=10**6)
    assert len([row for row in notes.decisions if "in a row" in row["reason"]]) == loop.MOST_ROLLBACKS
    # What was good is still there.
    newest = checkpoint.existing(tmp_path / "run" / "checkpoints")[-1]
    weights = checkpoint.load(newest, ["model"])[0]["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_checkpoints_come_as_often_as_asked_and_only_the_newest_stay(monkeypatch, trained, tmp_path):
    steps: list[int] = []
    save = Saver.save

    def watch(saver: Saver, final: Path, *arguments: Any) -> None:
        steps.append(int(final.name.removeprefix("step-")))
        save(saver, final, *arguments)

    monkeypatch.setattr(Saver, "save", watch)
    trained(training__checkpoint_every_tokens=5000, training__keep_checkpoints=3)
    assert steps == [1, 10, 20, 30, 40]
    kept = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert kept == [f"step-{step:09d}" for step in (20, 30, 40)]


@pytest.mark.parametrize("at", [0, 13])
def test_an_interrupted_run_is_the_run_that_was_not(monkeypatch, trained, tmp_path, at):
    changes = {
        "budget": {"tokens": 10_240},
        "controller": {**RAMP, "to_epochs": 1},
        "training__optimizer": "muon",
        "model__residual_dropout": 0.1,
        "training__ema_decay": 0.8,
        "training__checkpoint_every_tokens": 2000,
    }
    whole = trained("whole", **changes)
    halves = Notes()
    with monkeypatch.context() as stopping:
        stop_at(stopping, at)
        with pytest.raises(KeyboardInterrupt):
            trained("halves", notes=halves, **changes)
    trained("halves", notes=halves, recorded=halves.facts, **changes)
    for stream in ("steps", "evaluations", "decisions"):
        pairs = zip(getattr(whole, stream), getattr(halves, stream), strict=True)
        for one, two in itertools.starmap(lambda *rows: [{**row, "seconds": 0} for row in rows], pairs):
            assert one == two
    assert whole.cards == halves.cards
    exported = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert exported[0] == exported[1]


def test_a_checkpoint_of_another_recipe_is_refused_before_its_tensors_are_read(trained, tmp_path):
    from crossover.errors import CheckpointError

    notes = trained(**SHORT)
    for changes in ({"seed": 1}, {"model__width": 48}, {"training__ema_decay": 0.5}):
        with pytest.raises(CheckpointError, match=r"step-000000008: is a checkpoint of another recipe.*--run-dir"):
            trained(recorded=notes.facts, **{**SHORT, **changes})


def test_what_is_left_is_complete(trained, tmp_path):
    notes = trained(controller={"name": "constant", "mix": MIX})
    assert set(notes.cards) == {
        "summary",
        *(f"{split}-{mode}" for split in ("dev", "test") for mode in ("ar", "nelbo", "l2r")),
    }
    assert notes.cards["summary"]["headline"] in notes.facts["modes"] == notes.cards["summary"]["modes"]
    config = read(tmp_path / "run" / "model" / "config.json")
    assert config["crossover"]["best_mode"] == notes.cards["summary"]["headline"]
    rows = {row["procedure"] for row in notes.evaluations}
    assert rows == {"ar", "nelbo"}, "l2r was left to the end"
    assert {row["split"] for row in notes.evaluations} == {"dev"}
    assert all(row["bits_per_byte"] > 0 and row["flops"] > 0 for row in notes.evaluations)
