"""Parameter noise: a training step that looks at weights a little off the ones that it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crossover.model.sharding import local, part_of
from crossover.streams import torch_seed


def noisy_names(model: nn.Module) -> list[str]:
    """Name the weights that noise acts on: the matrices of the layers, routers and experts included, no norms.

    Args:
        model: A transformers causal language model.

    Returns:
        Names in the model's order.
    """
    return [name for name, weight in model.named_parameters() if ".layers." in name and weight.dim() >= 2]


@contextmanager
def perturbed(model: nn.Module, deviation: float, seed: int, step: int) -> Iterator[None]:
    """Multiply every weight of the layers' matrices by 1 + deviation x a standard normal number, while it lasts.

    This is Gaussian dropout of weights (Srivastava et al., JMLR 15, 2014, section 10; Wan et al., ICML 2013 drop them):
    a deviation of sqrt(p / (1 - p)) has the variance of dropping weights at rate p. The noise is relative, so that one
    setting suits all matrices, and it is one draw for a whole step: all its micro-batches, and all ranks, see the same
    weights. Gradients are those at the noisy weights; whoever applies them does so to the clean ones, which are put
    back as they were, bit for bit. Held for that, the clean matrices take the room of the weights once more. Where the
    weights are spread over processes, each draws the noise of a whole matrix and keeps its own part.

    Args:
        model: A transformers causal language model, changed in place.
        deviation: Standard deviation of the factors; 0 does nothing.
        seed: The recipe's seed.
        step: The optimizer step; on one kind of device, the noise is a function of seed, step and the weight's name.

    Yields:
        Nothing.
    """
    weights = dict(model.named_parameters()) if deviation > 0 else {}
    clean: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name in noisy_names(model) if deviation > 0 else ():
                mine = local(weights[name])
                clean[name] = mine.clone()
                noise = _normal(weights[name], torch_seed(seed, f"parameter noise/{name}", step))
                mine.mul_(1 + deviation * part_of(noise, weights[name]))
        yield
    finally:
        with torch.no_grad():
            for name, kept in clean.items():
                local(weights[name]).copy_(kept)


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
