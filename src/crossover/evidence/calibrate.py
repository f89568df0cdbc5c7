"""Thresholds of the online controller, fitted on finished studies: the least regret to the best static arm.

A rule is asked when it would have left next-token training in a run that stayed with it and was watched; that time is
worth what the nearest real switch of the same corpus and seed was worth, in bits per byte on dev. Nothing is read on
test.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from crossover.control.calibration import Thresholds
from crossover.control.signals.scene import Signal
from crossover.errors import RunError
from crossover.evidence.files import dumps, write_text
from crossover.evidence.switches import LEAST_EPOCHS, LEAST_LEFT_EPOCHS, Case, Rising, read_cases, recorded_rising
from crossover.registry import component_of

GRID: Mapping[str, tuple[Any, ...]] = {
    "rising_probability": (0.8, 0.9, 0.95, 0.975),
    "rising_evaluations": (1, 2, 3),
    "slope_delta_nats": (0.0, 0.01, 0.05),
    "most_ar_exposures": (4.0, 8.0, 16.0, 32.0, 64.0),
}
NEVER = "never"
# Regrets closer than this are equal: sums in another order differ in the last digits.
EQUAL_BITS = 1e-9
SignalOf = Callable[[float], Signal]


@dataclass(frozen=True)
class Table:
    """The regret of every rule in every case.

    Args:
        rules: Thresholds, the published ones among them.
        cases: What each regret is of.
        regrets_RC: Bits per byte above the best static arm, rules by cases.
        times_RC: Epoch at which the rule leaves next-token training; infinite where it never does.
    """

    rules: tuple[Thresholds, ...]
    cases: tuple[Case, ...]
    regrets_RC: np.ndarray
    times_RC: np.ndarray

    def mean(self, corpora: Sequence[str]) -> np.ndarray:
        """Average the regrets over the cases of a corpus, then over corpora.

        Args:
            corpora: Which.

        Returns:
            Bits per byte of each rule.
        """
        of_corpora = [
            self.regrets_RC[:, [case.corpus == corpus for case in self.cases]].mean(axis=1) for corpus in corpora
        ]
        return np.mean(of_corpora, axis=0)

    def choose(self, corpora: Sequence[str]) -> int:
        """Choose the rule with the least mean regret.

        Of equal ones it is the one with the fewest steps on the grid to the published rules, and of those the most
        cautious: the higher probability, more evaluations, the smaller slope, the more exposures.

        Args:
            corpora: Those that the choice may look at.

        Returns:
            Its index.
        """
        mean_R = self.mean(corpora)
        best = np.flatnonzero(mean_R <= mean_R.min() + EQUAL_BITS)
        return min((int(index) for index in best), key=lambda index: _preference(self.rules[index]))


def calibrate(
    studies: Sequence[str | Path], out: str | Path | None = None, *, signal_of: SignalOf | None = None
) -> dict:
    """Fit thresholds on finished studies.

    Args:
        studies: Study folders, each with a watched next-token arm and arms that switch from it at different epochs.
        out: Where calibration.json is written, or None.
        signal_of: Gives the signal that reads the slope for a `slope_delta_nats`; the registered `curvature` by
            default.

    Returns:
        What is written: `thresholds` and `provenance`.

    Raises:
        RunError: A folder is no study, or none of its seeds has a watched arm and a switch.
    """
    signal_of = signal_of or (lambda delta: component_of("signal", {"name": "curvature", "delta": delta}))
    cases, skipped = read_cases([Path(study) for study in studies])
    table = regrets(cases, signal_of)
    corpora = list(dict.fromkeys(case.corpus for case in cases))
    chosen, published = table.choose(corpora), table.rules.index(Thresholds())
    provenance = {
        "status": "fitted",
        "minimised": "mean regret to the best static arm, bits per byte on dev, over seeds, then over corpora",
        "moves": {"least_epochs": LEAST_EPOCHS, "least_left_epochs": LEAST_LEFT_EPOCHS},
        "grid": {key: list(values) for key, values in GRID.items()},
        "corpora": corpora,
        "seeds": sorted({case.seed for case in cases}),
        "studies": list(dict.fromkeys(case.study for case in cases)),
        "regret_bits": _regrets_row(table, chosen, corpora),
        "published_regret_bits": _regrets_row(table, published, corpora),
        "fixed_time_regret_bits": fixed_times(cases, corpora),
        "leave_one_corpus_out": leave_one_out(table, corpora),
        "notes": [*skipped, *_too_few(corpora)],
        "runs": [_case_row(table, index, chosen, published) for index in range(len(cases))],
        "versions": {
            "crossover": version("crossover-lm"),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }
    found = {"thresholds": asdict(table.rules[chosen]), "provenance": provenance}
    if out is not None:
        write_text(Path(out), dumps(found, indent=2) + "\n")
    return json.loads(dumps(found))


def _preference(rule: Thresholds) -> tuple[float, ...]:
    """Order equal rules: steps on the grid from the published ones, then caution."""
    published = Thresholds()
    steps = sum(
        abs(values.index(getattr(rule, key)) - values.index(getattr(published, key))) for key, values in GRID.items()
    )
    return (
        steps, -rule.rising_probability, -rule.rising_evaluations, rule.slope_delta_nats, -rule.most_ar_exposures,
    )  # fmt: skip


def regrets(cases: Sequence[Case], signal_of: SignalOf) -> Table:
    """Ask every rule of the grid in every case.

    Args:
        cases: The cases.
        signal_of: Gives the signal that reads the slope for a `slope_delta_nats`.

    Returns:
        The table.
    """
    rules = tuple(replace(Thresholds(), **dict(zip(GRID, point, strict=True))) for point in product(*GRID.values()))
    times_RC = np.empty((len(rules), len(cases)))
    regrets_RC = np.empty_like(times_RC)
    for index, case in enumerate(cases):
        # What was recorded is folded once for each slope; all other thresholds read the same probabilities.
        rising = {delta: recorded_rising(case, signal_of(delta)) for delta in GRID["slope_delta_nats"]}
        for number, rule in enumerate(rules):
            time = switch_epochs(rising[rule.slope_delta_nats], rule)
            times_RC[number, index] = np.inf if time is None else time
            regrets_RC[number, index] = case.worth_at(time) - case.best_static
    return Table(rules, tuple(cases), regrets_RC, times_RC)


def switch_epochs(moments: Sequence[Rising], rule: Thresholds) -> float | None:
    """Say when a rule would have left next-token training.

    It leaves when the loss was rising in enough evaluations in a row, or when the text has been seen often enough.

    Args:
        moments: Where the controller was asked and might have moved, in order.
        rule: The thresholds.

    Returns:
        Epochs, or None when it would not have left.
    """
    streak = counted = 0
    for moment in moments:
        if moment.evaluations > counted:
            counted = moment.evaluations
            streak = streak + 1 if moment.probability > rule.rising_probability else 0
        if moment.may_move and (streak >= rule.rising_evaluations or moment.epochs >= rule.most_ar_exposures):
            return moment.epochs
    return None


def fixed_times(cases: Sequence[Case], corpora: Sequence[str]) -> dict[str, float]:
    """Give the mean regret of switching at a fixed time whatever the signals say, valued as rules are.

    Args:
        cases: The cases.
        corpora: Their corpora.

    Returns:
        Bits per byte by time in epochs, "never" last.
    """
    times: list[float | None] = [*sorted({time for case in cases for time in case.times}), None]
    found = {}
    for time in times:
        of_corpora = [
            np.mean([case.worth_at(time) - case.best_static for case in cases if case.corpus == corpus])
            for corpus in corpora
        ]
        found[NEVER if time is None else f"{time:g}"] = float(np.mean(of_corpora))
    return found


def leave_one_out(table: Table, corpora: Sequence[str]) -> list[dict[str, Any]] | None:
    """Choose on all corpora but one and read the regret on that one, for each.

    Args:
        table: Regrets.
        corpora: The corpora.

    Returns:
        A row for each corpus, or None with fewer than two.
    """
    if len(corpora) < 2:
        return None
    rows = []
    published = table.rules.index(Thresholds())
    for left_out in corpora:
        chosen = table.choose([corpus for corpus in corpora if corpus != left_out])
        mean_R = table.mean([left_out])
        rows.append(
            {
                "left_out": left_out,
                "thresholds": _fitted(table.rules[chosen]),
                "regret_bits": float(mean_R[chosen]),
                "published_regret_bits": float(mean_R[published]),
            }
        )
    return rows


def _fitted(rule: Thresholds) -> dict[str, Any]:
    return {key: getattr(rule, key) for key in GRID}


def _too_few(corpora: Sequence[str]) -> list[str]:
    if len(corpora) > 1:
        return []
    return [f"one corpus only ({corpora[0]}): nothing can be left out, so how the rule does elsewhere is not known"]


def _regrets_row(table: Table, rule: int, corpora: Sequence[str]) -> dict[str, Any]:
    by_corpus = {corpus: float(table.mean([corpus])[rule]) for corpus in corpora}
    return {"mean": float(table.mean(corpora)[rule]), "by_corpus": by_corpus}


def _case_row(table: Table, index: int, chosen: int, published: int) -> dict[str, Any]:
    case = table.cases[index]
    times = {name: float(table.times_RC[rule, index]) for name, rule in (("chosen", chosen), ("published", published))}
    return {
        "study": case.study,
        "seed": case.seed,
        "corpus": case.corpus,
        "target": case.target,
        "watched": case.watched.arm,
        "arms": [asdict(arm) for arm in case.arms],
        "best_static_bits": case.best_static,
        "leaves_at_epochs": {name: time if np.isfinite(time) else NEVER for name, time in times.items()},
    }


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Tell a calibration to a person.

    Args:
        found: What `calibrate` returns.

    Returns:
        Lines: the thresholds, the regrets, each corpus left out, notes.

    Raises:
        RunError: It is not a fitted calibration.
    """
    facts = found["provenance"]
    if facts.get("status") != "fitted":
        raise RunError("the calibration was not fitted; give what `crossover calibrate` found")
    seeds = ", ".join(map(str, facts["seeds"]))
    lines = [f"{len(facts['runs'])} watched run(s), {len(facts['corpora'])} corpora, seeds {seeds}"]
    lines += [f"  {key:<20} {found['thresholds'][key]:g}" for key in GRID]
    lines += ["", f"{'mean regret to the best static arm':<42} bits per byte"]
    lines.append(f"  {'these thresholds':<40} {facts['regret_bits']['mean']:.4f}")
    lines.append(f"  {'published rules':<40} {facts['published_regret_bits']['mean']:.4f}")
    for time, regret in facts["fixed_time_regret_bits"].items():
        name = "never switching" if time == NEVER else f"switching at {time} epochs"
        lines.append(f"  {name:<40} {regret:.4f}")
    for row in facts["leave_one_corpus_out"] or ():
        told = f"chosen without {row['left_out']}, read on it"
        lines.append(f"  {told:<40} {row['regret_bits']:.4f} (published {row['published_regret_bits']:.4f})")
    return [*lines, *(f"note: {note}" for note in facts["notes"])]
