"""Recipes by name, for `ttsnap distill --preset`: tables of settings."""

from __future__ import annotations

from collections.abc import Mapping

from ttsnap.files.settings import Json
from ttsnap.reward_models.noise_aware.schedule import level_of


def dogtrim(pairs: int, final_lr: float) -> dict[str, Json]:
    """As DOG-Trim trains its rewards (arXiv 2511.22242, its later version), on 5,000 prompts of 4 images.

    pairs: of images of one prompt, in one of the two parts of a step. final_lr: the share of the learning rate that is
    left at the end of a level; levels begin lower by as much over their number.
    """
    levels = [round(level_of(step), 4) for step in (21, 14, 7)]
    epoch = 5_000 * 4 // (2 * pairs)
    return {
        "student": {"kind": "full", "per_level": True},
        "levels": levels,
        "earlier": 0.0,
        "loss": {"name": "mse", "centred": False, "plain": 0.0},
        "group_size": 2,
        "groups": 2 * pairs,
        "accumulation": 2,
        "steps_per_level": [epoch * (2 + 2 * i) for i in range(len(levels))],
        "lr": [5e-7 * (1 - (1 - final_lr) * i / len(levels)) for i in range(len(levels))],
        "schedule": "linear",
        "span": "level",
        "final_lr": final_lr,
        "warmup": 0,
        "weight_decay": 0.01,
        "clip": 5.0,
        "ema": 0.0,
        "checkpoint_every": 900.0,  # one holds all networks
    }


PRESETS: Mapping[str, Mapping[str, Json]] = {
    "dogtrim": dogtrim(15, 0.2),
    "dogtrim-pickscore": {**dogtrim(15, 0.5), "reward": "pickscore"},
    "dogtrim-imagereward": {**dogtrim(25, 0.2), "reward": "imagereward"},
}
"""Options of `ttsnap distill` by preset. The first is that of HPSv2.1, and for other rewards."""
