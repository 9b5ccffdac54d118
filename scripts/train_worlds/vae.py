"""The base model's autoencoder: 32x32 pictures to an 8x8 latent that is smooth, unit-scale and easy
to read.

Three choices make the latent easy for the generator. The decoder sees latents with noise of a
random level, so that small errors of the generator do not show. Each channel is held near zero mean
and unit variance by a penalty, in place of a KL term. A small head, thrown away afterwards, reads
the object class of every cell from the noisy latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from train_worlds.model import build_vae
from train_worlds.recipes import Counts
from train_worlds.training import Trainer
from ttsnap.files.settings import Count, Natural, NotNegative, Positive, Settings


@dataclass(frozen=True)
class VaeSize(Settings):
    """The autoencoder: channels of each stage (every one after the first halves the picture),
    layers in each, and groups of the group norms."""

    latent_channels: Count = 8
    channels: Counts = (16, 32, 64)
    layers: Count = 1
    groups: Count = 8


@dataclass(frozen=True)
class VaeRecipe(Settings):
    """How the autoencoder is trained.

    noise: largest noise level that the decoder sees, in latent standard deviations.
    window: side of the windows around a thing that training sees before it sees whole pictures, in
        cells of the label maps; 0 for whole pictures alone. Most of a picture is ground.
    whole: steps at the end with whole pictures.
    moments: weight of the zero-mean, unit-variance penalty.
    reading: weight of reading object classes from the latent.
    posterior_std: the constant that the posterior's standard deviation is set to.
    """

    model: VaeSize = VaeSize()
    lr: Positive = 2e-3
    batch: Count = 48
    steps: Count = 2500
    bf16: bool = False
    noise: NotNegative = 0.3
    window: Natural = 0
    whole: Natural = 0
    moments: NotNegative = 0.02
    reading: NotNegative = 0.02
    posterior_std: Positive = 0.1


class VaeTrainer(Trainer[Any]):
    """Trains an autoencoder in channels-last format.

    Args:
        recipe: its size, and how to train it.
        images: shape (N, 3, H, W), uint8.
        labels: shape (N, H / 4, W / 4), see `pool_labels`.
        num_labels: how many labels there are.
        device: where to train.
    """

    def __init__(
        self,
        recipe: VaeRecipe,
        images: Tensor,
        labels: Tensor,
        num_labels: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.images, self.labels, self.device = recipe, images, labels, device
        size = recipe.model
        vae = build_vae(image_size=max(images.shape[-2:]), **vars(size))
        self.head = nn.Sequential(
            nn.Conv2d(size.latent_channels, 64, 1), nn.SiLU(), nn.Conv2d(64, num_labels, 1)
        ).to(device)
        vae = vae.to(device)
        params = [*vae.parameters(), *self.head.parameters()]
        adam = torch.optim.AdamW(params, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.0)
        vae.to(memory_format=torch.channels_last)
        super().__init__(
            vae,
            [adam],
            steps=recipe.steps,
            warmup=100,
            decay_steps=0.5 * recipe.steps,
            floor=0.01,
            heads={"head": self.head},
        )

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, batch, device = self.recipe, self.recipe.batch, self.device
        rows = torch.randint(len(self.images), (batch,)).sort().values
        images = self.images[rows]
        y = self.labels[rows].long()
        if recipe.window and self.step < recipe.steps - recipe.whole:
            images, y = windows(images, y, recipe.window)
        x = as_input(images, device).to(memory_format=torch.channels_last)
        y = y.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            z = _mean_latent(self.net, x)
            level = recipe.noise * torch.rand(batch, 1, 1, 1, device=device)
            noisy = z + level * torch.randn_like(z)
            out = self.net.decoder(noisy)
            logits = self.head(noisy)
        error = out.float() - x
        mse = error.pow(2).mean()
        zf = z.float()
        mean, var = zf.mean((0, 2, 3)), zf.var((0, 2, 3))
        moments = (mean.pow(2) + (var.clamp_min(1e-6).sqrt() - 1).pow(2)).mean()
        reading = nn.functional.cross_entropy(logits.float(), y)
        loss = mse + 0.1 * error.abs().mean() + recipe.moments * moments + recipe.reading * reading
        return loss, {"mse": mse, "read": reading, "moments": moments}


def train_vae(
    recipe: VaeRecipe,
    images: Tensor,
    labels: Tensor,
    num_labels: int,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    save_every: int = 0,
) -> Any:
    """A trained autoencoder in fp32, its scaling and shift set from the data (see `VaeTrainer`).

    seed: of weights, batches and noise.
    checkpoint: where training is saved every so many steps, and taken up again.
    """
    torch.manual_seed(seed)
    trainer = VaeTrainer(recipe, images, labels, num_labels, device)
    trainer.run("vae", checkpoint, save_every)
    vae = trainer.net.to(memory_format=torch.contiguous_format).eval()
    conv = vae.encoder.conv_out
    half = conv.out_channels // 2
    with torch.no_grad():  # a constant posterior: training used the mean only
        conv.weight[half:] = 0
        conv.bias[half:] = 2 * math.log(recipe.posterior_std)
    latents = encode(vae, images[:4096], device).float()
    vae.register_to_config(
        scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean())
    )
    return vae


def windows(images: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A square of each picture (N, 3, H, W), around a random cell of its label map (N, h, w) that is
    no background.

    side: in cells. Returns pictures (N, 3, S, S) and label maps (N, side, side).
    """
    cell = images.shape[-1] // labels.shape[-1]
    parts, maps = [], []
    for image, label in zip(images, labels, strict=True):
        things = label.nonzero()
        if not len(things):
            things = torch.ones_like(label).nonzero()
        middle = things[int(torch.randint(len(things), ()))]
        top, left = (
            min(max(int(at) - side // 2, 0), size - side)
            for at, size in zip(middle, label.shape, strict=True)
        )
        maps.append(label[top : top + side, left : left + side])
        rows = slice(top * cell, (top + side) * cell)
        columns = slice(left * cell, (left + side) * cell)
        parts.append(image[:, rows, columns])
    return torch.stack(parts), torch.stack(maps)


def as_input(images: Tensor, device: torch.device) -> Tensor:
    """Pictures (uint8) in [-1, 1]."""
    return images.to(device).float().div_(127.5).sub_(1)


def _mean_latent(vae: Any, images: Tensor) -> Tensor:
    """The mean of the posterior; images in [-1, 1]."""
    mean: Tensor = vae.encoder(images).chunk(2, dim=1)[0]
    return mean


@torch.no_grad()
def encode(vae: Any, images: Tensor, device: torch.device, batch: int = 256) -> Tensor:
    """Mean latents (N, C, H / 4, W / 4), fp16 on the CPU, before scaling and shift."""
    bar = tqdm(images.split(batch), desc="latents", unit_scale=batch, unit="img")
    return torch.cat([_mean_latent(vae, as_input(part, device)).half().cpu() for part in bar])


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """The denoiser's latents of the autoencoder's."""
    found: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return found


@torch.no_grad()
def decode(vae: Any, latents: Tensor, batch: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of the denoiser's latents, as the pipeline decodes them."""
    parts = [
        vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
        for z in latents.split(batch)
    ]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
