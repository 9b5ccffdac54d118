"""A draft of a tiny random pipeline, in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.prompts import Listed
from ttsnap.files.settings import build
from ttsnap.pipelines import upgrade
from ttsnap.rewards.reward_model import RewardModel

from ...pipelines.tiny import FAMILIES, STABLE_DIFFUSION_BETAS, sd15, shared  # noqa: TID252

PROMPTS = Listed(["a red circle", "two dogs", "a cat"])
STEPS = 5


def stock_of(name: str = "sd3") -> Any:
    """A stock pipeline whose sampler takes one evaluation in each step."""
    return sd15(DDIMScheduler(**STABLE_DIFFUSION_BETAS)) if name == "sd15" else shared(name)


def pipe_of(name: str = "sd3") -> Any:
    return upgrade(stock_of(name))


def config_of(name: str = "sd3", **sections: dict[str, Any]) -> DraftConfig:
    """Six trajectories of three steps' states and four optimiser steps, unless a section says otherwise."""
    trajectories = {"count": 6, "shard": 2, "batch": 2, "states": 3, "seed": 7, **sections.get("trajectories", {})}
    training: dict[str, Any] = {"rank": 2, "steps": 4, "batch": 4, "validation": 2, "validate_every": 2}
    training |= {
        "precision": "no",
        "checkpoint_every": 2,
        "second": 0.25,
        "from_noise": 0.5,
        "lr": 0.01,
        **sections.get("training", {}),
    }
    evaluation = {"prompts": 2, "seeds": 3, "steps": (0, 1), "reward": "x", **sections.get("evaluation", {})}
    call = {**FAMILIES[name].call, "num_inference_steps": STEPS}
    return build(
        DraftConfig,
        {"model": name, "call": call, "trajectories": trajectories, "training": training, "evaluation": evaluation},
    )


class Brightness(RewardModel):
    """Mean pixel value."""

    name = "brightness"

    def __call__(self, images: Tensor, prompts: Any, level: Any = None) -> Tensor:
        return images.mean((1, 2, 3))


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
