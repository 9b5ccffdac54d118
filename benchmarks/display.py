"""Whether pictures that are drawn large for people show what was scored.

    python benchmarks/display.py
    python benchmarks/display.py --model signs   # needs the extra ocr

A packaged model makes images of captions that training never saw, of all kinds in turn. Each is
decoded small, as rewards score it, and drawn large. The large one is averaged over each 4 x 4
pixels, and the world's own checker reads both: the exact checker of scenes, the OCR of signs.
Printed are how often the verdicts agree, by kind and by whether the small image is right; how far
the scores are apart; and how far the pixels are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from ttsnap import scenes, signs
from ttsnap.core.arrays import BoolArray
from ttsnap.files.writing import markdown
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.packaged import MODELS
from ttsnap.reward_models.registry import make_reward

BATCH, DISTINCT = 32, 160
"""Images at once, and different captions."""
KINDS = {"ttsnap.scenes": scenes.HARD_KINDS, "ttsnap.signs": signs.KINDS}
"""Of captions, which are drawn in turn."""


@torch.no_grad()
def latents_of(pipe: Any, prompts: Sequence[str], seed: int, call: Mapping[str, Any]) -> Tensor:
    """(N, C, h, w) of what stock calls make, image i of the seed that follows by i."""
    found = []
    for start in tqdm(range(0, len(prompts), BATCH), unit="batch"):
        part = list(prompts[start : start + BATCH])
        dice = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        found.append(pipe(part, generator=dice, output_type="latent", **call).images)
    return torch.cat(found)


@torch.no_grad()
def pictures(pipe: Any, latents: Tensor, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Images as they are scored (N, 3, h, w), and as people see them, averaged to the same size."""
    denoiser = pipe.denoiser(**call)
    small = torch.cat([denoiser.decode(part) for part in latents.split(BATCH)])
    pairs = zip(latents, small, strict=True)
    means = [avg_pool2d(pipe.display(*pair)(), 128 // 32) for pair in pairs]
    return small, torch.stack(means)


def table(kinds: Sequence[str], small: np.ndarray, large: np.ndarray) -> str:
    """Agreement of the verdicts, by kind and by the verdict on the small image."""
    right, same = small >= 1, (small >= 1) == (large >= 1)
    groups: dict[str, BoolArray] = {"all": np.ones(len(small), bool), "right": right}
    groups |= {"wrong": ~right} | {kind: np.array(kinds) == kind for kind in dict.fromkeys(kinds)}
    cells = []
    for name, rows in groups.items():
        n, share = int(rows.sum()), float(same[rows].mean())
        error = (share * (1 - share) / n) ** 0.5
        apart = np.abs(small - large)[rows].mean()
        cells.append((name, n, f"{right[rows].mean():.3f}", f"{share:.4f} ± {error:.4f}", apart))
    shown = [(*cell[:-1], f"{cell[-1]:.4f}") for cell in cells]
    return markdown(("images", "n", "right", "agree", "scores apart"), shown)


def main() -> None:
    """Make, read and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="embedded")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--latents", type=Path, help="file to keep the images' latents in, or of")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    a = parser.parse_args()
    ours = MODELS[a.model]
    world: Any = ours.world
    kinds = [KINDS[ours.world.__name__][i % 4] for i in range(a.images)]
    few = world.sample_prompts(min(a.images, DISTINCT), a.seed)
    prompts = [few[i % len(few)] for i in range(a.images)]
    call = defaults(a.model)
    if a.steps is not None:
        call["num_inference_steps"] = a.steps
    pipe: Any = load(a.model)
    pipe.set_progress_bar_config(disable=True)
    if a.latents is not None and a.latents.exists():
        latents = torch.load(a.latents)
    else:
        latents = latents_of(pipe, prompts, a.seed, call)
        if a.latents is not None:
            torch.save(latents, a.latents)
    small, large = pictures(pipe, latents, call)
    judge = make_reward(ours.right.reward)
    verdicts = [np.asarray(judge(each.clone(), prompts)) for each in (small, large)]
    print(table(kinds, *verdicts))
    print(f"pixels apart by {float((small - large).abs().mean()):.4f} on average")


if __name__ == "__main__":
    main()
