"""Crossings in words and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from crossover.evidence.censored import Passage, survival_sentence
from crossover.evidence.crossings import ArmCrossing, Crossings, SettingCrossings, SettingTest
from crossover.evidence.logrank import logrank_sentence

AMOUNTS = {"flops": "FLOPs", "flops_6nd": "FLOPs by 6ND"}


def facts_of(found: Crossings) -> dict[str, Any]:
    """Give everything that was found as plain values, each crossing with its sentence.

    Args:
        found: The crossings.

    Returns:
        Settings and tests, ready for JSON.
    """
    facts = asdict(found)
    for row, setting in zip(facts["settings"], found.settings, strict=True):
        for crossing, one in zip(row["crossings"], setting.crossings, strict=True):
            crossing["sentence"] = sentence_of(one)
    for row, one in zip(facts["tests"], found.tests, strict=True):
        row["sentence"] = logrank_sentence(one.test, one.first, one.second, one.arm)
    return facts


def lines_of(found: Crossings) -> list[str]:
    """Give everything that was found in lines for a person.

    Args:
        found: The crossings.

    Returns:
        Lines, setting by setting.
    """
    lines: list[str] = []
    for setting in found.settings:
        lines += [*([""] if lines else []), *_setting_lines(setting)]
    for axis, way in (("flops", "best so far at matched FLOPs"), ("epochs", "latest at the same epoch")):
        told = [line for one in found.tests if one.axis == axis for line in _test_lines(one)]
        lines += ["", f"settings against one another, {way}:", *(f"  {line}" for line in told)] if told else []
    if len(found.tests) > 1:
        lines.append(f"  each p-value stands alone; {len(found.tests)} tests were made")
    return lines


def _test_lines(one: SettingTest) -> list[str]:
    told = ", ".join(one.differing or ()) or "nothing that is recorded"
    differing = "what else differs between tables is not known" if one.differing is None else f"they differ in: {told}"
    return [logrank_sentence(one.test, one.first, one.second, one.arm), f"  {differing}"]


def _setting_lines(setting: SettingCrossings) -> list[str]:
    lines = [setting.name, f"  baseline: {setting.baseline} ({setting.why})"]
    for one in setting.crossings:
        lines.append(f"  {sentence_of(one)}")
        if len(one.passages) > 1 and one.axis != "flops_6nd":
            # A table's curve has no documents that could establish a single seed's crossing.
            drawn = ", as drawn" if one.resampled in ((), ("seeds",)) else ""
            lines.append(f"    each seed{drawn}: {'; '.join(_passage(item, one.axis) for item in one.passages)}")
        if one.survival is not None and one.axis != "flops_6nd":
            lines.append(f"    over seeds: {survival_sentence(one.survival, _unit(one))}")
    lines += [f"  unknown: {reason}" for reason in setting.unknown]
    return lines + [f"  note: {note}" for note in setting.notes]


def _unit(one: ArmCrossing) -> str:
    return AMOUNTS.get(one.axis, one.axis)


def _amount(value: float, axis: str) -> str:
    return f"{value:.3g}" if axis == "epochs" else f"{value:.2e}"


def _passage(item: Passage, axis: str) -> str:
    amount = _amount(item.at, axis)
    if not item.crossed:
        return f"{item.seed} not by {amount} (censored)"
    return f"{item.seed} by {amount} or before" if item.before else f"{item.seed} at {amount}"


def sentence_of(one: ArmCrossing) -> str:
    """Say in one sentence whether and where an arm passes the baseline, and what that rests on.

    Args:
        one: The crossing.

    Returns:
        The sentence; only an established crossing is said to pass.
    """
    way = f"best so far, matched {_unit(one)}" if one.best_so_far else f"latest, matched {_unit(one)}"
    lead = f"lead there {one.lead:+.3f}"
    if one.lead_interval is not None:
        lead += f" [{one.lead_interval[0]:.3f}, {one.lead_interval[1]:.3f}]"
    where = f"{_amount(one.c_max, one.axis)} {_unit(one)}, {lead} {one.unit}"
    return f"{way}: {_claim(one, where)}; {_basis(one)}"


def _claim(one: ArmCrossing, where: str) -> str:
    names = f"{one.challenger} {{}} {one.holder}"
    root = _amount(one.root, one.axis) if one.root is not None else ""
    if one.status == "crossed" and one.interval is not None:
        low, high = (_amount(end, one.axis) for end in one.interval)
        return f"{names.format('passes')} at {root} {_unit(one)} [{low}, {high}] (followed to {where})"
    if one.status == "crossed as drawn":
        return f"the curve of {names.format('meets that of')} at {root} {_unit(one)} and stays below it to {where}"
    if one.status == "always ahead":
        return f"{names.format('is ahead of')} from the first common measurement on, to {where}"
    told = f"{names.format('does not pass')} by {where} (censored)"
    return f"{told}; {one.remark}" if one.remark else told


def _basis(one: ArmCrossing) -> str:
    holder, challenger = one.seeds
    seeds = f"{holder} seed{'s' if holder > 1 else ''}" + (
        " each, paired" if one.paired and holder > 1 else "" if holder == challenger == 1 else f" against {challenger}"
    )
    if not one.resampled:
        single = "one curve" if holder == challenger == 1 else f"one curve of {_single(one)}"
        return f"no interval: {single}, so chance is not ruled out"
    covers = _listed(one.resampled)
    missing = "" if "seeds" in one.resampled else ", not what another seed would change"
    return f"{seeds}; intervals cover {covers}{missing}"


def _single(one: ArmCrossing) -> str:
    return one.holder if one.seeds[0] == 1 else one.challenger


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
