"""Scaling laws in words and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from crossover.control.critical import PUBLISHED_EXPONENT
from crossover.evidence.scaling.critical import CriticalCompute, CriticalExponent
from crossover.evidence.scaling.design import distinct
from crossover.evidence.scaling.findings import Findings, counted
from crossover.evidence.scaling.fit import FittedLaw, Ratio
from crossover.evidence.scaling.frontier import Frontier
from crossover.evidence.scaling.reading import Measured

USED = {
    "ends": "one point a run, where it ended (decayed)",
    "all": "every evaluation after the warm-up (undecayed ones are worse than what a run of that length would reach)",
}
# What each constant says, as a person would ask for it.
MEANING = {
    "irreducible_nats": "loss that remains",
    "size_coefficient": "A of A / N^alpha",
    "size_exponent": "alpha, how size helps",
    "data_coefficient": "B of B / D^beta",
    "data_exponent": "beta, how text helps",
    "data_reuse": "repeats after which one more is worth 1/e of fresh text",
    "size_reuse": "the same for parameters beyond the optimal number",
    "overfit_coefficient": "of the overfitting term",
    "overfit_repeats_exponent": "how overfitting grows with repeats",
    "overfit_size_exponent": "how overfitting grows with parameters per unique token",
}


def lines_of(found: Findings) -> list[str]:
    """Give everything that was found in lines for a person.

    Args:
        found: The findings.

    Returns:
        Lines, family by family.
    """
    measured = found.measured
    lines = [f"points: {USED[measured.used]}; loss in nats per token on dev; N counts all parameters"]
    lines += [f"note: {note}" for note in measured.notes]
    for family in measured.points:
        lines += ["", *_family_lines(found, family)]
    if found.baseline is not None:
        lines += ["", f"against {found.baseline}:"]
        lines += [f"  {told}" for told in _comparison_lines(found, found.baseline)]
    return lines


def _family_lines(found: Findings, family: str) -> list[str]:
    lines = [f"{family}: {_extent(found.measured, family)}"]
    if family in found.missing:
        why = found.missing[family]
        first = next(name for name, each in found.missing.items() if each == why)
        return [*lines, f"  no law: {why}" if first == family else f"  no law, as for {first}"]
    law = found.laws[family]
    lines.append(
        f"  the law misses the middle point by {law.median_log_residual:.2%} of its loss "
        f"(rms {law.rms_log_residual:.2%}) and explains {law.r_squared:.1%} of the differences"
    )
    lines += [f"  {law.told(name)}: {MEANING[name]}" for name in (*law.intervals, *law.form.held)]
    lines.append(f"  {found.upturns[family]}")
    lines += [f"  note: {note}" for note in law.notes]
    return [*lines, *(f"  {told}" for told in _frontier_lines(found.frontiers[family], law))]


def _extent(measured: Measured, family: str) -> str:
    points = measured.points[family]
    sizes, texts = [point.parameters for point in points], [point.unique_tokens for point in points]
    epochs = [point.tokens / point.unique_tokens for point in points]
    runs = len({(point.group, point.seed) for point in points})
    return (
        f"{counted(len(points), 'point')} of {counted(runs, 'run')}; {counted(distinct(sizes), 'size')}, "
        f"{_span(sizes)} parameters; {counted(distinct(texts), 'text')}, {_span(texts)} unique tokens; "
        f"{_span(epochs)} epochs; "
        f"read by {measured.modes[family]}"
    )


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if distinct([low, high]) == 1 else f"{low:.3g} to {high:.3g}"


def _frontier_lines(found: Frontier, law: FittedLaw) -> list[str]:
    unknown = not all(law.identified.values())
    head = f"the best that its law gives for a compute, on {found.unique_tokens:.3g} unique tokens"
    lines = [head + (" (rests on constants that the data do not pin down):" if unknown else ":")]
    columns = zip(
        found.flops_G, found.loss_nats_G, found.low_G, found.high_G, found.parameters_G, found.tokens_G, found.inside_G,
        strict=True,
    )  # fmt: skip
    for flops, loss, low, high, parameters, tokens, inside in columns:
        far = "" if inside else ", beyond the data"
        lines.append(
            f"  {flops:.2e} FLOPs: {loss:.3f} nats [{low:.3f}, {high:.3f}] with {parameters:.2e} parameters and "
            f"{tokens / found.unique_tokens:.3g} epochs{far}"
        )
    return lines


def _comparison_lines(found: Findings, baseline: str) -> list[str]:
    lines = [reuse_sentence(family, baseline, each) for family, each in found.reuse.items()]
    for family, each in found.critical.items():
        if isinstance(each, CriticalExponent):
            lines.append(f"{family} passes {baseline}, compute-optimal against compute-optimal: {each.told}")
            lines += [f"  {one.told}" for one in each.at]
        else:
            sides = [found.laws[family], found.laws[baseline]]
            unknown = "" if all(all(law.identified.values()) for law in sides) else " by these laws, not established"
            lines.append(
                f"{family} passes {baseline}, compute-optimal against compute-optimal: {each.told}{unknown}; one text "
                f"gives no exponent to hold against the published {PUBLISHED_EXPONENT}"
            )
        lines += _bound_lines(found.measured, family, baseline)
    return lines


def _bound_lines(measured: Measured, family: str, baseline: str) -> list[str]:
    """Say what a bound on one side does to critical compute."""
    if (family in measured.bounds) == (baseline in measured.bounds):
        return []
    bounded, way = (family, "high") if family in measured.bounds else (baseline, "low")
    return [f"  note: losses of {bounded} are upper bounds, so this critical compute is too {way}"]


def reuse_sentence(family: str, baseline: str, found: Ratio) -> str:
    """Say in one sentence how much longer a family can reuse its text than another.

    Args:
        family: The family.
        baseline: The other one.
        found: Ratio of their reuse constants.

    Returns:
        The sentence; no number where the data do not pin both constants down.
    """
    if not found.identified:
        return (
            f"how much longer {family} can reuse its text than {baseline} is not known: the data do not pin both down"
        )
    low, high = found.interval
    return f"{family} can reuse its text {found.value:.3g} [{low:.3g}, {high:.3g}] times as long as {baseline}"


def facts_of(found: Findings) -> dict[str, Any]:
    """Give everything that was found as plain values.

    Args:
        found: The findings.

    Returns:
        Families, comparisons and the lines for a person, ready for JSON; draws are left to the file of laws.
    """
    measured = found.measured
    return {
        "points": measured.used,
        "notes": measured.notes,
        "families": {family: _family_facts(found, family) for family in measured.points},
        "baseline": found.baseline,
        "reuse_ratio": {
            family: {**asdict(each), "sentence": reuse_sentence(family, str(found.baseline), each)}
            for family, each in found.reuse.items()
        },
        "critical_compute": {family: _critical_facts(each) for family, each in found.critical.items()},
        "lines": lines_of(found),
    }


def _family_facts(found: Findings, family: str) -> dict[str, Any]:
    measured = found.measured
    facts: dict[str, Any] = {
        "mode": measured.modes[family],
        "bound": family in measured.bounds,
        "measured": [asdict(point) for point in measured.points[family]],
        "missing": found.missing.get(family),
    }
    if family not in found.laws:
        return {**facts, "law": None, "frontier": None}
    law = found.laws[family]
    best = found.frontiers[family]
    shown = (
        "family",
        "runs",
        "intervals",
        "identified",
        "notes",
        "rms_log_residual",
        "median_log_residual",
        "r_squared",
    )
    facts["law"] = {name: getattr(law, name) for name in shown}
    facts["law"] |= {"constants": asdict(law.constants), "form": asdict(law.form), "data": asdict(law.data)}
    facts["law"]["overfitting"] = found.upturns[family]
    facts["frontier"] = {
        "unique_tokens": best.unique_tokens, "flops": best.flops_G, "loss_nats": best.loss_nats_G, "low": best.low_G,
        "high": best.high_G, "parameters": best.parameters_G, "tokens": best.tokens_G, "inside_data": best.inside_G,
    }  # fmt: skip
    return facts


def _critical_facts(found: CriticalExponent | CriticalCompute) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(found).items() if name not in ("draws_K", "at")}
    if isinstance(found, CriticalExponent):
        facts["at"] = [_critical_facts(one) for one in found.at]
        facts["published_exponent"] = PUBLISHED_EXPONENT
    return {**facts, "sentence": found.told}
