"""What a step is measured against: a plain loop around transformers' model, and diffusion as the field writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from crossover.model.attention import mask_NN
from crossover.model.shapes import Shape
from crossover.records import Example


@dataclass
class PlainLoop:
    """A hand-written training loop around `LlamaForCausalLM`, as a tutorial would have it; not tuned.

    Args:
        shape: Size of the model.
        precision: "float32" or "bfloat16" (autocast).
        compiled: Whether the model goes through torch.compile.
    """

    shape: Shape
    precision: str
    compiled: bool = False
    model: Any = field(init=False)

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
            rms_norm_eps=1e-5,
            tie_word_embeddings=shape.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = LlamaForCausalLM(config).train()
        self.forward = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step(self, example: Example) -> float:
        """Take a next-token step on BOS + T tokens; returns the loss."""
        inputs, targets = torch.from_numpy(np.array(example.inputs_BN)), torch.from_numpy(example.targets_R)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.forward(input_ids=inputs, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets)
        return self.update(loss)

    def update(self, loss: torch.Tensor) -> float:
        """Go back through the loss and take an optimizer step; returns the loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


@dataclass
class FieldStyle(PlainLoop):
    """A diffusion step with the structure that public code bases share.

    Eager; one pass over both streams under a dense mask; the head on every state; log-probabilities of the whole
    vocabulary for every state; states that predict nothing are overwritten by boolean indices, so that their loss is 0.
    The states, masks and weights are those of the library's example, so that both losses are the same number.

    Args:
        predictable: Ids below this can be predicted.
    """

    predictable: int = 0

    def step(self, example: Example) -> float:
        """Take a step on an example; returns the loss."""
        return self.update(self.loss(example))

    def loss(self, example: Example) -> torch.Tensor:
        """Compute the loss of an example, nats per data token."""
        inputs_BN = torch.from_numpy(np.array(example.inputs_BN))
        target_BN, weight_BN = inputs_BN.clone(), torch.zeros(inputs_BN.shape)
        assert example.reads_R is not None
        live = example.weights_R > 0
        reads = torch.from_numpy(example.reads_R[live])
        target_BN.view(-1)[reads] = torch.from_numpy(example.targets_R[live])
        weight_BN.view(-1)[reads] = torch.from_numpy(example.weights_R[live])
        unread_BN = weight_BN == 0
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits_BNV = self._logits(example, inputs_BN).float()
            logits_BNV[:, :, self.predictable :] = float("-inf")
            log_p_BNV = logits_BNV - torch.logsumexp(logits_BNV, dim=-1, keepdim=True)
            log_p_BNV[unread_BN] = -1e6
            log_p_BNV[unread_BN, target_BN[unread_BN]] = 0.0
            log_p_BN = torch.gather(log_p_BNV, -1, target_BN[:, :, None]).squeeze(-1)
            return -(log_p_BN * weight_BN).sum() / example.data_tokens

    def _logits(self, example: Example, inputs_BN: torch.Tensor) -> torch.Tensor:
        inputs = inputs_BN.shape[1]
        positions = torch.from_numpy(np.array(example.positions_BN[:1]))
        if example.pattern.kind == "full":
            return self.model(input_ids=inputs_BN, position_ids=positions, is_causal=False, use_cache=False).logits
        mask = mask_NN(example.pattern, inputs)[None, None]
        return self.model(input_ids=inputs_BN, position_ids=positions, attention_mask=mask, use_cache=False).logits
