"""Trains the preview VAE: a small decoder that imitates the embedded model's own (docs/embedded_model.md).

It learns from the real VAE's decodes of three kinds of latents: renders, clean and noisy; mixtures of several renders;
and x0 estimates of the model at every step, so that it has seen blurred ones. Only the decoder is trained.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusion3Pipeline
from torch import Tensor, nn
from tqdm import tqdm

from ttsnap.scenes.grammar import sample_prompts
from ttsnap.scenes.preview_files import save_preview
from ttsnap.scenes.render import render
from ttsnap.scenes.training.base.data import training_specs
from ttsnap.scenes.training.base.vae import encode
from ttsnap.scenes.training.parts import Pipeline, PreviewVae, Vae
from ttsnap.scenes.training.preview.recipe import PreviewData, PreviewRecipe, PreviewSize
from ttsnap.scenes.weights_folder import defaults, weights_path

_ENCODER = 4
"""Channels of the encoder, which nobody trains or calls: as few as diffusers' blocks make sense with."""


def build_preview(size: PreviewSize, latent_channels: int) -> PreviewVae:
    """An AutoencoderTiny for the denoiser's latents as they are (scale 1, shift 0). Its encoder is all zeros."""
    stages = len(size.blocks)
    vae: PreviewVae = AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(_ENCODER,) * stages,
        num_encoder_blocks=(0,) * stages,
        decoder_block_out_channels=(size.width,) * stages,
        num_decoder_blocks=size.blocks,
        upsample_fn=size.upsample,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    for parameter in vae.encoder.parameters():
        nn.init.zeros_(parameter)
    return vae


@torch.no_grad()
def decoded(vae: Vae, latents: Tensor, batch: int = 128) -> Tensor:
    """The real VAE's pictures of the denoiser's latents, (N, 3, H, W) float16 in [-1, 1]."""
    parts = []
    for z in tqdm(latents.split(batch), desc="targets", unit_scale=batch, unit="img"):
        z = z.float().to(memory_format=torch.channels_last)
        out = vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
        parts.append(out.clamp(-1, 1).half().contiguous())
    return torch.cat(parts)


def rendered(vae: Vae, data: PreviewData, rng: np.random.Generator) -> Tensor:
    """The denoiser's latents of renders, every second one with noise, and mixtures of them, float32."""
    specs = training_specs(data.clean, rng)
    images = np.rint(render(specs, rng) * 255).astype(np.uint8)
    raw = encode(vae, images, torch.device("cpu")).float()
    clean = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    mixed = mixtures(clean, data.mixtures, data.of, rng)
    noisy = clean.clone()
    level = torch.from_numpy(rng.random((len(noisy[::2]), 1, 1, 1), np.float32)) * data.noise
    noisy[::2] += level * torch.from_numpy(rng.standard_normal(noisy[::2].shape, np.float32))
    return torch.cat([noisy, mixed])


def mixtures(latents: Tensor, n: int, of: int, rng: np.random.Generator) -> Tensor:
    """n means of 2 to `of` random latents with random weights."""
    counts = rng.integers(2, of + 1, size=n)
    weights = rng.exponential(size=(n, of)) * (np.arange(of) < counts[:, None])
    weights /= weights.sum(1, keepdims=True)
    rows = torch.from_numpy(rng.integers(len(latents), size=(n, of)))
    mixed = torch.zeros(n, *latents.shape[1:])
    for i in range(of):
        mixed += torch.from_numpy(weights[:, i, None, None, None]).float() * latents[rows[:, i]]
    return mixed


@torch.no_grad()
def estimates(pipe: Pipeline, prompts: Sequence[str], seeds: int, *, batch: int = 64) -> Tensor:
    """x0 estimates of a stock pipeline at every step, (N, C, h, w) float32, by its recommended call.

    The sampler is Euler on a straight path, so two latents in a row tell the velocity between them.
    """
    texts = [text for text in prompts for _ in range(seeds)]
    size, parts = pipe.transformer.config.sample_size, []
    for start in tqdm(range(0, len(texts), batch), desc="estimates", unit="batch"):
        part = texts[start : start + batch]
        noise = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        shape = (1, pipe.transformer.config.in_channels, size, size)
        x = [torch.cat([torch.randn(shape, generator=generator) for generator in noise])]

        def keep(_: object, __: int, ___: object, given: dict[str, Tensor], x: list[Tensor] = x) -> dict[str, Tensor]:
            x.append(given["latents"])
            return {}

        pipe(part, latents=x[0], output_type="latent", callback_on_step_end=keep, **defaults())
        sigmas = pipe.scheduler.sigmas.tolist()
        for k in range(len(x) - 1):
            parts.append(x[k] - sigmas[k] * (x[k + 1] - x[k]) / (sigmas[k + 1] - sigmas[k]))
    return torch.cat(parts)


def make_data(recipe: PreviewRecipe, out: Path) -> tuple[Tensor, Tensor]:
    """Latents and what the real VAE makes of them, kept in `out` for the next run."""
    cache, data = out / "data.pt", recipe.data
    if not cache.exists():
        pipe = StableDiffusion3Pipeline.from_pretrained(weights_path())
        pipe.set_progress_bar_config(disable=True)
        rng = np.random.default_rng(recipe.seed)
        prompts = sample_prompts(data.prompts, int(rng.integers(2**31)), held_out=False)
        latents = torch.cat([rendered(pipe.vae, data, rng), estimates(pipe, prompts, data.seeds)])
        vae = pipe.vae.to(memory_format=torch.channels_last)
        torch.save({"latents": latents, "targets": decoded(vae, latents)}, out / "data.new.pt")
        (out / "data.new.pt").replace(cache)
    stored = torch.load(cache, mmap=True, weights_only=True)
    return stored["latents"], stored["targets"]


def train(recipe: PreviewRecipe, latents: Tensor, targets: Tensor) -> PreviewVae:
    """The trained AutoencoderTiny (the average of its last steps), in evaluation mode."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 1])
    vae = build_preview(recipe.model, latents.shape[1])
    model = vae.decoder.train().to(memory_format=torch.channels_last)
    ema = copy.deepcopy(model)
    steps, batch = recipe.steps, recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, (0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, steps, pct_start=recipe.warmup / steps, cycle_momentum=False
    )
    bar = tqdm(range(steps), desc="preview", unit_scale=batch, unit="img")
    for step in bar:
        rows = torch.from_numpy(np.sort(rng.integers(len(latents), size=batch)))
        x = latents[rows].to(memory_format=torch.channels_last)
        error = model(x) - targets[rows].float()
        mse = error.square().mean()
        loss = mse + recipe.l1 * error.abs().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        with torch.no_grad():
            keep = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
        if step % 50 == 0 or step == steps - 1:
            bar.set_postfix(mse=f"{mse.item():.5f}")
    vae.decoder = ema.to(memory_format=torch.contiguous_format)
    return vae.eval()


def run(recipe: PreviewRecipe, out: Path) -> None:
    """Make what is missing in `out`: the data, and the trained VAE in preview/."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    latents, targets = make_data(recipe, out)
    made = time.perf_counter()
    save_preview(train(recipe, latents, targets), out / "preview")
    seconds = made - began, time.perf_counter() - made
    print(f"data in {seconds[0]:.0f} s, trained in {seconds[1]:.0f} s on {len(latents)} latents; wrote {out}")
