"""Which arm is best on the test text, by how much, how sure we are: paired differences and one honest sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.crossing import Crossing, resample_seeds, sentence
from crossover.evidence.curves import headline_mode
from crossover.evidence.match import is_constant
from crossover.evidence.record import RunRecord
from crossover.streams import stream
from crossover.trees import flatten

# Shape suffixes: K bootstrap draws (row 0 is the sample itself), S seeds, D documents.
Interval = tuple[float, float]


@dataclass(frozen=True)
class ArmScore:
    """How good an arm is on the test text, in its headline mode.

    Args:
        arm: Its name.
        procedure: The headline mode, chosen on dev.
        exact: False for a bound.
        seeds: Seeds that are in the mean.
        bits_per_byte: Mean over seeds.
        interval: Its 95% interval (documents and seeds).
        loss_nats: Mean nats per token.
        perplexity: exp of `loss_nats`.
        difference: Bits per byte minus the best arm's, 0 for the best.
        difference_interval: Its 95% interval, (0, 0) for the best.
        paired: Whether the difference was taken document by document and seed by seed.
    """

    arm: str
    procedure: str
    exact: bool
    seeds: tuple[int, ...]
    bits_per_byte: float
    interval: Interval
    loss_nats: float
    perplexity: float
    difference: float
    difference_interval: Interval
    paired: bool

    @property
    def apart(self) -> bool:
        """Whether the arm can be told apart from the best one."""
        return self.difference > 0 and not self.difference_interval[0] <= 0 <= self.difference_interval[1]


@dataclass(frozen=True)
class Comparison:
    """All arms, the best first.

    Args:
        arms: Scores by rank.
        documents: Test documents of the best arm.
        autoregressive: The arm that is plain next-token training, if there is one.
    """

    arms: tuple[ArmScore, ...]
    documents: int
    autoregressive: str | None


@dataclass(frozen=True)
class Sample:
    """An arm's bits per byte on one split, as measured and in each draw of the bootstrap.

    Args:
        arm: Its name.
        procedure: The headline mode, chosen on dev.
        exact: False for a bound.
        seeds: Seeds that are in the mean.
        loss_nats: Mean nats per token.
        bytes_D: Bytes of each document.
        bits_K: Bits per byte, mean over seeds: row 0 is the sample itself, each other row a draw.
    """

    arm: str
    procedure: str
    exact: bool
    seeds: tuple[int, ...]
    loss_nats: float
    bytes_D: NDArray[np.float64]
    bits_K: NDArray[np.float64]

    @property
    def bits_per_byte(self) -> float:
        """As measured, the mean over seeds."""
        return float(self.bits_K[0])

    @property
    def interval(self) -> Interval:
        """Its 95% interval (documents and seeds)."""
        return _interval(self.bits_K)

    def above(self, other: Sample) -> tuple[float, Interval]:
        """Give the bits per byte that it lies above another sample, and their 95% interval."""
        gap_K = self.bits_K - other.bits_K
        return float(gap_K[0]), _interval(gap_K)

    def paired(self, other: Sample) -> bool:
        """Whether a difference to another sample is taken document by document and seed by seed."""
        return np.array_equal(self.bytes_D, other.bytes_D) and self.seeds == other.seeds


def read_samples(
    runs_by_arm: Mapping[str, Sequence[RunRecord]], *, split: str = "test", draws: int = 2000, seed: int = 0
) -> dict[str, Sample]:
    """Read the final scores of arms on one split, each in its headline mode, and resample them.

    Args:
        runs_by_arm: Runs of each arm; unfinished ones are left out.
        split: "dev" or "test".
        draws: Bootstrap draws over documents and seeds; equal shapes get equal draws, which is what pairs them.
        seed: Seed of the bootstrap.

    Returns:
        Samples by arm, without the arms that have no score.

    Raises:
        RunError: Runs of one arm were scored on different documents.
    """
    read = {arm: _read(arm, runs, split, draws, seed) for arm, runs in runs_by_arm.items()}
    return {arm: sample for arm, sample in read.items() if sample is not None}


def compare(runs_by_arm: Mapping[str, Sequence[RunRecord]], *, draws: int = 2000, seed: int = 0) -> Comparison:
    """Compare arms on the test text, each in its headline mode.

    Args:
        runs_by_arm: Finished runs of each arm.
        draws: Bootstrap draws over documents and seeds.
        seed: Seed of the bootstrap.

    Returns:
        The comparison, the lowest bits per byte first.

    Raises:
        RunError: No arm has a test score.
    """
    samples = read_samples(runs_by_arm, draws=draws, seed=seed)
    if not samples:
        raise RunError("no run has been scored on the test text yet; let the runs finish")
    ranked = sorted(samples.values(), key=lambda sample: sample.bits_per_byte)
    best = ranked[0]
    arms = []
    for item in ranked:
        gap, interval = item.above(best)
        arms.append(
            ArmScore(
                item.arm, item.procedure, item.exact, item.seeds, item.bits_per_byte, item.interval, item.loss_nats,
                float(np.exp(item.loss_nats)), gap, interval, item.paired(best),
            )
        )  # fmt: skip
    plain = [arm for arm, runs in runs_by_arm.items() if runs and is_autoregressive(runs[0].recipe)]
    named = next((item.arm for item in ranked if item.arm in plain), None)
    return Comparison(tuple(arms), len(best.bytes_D), named)


def is_autoregressive(recipe: Mapping[str, Any]) -> bool:
    """Say whether a resolved recipe is plain next-token training from start to end."""
    return is_constant(recipe, "autoregressive")


def _read(arm: str, runs: Sequence[RunRecord], split: str, draws: int, seed: int) -> Sample | None:
    """Read the cards of an arm's headline mode, seeds in order; runs without one are left out."""
    runs = sorted((run for run in runs if run.finished), key=lambda run: run.recipe.get("seed", 0))
    if not runs:
        return None
    procedure, exact = headline_mode(runs)
    name = f"{split}-{procedure}"
    cards = [(run, run.scores[name]) for run in runs if name in run.scores]
    if not cards:
        return None
    sizes = cards[0][1]["document_bytes"]
    for run, card in cards:
        if card["document_bytes"] != sizes or None in card["document_nats"]:
            raise RunError(f"{run.path}: scores/{name}.json: other documents than the arm's first run has")
    seeds = tuple(int(run.recipe.get("seed", 0)) for run, _ in cards)
    nats_SD = np.array([card["document_nats"] for _, card in cards], float)
    bytes_D = np.array(sizes, float)
    nats = float(nats_SD.mean(0).sum() / float(sum(cards[0][1]["document_tokens"])))
    return Sample(arm, procedure, exact, seeds, nats, bytes_D, resample_documents(nats_SD, bytes_D, seeds, draws, seed))


def resample_documents(
    nats_SD: NDArray[np.float64], bytes_D: NDArray[np.float64], seeds: Sequence[int], draws: int, seed: int
) -> NDArray[np.float64]:
    """Give bits per byte of the sample and of each draw; equal shapes get equal draws, which is what pairs them."""
    documents = len(bytes_D)
    rng = stream(seed, "documents", documents, int(bytes_D.sum()))
    weights_KD = rng.multinomial(documents, np.full(documents, 1 / documents), draws)
    weights_KD = np.concatenate([np.ones((1, documents)), weights_KD])
    seeds_KS = resample_seeds(stream(seed, "seeds", *seeds), len(seeds), draws)
    loss_KS = (weights_KD @ nats_SD.T) / (np.log(2) * (weights_KD @ bytes_D))[:, None]
    return (loss_KS * seeds_KS).sum(1)


def _interval(draws_K: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws_K[1:], [0.025, 0.975])
    return float(low), float(high)


def verdict(
    comparison: Comparison,
    *,
    text: str,
    crossings: Mapping[str, Crossing] | None = None,
    mismatches: int = 0,
    missing: int = 0,
) -> str:
    """Say who wins, by how much, and how sure that is: `verdict_parts` in one go, with the same arguments."""
    parts = verdict_parts(comparison, text=text, crossings=crossings, mismatches=mismatches, missing=missing)
    return " ".join(parts.values())


def verdict_parts(
    comparison: Comparison,
    *,
    text: str,
    crossings: Mapping[str, Crossing] | None = None,
    mismatches: int = 0,
    missing: int = 0,
) -> dict[str, str]:
    """Say who wins, by how much, and how sure that is, claiming no more than was shown.

    Args:
        comparison: The arms on the test text.
        text: What was trained on, how often, for how much, such as "200,000 unique tokens of stdlib, 42 epochs".
        crossings: Best-so-far crossings at matched FLOPs of each arm against the autoregressive one.
        mismatches: How many keys differ that should not.
        missing: How many runs of the study are not finished.

    Returns:
        Sentences by what they are about, in order; what there is nothing to say about is absent.
    """
    unlike = f"Not a matched comparison: {mismatches} thing(s) differ that should not, listed below."
    parts = {
        "preliminary": f"Preliminary: {missing} run(s) of the study have not finished." if missing else "",
        "unmatched": unlike if mismatches else "",
        "ranking": _ranking(comparison, text),
        "crossings": _about_crossings(comparison, crossings or {}),
        "certainty": _about_certainty(comparison),
        "advice": _advice(comparison, mismatches),
    }
    return {about: told for about, told in parts.items() if told}


def mode_text(score: ArmScore) -> str:
    """Write a mode with its standing, such as `ar, exact` or `nelbo, an upper bound`."""
    return f"{score.procedure}, {'exact' if score.exact else 'an upper bound'}"


def _ranking(comparison: Comparison, text: str) -> str:
    best, rest = comparison.arms[0], comparison.arms[1:]
    shown = f"{best.bits_per_byte:.3f} bits per byte on test ({mode_text(best)})"
    if not rest:
        return f"On this text ({text}), {best.arm} reaches {shown}; there is no other arm to compare it with."
    against = ", ".join(
        f"{score.bits_per_byte:.3f} for {score.arm} ({mode_text(score)}), "
        f"{score.difference:+.3f} [{score.difference_interval[0]:.3f}, {score.difference_interval[1]:.3f}]"
        for score in rest
    )
    level = [score.arm for score in rest if not score.apart]
    if not level:
        return f"On this text ({text}), {best.arm} is best: {shown} against {against}."
    return (
        f"On this text ({text}), {best.arm} and {' and '.join(level)} cannot be told apart: "
        f"{best.arm} has {shown} against {against}."
    )


def _about_crossings(comparison: Comparison, crossings: Mapping[str, Crossing]) -> str:
    holder = comparison.autoregressive
    if holder is None or not crossings:
        return ""
    told = "; ".join(sentence(crossing, arm, holder) for arm, crossing in crossings.items())
    return f"On dev, at matched FLOPs: {told}."


def _about_certainty(comparison: Comparison) -> str:
    fewest = min(len(score.seeds) for score in comparison.arms)
    words = [f"{fewest} seed{'s' if fewest > 1 else ''} per arm, {comparison.documents} test documents"]
    if fewest == 1:
        words.append("with one seed the interval covers documents only, and another seed may rank the arms otherwise")
    elif fewest < 5:
        words.append(f"{fewest} seeds: the interval covers documents well and seeds poorly")
    if comparison.documents < 30:
        words.append("so few documents make the interval itself uncertain")
    if len(comparison.arms) > 2:
        words.append(f"intervals hold one pair at a time, not all {len(comparison.arms) - 1} pairs at once")
    bounds = [score.arm for score in comparison.arms if not score.exact]
    if bounds:
        words.append(f"the number of {' and '.join(bounds)} is an upper bound of its loss: it may be better than shown")
    if any(not score.paired for score in comparison.arms):
        words.append("some arms have other seeds or documents than the best, so those differences are not paired")
    return f"{'; '.join(words)}."


def _advice(comparison: Comparison, mismatches: int) -> str:
    plain, best = comparison.autoregressive, comparison.arms[0]
    if mismatches or plain is None or len(comparison.arms) < 2:
        return ""
    level = {score.arm for score in comparison.arms[1:] if not score.apart}
    if best.arm == plain and not level:
        unsure = any(not score.exact for score in comparison.arms[1:])
        hedge = " The other numbers include bounds, so this is not proven." if unsure else ""
        return f"Stay with {plain}.{hedge}"
    if best.arm == plain or plain in level:
        return f"Nothing here shows a gain over {plain}: stay with it, or add seeds and test documents to find out."
    if level:
        return f"Leave {plain}; between {best.arm} and {' and '.join(sorted(level))} these runs do not decide."
    return f"Take {best.arm}."


def text_facts(runs: Sequence[RunRecord]) -> str:
    """Describe what the runs were trained on and for how much, as far as it is recorded."""
    run = next((item for item in runs if item.manifest and item.ledger), runs[0])
    parts = []
    unique, source = run.manifest.get("unique_tokens"), run.manifest.get("data_source")
    if unique:
        parts.append(f"{int(unique):,} unique tokens of {source_name(source, run.recipe)}")
    epochs = [float(item.ledger["epochs"]) for item in runs if item.ledger.get("epochs") is not None]
    if epochs:
        low, high = f"{min(epochs):.3g}", f"{max(epochs):.3g}"
        parts.append(f"{low} epochs" if low == high else f"{low} to {high} epochs")
    flops = [float(item.ledger["flops"]) for item in runs if item.ledger.get("flops")]
    if flops:
        parts.append(f"{max(flops):.1e} FLOPs each")
    return ", ".join(parts) or "nothing recorded yet"


def source_name(source: Any, recipe: Mapping[str, Any]) -> str:
    """Name a corpus for people: what the manifest says, else what the recipe says."""
    named = source if source is not None else (recipe.get("data") or {}).get("source")
    if not isinstance(named, Mapping):
        return str(named)
    rest = ", ".join(str(value) for key, value in flatten(named).items() if key in ("path", "paths"))
    return f"{named.get('name', '?')}({rest})" if rest else str(named.get("name", "?"))
