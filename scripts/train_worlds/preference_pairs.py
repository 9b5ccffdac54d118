"""Preference pairs of the embedded model: of a prompt's seeds, the picture that a reward likes most and least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from train_worlds.stored import kept
from train_worlds.vae import decode
from ttsnap.core.protocols import Reward
from ttsnap.files.settings import Count, NotNegative, Settings, to_json
from ttsnap.pipelines import defaults
from ttsnap.scenes.grammar import sample_prompts

_BATCH = 64
"""Pictures that are made, decoded and scored at once."""


@dataclass(frozen=True)
class PreferenceData(Settings):
    """Pictures to choose from.

    prompts: captions to train on, none of them held out.
    seeds: pictures of each; the best and the worst are a pair.
    margin: smallest difference of their rewards.
    validation: other captions, to stop by.
    """

    prompts: Count = 240
    seeds: Annotated[int, Ge(2)] = 6
    margin: NotNegative = 0.05
    validation: Count = 48


@dataclass(frozen=True)
class Pairs:
    """A preferred and a rejected picture for each prompt.

    Args:
        prompts: N captions, none of them held out.
        latents: the denoiser's latents, shape (2, N, C, h, w), float32; the preferred ones first.
        scores: what the reward gave them, shape (2, N).
    """

    prompts: tuple[str, ...]
    latents: Tensor
    scores: Tensor


def split(training: int, validation: int, seed: int) -> tuple[list[str], list[str]]:
    """Captions to train on and to validate with: all different, and none that benchmarks use (`held_out`)."""
    prompts = sample_prompts(training + validation, seed, held_out=False)
    # In turn, so that both hold all kinds of captions alike.
    return prompts[:training], prompts[training:]


@torch.no_grad()
def sample(
    pipe: Any, prompts: Sequence[str], seeds: int, first: int, *, bf16: bool, steps: int | None = None
) -> Tensor:
    """Latents of the stock pipeline by its recommended call, shape (P, S, C, h, w), float32.

    Prompt p's s-th picture starts from seed `first` + p * S + s.
    """
    call = defaults() | ({} if steps is None else {"num_inference_steps": steps})
    texts, parts = [text for text in prompts for _ in range(seeds)], []
    for start in tqdm(range(0, len(texts), _BATCH), desc="samples", unit_scale=_BATCH, unit="img", leave=False):
        part = texts[start : start + _BATCH]
        noise = [torch.Generator().manual_seed(first + start + i) for i in range(len(part))]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts.append(pipe(part, generator=noise, output_type="latent", **call).images.float())
    latents: Tensor = torch.cat(parts).unflatten(0, (len(prompts), seeds))
    return latents


@torch.no_grad()
def score(pipe: Any, latents: Tensor, prompts: Sequence[str], rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """What each reward gives to the pictures of `latents` (P, S, C, h, w), by name: shape (P, S), float32."""
    texts = [text for text in prompts for _ in range(latents.shape[1])]
    images = decode(pipe.vae, latents.flatten(0, 1), _BATCH)
    scores = {r.name: torch.as_tensor(r(images, texts, torch.zeros(len(texts)))) for r in rewards}
    return {name: values.float().view(latents.shape[:2]) for name, values in scores.items()}


def make_pairs(prompts: Sequence[str], latents: Tensor, scores: Tensor, margin: float) -> Pairs:
    """Best and worst of each prompt's pictures, where their scores are more than `margin` apart.

    Args:
        prompts: P captions.
        latents: shape (P, S, C, h, w).
        scores: shape (P, S).
        margin: in the reward's units, at least 0.

    Raises:
        ValueError: where no prompt has two pictures so far apart.
    """
    best, worst = scores.max(1), scores.min(1)
    rows = torch.nonzero(best.values - worst.values > margin).flatten()
    if not len(rows):
        raise ValueError(f"no prompt has two pictures whose rewards differ by more than {margin}; lower data.margin")
    ends = torch.stack([best.indices[rows], worst.indices[rows]])
    return Pairs(
        tuple(prompts[i] for i in rows.tolist()),
        latents[rows.expand(2, -1), ends],
        torch.stack([best.values[rows], worst.values[rows]]),
    )


def load_pairs(
    pipe: Any, prompts: Sequence[str], reward: Reward, data: PreferenceData, path: Path, *, seed: int, bf16: bool
) -> Pairs:
    """The pairs kept at `path`, or new ones. ValueError for a file that another reward, seed or number of pictures
    made."""

    def make() -> dict[str, Any]:
        latents = sample(pipe, prompts, data.seeds, seed * 1_000_003, bf16=bf16)
        scores = score(pipe, latents, prompts, [reward])[reward.name]
        return vars(make_pairs(prompts, latents, scores, data.margin))

    return Pairs(**kept(path, {"reward": reward.name, "seed": seed, **to_json(data)}, make))
