"""Train the autoencoder: 32x32 pictures to an 8x8 latent that is smooth, unit-scale and easy to read.

Three choices make the latent easy for the generator. The decoder sees latents with noise of a random level, so that
small errors of the generator do not show. Each channel is held near zero mean and unit variance by a penalty, in place
of a KL term. A small head, thrown away afterwards, reads the object class of every cell from the noisy latent.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from ttsnap.scenes.model import build_vae
from ttsnap.scenes.render import NUM_LABELS
from ttsnap.scenes.training.base.recipe import VaeRecipe
from ttsnap.scenes.training.parts import Vae


def _mean_latent(vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """The mean of the posterior; images in [-1, 1]."""
    mean: torch.Tensor = vae.encoder(images).chunk(2, dim=1)[0]
    return mean


def train_vae(
    recipe: VaeRecipe,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    seed: int,
    device: torch.device,
) -> Vae:
    """A trained autoencoder in fp32, its scaling and shift set from the data.

    Args:
        recipe: its size, and how to train it.
        images: shape (N, 3, 32, 32).
        labels: shape (N, 8, 8), see `data.pool_labels`.
        seed: of weights, batches and noise.
        device: where to train.
    """
    torch.manual_seed(seed)
    size = recipe.model
    channels = size.latent_channels
    vae: Vae = build_vae(latent_channels=channels, channels=size.channels, layers=size.layers, groups=size.groups).to(
        device
    )
    head = nn.Sequential(nn.Conv2d(channels, 64, 1), nn.SiLU(), nn.Conv2d(64, NUM_LABELS, 1)).to(device)
    params = [*vae.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.0)
    steps, batch = recipe.steps, recipe.batch
    vae.to(memory_format=torch.channels_last)
    bar = tqdm(range(steps), desc="vae", unit_scale=batch, unit="img")
    for step in bar:
        rate = min(1.0, (step + 1) / 100, max(0.01, (steps - step) / (0.5 * steps)))
        optimizer.param_groups[0]["lr"] = recipe.lr * rate
        rows = torch.randint(len(images), (batch,)).sort().values.numpy()
        x = torch.from_numpy(images[rows]).to(device).float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        y = torch.from_numpy(labels[rows]).to(device).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            z = _mean_latent(vae, x)
            level = recipe.noise * torch.rand(batch, 1, 1, 1, device=device)
            noisy = z + level * torch.randn_like(z)
            out = vae.decoder(noisy)
            logits = head(noisy)
        error = out.float() - x
        mse = error.pow(2).mean()
        zf = z.float()
        mean, var = zf.mean((0, 2, 3)), zf.var((0, 2, 3))
        moments = (mean.pow(2) + (var.clamp_min(1e-6).sqrt() - 1).pow(2)).mean()
        reading = nn.functional.cross_entropy(logits.float(), y)
        loss = mse + 0.1 * error.abs().mean() + recipe.moments * moments + recipe.reading * reading
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            bar.set_postfix(mse=f"{mse:.5f}", read=f"{reading:.3f}", moments=f"{moments:.3f}")
    vae = vae.to(memory_format=torch.contiguous_format).eval()
    _fix_posterior(vae, recipe.posterior_std)
    latents = encode(vae, images[:4096], device)
    vae.register_to_config(scaling_factor=float(1 / latents.float().std()), shift_factor=float(latents.float().mean()))
    return vae


def _fix_posterior(vae: Vae, std: float) -> None:
    """Make the posterior's standard deviation a constant (training used the mean only)."""
    conv = vae.encoder.conv_out
    half = conv.out_channels // 2
    with torch.no_grad():
        conv.weight[half:] = 0
        assert conv.bias is not None
        conv.bias[half:] = 2 * math.log(std)


@torch.no_grad()
def encode(vae: Vae, images: NDArray[np.uint8], device: torch.device, batch: int = 256) -> torch.Tensor:
    """Mean latents (N, C, 8, 8), fp16 on the CPU, before scaling and shift."""
    parts = []
    for start in tqdm(range(0, len(images), batch), desc="latents", unit_scale=batch, unit="img"):
        x = torch.from_numpy(images[start : start + batch].copy()).to(device).float().div_(127.5).sub_(1)
        parts.append(_mean_latent(vae, x).half().cpu())
    return torch.cat(parts)


@torch.no_grad()
def decode(vae: Vae, latents: torch.Tensor, batch: int = 256) -> NDArray[np.float32]:
    """Images (N, 3, 32, 32) in [0, 1] of scaled latents, as the pipeline decodes them."""
    parts = []
    for z in latents.split(batch):
        out = vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
        parts.append((out / 2 + 0.5).clamp(0, 1).float().cpu().numpy())
    return np.concatenate(parts)
