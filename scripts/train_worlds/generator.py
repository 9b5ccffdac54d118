"""The base model's text encoders and transformer, trained together by flow matching with a reading
task on the way.

The reading task: a small head on the image tokens of one block names the object (colour and shape)
that the clean picture has in that cell. It tells the network what its text is for long before the
flow loss would, and is thrown away afterwards.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from train_worlds.model import (
    build_blank_t5,
    build_blank_tokenizer,
    build_scheduler,
    build_text_encoder,
    build_transformer,
    tokenize,
)
from train_worlds.recipes import FlowRecipe, NoiseLevels
from train_worlds.training import Trainer, muon_and_adam, sample_sigma
from train_worlds.zero_tokens import ZeroTokenAttention
from ttsnap.files.settings import Count, Natural, NotNegative, Settings, Share


@dataclass(frozen=True)
class TextSize(Settings):
    """A CLIP text encoder."""

    width: Count
    layers: Count
    heads: Count


@dataclass(frozen=True)
class TransformerSize(Settings):
    """The SD3 transformer; its width is heads * head_dim. patch: latent cells of a token's side."""

    layers: Count = 5
    heads: Count = 3
    head_dim: Count = 64
    patch: Count = 1


@dataclass(frozen=True)
class GeneratorRecipe(FlowRecipe):
    """How text encoders and transformer are trained.

    caption_dropout: share of captions that are left out, for classifier-free guidance.
    reading: weight of the reading task, 0 for none.
    reading_block: the transformer block after which it reads, from 0.
    """

    text: TextSize = TextSize(width=128, layers=3, heads=4)
    text_2: TextSize = TextSize(width=32, layers=1, heads=1)
    transformer: TransformerSize = TransformerSize()
    sigma: NoiseLevels = NoiseLevels()
    caption_dropout: Share = 0.1
    reading: NotNegative = 0.3
    reading_block: Natural = 2


class Generator(nn.Module):
    """The trained parts: two CLIP text encoders and the SD3 transformer, called as the stock
    pipeline calls them."""

    def __init__(
        self, recipe: GeneratorRecipe, tokenizer: Any, latent_channels: int, latent_size: int
    ):
        super().__init__()
        self.text, self.text_2 = (
            build_text_encoder(tokenizer, **vars(size)) for size in (recipe.text, recipe.text_2)
        )
        self.transformer = build_transformer(
            latent_size=latent_size,
            latent_channels=latent_channels,
            **vars(recipe.transformer),
            text_dim=recipe.text.width + recipe.text_2.width,
        )
        # adaLN-zero: every block starts as the identity
        for block in self.transformer.transformer_blocks:
            for norm in (block.norm1, block.norm1_context):
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
        nn.init.zeros_(self.transformer.norm_out.linear.weight)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, x: Tensor, sigma: Tensor, ids: Tensor, tap: int) -> tuple[Tensor, Tensor]:
        """The velocity (B, C, H, W) and the image tokens (B, N, D) after block number `tap`."""
        net = self.transformer
        text, pooled = encode_text((self.text, self.text_2), ids)
        hidden = net.pos_embed(x).contiguous()
        temb = net.time_text_embed(sigma * 1000, pooled)
        text = net.context_embedder(text)
        tapped = hidden
        for i, block in enumerate(net.transformer_blocks):
            text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=temb)
            if i == tap:
                tapped = hidden
        out = net.proj_out(net.norm_out(hidden, temb))
        return self.unpatched(out, x), tapped

    def unpatched(self, tokens: Tensor, x: Tensor) -> Tensor:
        """What tokens (B, N, P * P * C) say of each cell of the latents x, shape (B, C, H, W)."""
        patch = self.transformer.config.patch_size
        rows, columns = (side // patch for side in x.shape[-2:])
        cells = tokens.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x.shape[-2:])


def encode_text(encoders: tuple[Any, Any], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Text tokens with one zero token (B, MAX_TOKENS + 1, D) and the pooled text (B, D), as the
    stock call."""
    outs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    tokens = torch.cat([out.hidden_states[-2] for out in outs], -1)
    return nn.functional.pad(tokens, (0, 0, 0, 1)), torch.cat([out.text_embeds for out in outs], -1)


@torch.no_grad()
def encode_captions(pipe: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """`encode_text` of captions by a stock pipeline's encoders."""
    return encode_text((pipe.text_encoder, pipe.text_encoder_2), tokenize(pipe.tokenizer, captions))


@dataclass(frozen=True)
class Examples:
    """What the generator learns from.

    Args:
        latents: scaled latents, shape (N, C, H, W).
        labels: shape (N, H, W), see `pool_labels`.
        ids: caption tokens, shape (N, MAX_TOKENS).
        null_ids: tokens of the empty caption, shape (MAX_TOKENS,).
        num_labels: how many labels there are.
    """

    latents: Tensor
    labels: Tensor
    ids: Tensor
    null_ids: Tensor
    num_labels: int


class GeneratorTrainer(Trainer[Generator]):
    """Trains the generator and the head of its reading task.

    Args:
        recipe: what to train, and how.
        tokenizer: of the captions.
        examples: what to learn from.
        seed: of weights and of every step.
        device: where to train.
    """

    def __init__(
        self,
        recipe: GeneratorRecipe,
        tokenizer: Any,
        examples: Examples,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.examples, self.seed, self.device = recipe, examples, seed, device
        _, channels, *sides = examples.latents.shape
        model = Generator(recipe, tokenizer, channels, max(sides)).to(device)
        size = recipe.transformer
        width, read = size.heads * size.head_dim, size.patch**2 * examples.num_labels
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, read)
        ).to(device)
        optimizers = muon_and_adam(
            [*model.named_parameters(), *self.head.named_parameters()], recipe
        )
        super().__init__(model, optimizers, heads={"head": self.head}, **recipe.loop())
        self.attention = ZeroTokenAttention(
            model.transformer, recipe.batch, compiled=recipe.compile
        )

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, batch, given = self.recipe, self.recipe.batch, self.examples
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(given.latents), (batch,), generator=dice)
        sigma = sample_sigma(batch, recipe.sigma, dice).to(self.device)
        noise = torch.randn(batch, *given.latents.shape[1:], generator=dice).to(self.device)
        ids = given.ids[rows].long()
        ids[torch.rand(batch, generator=dice) < recipe.caption_dropout] = given.null_ids.long()
        self.attention.draw_repeats(recipe.zero_tokens, dice)
        x0 = given.latents[rows].to(self.device).float()
        level = sigma.view(-1, 1, 1, 1)
        x = (1 - level) * x0 + level * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            out, tapped = self.net(x, sigma, ids.to(self.device), recipe.reading_block)
            logits = self.head(tapped) if recipe.reading > 0 else None
        flow = (out.float() - (noise - x0)).pow(2).mean()
        if logits is None:
            return flow, {"flow": flow}
        target = given.labels[rows].to(self.device).long()
        reading = nn.functional.cross_entropy(self.net.unpatched(logits.float(), x), target)
        return flow + recipe.reading * reading, {"flow": flow, "read": reading}


def build_pipeline(model: Generator, vae: Any, tokenizer: Any, shift: float) -> Any:
    """The stock pipeline around the given parts (not copied)."""
    pipe: Any = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=build_scheduler(shift),
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokenizer,
        text_encoder_2=model.text_2,
        tokenizer_2=tokenizer,
        text_encoder_3=build_blank_t5(model.transformer.config.joint_attention_dim),
        tokenizer_3=build_blank_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def finished(model: Generator, tokenizer: CLIPTokenizer) -> Generator:
    """A copy as it will load: weights rounded to half precision, held in fp32, and 'one' taken for
    'a'.

    (Training captions never say 'one'; it gets the embeddings of 'a'.)
    """
    model = copy.deepcopy(model).half().float()
    one, a = (tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("one", "a"))
    with torch.no_grad():
        for encoder in (model.text, model.text_2):
            table: Tensor = encoder.text_model.embeddings.token_embedding.weight
            table[one] = table[a]
    return model
