"""Why and where the online controller moves: evidence for a shift, the choice of a gear, and the sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossover.control.calibration import Thresholds
from crossover.control.controllers.horizon import AUTOREGRESSIVE
from crossover.control.controllers.memory import Memory, fresh, share_of_autoregressive, target_mode
from crossover.records import Mix, Progress, Reading


@dataclass(frozen=True)
class Evidence:
    """One reason to leave the present gear.

    Args:
        kind: "cap", "curvature", "gap", "alignment" or "exposures".
        sentence: The reason as a person would say it.
        gears: The gears that it speaks for; empty when it speaks for any other.
    """

    kind: str
    sentence: str
    gears: tuple[str, ...] = ()


def gather(
    memory: Memory, readings: Mapping[str, Reading], progress: Progress, target: str, thresholds: Thresholds,
    gears: Sequence[str], gear_epochs: float,
) -> list[Evidence]:  # fmt: skip
    """List what speaks for leaving the present gear.

    Args:
        memory: What is remembered, new readings counted.
        readings: Signals by name.
        progress: Where the run stands.
        target: The held-out loss that is minimised.
        thresholds: When a reading is evidence.
        gears: The gears that there are.
        gear_epochs: Exposures, in epochs, after which a gear other than next-token training is left.

    Returns:
        The evidence, the strongest kind first; empty when nothing speaks for it.
    """
    found = [_curvature(memory, readings, progress, target, thresholds), _gap(readings, target, thresholds)]
    leading = tuple(
        gear
        for gear in gears
        if gear != memory.main and memory.streaks.get(f"leads:{gear}", 0) >= thresholds.alignment_probes
    )
    if leading:
        sentence = f"{leading[0]}'s gradient helps the held-out loss {_times(readings, leading[0], memory.main)}"
        found.append(Evidence("alignment", sentence, leading))
    worn_out = used_up(memory.main, progress, memory.cap, gear_epochs)
    if worn_out and memory.main.startswith("autoregressive"):
        seen = f"AR has seen each token {progress.autoregressive_epochs:.1f} times, its most"
        found.append(Evidence("cap", seen))
    elif worn_out:
        exposed = progress.exposures[memory.main] / progress.unique_tokens
        found.append(Evidence("exposures", f"{memory.main} has seen the text {exposed:.1f} times, its most"))
    return [item for item in found if item is not None]


def used_up(gear: str, progress: Progress, cap: float, gear_epochs: float) -> bool:
    """Say whether a gear has seen the text as often as it may.

    Args:
        gear: The gear.
        progress: Where the run stands.
        cap: Most exposures of next-token training, whatever its options, in epochs.
        gear_epochs: Most exposures of any other gear, in epochs.

    Returns:
        Whether it has.
    """
    if gear.startswith("autoregressive"):
        return progress.autoregressive_epochs >= cap
    return progress.exposures.get(gear, 0) >= gear_epochs * progress.unique_tokens


def _curvature(
    memory: Memory, readings: Mapping[str, Reading], progress: Progress, target: str, thresholds: Thresholds
) -> Evidence | None:
    streak = memory.streaks.get("rising", 0)
    # A gradient that is mostly noise is a second witness: nothing is left to average out.
    noise = readings.get(f"variance.noise_scale:{memory.main}")
    batches = noise.value / progress.batch_tokens if noise is not None and noise.ready and progress.batch_tokens else 0
    noisy = batches > thresholds.noise_ratio
    if streak == 0 or streak + noisy < thresholds.rising_evaluations:
        return None
    mode = target_mode(readings, target)
    probability = readings[f"curvature.rising:{mode}"].value
    sentence = f"held-out loss ({mode}) is rising with probability {probability:.2f} in {streak} evaluation(s)"
    if streak < thresholds.rising_evaluations:
        sentence += f" and the gradient's noise scale is {batches:.0f} batches"
    return Evidence("curvature", sentence)


def _gap(readings: Mapping[str, Reading], target: str, thresholds: Thresholds) -> Evidence | None:
    mode = target_mode(readings, target)
    gap = readings.get(f"gap:{mode}")
    if thresholds.gap_nats is None or gap is None or not gap.ready:
        return None
    if gap.value - 2 * gap.standard_error <= thresholds.gap_nats:
        return None
    return Evidence("gap", f"held-out loss ({mode}) is {gap.value:.2f} nats above training loss")


def _times(readings: Mapping[str, Reading], gear: str, other: str) -> str:
    mine, theirs = readings[f"alignment:{gear}"].value, readings[f"alignment:{other}"].value
    return f"{mine / theirs:.1f} times more per FLOP" if theirs > 0 else f"and {other}'s does not"


def candidates(
    readings: Mapping[str, Reading], progress: Progress, gears: Sequence[str], floor: float
) -> list[dict[str, Any]]:
    """Describe the gears that a shift could go to.

    Args:
        readings: Signals by name.
        progress: Gives the prices.
        gears: The gears that are open.
        floor: Least novelty of a gear that is worth its FLOPs.

    Returns:
        A row per gear: price, novelty, alignment, and whether its novelty clears the floor.
    """
    rows = []
    for gear in gears:
        novelty, value = readings.get(f"coverage.novelty:{gear}"), readings.get(f"alignment:{gear}")
        known = novelty.value if novelty is not None and novelty.ready else None
        rows.append(
            {
                "gear": gear,
                "flops_per_token": progress.flops_per_token.get(gear),
                "novelty": known,
                "alignment": value.value if value is not None and value.ready else None,
                "clears_floor": None if known is None else known >= floor,
            }
        )
    return rows


def choose(rows: Sequence[Mapping[str, Any]]) -> str:
    """Choose a gear: the cheapest whose novelty clears the floor, else the highest novelty per FLOP.

    Args:
        rows: What `candidates` gives, at least one.

    Returns:
        The gear; the first in order where novelty or prices are not known.
    """
    if any(row["novelty"] is None or not row["flops_per_token"] for row in rows):
        return str(rows[0]["gear"])
    clear = [row for row in rows if row["clears_floor"]]
    if clear:
        return str(min(clear, key=lambda row: row["flops_per_token"])["gear"])
    return str(max(rows, key=lambda row: row["novelty"] / row["flops_per_token"])["gear"])


def landing(gear: str, memory: Memory, progress: Progress, floor: float, spread: bool) -> Mix:
    """Give the mix that a shift ends in.

    With `spread`, the exposures that next-token training still may have are spread over the rest of the run; the rule
    that it should see the text about 16 times (arXiv 2512.14549) then holds whenever the shift comes. Its share is at
    most half of what it was: a mix that has used its text up was given too much of it.

    Args:
        gear: The gear that is shifted to.
        memory: Gives the present mix and the most exposures of next-token training.
        progress: Where the run stands.
        floor: The least share of next-token training.
        spread: Whether to spread what is left of its exposures, or fall to the floor at once.

    Returns:
        The mix.
    """
    if gear.startswith("autoregressive") or floor == 0:
        return Mix(((gear, 1.0),))
    share = floor
    if spread:
        rest = progress.epochs_under(Mix(((gear, 1.0),))) * (1 - progress.budget_fraction)
        left = (memory.cap - progress.autoregressive_epochs) / max(rest, 1e-9)
        share = max(floor, min(share_of_autoregressive(memory.mix) / 2 or 0.5, left))
    return Mix(((gear, 1 - share), (AUTOREGRESSIVE, share)))


def rebalanced(memory: Memory, floor: float, probes: int) -> tuple[float, str] | None:
    """Say which next-token share two agreeing probes ask for inside a mix: twice or half of what it is.

    Args:
        memory: What is remembered; its mix has a next-token part and another.
        floor: Least share of next-token training.
        probes: How many probes in a row have to agree.

    Returns:
        The new share and the gear that leads, or None.
    """
    share = share_of_autoregressive(memory.mix)
    if not 0 < share < 1:
        return None
    leading = [name for name in memory.mix if memory.streaks.get(f"leads:{name}", 0) >= probes]
    for name in leading:
        # A start may lie outside [floor, 1/2]; the leader's share must not fall because of that.
        more, less = max(share, min(0.5, 2 * share)), min(share, max(floor, share / 2))
        wanted = more if name.startswith("autoregressive") else less
        if abs(wanted - share) > 1e-9:
            return wanted, name
    return None


def sentence_of(evidence: Sequence[Evidence], progress: Progress) -> str:
    """Put the evidence into one sentence, beginning with how often next-token training has seen the text."""
    parts = [item.sentence for item in evidence]
    if not any(item.kind == "cap" for item in evidence):
        parts.insert(0, f"AR has seen each token {progress.autoregressive_epochs:.1f} times")
    return "; ".join(parts)


def with_share(mix: Mapping[str, float], share: float) -> Mix:
    """Give next-token training another share; the objectives of either kind keep their proportions.

    Args:
        mix: Shares by objective, with a next-token part and another.
        share: The new share of next-token training.

    Returns:
        The mix, the other objectives first: at equal shares one of them stays the main one.
    """
    old = share_of_autoregressive(mix)
    rest = {name: part * (1 - share) / (1 - old) for name, part in mix.items() if not name.startswith("autoregressive")}
    own = {name: part * share / old for name, part in mix.items() if name.startswith("autoregressive")}
    return Mix(tuple((name, part) for name, part in {**rest, **own}.items() if part > 0))


def same(one: Mix, other: Mix) -> bool:
    """Say whether two mixes have the same shares, in whatever order."""
    names = {name for mix in (one, other) for name, _ in mix.shares}
    return all(abs(one.share(name) - other.share(name)) < 1e-9 for name in names)


def judged_now(memory: Memory, progress: Progress, retreat_epochs: float | None) -> bool:
    """Say whether it is time to judge the last shift.

    Args:
        memory: Tells when the shift was.
        progress: Where the run stands.
        retreat_epochs: How long after the shift, or None for a quarter of what was left then.

    Returns:
        Whether it is.
    """
    gone = progress.data_tokens - memory.kept_tokens
    left = gone + _tokens_left(progress)
    return gone >= (left / 4 if retreat_epochs is None else retreat_epochs * progress.unique_tokens)


def projected_loss(memory: Memory, readings: Mapping[str, Reading], progress: Progress, target: str) -> float | None:
    """Give the lowest loss that a mode of the target has, or will have when the learning rate begins to decay.

    Args:
        memory: Tells whether the slopes are of the present mix alone; else the loss is taken as it is.
        readings: Signals by name.
        progress: Where the run stands.
        target: The held-out loss that is minimised.

    Returns:
        Nats per token, a falling loss followed along its slope in ln(tokens); None where no loss was measured.
    """
    end = 1 + _tokens_left(progress) / max(1, progress.data_tokens)
    found = []
    for name, reading in readings.items():
        mode = name.partition(":")[2]
        slope = readings.get(f"curvature.slope:{mode}")
        if name.startswith("curvature.loss:") and reading.ready and target in ("best", mode):
            known = slope is not None and slope.ready and fresh(memory, readings)
            fall = min(0.0, slope.value) * math.log(end) if slope is not None and known else 0.0
            found.append(reading.value + fall)
    return min(found) if found else None


def stand_in(mix: Mix, name: str, other: str) -> Mix:
    """Let one objective stand in for another; where both are in the mix, their shares add up."""
    shares: dict[str, float] = {}
    for each, part in mix.shares:
        dressed = other if each == name else each
        shares[dressed] = shares.get(dressed, 0.0) + part
    return Mix(tuple(shares.items()))


def _tokens_left(progress: Progress) -> float:
    """Data tokens until the mix is frozen, under the present mix: a part of a budget in FLOPs buys others before it."""
    fraction = max(0.0, progress.changeable_fraction - progress.budget_fraction)
    return fraction * progress.planned_epochs * progress.unique_tokens
