"""What the inputs of nodes mean, and what their outputs say, without ComfyUI.

A workflow from a stranger is data: it names rewards, algorithms and samplers that are offered, and no file, address or
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Candidate, Result
from ttsnap.files.reading import parse_object
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.limits import SearchLimits
from ttsnap.request.request import EngineSpec, SearchRequest
from ttsnap.request.searches import kernel_for, search_of
from ttsnap.reward_models.registry import REWARDS
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import Shown, score_in_parts

NOT_OFFERED = {"noise-aware", "editreward", "editscore"}
"""Rewards that need a folder, or the picture that was edited."""
OFFERED = sorted(REWARDS.keys() - NOT_OFFERED, key=lambda name: (name.startswith("scenes"), name))
"""Rewards by name. Those of the embedded model's world come last."""
KERNELS = {f"ttsnap: {name}": name for name in ("ode", "sde", "ddim", "ancestral", "renoise")}
"""ttsnap's own kernels, by their names in the list of samplers."""
USUAL = Budget(images=8.0)
"""Where no node Budget is connected."""


class Weighted(NamedTuple):
    """One reward of a chain."""

    reward: RewardModel
    weight: float


def request_of(
    prompt: str, rewards: Sequence[Weighted], sampler: str, algorithm: str, options: str, budget: Budget | None,
    seed: int, keep: int, batch_size: int,
) -> SearchRequest:  # fmt: skip
    """The search that a node asks for. Its utility is the weighted sum of the rewards.

    options: of the algorithm, a JSON object or nothing. batch_size: 0 for any. ValueError for options that the
    algorithm does not have, and for a sampler of ComfyUI where it needs one that draws noise or has a path.
    """
    given = parse_object(options, "options") if options.strip() else {}
    search = search_of({**given, "name": algorithm} if given else algorithm, {}, SearchLimits().nfe)
    if sampler not in KERNELS and (kernel := kernel_for(search)) != "pipeline":
        raise ValueError(f"{algorithm} branches candidates, or takes them back, which the sampler {sampler} cannot do; "
                         f"choose the sampler 'ttsnap: {kernel}'")  # fmt: skip
    how, batches = SamplerOptions(KERNELS.get(sampler, "pipeline")), EngineOptions(batch_size=batch_size or None)
    spec = EngineSpec(None, tuple(each.reward for each in rewards), how, batches)
    weights = [each.weight for each in rewards]
    return SearchRequest((Prompt(prompt),), spec, search, budget or USUAL, seed, keep, utility=weights)


def frames(images: Sequence[Candidate]) -> Tensor:
    """Images (K, H, W, 3), best first, or the frames of videos in a row, as ComfyUI decodes them."""
    return torch.cat([image.pixels.movedim(-3, -1).reshape(-1, *image.pixels.shape[-2:], 3) for image in images])


def reported(result: Result, search: str, *, stock: bool) -> str:
    """What a search found and spent, in lines. stock: whether KSampler begins with the noise of the same seeds."""
    lines = [search]
    for rank, image in enumerate(result.images, 1):
        scores = ", ".join(f"{name} {score:.4g}" for name, score in image.scores.items())
        lines.append(f"{rank}. seed {image.seed}: {image.reward:.4g} ({scores})")
    if result.images and stock and result.particles.parent[result.best.uid] < 0:
        lines.append(f"KSampler with seed {result.best.seed} and otherwise the same inputs makes image 1 again")
    return "\n".join([*lines, f"spent {result.spent}", *result.warnings])


def scored(images: Tensor, prompt: str, rewards: Sequence[Weighted]) -> tuple[list[float], str]:
    """The weighted sums of images (N, H, W, 3), and lines that say all scores. ValueError where a reward fails."""
    Shown().check([reward for reward, _ in rewards])
    pictures, texts, columns = images[..., :3].movedim(-1, -3).float(), [prompt] * len(images), []
    for reward, _ in rewards:
        reward.check(texts[:1])
        column, error = score_in_parts(reward, pictures.clone(), texts, torch.zeros(len(images)), reward.name)
        if error is not None:
            raise ValueError(f"the images could not be scored: {error}")
        columns.append(column)
    table, names = np.stack(columns, 1), [reward.name for reward, _ in rewards]
    sums = (table @ [weight for _, weight in rewards]).tolist()
    each = (", ".join(f"{name} {score:.4g}" for name, score in zip(names, row, strict=True)) for row in table)
    return sums, "\n".join(f"{i}: {total:.4g} ({row})" for i, (total, row) in enumerate(zip(sums, each, strict=True)))


def chosen(scores: Sequence[float], keep: int, indices: str = "") -> list[int]:
    """Those named in `indices` ("0, 2"), else the `keep` of the highest scores. ValueError for indices beyond them."""
    if not indices.strip():
        values = np.nan_to_num(np.asarray(scores, float), nan=-np.inf)
        best: list[int] = np.argsort(-values, kind="stable")[:keep].tolist()
        return best
    wanted = [part.strip() for part in indices.split(",")]
    if wrong := [part for part in wanted if not part.isdecimal() or int(part[:9]) >= len(scores)]:
        raise ValueError(f"indices are numbers from 0 to {len(scores) - 1}, as 0, 2; got {wrong[0][:40]!r}")
    return [int(part) for part in wanted]


def picked(batches: Mapping[str, Tensor], scores: Sequence[float] | None, keep: int, indices: str) -> dict[str, Tensor]:
    """What is chosen of batches (N, ...) of the same images, latents, or videos, which are several frames each.

    scores: without them, the first are the best. ValueError where they do not fit the batches.
    """
    scores = scores or [0.0] * min(map(len, batches.values()), default=0)
    if not scores or any(len(batch) % len(scores) for batch in batches.values()):
        sizes = ", ".join(f"{len(batch)} {name}" for name, batch in batches.items()) or "nothing"
        raise ValueError(f"cannot pick by {len(scores)} scores of {sizes}; connect what is of the same images")
    which = chosen(scores, keep, indices)
    return {name: batch.unflatten(0, (len(scores), -1))[which].flatten(0, 1) for name, batch in batches.items()}
