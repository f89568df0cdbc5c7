"""The model's body behind a prefix whose keys and values are kept in transformers' cache.

Suffixes: B texts, H heads, N new inputs, C kept inputs, R read states, D width, E head width, M = B N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from crossover.errors import RunError
from crossover.model import attention
from crossover.model.attention import Plan
from crossover.model.backbone import Backbone
from crossover.model.layers import enter, leave
from crossover.model.tiles import additive
from crossover.records import Pattern


class Room(DynamicLayer):
    """A layer of transformers' cache that writes into room it has in store, where the original joins tensors anew.

    A noisy block is appended and cut off in every pass: joining would copy the whole prefix each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stored: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values.

        Args:
            key_states: [B, H, N, E].
            value_states: [B, H, N, E].
            args: What transformers passes on.
            kwargs: What transformers passes on.

        Returns:
            All keys and values so far, [B, H, C + N, E]: views of the room.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        kept = self.get_seq_length()
        count, held = kept + key_states.shape[2], self._stored
        if held is None or held[0].shape[2] < count:
            before = held
            held = self._stored = (_room(key_states, 2 * count), _room(value_states, 2 * count))
            if before is not None:
                held[0][:, :, :kept], held[1][:, :, :kept] = before[0][:, :, :kept], before[1][:, :, :kept]
        held[0][:, :, kept:count], held[1][:, :, kept:count] = key_states, value_states
        return self._show(count)

    def cut(self, count: int) -> None:
        """Forget the last inputs; what they took up is room again."""
        self._show(self.get_seq_length() - count)

    def select(self, index: Tensor) -> None:
        """Keep some of the texts."""
        kept = self.get_seq_length()
        if self._stored is not None:
            self._stored = (self._stored[0][index], self._stored[1][index])
            self._show(kept)

    def _show(self, count: int) -> tuple[Tensor, Tensor]:
        if self._stored is None:
            raise RunError("the cache of the prefix is empty; nothing can be cut off")
        keys, values = (part[:, :, :count] for part in self._stored)
        self.keys, self.values = keys, values
        return keys, values


def _room(like: Tensor, count: int) -> Tensor:
    return like.new_empty((*like.shape[:2], count, like.shape[3]))


class CachedBody:
    """The body of a model and what it remembers of the inputs so far.

    Args:
        model: The model.
    """

    def __init__(self, model: Backbone) -> None:
        self._model = model
        self._rooms = [Room() for _ in range(int(model.inner.config.num_hidden_layers))]
        self._cache = Cache(layers=list(self._rooms))

    def __len__(self) -> int:
        """Count the inputs that are kept."""
        return int(self._cache.get_seq_length())

    def drop(self, count: int) -> None:
        """Forget the last inputs."""
        for room in self._rooms:
            room.cut(count)

    def select(self, index: list[int]) -> None:
        """Go on with some of the texts."""
        for room in self._rooms:
            room.select(torch.tensor(index, device=self._model.device))

    def run(self, inputs_BN: Tensor, positions_BN: Tensor, seen_BNK: Tensor | None, reads_R: Tensor) -> Tensor:
        """Run new inputs, whose keys and values are then kept too.

        Args:
            inputs_BN: Token ids.
            positions_BN: Rotary positions, [1 or B, N].
            seen_BNK: Which input sees which kept or new one, [1 or B, N, C + N]; None if all see all.
            reads_R: Flat indices of the states that are read.

        Returns:
            [R, D] final states.
        """
        model, device = self._model, self._model.device
        bias = None if seen_BNK is None else additive(seen_BNK.to(device)[:, None], torch.float32)
        plan = Plan(Pattern("full"), "sdpa", bias=bias)
        inputs_BN, positions_BN, reads_R = (part.to(device) for part in (inputs_BN, positions_BN, reads_R))
        body: Any = model.inner.model
        if model.pieces is not None:
            return self._layers(body, inputs_BN, positions_BN, plan, reads_R)
        # The plan is the mask; a mask of four dimensions is passed on as it is.
        states_BND = body(
            input_ids=inputs_BN,
            position_ids=positions_BN,
            attention_mask=inputs_BN.new_zeros((1, 1, 1, 1)),
            past_key_values=self._cache,
            use_cache=True,
            plan=plan,
        ).last_hidden_state
        return states_BND.flatten(0, 1).index_select(0, reads_R)

    def _layers(self, body: Any, inputs_BN: Tensor, positions_BN: Tensor, plan: Plan, reads_R: Tensor) -> Tensor:
        """Run the layers as `model.layers.Pieces` does: the last one finishes the states that are read alone."""
        states_MD = body.embed_tokens(inputs_BN.flatten())
        cos_BNE, sin_BNE = body.rotary_emb(states_MD, positions_BN)
        half = sin_BNE.shape[-1] // 2
        signed_sin_BNE = torch.cat([-sin_BNE[..., :half], sin_BNE[..., half:]], dim=-1)
        layers = body.layers[: self._model.inner.config.num_hidden_layers]
        for number, layer in enumerate(layers):
            query, key, value = enter(layer, states_MD, cos_BNE, signed_sin_BNE)
            key, value = self._cache.update(key, value, number)
            last = number == len(layers) - 1
            if last and not len(reads_R):
                return states_MD[:0]
            mixed_MD = attention.mix(query, key, value, plan, layer.self_attn.scaling, 0.0)
            if last:
                mixed_MD, states_MD = mixed_MD.index_select(0, reads_R), states_MD.index_select(0, reads_R)
            states_MD = leave(layer, mixed_MD, states_MD)
        return body.norm(states_MD)
