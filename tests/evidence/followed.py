"""Seeds that were followed until they crossed or were censored, written as signed times; negative: censored."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from scipy import stats

from crossover.evidence.censored import Passage

# Weeks of remission of 42 children (Freireich et al. 1963), the textbook example.
DRUG = (6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35)
PLACEBO = (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)

signed_times = st.lists(
    st.integers(1, 12).flatmap(lambda at: st.sampled_from([at, -at])), min_size=2, max_size=14
).filter(lambda times: any(at > 0 for at in times))


def passages(signed: Sequence[float]) -> list[Passage]:
    """Number the seeds."""
    return [Passage(seed, float(abs(at)), at > 0) for seed, at in enumerate(signed)]


def censored_data(signed: Sequence[float]) -> stats.CensoredData:
    """Write them as scipy does."""
    return stats.CensoredData(uncensored=[at for at in signed if at > 0], right=[-at for at in signed if at < 0])
