"""Denoising: whether the scheduler fits the network, by what the model makes of its own images with
noise on them.

The estimate of an image noised to x = alpha x0 + sigma eps is the mean of x0 given x (Tweedie's
formula; Efron, 2011). So the noise that it finds, f = (x - alpha estimate) / sigma, is the mean of
eps: E<f, eps> = E<f, f> <= E<eps, eps>. Where an estimate is a draw given x, both are <=. A
scheduler that takes noise for velocity, or whose noise is not what the network is told, breaks one
of the two. Another shift breaks none: it takes other steps along the same path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.check.ladder import Figure, Rung, Setup
from ttsnap.sampling import rng

LEVELS, IMAGES, FEWEST, STEPS = (0.6, 0.4), 8, 4, 4
"""Noise levels; images, and the fewest; steps below which finished images are too far from what the
model draws."""
MOST_FOUND, MOST_MEANT = 1.02, 1.05
"""Of E<f, eps> / E<eps, eps>, and of E<f, eps> / E<f, f>. Where schedulers fit, up to .96 and 1.01
were measured."""
KNOWS = 0.6
"""What trained networks take off the error of the noised image, or of a blank, at least. Estimates
that are linear in x take off half of it."""


@torch.no_grad()
def denoising(setup: Setup) -> Rung:
    """Images without guidance, noised to two levels, and estimated again."""
    rung, engine = Rung("denoising"), setup.engine()
    denoiser: Any = engine.denoiser
    grid, seconds = engine.grid, setup.cost.seconds
    image = (grid.nfe + len(LEVELS)) * (1e-9 if seconds is None else seconds.nfe)
    n = int(min(IMAGES, len(setup.prompts), max(0.0, setup.left) / image))
    rung.done = n >= FEWEST
    denoiser.guidance = replace(denoiser.guidance, guided=False)
    if denoiser.guidance.passes > 1 or grid.steps < STEPS:
        rung.missing["estimates"], rung.done = (
            f"it takes a model that goes without guidance, and {STEPS} steps",
            True,
        )
    elif not rung.done:
        rung.missing["estimates"] = f"{FEWEST} images do not fit into the time; give more --minutes"
    if rung.missing:
        return rung
    denoiser.encode(setup.prompts[:n])
    parts = torch.arange(n).split(setup.cost.batch_size or 1)
    images = torch.cat([_images(denoiser, cond) for cond in parts])
    fit = list[bool | None]()
    for step in map(grid.nearest, LEVELS):
        k = torch.full((n,), int(grid.calls[step]))
        alpha, sigma = denoiser.schedule.alpha[k[0]], denoiser.schedule.sigma[k[0]]
        noise = torch.stack(
            [torch.randn(images[0].shape, generator=rng.seeded(10**6 + i)) for i in range(n)]
        )
        x = (alpha * images.cpu().float() + sigma * noise).to(images)
        guess = torch.cat([denoiser.predict(x[c], k[c], c).x0 for c in parts])
        found = (x.cpu().float() - alpha * guess.cpu().float()) / sigma
        fit.append(
            _fits(
                rung,
                f"{grid.levels[step]:.2f}",
                noise,
                found,
                images,
                float(alpha / sigma),
            )
        )
    rung.holds = False if False in fit else None if None in fit else True
    return rung


def _images(denoiser: Any, cond: Tensor) -> Tensor:
    """Finished latents (N, ...) of these encoded prompts (N,), which are their seeds as well."""
    seeds, kernel, generators = (
        cond.tolist(),
        denoiser.kernel,
        [rng.seeded(seed) for seed in cond.tolist()],
    )
    x: Tensor = denoiser.init_latents(generators)
    states = [
        kernel.init(noise, (seed, 0), made)
        for noise, seed, made in zip(x, seeds, generators, strict=True)
    ]
    for k in torch.arange(denoiser.grid.nfe)[:, None].expand(-1, len(cond)):
        x, states = kernel.step(
            x, denoiser.predict(x, k, cond), k, [(seed, 0, int(k[0])) for seed in seeds], states
        )
    return x


def _fits(
    rung: Rung, at: str, noise: Tensor, found: Tensor, images: Tensor, ratio: float
) -> bool | None:
    """Whether the noise that is found is what it should be; None where it says too little. All (N,
    ...); at: the noise level; ratio: of signal to noise."""
    noise, found, images = (each.flatten(1).double().cpu() for each in (noise, found, images))
    whole, error = noise.square().sum(1), (found - noise).square().sum(1)
    both, why = (found * noise).sum(1), "images are not finite"
    removed = Figure.over_prompts(100 * (whole - error), whole, "%")
    most, meant = Figure.over_prompts(both, whole), Figure.over_prompts(both, found.square().sum(1))
    rung.note(f"removed:{at}", removed, why)
    rung.note(f"found:{at}", most, why)
    rung.note(f"meant:{at}", meant, why)
    if removed is None or most is None or meant is None:
        return False
    if removed.high < -100 or most.low > MOST_FOUND:  # type: ignore[operator]
        return False
    least = min(float(whole.mean()), float(images.square().sum(1).mean()) * ratio**2)
    return None if 1 - float(error.mean()) / least < KNOWS else meant.low <= MOST_MEANT  # type: ignore[operator]
