"""The network that is trained: two text encoders and the transformer, called as the stock pipeline calls them."""

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ttsnap.scenes.model import build_text_encoder, build_transformer
from ttsnap.scenes.training.base.recipe import GeneratorRecipe, TextSize
from ttsnap.scenes.training.parts import Transformer


class Generator(nn.Module):
    """The trained parts: two CLIP text encoders and the SD3 transformer."""

    def __init__(self, recipe: GeneratorRecipe, tokenizer: CLIPTokenizer, latent_channels: int, latent_size: int):
        super().__init__()
        size = recipe.transformer
        self.text = _text_encoder(tokenizer, recipe.text)
        self.text_2 = _text_encoder(tokenizer, recipe.text_2)
        self.transformer: Transformer = build_transformer(
            latent_size=latent_size,
            latent_channels=latent_channels,
            layers=size.layers,
            heads=size.heads,
            head_dim=size.head_dim,
            text_dim=recipe.text.width + recipe.text_2.width,
        )
        for block in self.transformer.transformer_blocks:  # adaLN-zero: every block starts as the identity
            for norm in (block.norm1, block.norm1_context):
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
        nn.init.zeros_(self.transformer.norm_out.linear.weight)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens with one zero token (B, MAX_TOKENS + 1, D) and the pooled text (B, D), as the stock call."""
        outs = [encoder(ids, output_hidden_states=True) for encoder in (self.text, self.text_2)]
        tokens = torch.cat([out.hidden_states[-2] for out in outs], -1)
        return nn.functional.pad(tokens, (0, 0, 0, 1)), torch.cat([out.text_embeds for out in outs], -1)

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, tap: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity (B, C, H, W) and the image tokens (B, H * W, D) after block number `tap`."""
        net = self.transformer
        text, pooled = self.encode(ids)
        hidden = net.pos_embed(x).contiguous()
        temb = net.time_text_embed(sigma * 1000, pooled)
        text = net.context_embedder(text)
        tapped = hidden
        for i, block in enumerate(net.transformer_blocks):
            text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=temb)
            if i == tap:
                tapped = hidden
        out = net.proj_out(net.norm_out(hidden, temb))
        return out.transpose(1, 2).reshape(x.shape), tapped


def _text_encoder(tokenizer: CLIPTokenizer, size: TextSize) -> CLIPTextModelWithProjection:
    return build_text_encoder(tokenizer, width=size.width, layers=size.layers, heads=size.heads)
