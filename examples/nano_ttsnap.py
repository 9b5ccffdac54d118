"""ttsnap in one file: prune seeds by what their images are becoming, with an exact budget.

    python nano_ttsnap.py "two cats and a dog on a sofa" --evaluations 123
    python nano_ttsnap.py "a red fox" --model stabilityai/stable-diffusion-3.5-medium --device cuda

Best-of-N denoises N seeds to the end and keeps the best image. Most of that work is spent on images
that lose. Long before the end, a diffusion model says what an image is becoming: at noise level
sigma it predicts the clean image x0. So we

1. start many seeds,
2. denoise all of them a part of the way,
3. score their x0 estimates with a reward model and drop the worst,
4. finish the rest and return the one with the highest reward.

This is TTSp of TTSnap (arXiv 2511.22242, Algorithm 1). TTSnap itself replaces the reward of step 3
by one that was trained on noisy estimates. The budget counts evaluations of the network: one for
each image and step, both passes of classifier-free guidance together. The number of seeds follows
from it, so that the search never takes more.

The product does the same for every pipeline, reward and algorithm. This file is for reading. It
needs torch, numpy and diffusers, and transformers for its reward.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

Reward = Callable[[torch.Tensor, str], np.ndarray]
"""Images (N, 3, H, W) in [0, 1] and a prompt -> N scores, higher is better."""

CHECK_LEVEL = 0.6
"""Noise level at which seeds are dropped: 1 is pure noise, 0 a finished image. An ordinary reward
ranks earlier estimates badly, since they are blurred."""
KEEP = 0.3
"""Share of the seeds that goes on."""
BATCH = 8
"""Images in a call of the network."""


@dataclass
class Candidate:
    """An image on its way.

    latents: (C, h, w), noisy, before step `step`.
    score: by the reward, of the last estimate or of the finished image.
    """

    seed: int
    latents: torch.Tensor
    step: int = 0
    score: float = -math.inf


@dataclass
class Result:
    """What a search gives back: the image, its seed, all candidates, and what it took."""

    image: Image.Image
    seed: int
    score: float
    candidates: list[Candidate]
    evaluations: int
    decodes: int


def plan(budget: int, steps: int, check: int, keep: float = KEEP) -> int:
    """The most seeds that a budget of evaluations affords.

    The estimate at step `check` takes check + 1 evaluations of each seed: the call of the network
    that gives the estimate is also the one that makes the step.
    """
    seeds = 0
    while cost(seeds + 1, steps, check, keep) <= budget:
        seeds += 1
    if seeds == 0:
        raise ValueError(f"{budget} evaluations do not pay for one image of {steps} steps")
    return seeds


def cost(seeds: int, steps: int, check: int, keep: float) -> int:
    """Evaluations that a search with so many seeds takes."""
    return seeds * (check + 1) + survivors(seeds, keep) * (steps - check - 1)


def survivors(seeds: int, keep: float) -> int:
    """How many seeds go on; at least one."""
    return max(1, math.floor(keep * seeds + 0.5))


class Model:
    """A Stable Diffusion 3 pipeline, taken apart: noise, the network, the sampler, the decoder.

    It counts what it does.
    """

    def __init__(
        self, pipe: StableDiffusion3Pipeline, prompt: str, steps: int, guidance: float, **text: int
    ) -> None:
        self.pipe = pipe
        self.guidance = guidance
        self.evaluations = 0
        self.decodes = 0
        pipe.scheduler.set_timesteps(steps, device=pipe.device)
        self.sigmas = pipe.scheduler.sigmas
        self.timesteps = pipe.scheduler.timesteps
        embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompt, prompt_2=None, prompt_3=None, device=pipe.device, **text
        )
        # the empty prompt first, then the prompt: the two passes of guidance
        self.embeds = torch.cat([negative, embeds])
        self.pooled = torch.cat([negative_pooled, pooled])

    def noise(self, seed: int, height: int, width: int) -> torch.Tensor:
        """Initial latents (C, h, w) of a seed: those of the stock pipeline."""
        factor = self.pipe.vae_scale_factor
        channels = self.pipe.transformer.config.in_channels
        shape = (1, channels, height // factor, width // factor)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator, dtype=self.embeds.dtype)
        return noise[0].to(self.pipe.device)

    def velocity(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """The guided velocity dx / dsigma at latents (N, C, h, w)."""
        count = len(latents)
        both = self.pipe.transformer(
            hidden_states=torch.cat([latents, latents]),
            timestep=self.timesteps[step].expand(2 * count),
            encoder_hidden_states=self.embeds.repeat_interleave(count, 0),
            pooled_projections=self.pooled.repeat_interleave(count, 0),
            return_dict=False,
        )[0]
        self.evaluations += count
        without, with_prompt = both.chunk(2)
        return without + self.guidance * (with_prompt - without)

    def advance(
        self, candidates: list[Candidate], until: int, look: bool
    ) -> tuple[list[torch.Tensor], list[Candidate]]:
        """Denoise candidates up to step `until`, in batches.

        look: whether the last step's x0 estimates come back. They cost nothing: with the velocity v
        at noise level sigma, x0 = x - sigma * v.
        """
        estimates = []
        for start in range(0, len(candidates), BATCH):
            batch = candidates[start : start + BATCH]
            latents = torch.stack([candidate.latents for candidate in batch])
            for step in range(batch[0].step, until):
                velocity = self.velocity(latents, step)
                if look and step == until - 1:
                    estimates += list(latents - self.sigmas[step] * velocity)
                # Euler's method; the scheduler does the same for a whole batch
                latents = latents.float()
                latents = latents + (self.sigmas[step + 1] - self.sigmas[step]) * velocity
                latents = latents.to(velocity.dtype)
            for candidate, row in zip(batch, latents, strict=True):
                candidate.latents = row
                candidate.step = until
        return estimates, candidates

    def decode(self, latents: list[torch.Tensor]) -> torch.Tensor:
        """Images (N, 3, H, W) in [0, 1]."""
        config = self.pipe.vae.config
        parts = []
        for start in range(0, len(latents), BATCH):
            batch = torch.stack(latents[start : start + BATCH])
            batch = batch / config.scaling_factor + config.shift_factor
            parts.append(self.pipe.vae.decode(batch).sample)
        self.decodes += len(latents)
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def search(
    pipe: StableDiffusion3Pipeline,
    prompt: str,
    reward: Reward,
    evaluations: int,
    *,
    steps: int = 28,
    guidance: float = 4.5,
    height: int = 1024,
    width: int = 1024,
    first_seed: int = 0,
    **text: int,
) -> Result:
    """Prune seeds, and return the best image.

    evaluations: never exceeded. text: further arguments of `encode_prompt`. ValueError for a budget
    that does not pay for one image.
    """
    model = Model(pipe, prompt, steps, guidance, **text)
    # the first step whose noise level is at most that of the check
    check = int(np.argmax(model.sigmas[:steps].cpu().numpy() <= CHECK_LEVEL + 1e-9))
    count = plan(evaluations, steps, check)

    # 1 and 2: start many seeds, and denoise them a part of the way
    candidates = [
        Candidate(seed, model.noise(seed, height, width))
        for seed in range(first_seed, first_seed + count)
    ]
    estimates, _ = model.advance(candidates, check + 1, look=True)

    # 3: score what they are becoming, and drop the worst
    scores = reward(model.decode(estimates), prompt)
    for candidate, score in zip(candidates, scores, strict=True):
        candidate.score = float(score)
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    kept = ranked[: survivors(count, KEEP)]

    # 4: finish the rest
    model.advance(kept, steps, look=False)
    images = model.decode([candidate.latents for candidate in kept])
    scores = reward(images, prompt)
    for candidate, score in zip(kept, scores, strict=True):
        candidate.score = float(score)
    best = int(np.argmax(scores))
    pixels = (images[best].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Result(
        Image.fromarray(pixels),
        kept[best].seed,
        kept[best].score,
        candidates,
        model.evaluations,
        model.decodes,
    )


def clip_reward(name: str = "openai/clip-vit-large-patch14") -> Reward:
    """How well an image fits a prompt: the cosine similarity of their CLIP embeddings."""
    from transformers import CLIPModel, CLIPProcessor

    clip = CLIPModel.from_pretrained(name).eval()
    processor = CLIPProcessor.from_pretrained(name)

    def reward(images: torch.Tensor, prompt: str) -> np.ndarray:
        pixels = (images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
        inputs = processor(text=[prompt], images=list(pixels), return_tensors="pt", truncation=True)
        return clip(**inputs).logits_per_image[:, 0].numpy()

    return reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--model", default="stabilityai/stable-diffusion-3.5-medium")
    parser.add_argument("--evaluations", type=int, default=123)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="winner.png")
    a = parser.parse_args()
    pipe = StableDiffusion3Pipeline.from_pretrained(a.model, torch_dtype=torch.bfloat16)
    pipe.to(a.device)
    result = search(pipe, a.prompt, clip_reward(), a.evaluations)
    result.image.save(a.out)
    print(f"{a.out}: seed {result.seed}, score {result.score:.3f}")
    print(f"{len(result.candidates)} seeds, {result.evaluations} evaluations")
    print(f"{a.model} makes the same image from torch.Generator().manual_seed({result.seed})")


if __name__ == "__main__":
    main()
