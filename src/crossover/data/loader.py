"""From packed text to the batch of a step and slice: a pure function, in which every epoch sees every token once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from crossover.errors import DataError
from crossover.streams import digest, stream

# Shape suffixes: U unique tokens, B windows of a slice, T tokens of a window.

# An epoch's order can be large, and a batch needs at most the present and the next one.
_KEPT_ORDERS = 3


class Loader:
    """Serves windows of packed text.

    The run consumes an endless sequence of tokens. Positions [e*U, (e+1)*U) of it are epoch e: the text, rotated
    cyclically by an offset drawn for that epoch. Window w is positions [w*T, (w+1)*T). The windows that lie wholly
    inside an epoch come in an order drawn for that epoch; a window that straddles a border stays where it is, so the
    end of one epoch and the beginning of the next share it. Any U positions that make up an epoch therefore hold
    every token exactly once, for every U and T, and nothing depends on how a step is cut into slices.

    Args:
        tokens_U: The packed text, documents ended by EOS.
        context: Tokens of a window, T.
        batch_tokens: Tokens of a step.
        slice_tokens: Tokens of a slice, the unit in which a step is served.
        seed: The recipe's seed.

    Raises:
        DataError: There is no text.
        ValueError: The sizes do not divide one another.
    """

    def __init__(
        self, tokens_U: NDArray[np.integer], *, context: int, batch_tokens: int, slice_tokens: int, seed: int
    ) -> None:
        if len(tokens_U) == 0:
            raise DataError("there is no training text; raise data.unique_tokens or lower data.control_share")
        if context < 1 or slice_tokens < 1 or slice_tokens % context or batch_tokens % slice_tokens:
            raise ValueError(
                f"context {context} must divide slice_tokens {slice_tokens}, which must divide {batch_tokens}"
            )
        self.tokens_U = tokens_U
        self.context = context
        self.windows_per_slice = slice_tokens // context
        self.slices_per_step = batch_tokens // slice_tokens
        self.seed = seed
        self._orders: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def batch(self, step: int, slice_index: int) -> NDArray[np.int64]:
        """Serve one slice of one step.

        Args:
            step: Which step, from 0.
            slice_index: Which slice of the step, from 0.

        Returns:
            Token ids [B, T], without BOS; a function of the seed, the step and the slice alone.

        Raises:
            IndexError: There is no such step or slice.
        """
        if step < 0 or not 0 <= slice_index < self.slices_per_step:
            raise IndexError(f"no slice {slice_index} of step {step}; a step has {self.slices_per_step}")
        first = (step * self.slices_per_step + slice_index) * self.windows_per_slice
        return np.stack([self.window(first + row) for row in range(self.windows_per_slice)])

    def window(self, number: int) -> NDArray[np.int64]:
        """Serve one window of the run.

        Args:
            number: Which window, from 0, counted over the whole run.

        Returns:
            Token ids [T].
        """
        return self.tokens_U[self.indices(number)].astype(np.int64)

    def batch_indices(self, step: int, slice_index: int) -> NDArray[np.int64]:
        """Say which tokens of the text one slice of one step is made of.

        Args:
            step: Which step, from 0.
            slice_index: Which slice of the step, from 0.

        Returns:
            Places in `tokens_U` [B, T]; `batch` serves the tokens that lie there.
        """
        first = (step * self.slices_per_step + slice_index) * self.windows_per_slice
        return np.stack([self.indices(first + row) for row in range(self.windows_per_slice)])

    def indices(self, number: int) -> NDArray[np.int64]:
        """Say which tokens of the text one window of the run is made of.

        Args:
            number: Which window, from 0, counted over the whole run.

        Returns:
            Places in `tokens_U` [T].
        """
        size, length = len(self.tokens_U), self.context
        epoch = number * length // size
        if (number + 1) * length > (epoch + 1) * size:
            return self._straddling(number)
        first = -(-epoch * size // length)
        number = first + int(self._order(epoch)[number - first])
        return (np.arange(number * length, (number + 1) * length) + self._offset(epoch)) % size

    def _straddling(self, number: int) -> NDArray[np.int64]:
        position_T = np.arange(number * self.context, (number + 1) * self.context)
        epoch_T = position_T // len(self.tokens_U)
        offset_E = np.array([self._offset(epoch) for epoch in range(int(epoch_T[0]), int(epoch_T[-1]) + 1)])
        return (position_T + offset_E[epoch_T - epoch_T[0]]) % len(self.tokens_U)

    def _offset(self, epoch: int) -> int:
        return digest(self.seed, "epoch", epoch) % len(self.tokens_U)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Order in which the epoch's whole windows come."""
        if epoch not in self._orders:
            size, length = len(self.tokens_U), self.context
            whole = (epoch + 1) * size // length + -epoch * size // length
            self._orders[epoch] = stream(self.seed, "window order", epoch).permutation(whole)
            while len(self._orders) > _KEPT_ORDERS:
                self._orders.popitem(last=False)
        self._orders.move_to_end(epoch)
        return self._orders[epoch]

    def data_order_hash(self, windows: int = 64) -> str:
        """Hash the first windows of the run, to prove that two runs read the same text in the same order.

        Args:
            windows: How many windows.

        Returns:
            16 hexadecimal digits, independent of how steps are cut into slices.
        """
        order = hashlib.sha256()
        for number in range(windows):
            order.update(self.window(number).astype("<i8").tobytes())
        return order.hexdigest()[:16]
