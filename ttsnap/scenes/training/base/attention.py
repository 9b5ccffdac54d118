"""Training-time attention: many equal zero tokens as one, and a form that is fast on CPUs.

Without its T5 encoder the stock SD3 pipeline appends `max_sequence_length` zero tokens to the text. They carry no
position, so they are equal on entry and stay equal through every block, and n of them are one token whose attention
logit gets log(n) added. Training with one token and a random n per sample therefore makes a model that works for any
`max_sequence_length`, at the cost of a single token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention

from ttsnap.scenes.training.parts import Transformer


class ZeroTokenAttention:
    """Joint attention of SD3 as plain matrix products, with a bias on the last key (the zero token).

    Args:
        batch: samples per step.
        device: where the model lives.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.bias = torch.zeros(batch, 1, 1, device=device)

    def set_repeats(self, repeats: torch.Tensor) -> None:
        """How many zero tokens the last one stands for, shape (batch,)."""
        self.bias.copy_(repeats.log().view(-1, 1, 1))

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `JointAttnProcessor2_0`, for text always given and no mask."""
        batch, length, _ = hidden_states.shape

        def split(x: torch.Tensor, norm: torch.nn.Module | None) -> torch.Tensor:
            x = x.view(batch, x.shape[1], attn.heads, -1).transpose(1, 2)
            return x if norm is None else norm(x)

        text = encoder_hidden_states
        q = [split(attn.to_q(hidden_states), attn.norm_q), split(attn.add_q_proj(text), attn.norm_added_q)]
        k = [split(attn.to_k(hidden_states), attn.norm_k), split(attn.add_k_proj(text), attn.norm_added_k)]
        v = [split(attn.to_v(hidden_states), None), split(attn.add_v_proj(text), None)]
        query, key, value = (torch.cat(parts, 2) for parts in (q, k, v))
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        bias = torch.nn.functional.pad(self.bias, (key.shape[2] - 1, 0)).unsqueeze(1)
        weights = (logits + bias).softmax(-1).to(value.dtype)
        out = (weights @ value).transpose(1, 2).reshape(batch, query.shape[2], -1)
        image, text = out[:, :length], out[:, length:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if attn.context_pre_only else attn.to_add_out(text)


@contextmanager
def zero_token_attention(transformer: Transformer, batch: int) -> Iterator[ZeroTokenAttention]:
    """The SD3 transformer with `ZeroTokenAttention` in every block, its own processors restored on exit."""
    before = dict(transformer.attn_processors)
    processor = ZeroTokenAttention(batch, transformer.device)
    transformer.set_attn_processor(processor)
    try:
        yield processor
    finally:
        transformer.set_attn_processor(before)
