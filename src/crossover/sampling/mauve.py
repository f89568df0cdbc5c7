"""MAUVE: how alike two sets of texts are, as an area under the curve of their divergences (Pillutla et al. 2021).

Suffixes: P texts of one set, Q of the other, E of both, D width, K clusters, L mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RecipeError
from crossover.sampling.judges import Embedding
from crossover.streams import stream

Floats = NDArray[np.float64]
# The paper's c, and points on the curve beside its two ends.
SCALING, CURVE_POINTS = 5.0, 25
# k-means: the best of so many starts, each of at most so many rounds.
_STARTS, _ROUNDS = 5, 100


@dataclass(frozen=True)
class Mauve:
    """MAUVE with what its value depends on: values of another embedding, k or n must not be compared.

    Args:
        value: Area under the divergence curve, in (0, 1]; 1 where samples and references fill all clusters alike.
        embedding: The embedding's name.
        clusters: k.
        samples: Number of samples.
        references: Number of references.
    """

    value: float
    embedding: str
    clusters: int
    samples: int
    references: int


def mauve(
    samples: Sequence[str],
    references: Sequence[str],
    embedding: Embedding,
    *,
    clusters: int | None = None,
    seed: int = 0,
) -> Mauve:
    """Compare samples with references.

    The value depends on the embedding, on k and on n: few texts in many clusters look unlike by chance. Points are
    scaled to length 1 and not reduced first, so values of other programs differ as well.

    Args:
        samples: Generated texts.
        references: Texts that they should be like.
        embedding: Turns texts into points.
        clusters: k; None takes a tenth of the smaller set, as the paper does, and at least 2.
        seed: Seed of the clustering.

    Returns:
        The value and what it depends on.

    Raises:
        RecipeError: There are fewer texts on a side than clusters.
    """
    fewest = min(len(samples), len(references))
    count = max(2, round(fewest / 10)) if clusters is None else clusters
    if not 2 <= count <= fewest:
        raise RecipeError(
            f"MAUVE of {len(samples)} samples and {len(references)} references in {count} clusters: at least 2 "
            f"clusters are needed, and no more than there are texts on either side"
        )
    points_ED = embedding.embed([*samples, *references])
    lengths_E = np.linalg.norm(points_ED, axis=1, keepdims=True)
    labels_E = cluster(points_ED / np.maximum(lengths_E, 1e-12), count, seed=seed)
    left, right = labels_E[: len(samples)], labels_E[len(samples) :]
    shares = [np.bincount(labels, minlength=count) / len(labels) for labels in (left, right)]
    return Mauve(area(*shares), embedding.name, count, len(samples), len(references))


def area(first_K: Floats, second_K: Floats, *, scaling: float = SCALING) -> float:
    """Give the area under the divergence curve of two distributions (Pillutla et al. 2021, equations 1 and 2).

    The curve holds (exp(-c KL(Q|R)), exp(-c KL(P|R))) for all mixtures R of P and Q, and ends in (0, 1) and (1, 0).

    Args:
        first_K: P, a distribution over clusters.
        second_K: Q.
        scaling: c.

    Returns:
        A number in (0, 1]; 1 for equal distributions.
    """
    weights_L = np.linspace(1, 0, CURVE_POINTS + 2)[1:-1, None]
    mixtures_LK = weights_L * first_K + (1 - weights_L) * second_K
    x, y = (np.exp(-scaling * _divergence(kind_K, mixtures_LK)) for kind_K in (second_K, first_K))
    return float(np.trapezoid(np.concatenate([[1.0], y, [0.0]]), np.concatenate([[0.0], x, [1.0]])))


def _divergence(kind_K: Floats, mixtures_LK: Floats) -> Floats:
    """Give KL(kind | mixture) in nats for each mixture; it is finite, because each mixture holds all of the kind."""
    held = kind_K > 0
    return (kind_K[held] * np.log(kind_K[held] / mixtures_LK[:, held])).sum(1)


def cluster(points_ED: Floats, count: int, *, seed: int) -> NDArray[np.int64]:
    """Assign points to clusters by k-means (Lloyd 1982) from k-means++ starts (Arthur and Vassilvitskii 2007).

    Args:
        points_ED: The points.
        count: K.
        seed: Seed of the starts.

    Returns:
        The cluster [E] of each point, of the start with the smallest sum of squared distances.
    """
    best, labels = np.inf, np.zeros(len(points_ED), np.int64)
    for start in range(_STARTS):
        found, spread = _lloyd(points_ED, _centres(points_ED, count, stream(seed, "mauve", start)))
        if spread < best:
            best, labels = spread, found
    return labels


def _centres(points_ED: Floats, count: int, rng: np.random.Generator) -> Floats:
    centres = [points_ED[rng.integers(len(points_ED))]]
    nearest_E = ((points_ED - centres[0]) ** 2).sum(1)
    for _ in range(count - 1):
        total = nearest_E.sum()
        # Where all points lie on centres any will do; its cluster stays empty, which changes no divergence.
        index = rng.choice(len(points_ED), p=nearest_E / total if total > 0 else None)
        centres.append(points_ED[index])
        nearest_E = np.minimum(nearest_E, ((points_ED - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def _lloyd(points_ED: Floats, centres_KD: Floats) -> tuple[NDArray[np.int64], float]:
    labels_E = np.full(len(points_ED), -1)
    spread = np.inf
    for _ in range(_ROUNDS):
        # Squared distances less what a point has in common with itself.
        away_EK = (centres_KD**2).sum(1) - 2 * points_ED @ centres_KD.T
        found_E = away_EK.argmin(1)
        spread = float(away_EK.min(1).sum())
        if np.array_equal(found_E, labels_E):
            break
        labels_E = found_E
        centres_KD = centres_KD.copy()
        for index in np.unique(labels_E):
            centres_KD[index] = points_ED[labels_E == index].mean(0)
    return labels_E, spread
