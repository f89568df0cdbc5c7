"""The backbone: transformers' own causal language model in one thin module that ends in the loss.

Suffixes: B batch, N inputs, R read states, D width, P predictable vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config, Qwen3MoeConfig

from crossover.model import attention, experts
from crossover.model.layers import Pieces, can_drive
from crossover.model.loss import nll_R, weighted_nll
from crossover.model.routing import Reads, Routed, RouterLosses, Routing
from crossover.model.shapes import SPARSE, Shape
from crossover.model.sharding import ALONE
from crossover.records import Pattern, Vocabulary
from crossover.streams import torch_seed


class Backbone(nn.Module):
    """Body, gather of the read states, head and weighted loss, in one forward.

    Args:
        inner: A transformers causal language model whose attention is `attention.NAME`.
        vocabulary: What the tokenizer says; the head computes its predictable ids only.
        residual_dropout: Dropout at the output projections of attention and MLP; of experts, at their sum.
        router_losses: Factors on the auxiliary losses, which act in training only; None without experts.
    """

    def __init__(
        self,
        inner: PreTrainedModel,
        vocabulary: Vocabulary,
        residual_dropout: float = 0.0,
        router_losses: RouterLosses | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.vocabulary = vocabulary
        self.pieces = Pieces() if can_drive(inner) else None
        self.residual_dropout = residual_dropout
        if residual_dropout > 0:
            for name, module in inner.named_modules():
                if name.endswith((".self_attn.o_proj", ".mlp.down_proj", ".mlp.experts")):
                    module.register_forward_hook(self._drop)
        # Who else trains it; `crossover.model.sharding.shard` says so.
        self.world = ALONE
        self.routing = None
        if router_losses is not None:
            self.routing = Routing(router_losses, self.shape.depth, self.shape.experts)

    def _drop(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Read anew at each pass: a controller may raise the rate as the text wears out.
        return F.dropout(output, p=self.residual_dropout, training=module.training)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.inner.device

    @property
    def context(self) -> int:
        """T, the data tokens of the window that there are positions for; BOS has one of its own."""
        return int(self.inner.config.max_position_embeddings) - 1

    @property
    def shape(self) -> Shape:
        """The size, as FLOPs are counted from it."""
        config = self.inner.config
        sparse = config.model_type == SPARSE
        return Shape(
            family=config.model_type,
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp_width=0 if sparse else config.intermediate_size,
            tied=config.tie_word_embeddings,
            experts=config.num_experts if sparse else 0,
            experts_per_token=config.num_experts_per_tok if sparse else 0,
            expert_width=config.moe_intermediate_size if sparse else 0,
        )

    def plan(
        self, pattern: Pattern, inputs: int, documents_BN: Tensor | None = None, first_read: int = 0
    ) -> attention.Plan:
        """Make a pattern ready for this model.

        Args:
            pattern: Who sees whom.
            inputs: Input positions N.
            documents_BN: Document number of each input, or None.
            first_read: No state before this input is read.

        Returns:
            The plan to hand to `states` or `forward`.
        """
        dropout = float(getattr(self.inner.config, "attention_dropout", 0.0)) if self.training else 0.0
        low = torch.is_autocast_enabled(self.device.type)
        back_end = attention.choose_back_end(pattern, inputs, self.device, low_precision=low, dropout=dropout)
        if documents_BN is not None:
            plan = attention.make_document_plan(pattern, documents_BN, torch.float32, back_end)
        else:
            plan = attention.make_plan(pattern, inputs, self.device, torch.float32, back_end)
        return replace(plan, first_read=first_read) if first_read else plan

    def states(self, inputs_BN: Tensor, positions_BN: Tensor, plan: attention.Plan) -> Tensor:
        """Run the body.

        Args:
            inputs_BN: Token ids.
            positions_BN: Rotary positions, [1 or B, N].
            plan: The pattern, made ready.

        Returns:
            [B, N, D] final states; state i is trained to predict the token after position i.
        """
        return self._run(inputs_BN, positions_BN, plan, None)[0].unflatten(0, inputs_BN.shape)

    def read_states(
        self, inputs_BN: Tensor, positions_BN: Tensor, plan: attention.Plan, reads_R: Tensor | None
    ) -> Tensor:
        """Run the body for the states that are read.

        Args:
            inputs_BN: Token ids.
            positions_BN: Rotary positions, [1 or B, N].
            plan: The pattern, made ready.
            reads_R: Flat indices of the states that are read, or None for all of them.

        Returns:
            [R, D] final states.
        """
        return self._run(inputs_BN, positions_BN, plan, reads_R)[0]

    def _run(
        self, inputs_BN: Tensor, positions_BN: Tensor, plan: attention.Plan, reads_R: Tensor | None
    ) -> tuple[Tensor, tuple[Routed, ...]]:
        if self.pieces is not None:
            # Graphs are compiled for training; scoring would need others of its own.
            pieces = self.pieces if torch.is_grad_enabled() else Pieces()
            return pieces.run(self.inner, inputs_BN, positions_BN, plan, reads_R)
        body: Any = self.inner.model
        # The plan is the mask. A mask of four dimensions is passed on as it is; without one, transformers would build
        # its own, and wait for the device to say whether positions restart.
        no_mask = inputs_BN.new_zeros((1, 1, 1, 1))
        states_MD = body(
            input_ids=inputs_BN, position_ids=positions_BN, attention_mask=no_mask, use_cache=False, plan=plan
        ).last_hidden_state.flatten(0, 1)
        return (states_MD if reads_R is None else states_MD.index_select(0, reads_R)), ()

    @property
    def head_PD(self) -> Tensor:
        """The output embedding's rows of predictable ids."""
        head: Any = self.inner.get_output_embeddings()
        return head.weight[: self.vocabulary.predictable]

    def logits(self, states_RD: Tensor) -> Tensor:
        """Apply the head.

        Args:
            states_RD: States, [..., D].

        Returns:
            [..., P] float32 logits of the predictable ids.
        """
        return F.linear(states_RD, self.head_PD).float()

    def forward(
        self,
        inputs_BN: Tensor,
        positions_BN: Tensor,
        plan: attention.Plan,
        reads_R: Tensor | None,
        targets_R: Tensor,
        weights_R: Tensor,
        data_tokens: float,
        share: float = 1.0,
    ) -> Tensor:
        """Compute a micro-batch's part of the step's loss.

        In training, its gradient is also that of the routers' auxiliary losses, if there are experts.

        Args:
            inputs_BN: Token ids.
            positions_BN: Rotary positions.
            plan: The pattern, made ready.
            reads_R: Flat indices of the states that are read, or None for all of them.
            targets_R: What each read state should predict.
            weights_R: Loss weights.
            data_tokens: Data tokens of the global step.
            share: Part of them that this micro-batch stands for.

        Returns:
            Scalar loss, nats per data token of the step.
        """
        states_RD, routed = self._run(inputs_BN, positions_BN, plan, reads_R)
        loss = weighted_nll(states_RD, self.head_PD, targets_R, weights_R, data_tokens)
        if self.routing is None or not self.training:
            return loss
        sequences, inputs = inputs_BN.shape
        return self.routing(loss, routed, Reads(sequences, inputs, reads_R, weights_R), share)

    def nll(
        self, inputs_BN: Tensor, positions_BN: Tensor, plan: attention.Plan, reads_R: Tensor | None, targets_R: Tensor
    ) -> Tensor:
        """Compute the nats of each read state's target, for scoring.

        Args:
            inputs_BN: Token ids.
            positions_BN: Rotary positions.
            plan: The pattern, made ready.
            reads_R: Flat indices of the states that are read, or None for all of them.
            targets_R: Ids to be scored.

        Returns:
            [R] float32 nats.
        """
        return nll_R(self._run(inputs_BN, positions_BN, plan, reads_R)[0], self.head_PD, targets_R)


def make_config(
    shape: Shape,
    vocabulary: Vocabulary,
    *,
    context: int,
    rope_theta: float = 10_000.0,
    norm_eps: float = 1e-5,
    attention_dropout: float = 0.0,
) -> Any:
    """Write a shape as a transformers configuration.

    Args:
        shape: The backbone's size.
        vocabulary: Ids of the special tokens.
        context: Data tokens in a window; positions run from 0 to this.
        rope_theta: Base of the rotary positions.
        norm_eps: Epsilon of the norms.
        attention_dropout: Dropout of attention probabilities.

    Returns:
        A `LlamaConfig`, `Qwen3Config` or `Qwen3MoeConfig`.
    """
    sparse: dict[str, Any] = {}
    if shape.experts:
        sparse = {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.expert_width,
            # As Qwen3-MoE was trained; a single choice would weigh 1 whatever the router says, and teach it nothing.
            "norm_topk_prob": shape.experts_per_token > 1,
        }
    family = {"llama": LlamaConfig, "qwen3": Qwen3Config, SPARSE: Qwen3MoeConfig}[shape.family]
    return family(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width or shape.expert_width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=context + 1,
        rms_norm_eps=norm_eps,
        tie_word_embeddings=shape.tied,
        attention_dropout=attention_dropout,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        **sparse,
    )


def build(
    shape: Shape,
    vocabulary: Vocabulary,
    *,
    context: int,
    seed: int,
    rope_theta: float = 10_000.0,
    norm_eps: float = 1e-5,
    residual_dropout: float = 0.0,
    attention_dropout: float = 0.0,
    router_losses: RouterLosses | None = None,
) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        shape: Its size.
        vocabulary: What the tokenizer says.
        context: Data tokens in a window.
        seed: The recipe's seed; the weights depend on it and on the shape alone.
        rope_theta: Base of the rotary positions.
        norm_eps: Epsilon of the norms.
        residual_dropout: Dropout at the two output projections of a layer.
        attention_dropout: Dropout of attention probabilities.
        router_losses: Factors on the routers' auxiliary losses.

    Returns:
        The backbone on the CPU, float32.
    """
    rates = {"rope_theta": rope_theta, "norm_eps": norm_eps, "attention_dropout": attention_dropout}
    config = make_config(shape, vocabulary, context=context, **rates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "init"))
        return wrap(config, vocabulary, residual_dropout, router_losses)


def wrap(
    config: Any, vocabulary: Vocabulary, residual_dropout: float = 0.0, router_losses: RouterLosses | None = None
) -> Backbone:
    """Build the transformers model of a configuration and wrap it.

    Args:
        config: A transformers configuration.
        vocabulary: What the tokenizer says.
        residual_dropout: Dropout at the two output projections of a layer.
        router_losses: Factors on the routers' auxiliary losses.

    Returns:
        The backbone with the weights that torch's present random state gives.
    """
    attention.install()
    experts.install()
    options = {"experts_implementation": experts.NAME} if config.model_type == SPARSE else {}
    inner = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, **options)
    return Backbone(inner, vocabulary, residual_dropout, router_losses)
