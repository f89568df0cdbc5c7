"""What an online controller is worth: its distance to the best static arm, and to what masked training reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossover.evidence.compare import Interval, Sample, read_samples
from crossover.evidence.match import PLACEBO, STATIC, controller_name, is_constant
from crossover.evidence.record import RunRecord
from crossover.evidence.view import changes


@dataclass(frozen=True)
class Reach:
    """When an arm's best-so-far dev loss, in whatever mode, comes down to the masked arm's best ever, seed by seed.

    Args:
        masked: The masked arm.
        target_bits: Its best dev bits per byte by the evaluations during training (they may score a part of the dev
            text only), mean over the seeds compared.
        target_modes: The modes it has them in, such as "nelbo (bound)".
        flops: Training FLOPs (probes included) at the first evaluation that is as good, mean over the seeds that
            reach it; None where none does.
        share: `flops` as a share of what the masked arm itself needed, mean of the ratios of those seeds.
        reached: How many seeds reach it.
        seeds: How many were compared: those that both arms have finished.
        modes: The modes that reached it.
        until_flops: How far the seeds compared were trained at least.
    """

    masked: str
    target_bits: float
    target_modes: tuple[str, ...]
    flops: float | None
    share: float | None
    reached: int
    seeds: int
    modes: tuple[str, ...]
    until_flops: float


@dataclass(frozen=True)
class Regret:
    """One arm against the best static one.

    Args:
        arm: Its name.
        controller: Its controller's name.
        procedure: Its headline mode, chosen on dev.
        exact: False for a bound.
        dev_bits: Bits per byte on dev, mean over seeds.
        dev_interval: Its 95% interval (documents and seeds).
        test_bits: Bits per byte on test.
        test_interval: Its 95% interval.
        against: The best static arm: the plan with the lowest dev bits per byte; None when none is scored.
        regret_bits: Bits per byte on test minus the best static arm's; negative: better than all plans.
        regret_interval: Its 95% interval; (0, 0) for the best static arm itself.
        paired: Whether the difference was taken document by document and seed by seed.
        told: The same in words.
        reach: When it comes down to the masked arm's best; None without a masked arm.
        reach_told: The same in words.
        decision_epochs: Epochs of the changes of each seed; a handover has its beginning and its end.
    """

    arm: str
    controller: str
    procedure: str
    exact: bool
    dev_bits: float
    dev_interval: Interval
    test_bits: float
    test_interval: Interval
    against: str | None
    regret_bits: float | None
    regret_interval: Interval | None
    paired: bool
    told: str
    reach: Reach | None
    reach_told: str
    decision_epochs: Mapping[int, tuple[float, ...]]


def regrets(runs_by_arm: Mapping[str, Sequence[RunRecord]], *, draws: int = 2000, seed: int = 0) -> tuple[Regret, ...]:
    """Compare every arm with the best static arm, where there is an arm that a plan does not decide.

    The best static arm is chosen on dev and the difference is read on test, with the paired bootstrap of `compare`;
    a plan that is best on test by luck is therefore not what the others are held against.

    Args:
        runs_by_arm: Runs of each arm; unfinished ones are left out.
        draws: Bootstrap draws over documents and seeds.
        seed: Seed of the bootstrap.

    Returns:
        A row per arm that is scored on dev and on test; none without other arms, or without an arm whose controller
        is `online` or `random_time`.

    Raises:
        RunError: Runs of one arm were scored on different documents.
    """
    names = {arm: controller_name(runs[0].recipe) for arm, runs in runs_by_arm.items() if runs}
    if len(names) < 2 or not {"online", PLACEBO} & set(names.values()):
        return ()
    dev = read_samples(runs_by_arm, split="dev", draws=draws, seed=seed)
    test = read_samples(runs_by_arm, split="test", draws=draws, seed=seed)
    scored = [arm for arm in runs_by_arm if arm in dev and arm in test]
    static = [arm for arm in scored if names[arm] in STATIC]
    best = min(static, key=lambda arm: dev[arm].bits_per_byte, default=None)
    masked = next((arm for arm, runs in runs_by_arm.items() if runs and is_constant(runs[0].recipe, "masked")), None)
    rows = []
    for arm in scored:
        reach = _reach(runs_by_arm[arm], masked, runs_by_arm[masked]) if masked is not None else None
        gap = test[arm].above(test[best]) if best is not None else (None, None)
        mine = test[arm]
        rows.append(
            Regret(
                arm, names[arm], mine.procedure, mine.exact, dev[arm].bits_per_byte, dev[arm].interval,
                mine.bits_per_byte, mine.interval, best, *gap, best is not None and mine.paired(test[best]),
                _told(mine, None if best is None else test[best]), reach, _reach_told(arm, reach),
                {_seed(run): tuple(float(row["epochs"]) for row in changes(run)) for run in runs_by_arm[arm]},
            )
        )  # fmt: skip
    return tuple(rows)


def _told(mine: Sample, best: Sample | None) -> str:
    """Claim no more than the interval and the standing of both numbers allow."""
    if best is None:
        return "no static arm has been scored"
    if mine.arm == best.arm:
        return "the best static arm (chosen on dev)"
    gap, (low, high) = mine.above(best)
    unpaired = "" if mine.paired(best) else ", not paired"
    shown = f"{gap:+.3f} [{low:.3f}, {high:.3f}]{unpaired}"
    if low <= 0 <= high:
        return f"{shown}: not told apart from {best.arm}"
    # A bound may be better than shown: it proves that its arm is better, but not that it is worse.
    loser = mine if gap > 0 else best
    hedge = "" if loser.exact else f" by these numbers, but {loser.arm}'s is an upper bound, so this is not proven"
    return f"{shown}: {'worse' if gap > 0 else 'better'} than {best.arm}{hedge}"


def _seed(run: RunRecord) -> int:
    return int(run.recipe.get("seed", 0))


def _dev_points(run: RunRecord) -> list[tuple[float, float, str]]:
    """List FLOPs, bits per byte and mode of a run's evaluations on dev, the earliest first, the better first."""
    return sorted(
        (float(row["flops"]), float(row["bits_per_byte"]), _mode(row))
        for row in run.evals
        if row.get("split", "dev") == "dev" and isinstance(row.get("bits_per_byte"), int | float)
    )


def _mode(row: Mapping[str, Any]) -> str:
    return f"{row['procedure']} ({'exact' if row['exact'] else 'bound'})"


def _reach(runs: Sequence[RunRecord], masked: str, masked_runs: Sequence[RunRecord]) -> Reach | None:
    """Compare seed by seed; a mean over seeds first would mix targets that no run ever had."""
    theirs = {_seed(run): points for run in masked_runs if run.finished and (points := _dev_points(run))}
    mine = {_seed(run): points for run in runs if run.finished and (points := _dev_points(run))}
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return None
    targets = {seed: min(theirs[seed], key=lambda point: point[1]) for seed in seeds}
    found = {
        seed: point
        for seed in seeds
        if (point := next((point for point in mine[seed] if point[1] <= targets[seed][1]), None)) is not None
    }
    return Reach(
        masked=masked,
        target_bits=float(np.mean([bits for _, bits, _ in targets.values()])),
        target_modes=tuple(sorted({mode for _, _, mode in targets.values()})),
        flops=float(np.mean([flops for flops, _, _ in found.values()])) if found else None,
        share=float(np.mean([point[0] / targets[seed][0] for seed, point in found.items()])) if found else None,
        reached=len(found),
        seeds=len(seeds),
        modes=tuple(sorted({mode for _, _, mode in found.values()})),
        until_flops=min(mine[seed][-1][0] for seed in seeds),
    )


def _reach_told(arm: str, reach: Reach | None) -> str:
    if reach is None:
        return "nothing to compare"
    target = f"{reach.target_bits:.3f} in {' and '.join(reach.target_modes)}"
    if reach.flops is None or reach.share is None:
        return f"not reached by {reach.until_flops:.2e} FLOPs in any of {reach.seeds} seed(s)"
    if arm == reach.masked:
        return f"{reach.flops:.2e} FLOPs: its own best, {target}"
    of = f"{reach.reached} of {reach.seeds} seed(s)"
    mean = of if reach.reached == reach.seeds else f"mean of the {of} that reach it"
    return f"{reach.flops:.2e} FLOPs, {reach.share:.0%} of {reach.masked}'s, {mean}, in {' and '.join(reach.modes)}"
