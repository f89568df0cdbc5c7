"""The plain loop that a step is measured against: transformers' own model, torch's AdamW, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from crossover.model.shapes import Shape


@dataclass
class PlainLoop:
    """A hand-written training loop around `LlamaForCausalLM`, as a tutorial would have it.

    Args:
        shape: Size of the model.
        precision: "float32" or "bfloat16" (autocast).
        compiled: Whether the model goes through torch.compile.
    """

    shape: Shape
    precision: str
    compiled: bool = False

    def __post_init__(self) -> None:
        shape = self.shape
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width,
            tie_word_embeddings=shape.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = LlamaForCausalLM(config).train()
        self.forward = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def autoregressive(self, window_BN: torch.Tensor) -> float:
        """Take a next-token step on BOS + T tokens; returns the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.forward(input_ids=window_BN[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), window_BN[:, 1:].flatten())
        return self._update(loss)

    def masked(self, window_BN: torch.Tensor, mask_id: int) -> float:
        """Take a masked-diffusion step with full attention and the head on all states; returns the loss."""
        tokens = window_BN[:, 1:]
        time = torch.rand(len(tokens), 1).clamp_min(1e-3)
        hidden = torch.rand(tokens.shape) < time
        inputs = torch.cat([window_BN[:, :1], torch.where(hidden, mask_id, tokens)], 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.forward(input_ids=inputs, is_causal=False, use_cache=False).logits[:, :-1]
            nll = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view_as(tokens)
            loss = (nll * hidden / time).sum() / tokens.numel()
        return self._update(loss)

    def block(self, window_BN: torch.Tensor, mask_id: int, size: int) -> float:
        """Take a block-diffusion step: both streams in one pass under a dense mask, the head on all noisy states."""
        tokens = window_BN[:, 1:]
        rows, context = tokens.shape
        time = torch.rand(rows, context // size, 1).clamp_min(1e-3)
        weight = (1 / time).expand(-1, -1, size).reshape(rows, context)
        hidden = torch.rand(tokens.shape) < time.expand(-1, -1, size).reshape(rows, context)
        inputs = torch.cat([torch.where(hidden, mask_id, tokens), tokens], 1)
        positions = torch.arange(context).repeat(2)[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.forward(
                input_ids=inputs, attention_mask=_dense_mask(context, size), position_ids=positions, use_cache=False
            ).logits[:, :context]
            nll = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view_as(tokens)
            loss = (nll * hidden * weight).sum() / tokens.numel()
        return self._update(loss)

    def _update(self, loss: torch.Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def _dense_mask(context: int, size: int) -> torch.Tensor:
    """Noisy tokens see their own noisy block and earlier clean blocks; clean tokens see clean blocks up to theirs."""
    index = torch.arange(2 * context)
    noisy, block = index < context, (index % context) // size
    query, key = index[:, None], index[None, :]
    own = noisy[query] & noisy[key] & (block[query] == block[key])
    prefix = noisy[query] & ~noisy[key] & (block[key] < block[query])
    clean = ~noisy[query] & ~noisy[key] & (block[key] <= block[query])
    return (own | prefix | clean)[None, None]
