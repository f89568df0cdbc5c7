"""When a run asks its controller, and until when it may do what it says."""

from __future__ import annotations

# A run asks its controller so often while it sees the text once.
DECISIONS_PER_EPOCH = 16


def unreachable_change(wanted_epochs: float, tokens: float, decay_from: float, unique_tokens: int) -> str:
    """Say why a planned change of the mix would never come: the mix is frozen while the learning rate decays.

    Args:
        wanted_epochs: When the controller first wants to change the mix; 0 where it does not say.
        tokens: Data tokens that the budget buys at most.
        decay_from: Share of the budget at which the decay begins.
        unique_tokens: Tokens of an epoch.

    Returns:
        A sentence with what to change, or "" where the change is reached.
    """
    reached = tokens * decay_from / unique_tokens
    if wanted_epochs <= 0 or wanted_epochs < reached:
        return ""
    return (
        f"controller: the mix should change at {wanted_epochs:g} epochs, but the budget buys at most {reached:.3g} "
        "before the learning rate decays and the mix is frozen; change it earlier, or raise the budget"
    )
