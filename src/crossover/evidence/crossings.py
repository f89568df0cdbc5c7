"""Where each arm passes a baseline: per seed and over seeds, and whether one setting crosses before another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from crossover.errors import RunError, nearest
from crossover.evidence.arms import Setting, read_settings
from crossover.evidence.censored import Passage, Survival, kaplan_meier, passages_of
from crossover.evidence.common_grid import Axis
from crossover.evidence.crossing import VARIANTS, Crossing, by_seed, find_crossing
from crossover.evidence.curves import Curve
from crossover.evidence.logrank import LogRank, logrank
from crossover.evidence.seed_leads import claimed_crossing
from crossover.trees import differences

Interval = tuple[float, float]
# A seed's own crossing is a point of a survival curve; its bootstrap needs fewer draws.
DRAWS_PER_SEED = 200
# By what settings are held against one another.
TESTED = ("flops", "epochs")


@dataclass(frozen=True)
class ArmCrossing:
    """Where one arm passes the baseline, as far as the data show it.

    Args:
        challenger: The arm.
        holder: The baseline.
        axis: What is matched: "flops", "flops_6nd", "epochs", or "tokens" where a table has no epochs.
        best_so_far: Whether the best evaluation so far is compared, else the latest.
        status: "crossed"; "crossed as drawn" where nothing can be resampled, so that chance is not ruled out;
            "always ahead" since the first common point; "not reached" by c_max, which is censored.
        root: Where the mean curves meet, None unless crossed (as drawn).
        interval: Its 95% interval, None where there is none; an end at the edge of the grid is censored.
        c_max: How far the comparison reaches.
        lead: The holder's loss minus the challenger's at c_max; positive: challenger ahead.
        lead_interval: Its 95% interval, None where nothing can be resampled.
        unit: Of the lead: "bits per byte" or "nats per token".
        resampled: What the intervals cover: "documents", "seeds", "standard errors".
        seeds: Seeds of the holder and of the challenger.
        paired: Whether the arms have the same seeds.
        points: Points of the grid.
        remark: Why a crossing that the curves show is not claimed; empty otherwise.
        passages: Each seed's crossing, or its censoring.
        survival: The estimate over seeds, None for a single seed.
    """

    challenger: str
    holder: str
    axis: str
    best_so_far: bool
    status: Literal["crossed", "crossed as drawn", "always ahead", "not reached"]
    root: float | None
    interval: Interval | None
    c_max: float
    lead: float
    lead_interval: Interval | None
    unit: str
    resampled: tuple[str, ...]
    seeds: tuple[int, int]
    paired: bool
    points: int
    remark: str
    passages: tuple[Passage, ...]
    survival: Survival | None


@dataclass(frozen=True)
class SettingCrossings:
    """All crossings of one setting.

    Args:
        name: Where the arms come from.
        baseline: The arm that may be passed.
        why: How the baseline was chosen.
        crossings: One for each arm and each way to match.
        unknown: Arms that could not be compared, and why.
        notes: What a reader should know.
    """

    name: str
    baseline: str
    why: str
    crossings: tuple[ArmCrossing, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SettingTest:
    """Whether an arm crosses earlier in one setting than in another.

    Args:
        arm: The arm.
        axis: What is matched: "flops" (best so far) or "epochs" (latest).
        first: Name of the first setting.
        second: Name of the second.
        test: The log-rank test over seeds.
        differing: In what the two differ, by dotted key; None where a table does not say it.
    """

    arm: str
    axis: str
    first: str
    second: str
    test: LogRank
    differing: tuple[str, ...] | None


@dataclass(frozen=True)
class Crossings:
    """What was found in all sources.

    Args:
        settings: One for each text, size or study.
        tests: Settings against one another, arm by arm.
    """

    settings: tuple[SettingCrossings, ...]
    tests: tuple[SettingTest, ...]


def crossings_of(
    sources: str | Path | Sequence[str | Path], *, baseline: str | None = None, draws: int = 1000, seed: int = 0
) -> Crossings:
    """Find where arms pass a baseline, in any folder of runs, study folder, or CSV files.

    Args:
        sources: One or more of them. Those of several arms are settings of their own; those of one arm each make
            one setting together. Settings are held against one another by a log-rank test over seeds.
        baseline: The arm that may be passed; by default the first one that is next-token training.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        Crossings at matched FLOPs (best so far) and at the same epoch (latest), per seed and over seeds.

    Raises:
        RunError: A source cannot be used, or there is no such baseline.
    """
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    read = read_settings(named)
    settings = tuple(crossings_in(setting, baseline, draws, seed) for setting in read)
    return Crossings(settings, _tests(settings, read))


def crossings_in(setting: Setting, baseline: str | None = None, draws: int = 1000, seed: int = 0) -> SettingCrossings:
    """Find where the arms of one setting pass a baseline.

    Args:
        setting: The arms.
        baseline: The arm that may be passed; by default the first one that is next-token training.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The crossings of every other arm.

    Raises:
        RunError: There is no such baseline.
    """
    holder, why = _baseline(setting, baseline)
    crossings: list[ArmCrossing] = []
    unknown: list[str] = []
    for arm in setting.arms:
        for axis, best_so_far, _ in VARIANTS if arm != holder else ():
            if axis == "flops_6nd" and not _has_6nd([*setting.arms[arm], *setting.arms[holder]]):
                continue
            try:
                crossings.append(arm_crossing(setting, holder, arm, axis, best_so_far, draws, seed))
            except RunError as error:
                unknown.append(f"{arm} against {holder}: {error}")
    notes = list(setting.notes)
    if setting.with_errors:
        notes.append(
            f"standard errors of {', '.join(setting.with_errors)} are taken as one shift of the arm's curves, "
            f"independent between arms"
        )
    return SettingCrossings(
        setting.name, holder, why, tuple(crossings), tuple(dict.fromkeys(unknown)), tuple(notes)
    )  # fmt: skip


def _baseline(setting: Setting, wanted: str | None) -> tuple[str, str]:
    if wanted is not None:
        if wanted not in setting.arms:
            raise RunError(f"{setting.name}: has no arm called '{wanted}'; {nearest(wanted, setting.arms)}")
        return wanted, "named"
    if setting.plain:
        return setting.plain[0], "next-token training"
    return next(iter(setting.arms)), "the first arm, as none is next-token training by recipe or name"


def _has_6nd(curves: Sequence[Curve]) -> bool:
    return all(np.isfinite(curve.flops_6nd_E).all() for curve in curves)


def arm_crossing(
    setting: Setting, holder: str, challenger: str, axis: Axis, best_so_far: bool, draws: int = 1000, seed: int = 0
) -> ArmCrossing:
    """Find where one arm passes another, and claim no more than its seeds and documents bear.

    Args:
        setting: The arms.
        holder: The arm that may be passed.
        challenger: The arm that may pass.
        axis: What is matched.
        best_so_far: Compare the best evaluation so far, else the latest.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The crossing.

    Raises:
        RunError: The curves have no compute in common or other documents.
    """
    held, others = setting.arms[holder], setting.arms[challenger]
    found = claimed_crossing(held, others, axis, best_so_far, draws, seed)
    resampled = _resampled(setting, holder, challenger)
    passages = _per_seed(held, others, axis, best_so_far, draws=min(draws, DRAWS_PER_SEED), seed=seed)
    return ArmCrossing(
        challenger=challenger,
        holder=holder,
        axis=setting.epoch_unit if axis == "epochs" else axis,
        best_so_far=best_so_far,
        status="crossed as drawn" if found.status == "crossed" and not resampled else found.status,
        root=found.root,
        interval=found.ci if resampled else None,
        c_max=found.c_max,
        lead=found.lead_bits,
        lead_interval=found.lead_bits_ci if resampled else None,
        unit=setting.unit,
        resampled=resampled,
        seeds=(len(held), len(others)),
        paired=by_seed(held, others)[2],
        points=found.points,
        remark=_remark(found),
        passages=passages,
        survival=kaplan_meier(passages) if len(passages) > 1 else None,
    )


def _resampled(setting: Setting, holder: str, challenger: str) -> tuple[str, ...]:
    there = {
        "documents": setting.documents > 1,
        "seeds": min(len(setting.arms[holder]), len(setting.arms[challenger])) > 1,
        "standard errors": holder in setting.with_errors or challenger in setting.with_errors,
    }
    return tuple(name for name, is_there in there.items() if is_there)


def _remark(found: Crossing) -> str:
    if found.unconfirmed_bound is not None:
        bound = f"95% bound {found.unconfirmed_bound:+.3f}"
        return f"it leads on average, but {found.seeds} seeds do not establish the lead at the end ({bound})"
    if found.leads_at_end_only:
        return "it leads at the last measurement only, and a crossing needs two in a row"
    return "it leads for a while and is behind again" if found.lost_again else ""


def _per_seed(
    held: Sequence[Curve], others: Sequence[Curve], axis: Axis, best_so_far: bool, *, draws: int, seed: int
) -> tuple[Passage, ...]:
    """Follow each seed of the challenger against the baseline's same seed, else against the baseline's mean."""
    by_seed = {one.seed: one for one in held}
    matched = all(one.seed in by_seed for one in others)
    return passages_of(
        {
            one.seed: find_crossing(
                [by_seed[one.seed]] if matched else held,
                [one],
                axis=axis,
                best_so_far=best_so_far,
                draws=draws,
                seed=seed,
            )
            for one in others
        }
    )


def _tests(settings: Sequence[SettingCrossings], read: Sequence[Setting]) -> tuple[SettingTest, ...]:
    """Hold settings against one another, at matched FLOPs and at the same epoch, for every arm that two share."""
    found = []
    for axis in TESTED:
        followed = [
            {one.challenger: one.passages for one in setting.crossings if one.axis == axis and one.survival}
            for setting in settings
        ]
        for i, j in combinations(range(len(settings)), 2):
            baseline = settings[i].baseline
            for arm in followed[i] if baseline == settings[j].baseline else ():
                if arm in followed[j]:
                    differing = _differing(read[i], read[j], (arm, baseline))
                    test = logrank(followed[i][arm], followed[j][arm])
                    found.append(SettingTest(arm, axis, settings[i].name, settings[j].name, test, differing))
    return tuple(found)


def _differing(one: Setting, other: Setting, arms: Sequence[str]) -> tuple[str, ...] | None:
    """List in what two settings differ, so that nobody takes a difference of several things for that of one."""
    if any(arm not in setting.conditions for setting in (one, other) for arm in arms):
        return None
    keys = [key for arm in arms for key in differences(one.conditions[arm], other.conditions[arm])]
    first, second = (setting.arms[arms[0]][0].bytes_D for setting in (one, other))
    same_text = np.array_equal(first, second)
    return (*dict.fromkeys(keys), *(() if same_text else ("held-out documents",)))
