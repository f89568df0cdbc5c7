"""Next-token generation with transformers' key-value cache.

Suffixes: B texts, N new inputs, K inputs so far, R read states.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossover.model.backbone import Backbone
from crossover.sampling.cached import CachedBody
from crossover.sampling.canvas import Row, permitted, put
from crossover.sampling.picking import Picking
from crossover.sampling.prices import Prices
from crossover.sampling.reading import Reading
from crossover.sampling.record import OnChange
from crossover.sampling.sampler import Sampler


@dataclass(frozen=True)
class AutoregressiveSampler(Sampler):
    """Draws one token after the other, each from the tokens before it.

    Args:
        picking: How a token is drawn.
        cached: Whether keys and values of earlier tokens are kept; False computes them again in each pass.
    """

    picking: Picking = field(default_factory=Picking)
    cached: bool = True

    @property
    def fills_holes(self) -> bool:
        """Nothing is seen behind a hole, so none is filled."""
        return False

    def draw(self, model: Backbone, rows: list[Row], reading: Reading | None, on_change: OnChange | None) -> None:
        """Draw one token of every text in each pass. See `Sampler.draw`."""
        live = [row for row in rows if row.holes]
        prices, body, pads = Prices.of(model), CachedBody(model), [0]
        starts, drawn = {row.number: _document_start(row) for row in live}, 0
        while live:
            if drawn == 0 or not self.cached:
                body = CachedBody(model)
                texts = [[model.vocabulary.bos_id, *row.window[: row.open + drawn]] for row in live]
                texts = [text[starts[row.number] :] for row, text in zip(live, texts, strict=True)]
                longest = max(map(len, texts))
                pads = [longest - len(text) for text in texts]
            else:
                texts = [[row.window[row.open + drawn - 1]] for row in live]
            positions = [row.open + drawn + 1 - len(text) for row, text in zip(live, texts, strict=True)]
            before = len(body)
            states_RD = _run(body, texts, positions, pads, model.vocabulary.bos_id)
            for row, text, pad in zip(live, texts, pads, strict=True):
                row.charge(prices.next_tokens(len(text), max(0, before - pad)))
            asks = [(row, [row.open + drawn]) for row in live]
            put(asks, permitted(asks, model.logits(states_RD).cpu()), self.picking)
            drawn += 1
            keep = [index for index, row in enumerate(live) if not _ended(row, drawn, reading, on_change)]
            if self.cached and 0 < len(keep) < len(live):
                body.select(keep)
            live, pads = [live[index] for index in keep], [pads[index] for index in keep]


def _document_start(row: Row) -> int:
    """Give the first input that the text to be drawn may see: BOS, or the last end of a document before it."""
    words = row.vocabulary
    if not words.separate_documents or words.eos_id not in row.window:
        return 0
    return row.open - row.window[: row.open][::-1].index(words.eos_id)


def _run(body: CachedBody, texts: list[list[int]], positions: list[int], pads: list[int], filler: int) -> Tensor:
    """Run the new inputs of texts that end together; the shorter ones begin later, behind padding."""
    new = max(map(len, texts))
    short = torch.tensor([new - len(text) for text in texts])
    inputs_BN = torch.tensor([[filler] * (new - len(text)) + text for text in texts])
    positions_BN = (torch.tensor(positions) - short)[:, None] + torch.arange(new)
    count = len(body) + new
    seen_BNK = None
    if new > 1 or any(pads):
        key_K, query_N1, pads_B11 = torch.arange(count), torch.arange(count - new, count)[:, None], torch.tensor(pads)
        pads_B11 = pads_B11[:, None, None]
        # Padding sees padding, so that its states stay numbers; nobody else sees it.
        seen_BNK = (key_K <= query_N1) & ((key_K >= pads_B11) | (query_N1 < pads_B11))
    reads_R = torch.arange(1, len(texts) + 1) * new - 1
    return body.run(inputs_BN, positions_BN.clamp(min=0), seen_BNK, reads_R)


def _ended(row: Row, drawn: int, reading: Reading | None, on_change: OnChange | None) -> bool:
    end = row.open + drawn
    if on_change is not None:
        on_change(row.number, row.window[:end])
    is_last = row.window[end - 1] in row.ends
    if is_last or (reading is not None and reading.may_stop(row.window, row.open, end)):
        return row.close(end, reading) or drawn == len(row.holes)
    return drawn == len(row.holes)
