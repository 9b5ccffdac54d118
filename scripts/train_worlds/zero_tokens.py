"""Training-time attention: many equal zero tokens as one, and a form that is fast on CPUs.

Without its T5 encoder the stock SD3 pipeline appends `max_sequence_length` zero tokens to the text.
They carry no position, so they are equal on entry and stay equal through every block, and n of them
are one token whose attention logit gets log(n) added. Training with one token and a random n per
sample therefore makes a model that works for any `max_sequence_length`, at the cost of a single
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class ZeroTokenAttention:
    """Joint attention of SD3 as plain matrix products, with a bias on the last key (the zero
    token).

    Args:
        transformer: an SD3 transformer, whose blocks get this attention.
        batch: samples per step.
        compiled: whether its blocks are compiled.
    """

    def __init__(self, transformer: Any, batch: int, *, compiled: bool = False) -> None:
        self.bias = torch.zeros(batch, 1, 1, device=transformer.device)
        transformer.set_attn_processor(self)
        if compiled:
            for block in transformer.transformer_blocks:
                block.compile(dynamic=False)

    def set_repeats(self, repeats: Tensor) -> None:
        """How many zero tokens the last one stands for, shape (batch,)."""
        self.bias.copy_(repeats.log().view(-1, 1, 1))

    def draw_repeats(self, lengths: Sequence[int], dice: torch.Generator) -> None:
        """One of these lengths for each sample."""
        choices = torch.tensor(lengths, dtype=torch.float32)
        self.set_repeats(
            choices[torch.randint(len(choices), (len(self.bias),), generator=dice)].to(
                self.bias.device
            )
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `JointAttnProcessor2_0`, for text always given and no mask."""
        batch, length, _ = hidden_states.shape

        def split(x: Tensor, norm: nn.Module | None) -> Tensor:
            x = x.view(batch, x.shape[1], attn.heads, -1).transpose(1, 2)
            return x if norm is None else norm(x)

        text = encoder_hidden_states
        q = [
            split(attn.to_q(hidden_states), attn.norm_q),
            split(attn.add_q_proj(text), attn.norm_added_q),
        ]
        k = [
            split(attn.to_k(hidden_states), attn.norm_k),
            split(attn.add_k_proj(text), attn.norm_added_k),
        ]
        v = [split(attn.to_v(hidden_states), None), split(attn.add_v_proj(text), None)]
        query, key, value = (torch.cat(parts, 2) for parts in (q, k, v))
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        bias = nn.functional.pad(self.bias, (key.shape[2] - 1, 0)).unsqueeze(1)
        weights = (logits + bias).softmax(-1).to(value.dtype)
        out = (weights @ value).transpose(1, 2).reshape(batch, query.shape[2], -1)
        image, text = out[:, :length], out[:, length:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)
