from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossover.evidence.page.handover import norms_around
from crossover.evidence.record import RunRecord, read_run
from crossover.evidence.regret import Regret, regrets
from crossover.evidence.view import gradient_norms
from evidence.synthetic import AUTOREGRESSIVE, MASKED

Make = Callable[..., Path]
Modes = Mapping[str, Callable[[float], float]]
ONLINE = {"name": "online", "target": "best"}
RANDOM = {"name": "random_time", "before": {"autoregressive": 1.0}, "after": {"masked": 1.0}}
WATCH = {"name": "watch", "controller": AUTOREGRESSIVE}


def level(bits: float) -> Callable[[float], float]:
    """Fall linearly to a final loss: 1 bit above it at the start."""
    return lambda fraction: bits + 1 - fraction


def build(
    tmp_path: Path, make_run: Make, arms: Mapping[str, tuple[Any, Modes]], seeds: Sequence[int] = (0, 1), **more: Any
) -> dict[str, tuple[RunRecord, ...]]:
    return {
        arm: tuple(
            read_run(
                make_run(
                    tmp_path / arm / f"seed-{seed}", name=arm, seed=seed, controller=controller, modes=modes, **more
                )
            )
            for seed in seeds
        )
        for arm, (controller, modes) in arms.items()
    }


def rows_of(runs: Mapping[str, Sequence[RunRecord]]) -> dict[str, Regret]:
    return {row.arm: row for row in regrets(runs, draws=400)}


def test_the_planted_regret_is_found(tmp_path: Path, make_run: Make) -> None:
    arms = {
        "ar": (AUTOREGRESSIVE, {"ar": level(2.0)}),
        "masked": (MASKED, {"l2r": level(1.8)}),
        "worse": (ONLINE, {"ar": level(1.9)}),
        "better": ({**ONLINE, "floor": 0.0}, {"ar": level(1.6)}),
        "level": ({**ONLINE, "floor": 0.1}, {"ar": level(1.8)}),
    }
    rows = rows_of(build(tmp_path, make_run, arms, noise=0.01))
    assert {row.against for row in rows.values()} == {"masked"}
    assert rows["worse"].regret_bits == pytest.approx(0.1, abs=0.03)
    assert rows["better"].regret_bits == pytest.approx(-0.2, abs=0.03)
    assert rows["ar"].regret_bits == pytest.approx(0.2, abs=0.03)
    assert rows["worse"].told.endswith(": worse than masked") and rows["better"].told.endswith(": better than masked")
    assert rows["level"].told.endswith(": not told apart from masked")
    assert rows["masked"].regret_bits == 0 and rows["masked"].told.startswith("the best static arm")
    for row in rows.values():
        assert row.paired and row.dev_interval[0] <= row.dev_bits <= row.dev_interval[1]
        assert row.test_interval[0] <= row.test_bits <= row.test_interval[1]
        assert row.regret_interval is not None and row.regret_bits is not None
        assert row.regret_interval[0] <= row.regret_bits <= row.regret_interval[1]


def test_only_plans_are_held_against_the_others(tmp_path: Path, make_run: Make) -> None:
    better = {"ar": level(1.0)}
    arms = {
        "ar": (AUTOREGRESSIVE, {"ar": level(2.0)}),
        "switch": ({"name": "switch", "at_epochs": 4}, {"ar": level(1.9)}),
        "online": (ONLINE, better),
        "placebo": (RANDOM, better),
        "watched": (WATCH, better),
    }
    assert {row.against for row in rows_of(build(tmp_path, make_run, arms)).values()} == {"switch"}


def test_the_best_static_arm_is_chosen_on_dev_and_read_on_test(tmp_path: Path, make_run: Make) -> None:
    arms = {
        "ar": (AUTOREGRESSIVE, {"ar": level(2.0)}),
        "masked": (MASKED, {"ar": level(1.8)}),
        "online": (ONLINE, {"ar": level(1.8)}),
    }
    runs = build(tmp_path, make_run, arms, noise=0.01)
    # On dev the two trade places; what is read is still the test card of the arm that dev chose.
    swapped = {"ar": "masked", "masked": "ar", "online": "online"}
    runs = {
        arm: tuple(
            replace(run, scores={**run.scores, "dev-ar": other.scores["dev-ar"]})
            for run, other in zip(of_arm, runs[swapped[arm]], strict=True)
        )
        for arm, of_arm in runs.items()
    }
    rows = rows_of(runs)
    assert rows["online"].against == "ar"
    assert rows["online"].regret_bits == pytest.approx(-0.2, abs=0.03)


def test_a_bound_proves_no_loss_but_a_win(tmp_path: Path, make_run: Make) -> None:
    arms = {
        "ar": (AUTOREGRESSIVE, {"ar": level(2.0)}),
        "worse": (ONLINE, {"nelbo": level(2.2)}),
        "better": ({**ONLINE, "floor": 0.0}, {"nelbo": level(1.8)}),
    }
    rows = rows_of(build(tmp_path, make_run, arms, noise=0.01))
    assert "worse's is an upper bound, so this is not proven" in rows["worse"].told
    assert rows["better"].told.endswith(": better than ar")


def test_arms_with_other_seeds_are_not_called_paired(tmp_path: Path, make_run: Make) -> None:
    arms = {"ar": (AUTOREGRESSIVE, {"ar": level(2.0)}), "online": (ONLINE, {"ar": level(1.8)})}
    runs = build(tmp_path, make_run, arms)
    row = rows_of({**runs, "online": runs["online"][:1]})["online"]
    assert not row.paired and "not paired" in row.told


def test_the_compute_that_masked_training_needs_is_found_seed_by_seed(tmp_path: Path, make_run: Make) -> None:
    arms = {
        "ar": (AUTOREGRESSIVE, {"ar": level(2.5)}),
        # Its best, 2.0, comes at 0.8 of the budget, and as a bound; then it rises.
        "masked": (MASKED, {"l2r": level(2.4), "nelbo": lambda fraction: 2.0 + abs(fraction - 0.8)}),
        # 2.0 at 0.5 of the budget, in one of its modes.
        "online": (ONLINE, {"nelbo": level(2.6), "ar": lambda fraction: 2.5 - fraction}),
    }
    rows = rows_of(build(tmp_path, make_run, arms, noise=0.0))
    reach = rows["online"].reach
    assert reach is not None and reach.flops == pytest.approx(5e8) and reach.share == pytest.approx(5 / 8)
    assert (reach.reached, reach.seeds, reach.modes) == (2, 2, ("ar (exact)",))
    assert reach.target_modes == ("nelbo (bound)",)
    assert rows["online"].reach_told == "5.00e+08 FLOPs, 62% of masked's, 2 of 2 seed(s), in ar (exact)"
    own = rows["masked"].reach
    assert own is not None and own.flops == pytest.approx(8e8) and own.share == 1
    never = rows["ar"].reach
    assert never is not None and never.flops is None and never.reached == 0
    assert rows["ar"].reach_told == "not reached by 1.00e+09 FLOPs in any of 2 seed(s)"


def test_a_seed_that_never_gets_there_is_counted_and_not_averaged(tmp_path: Path, make_run: Make) -> None:
    arms = {"masked": (MASKED, {"l2r": level(2.0)}), "online": (ONLINE, {"ar": lambda fraction: 2.4 - fraction})}
    runs = build(tmp_path, make_run, arms, noise=0.0)
    slow = read_run(make_run(tmp_path / "slow", name="online", seed=1, controller=ONLINE, modes={"ar": level(2.2)}))
    row = rows_of({**runs, "online": (runs["online"][0], slow)})["online"]
    assert row.reach is not None and (row.reach.reached, row.reach.seeds) == (1, 2)
    assert row.reach.flops == pytest.approx(4e8)
    assert "mean of the 1 of 2 seed(s) that reach it" in row.reach_told


def test_there_is_no_table_without_an_arm_that_no_plan_decides(tmp_path: Path, make_run: Make) -> None:
    plain = {"ar": (AUTOREGRESSIVE, {"ar": level(2.0)}), "masked": (MASKED, {"l2r": level(2.0)})}
    runs = build(tmp_path, make_run, {**plain, "online": (ONLINE, {"ar": level(2.0)})}, seeds=[0])
    assert not regrets({arm: runs[arm] for arm in plain})
    assert not regrets({"online": runs["online"]}), "one arm has nothing to be compared with"
    alone = {row.arm: row for row in regrets({"online": runs["online"], "again": runs["online"]}, draws=50)}
    assert alone["online"].told == "no static arm has been scored" and alone["online"].regret_bits is None
    assert alone["online"].reach is None


def decision(step: int, mix: Mapping[str, float], before: Mapping[str, float], **details: Any) -> dict[str, Any]:
    clock = {"step": step, "data_tokens": 100 * step, "epochs": step / 10, "flops": 1e6 * step}
    return {**clock, "mix": mix, "before": before, "reason": f"at step {step}", "details": details}


def test_decision_times_are_the_turning_points_after_the_start(tmp_path: Path, make_run: Make) -> None:
    arms = {"ar": (AUTOREGRESSIVE, {"ar": level(2.0)}), "online": (ONLINE, {"ar": level(1.8)})}
    runs = build(tmp_path, make_run, arms, seeds=[7])
    pure, half, end = {"autoregressive": 1.0}, {"autoregressive": 0.5, "masked": 0.5}, {"masked": 1.0}
    rows = (
        decision(1, pure, {}),
        decision(40, half, pure, to=end),
        decision(45, half, half, phase="ramp", way=0.6),
        decision(50, end, half, phase="ramp", way=1.0),
    )
    told = rows_of({**runs, "online": (replace(runs["online"][0], decisions=rows),)})
    assert told["online"].decision_epochs == {7: (4.0, 5.0)} and told["ar"].decision_epochs == {7: ()}


def test_gradient_norms_are_means_of_the_steps_around_a_decision(tmp_path: Path, make_run: Make) -> None:
    run = read_run(make_run(tmp_path / "run"))
    start, moved = decision(1, {"autoregressive": 1.0}, {}), decision(30, {"masked": 1.0}, {"autoregressive": 1.0})
    # 1 up to step 29, and 5 from step 30 on; what lies further than 16 steps away, and what was skipped, is not read.
    norm = {step: 99.0 if not 14 <= step <= 45 else 1.0 if step < 30 else 5.0 for step in range(1, 60)}
    lines = [{"step": step, "grad_norm": None if step == 20 else norm[step]} for step in norm]
    (run.path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    still, moving = replace(run, decisions=(start,)), replace(run, decisions=(start, moved))
    assert norms_around(moving, gradient_norms(moving)) == {30: (1.0, 5.0)}
    assert 20 not in gradient_norms(moving) and norms_around(still, gradient_norms(moving)) == {}
    (run.path / "steps.jsonl").write_text("broken\n{}\n", "utf-8")
    assert gradient_norms(still) == {}, "a run without a change has its steps left alone"
    (run.path / "steps.jsonl").unlink()
    assert norms_around(moving, gradient_norms(moving)) == {30: (None, None)}
