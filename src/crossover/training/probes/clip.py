"""Which clip window makes a block model's loss vary least (Arriola et al. 2025, arXiv 2503.09573, section 5.3).

Suffixes: B windows of text, K blocks of all of them, S tokens of a block, T data tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.objectives.block import Block, lay_out
from crossover.objectives.schedules import Clipped
from crossover.objectives.windows import strata
from crossover.records import Pattern
from crossover.scoring.likelihood import sum_nats
from crossover.scoring.procedures import INPUTS_PER_PASS, Rows
from crossover.streams import stream
from crossover.training.probes.bench import Bench, Now, draw_windows

WINDOWS = 16


@dataclass(frozen=True)
class ClipProbe:
    """Var[NELBO] over blocks of control text for a grid of clip windows, forward only.

    Masks are paired: a block has one u and its tokens one r each, and under every clip window [beta, omega] the tokens
    with r < beta + (omega - beta) u are hidden. Text, u and r are the same every time.

    Args:
        bench: What probes work with.
        gear: A block objective, longer than one token and shorter than the window.
        every_tokens: Fewest data tokens between two rows.
    """

    bench: Bench
    gear: str
    every_tokens: float
    kind = "clip"

    @property
    def block(self) -> Block:
        """The gear."""
        found = self.bench.objective(self.gear)
        assert isinstance(found, Block)
        return found

    def cost(self, now: Now) -> float:
        """Count the FLOPs of a row in closed form: a forward pass per clip window, the expected states read."""
        tokens = self._tokens_BT.size
        return tokens * sum(
            self.bench.forward_price(Block(self.block.size, "bernoulli", Clipped(*window), clean=self.block.clean))
            for window in clip_windows()
        )

    def measure(self, now: Now) -> dict[str, Any]:
        """Score all blocks under every clip window."""
        windows = clip_windows()
        variance = [float(self.nats_K(*window).var(ddof=1)) for window in windows]
        return {"gear": self.gear, "windows": [list(window) for window in windows], "variance": variance}

    def nats_K(self, beta: float, omega: float) -> NDArray[np.float64]:
        """Compute the weighted loss of every block, nats per data token.

        Args:
            beta: Lowest mask rate.
            omega: Highest mask rate.

        Returns:
            One value per block.
        """
        u_K, r_KS = self._draws
        rate_K = beta + (omega - beta) * u_K
        rows = self._rows(r_KS < rate_K[:, None], 1 / (rate_K * self.block.size))
        return sum_nats(self.bench.model, rows, len(u_K), self.bench.precision)

    @cached_property
    def _tokens_BT(self) -> NDArray[np.int64]:
        control_U, context = self.bench.control_U, self.bench.context
        count = min(WINDOWS, max(1, len(control_U) // context))
        return draw_windows(control_U, count, context, stream(0, "probe clip windows"))

    @cached_property
    def _draws(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        blocks, rng = self._tokens_BT.size // self.block.size, stream(0, "probe clip masks", self.block.size)
        # The smallest time is the one of training.
        u_K = self.block.eps + (1 - self.block.eps) * strata(blocks, rng)
        return u_K, rng.random((blocks, self.block.size))

    def _rows(self, hidden_KS: NDArray[np.bool_], weight_K: NDArray[np.float64]) -> Iterator[Rows]:
        size, context = self.block.size, self.bench.context
        blocks = context // size
        clean = context - size
        kind = "causal" if self.block.clean == "causal" else "block_causal"
        each = max(1, INPUTS_PER_PASS // (clean + blocks * (size + 1)))
        for start in range(0, len(self._tokens_BT), each):
            tokens_BT = self._tokens_BT[start : start + each]
            hidden_BT = hidden_KS.reshape(-1, context)[start : start + each]
            layout = lay_out(tokens_BT, hidden_BT, size, clean, self.bench.vocabulary)
            row, token = np.nonzero(hidden_BT)
            block = (start + row) * blocks + token // size
            yield Rows(
                inputs_QN=layout.inputs_BN,
                positions_N=layout.positions_N,
                pattern=Pattern("two_stream", size, clean, kind),
                documents_QN=layout.documents_BN,
                reads_R=row * layout.inputs_BN.shape[1] + layout.read_T[token],
                targets_R=tokens_BT[row, token],
                weights_R=weight_K[block],
                windows_R=block,
            )


def clip_windows() -> list[tuple[float, float]]:
    """List the clip windows: all mask rates, and widths from a half to nine tenths at every tenth."""
    inside = [(first / 10, (first + width) / 10) for width in range(5, 10) for first in range(11 - width)]
    return [(0.0, 1.0), *inside]


def takes_clip(objective: Any, context: int) -> bool:
    """Say whether an objective has blocks between one token and the whole window."""
    return isinstance(objective, Block) and 1 < objective.size < context
