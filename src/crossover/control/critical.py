"""The published compute at which masked training overtakes next-token training, as a prior."""

from __future__ import annotations

# C_crit(U) = 2.12 x 10^1.956 x U^2.174 (Prabhudesai et al., arXiv 2507.15857, section on critical compute).
PUBLISHED_COEFFICIENT, PUBLISHED_EXPONENT = 2.12 * 10**1.956, 2.174


def critical_compute_flops(unique_tokens: float) -> float:
    """Give the compute beyond which masked diffusion is expected to win on repeated text.

    C_crit(U) = 2.12 x 10^1.956 x U^2.174 (arXiv 2507.15857), fitted at 25M to 100M tokens against next-token runs
    without dropout. An order of magnitude at best: no interval is stated, and runs of others cross a factor of ten
    below it. At the scale of small runs it is an extrapolation by decades, so it is logged as a prior and decides
    nothing unless `critical_compute_factor` gives it weight.

    Args:
        unique_tokens: U, distinct training tokens.

    Returns:
        FLOPs by 6 x parameters x tokens.
    """
    return PUBLISHED_COEFFICIENT * unique_tokens**PUBLISHED_EXPONENT
