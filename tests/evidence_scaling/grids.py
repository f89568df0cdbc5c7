"""Points drawn from a known law, as a study would measure them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossover.evidence.scaling.fit import FittedLaw, fit_law
from crossover.evidence.scaling.laws import MUENNIGHOFF, Constants, Point
from crossover.streams import stream

# Of the size and span of Muennighoff et al.'s runs: 119 runs, 7M to 4B parameters, 100M to 25B unique tokens, up to 40
# epochs, none above 2e22 FLOPs.
SIZES = (7e6, 3e7, 1.2e8, 4e8, 1.2e9, 4e9)
TEXTS = (1e8, 4e8, 1.5e9, 6e9, 2.5e10)
EPOCHS = (1.0, 4.0, 12.0, 40.0)
# Runs that differ in the seed alone differ by a few thousandths of their loss.
NOISE = 0.003

# The reuse constants of Prabhudesai et al. (arXiv 2507.15857, table 1b) on a shared E, alpha and beta, with
# beta / alpha = 1.174, so that critical compute grows as U^2.174 exactly.
AUTOREGRESSIVE = Constants(1.8, 400.0, 0.34, 1500.0, 0.34 * 1.174, 31.19, 55.16)
DIFFUSION = replace(AUTOREGRESSIVE, size_coefficient=520.0, data_coefficient=2600.0, data_reuse=493.89, size_reuse=1266)
SMALL_SIZES = (3e5, 1e6, 4e6, 1.6e7, 6.4e7, 2.5e8, 1e9)
SMALL_TEXTS = (1e6, 4e6, 1.6e7, 1e8)


def measured(
    law: Constants = MUENNIGHOFF,
    *,
    case: int = 0,
    noise: float = NOISE,
    sizes: Sequence[float] = SIZES,
    texts: Sequence[float] = TEXTS,
    epochs: Sequence[float] = EPOCHS,
    most_flops: float = 2e22,
    family: str = "autoregressive",
) -> list[Point]:
    """Draw one run per size, text and number of epochs; noise has heavy tails (Student's t, 5 degrees)."""
    rng = stream(case, f"test/{family}")
    points = []
    for unique in texts:
        for size in sizes:
            for count in epochs:
                if 6 * size * unique * count <= most_flops:
                    error = noise * rng.standard_t(5) / np.sqrt(5 / 3)
                    loss = float(law.loss_nats(size, unique, unique * count)) * np.exp(error)
                    name = f"{size:g}-{unique:g}-{count:g}"
                    points.append(Point(size, unique, unique * count, loss, family, case, name))
    return points


def small(law: Constants, family: str, *, case: int = 0, noise: float = NOISE) -> list[Point]:
    """Draw the grid of a study of data-constrained training: 1M to 100M unique tokens, up to 800 epochs."""
    epochs = (1.0, 4.0, 16.0, 60.0, 200.0) if family == "autoregressive" else (1.0, 8.0, 40.0, 200.0, 800.0)
    return measured(
        law, case=case, noise=noise, sizes=SMALL_SIZES, texts=SMALL_TEXTS, epochs=epochs, most_flops=3e20, family=family
    )


def exactly(law: Constants, family: str = "autoregressive") -> FittedLaw:
    """Give a fitted law whose constants and draws are exactly those given."""
    fitted = fit_law(measured(noise=1e-3, sizes=SIZES[:4], texts=TEXTS[:3], family=family), draws=20)
    return replace(fitted, constants=law, draws_KP=np.repeat(law.theta()[None], 20, axis=0))
