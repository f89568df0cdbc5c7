"""How good generated text is: perplexity under a named judge, never without the entropy of the samples beside it.

A sampler that repeats itself has a low perplexity and a low entropy, so neither number means much alone.
Suffix: S samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.errors import CheckpointError, RecipeError
from crossover.sampling.judges import Embedding, Judge
from crossover.sampling.mauve import Mauve, mauve

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples (a ratio of sums where samples differ in size) and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Quality:
    """What samples are worth: numbers that only mean something together, so they are only had together.

    Args:
        judge: Name of the judge.
        judge_window_tokens: Its window; longer samples are cut into pieces that each begin anew.
        judge_tokens: Tokens that were judged; ends of text are not.
        loss_nats: Nats per judge token.
        bits_per_byte: Bits per UTF-8 byte of text, comparable between judges with different tokenizers.
        entropy_nats: Unigram entropy of the sampler's tokens, of each sample alone, then the mean, as MDLM reports it.
        distinct: Distinct-1 to -4 of the sampler's tokens, pooled over samples; None where all samples are shorter.
        samples: Number of samples, empty ones included.
        empty_samples: Samples without text; no number but `tokens_mean` and `tokens_range` has them.
        cut_samples: Samples longer than the judge's window.
        changed_samples: Samples that the judge's tokenizer does not give back as they were.
        tokens_mean: Mean length in the sampler's tokens.
        tokens_range: Shortest and longest.
        mauve: MAUVE, where an embedding was given.
    """

    judge: str
    judge_window_tokens: int
    judge_tokens: int
    loss_nats: Estimate
    bits_per_byte: Estimate
    entropy_nats: Estimate
    distinct: tuple[float | None, ...]
    samples: int
    empty_samples: int
    cut_samples: int
    changed_samples: int
    tokens_mean: float
    tokens_range: tuple[int, int]
    mauve: Mauve | None

    @property
    def perplexity(self) -> Estimate:
        """Generative perplexity, the exponential of `loss_nats`; its error is linearised."""
        value = math.exp(self.loss_nats.value)
        return Estimate(value, value * self.loss_nats.standard_error)


def quality(
    samples: Sequence[tuple[Sequence[int], str]],
    judge: Judge,
    *,
    embedding: Embedding | None = None,
    references: Sequence[str] = (),
    clusters: int | None = None,
) -> Quality:
    """Judge samples.

    Args:
        samples: Each sample's ids by the sampler's tokenizer, special ones left out, and its text.
        judge: Who judges; its own tokenizer cuts the text anew.
        embedding: For MAUVE; None leaves it out.
        references: Texts that the samples should be like, for MAUVE.
        clusters: k of MAUVE.

    Returns:
        The record.

    Raises:
        RecipeError: Fewer than two samples hold text, or MAUVE lacks texts.
        CheckpointError: The judge has no finite score for a sample.
    """
    written = [(ids, text) for ids, text in samples if text and len(ids)]
    if len(written) < 2:
        raise RecipeError(f"{len(written)} of {len(samples)} samples hold text; at least 2 are needed for an error")
    ids_S, texts = [ids for ids, _ in written], [text for _, text in written]
    coded_S = [judge.encode(text) for text in texts]
    nats_S = np.array([_judged(judge, coded) for coded in coded_S])
    tokens_S = np.array([len(coded) for coded in coded_S], float)
    bytes_S = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], float)
    lengths = [len(ids) for ids, _ in samples]
    return Quality(
        judge=judge.name,
        judge_window_tokens=judge.window_tokens,
        judge_tokens=int(tokens_S.sum()),
        loss_nats=_estimate(nats_S, tokens_S),
        bits_per_byte=_estimate(nats_S / math.log(2), bytes_S),
        entropy_nats=_estimate(np.array([entropy_nats(ids) for ids in ids_S]), np.ones(len(ids_S))),
        distinct=tuple(distinct(ids_S, size) for size in (1, 2, 3, 4)),
        samples=len(samples),
        empty_samples=len(samples) - len(written),
        cut_samples=int((tokens_S > judge.window_tokens).sum()),
        changed_samples=sum(judge.decode(coded) != text for coded, text in zip(coded_S, texts, strict=True)),
        tokens_mean=float(np.mean(lengths)),
        tokens_range=(min(lengths), max(lengths)),
        mauve=None if embedding is None else mauve(texts, references, embedding, clusters=clusters),
    )


def quality_lines(found: Quality) -> list[str]:
    """Write the record for people; perplexity and entropy share a line.

    Returns:
        Lines.
    """
    perplexity, entropy, bits = found.perplexity, found.entropy_nats, found.bits_per_byte
    shares = ", ".join("-" if share is None else f"{share:.3f}" for share in found.distinct)
    low, high = found.tokens_range
    lines = [
        f"generative perplexity {perplexity.value:.2f} +- {perplexity.standard_error:.2f}, unigram entropy "
        f"{entropy.value:.3f} +- {entropy.standard_error:.3f} nats per sample, distinct-1 to -4 {shares}",
        f"  {bits.value:.4f} +- {bits.standard_error:.4f} bits per byte, {found.loss_nats.value:.4f} nats per token",
        f"  judge {found.judge}: {found.judge_tokens:,} tokens, windows of {found.judge_window_tokens:,}",
        f"  {found.samples} samples of {found.tokens_mean:.1f} tokens ({low} to {high}); {found.empty_samples} empty, "
        f"{found.cut_samples} cut to the judge's window, {found.changed_samples} changed by its tokenizer",
    ]
    if found.mauve is not None:
        area = found.mauve
        lines.append(
            f"  MAUVE {area.value:.4f} (k = {area.clusters}, {area.samples} samples, {area.references} references, "
            f"embedding {area.embedding}); other embeddings, k and n give other values"
        )
    return lines


def _judged(judge: Judge, ids: list[int]) -> float:
    if not ids:
        raise CheckpointError(f"judge {judge.name}: its tokenizer finds no token in a sample; take another judge")
    size = judge.window_tokens
    nats = float(sum(judge.nats(ids[start : start + size]).sum() for start in range(0, len(ids), size)))
    if not math.isfinite(nats):
        raise CheckpointError(f"judge {judge.name}: has no finite score for a sample; its weights are not usable")
    return nats


def _estimate(above_S: Floats, below_S: Floats) -> Estimate:
    """Estimate a ratio of sums and its standard error (linearised, Cochran 1977, section 6.5)."""
    value, count = above_S.sum() / below_S.sum(), len(above_S)
    rest = ((above_S - value * below_S) ** 2).sum()
    return Estimate(float(value), float(math.sqrt(count / (count - 1) * rest) / below_S.sum()))


def entropy_nats(ids: Sequence[int]) -> float:
    """Give the entropy of a sample's own unigrams, in nats: at most ln of its length, 0 for one token repeated."""
    return sum(-count / len(ids) * math.log(count / len(ids)) for count in Counter(ids).values())


def distinct(samples: Sequence[Sequence[int]], size: int) -> float | None:
    """Give distinct n-grams over all n-grams of all samples (Li et al. 2016), or None where there are none."""
    grams = [tuple(ids[start : start + size]) for ids in samples for start in range(len(ids) - size + 1)]
    return len(set(grams)) / len(grams) if grams else None
