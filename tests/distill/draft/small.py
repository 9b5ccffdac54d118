"""A draft of a tiny random pipeline, in a second."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.prompts import Listed
from ttsnap.files.settings import build
from ttsnap.pipelines import upgrade
from ttsnap.rewards.reward_model import RewardModel

from ...pipelines.tiny import FAMILIES, STABLE_DIFFUSION_BETAS, sd15, shared  # noqa: TID252

PROMPTS = Listed(["a red circle", "two dogs", "a cat"])
STEPS = 5


def stock_of(name="sd3"):
    """A stock pipeline whose sampler takes one evaluation in each step."""
    return sd15(DDIMScheduler(**STABLE_DIFFUSION_BETAS)) if name == "sd15" else shared(name)


def pipe_of(name="sd3"):
    return upgrade(stock_of(name))


def denoiser_of(config):
    return pipe_of(config.model).denoiser(**dict(config.call or {}))


def settings_of(config):
    call = dict(config.call or {})
    return trajectories.settings_of(config.trajectories, config.model, call, PROMPTS, torch.float32)


def config_of(name="sd3", **sections):
    """Six trajectories of three steps' states and four optimiser steps, unless a section says
    otherwise."""
    rows = {"second": 0.25, "from_noise": 0.5, "validation": 2, "validate_every": 2}
    made = {
        "trajectories": {"count": 6, "shard": 2, "batch": 2, "states": 3, "seed": 7},
        "training": {
            "rank": 2,
            "steps": 4,
            "batch": 4,
            "precision": "no",
            "checkpoint_every": 0,
            "lr": 0.01,
            **rows,
        },
        "evaluation": {"prompts": 2, "seeds": 3, "steps": (0, 1), "reward": "x"},
    }
    call = {**FAMILIES[name].call, "num_inference_steps": STEPS}
    given = {section: {**values, **sections.get(section, {})} for section, values in made.items()}
    return build(DraftConfig, {"model": name, "call": call, **given})


class Brightness(RewardModel):
    """Mean pixel value."""

    name = "brightness"

    def __call__(self, images, prompts, level=None):
        return images.mean((1, 2, 3))


def bytes_in(folder):
    """Every file by its path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
