"""Trains the text encoders and the transformer together, by flow matching with a reading task on the way.

The reading task: a small head on the image tokens of one block names the object (colour and shape) that the clean
picture has in that cell. It tells the network what its text is for long before the flow loss would, and is thrown
away afterwards.

Everything random in a step comes from a generator seeded with (seed, step), so a resumed run repeats the undisturbed
one exactly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from ttsnap.scenes.render import NUM_LABELS
from ttsnap.scenes.training.base.attention import ZeroTokenAttention, zero_token_attention
from ttsnap.scenes.training.base.generator import Generator
from ttsnap.scenes.training.base.recipe import GeneratorRecipe, NoiseLevels
from ttsnap.scenes.training.base.updates import Updates


def sample_sigma(n: int, levels: NoiseLevels, generator: torch.Generator) -> torch.Tensor:
    """Noise levels (n,): logit-normal, with a uniform share."""
    z = torch.randn(n, generator=generator) * levels.std + levels.mean
    flat = torch.rand(n, generator=generator) < levels.uniform
    return torch.where(flat, torch.rand(n, generator=generator), torch.sigmoid(z))


@dataclass(frozen=True)
class Examples:
    """What the generator learns from.

    Args:
        latents: scaled latents, shape (N, C, H, W).
        labels: shape (N, H, W), see `data.pool_labels`.
        ids: caption tokens, shape (N, MAX_TOKENS).
        null_ids: tokens of the empty caption, shape (MAX_TOKENS,).
    """

    latents: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    null_ids: torch.Tensor


class Trainer(Updates[Generator, GeneratorRecipe]):
    """Training state that can be saved and resumed at any step.

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
        tokenizer: CLIPTokenizer,
        examples: Examples,
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self.examples, self.seed, self.device = examples, seed, device
        _, channels, size, _ = examples.latents.shape
        model = Generator(recipe, tokenizer, channels, size).to(device)
        width = recipe.transformer.width
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, NUM_LABELS)
        ).to(device)
        super().__init__(recipe, model, {"head": self.head})
        if recipe.compile:
            for block in model.transformer.transformer_blocks:
                block.compile(dynamic=False)

    def losses(self, on_step: Callable[["Trainer"], None] | None = None) -> Iterator[dict[str, float]]:
        """Train to the end, yielding each step's losses."""
        with zero_token_attention(self.net.transformer, self.recipe.batch) as attention:
            while self.step < self.recipe.steps:
                yield self._train_step(attention)
                if on_step is not None:
                    on_step(self)

    def _train_step(self, attention: ZeroTokenAttention) -> dict[str, float]:
        recipe, batch, given = self.recipe, self.recipe.batch, self.examples
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = torch.randint(len(given.latents), (batch,), generator=dice)
        sigma = sample_sigma(batch, recipe.sigma, dice).to(self.device)
        noise = torch.randn(batch, *given.latents.shape[1:], generator=dice).to(self.device)
        ids = given.ids[rows].long()
        ids[torch.rand(batch, generator=dice) < recipe.caption_dropout] = given.null_ids.long()
        lengths = torch.tensor(recipe.zero_tokens, dtype=torch.float32)
        attention.set_repeats(lengths[torch.randint(len(lengths), (batch,), generator=dice)].to(self.device))
        x0 = given.latents[rows].to(self.device).float()
        level = sigma.view(-1, 1, 1, 1)
        x = (1 - level) * x0 + level * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            out, tapped = self.net(x, sigma, ids.to(self.device), recipe.reading_block)
            logits = self.head(tapped) if recipe.reading > 0 else None
        flow = (out.float() - (noise - x0)).pow(2).mean()
        loss = flow
        reading = torch.zeros(())
        if logits is not None:
            target = given.labels[rows].to(self.device).long().flatten()
            reading = nn.functional.cross_entropy(logits.float().flatten(0, 1), target)
            loss = loss + recipe.reading * reading
        self.update(loss)
        return {"flow": flow.item(), "read": reading.item()}


def run(trainer: Trainer, checkpoint: Path, save_every: int, on_step: Callable[[Trainer], None] | None = None) -> None:
    """Train to the end with a progress bar and checkpoints."""
    batch = trainer.recipe.batch
    bar = tqdm(initial=trainer.step * batch, total=trainer.recipe.steps * batch, desc="generator", unit="img")
    mean: dict[str, float] = {}
    for losses in trainer.losses(on_step):
        for name, value in losses.items():
            mean[name] = value if name not in mean else 0.98 * mean[name] + 0.02 * value
        bar.update(batch)
        if trainer.step % 50 == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()} | {"step": trainer.step})
        if trainer.step % save_every == 0 or trainer.step == trainer.recipe.steps:
            trainer.save(checkpoint)
    bar.close()
