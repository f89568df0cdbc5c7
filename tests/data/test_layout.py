"""Where ids lie: the mask after everything else at a multiple of 16, and rows of the embedding in multiples of 64."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crossover.data.layout import ALIGNED, ROWS, SPECIALS, mask_after, rows_up_to
from crossover.data.tokenizer import Bytes


@given(st.integers(1, 1_000_000))
def test_the_mask_is_the_first_aligned_id_that_is_free(pieces: int) -> None:
    mask = mask_after(pieces)
    assert mask % ALIGNED == 0 and pieces <= mask < pieces + ALIGNED
    rows = rows_up_to(mask)
    assert rows % ROWS == 0 and mask < rows <= mask + ROWS


def test_a_tokenizer_is_laid_out_so() -> None:
    words = Bytes().fit(()).vocabulary
    assert words.mask_id == words.predictable == mask_after(256 + SPECIALS) == 272
    assert words.size == rows_up_to(words.mask_id) == 320
