"""A draft of a tiny random pipeline, in a second."""

from __future__ import annotations

from diffusers import DDIMScheduler

from ttsnap.distill.config import DraftConfig
from ttsnap.distill.data import Frames
from ttsnap.files.settings import build
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import upgrade
from ttsnap.recordings.record import record

from ...pipelines.tiny import FAMILIES, STABLE_DIFFUSION_BETAS, sd15, shared  # noqa: TID252
from ..world import WORLD, Brightness  # noqa: TID252

PROMPTS = ("a red circle", "two dogs", "a cat", "a green tree", "a blue house")
STEPS = 5
NOTED = {"dtype": "float32", "kernel": "pipeline", "sampler": "Euler"}


def stock_of(name="sd3"):
    """A stock pipeline whose sampler takes one evaluation in each step."""
    return sd15(DDIMScheduler(**STABLE_DIFFUSION_BETAS)) if name == "sd15" else shared(name)


def pipe_of(name="sd3"):
    return upgrade(stock_of(name))


def call_of(name="sd3"):
    return {**FAMILIES[name].call, "num_inference_steps": STEPS}


def recorded(folder, name="sd3", pipe=None, call=None, prompts=PROMPTS, **info):
    """Two trajectories of each prompt."""
    call = call or call_of(name)
    engine = (pipe or pipe_of(name)).engine(Brightness(), keep=("latents",), **call)
    options = RecordOptions(seeds=2, seed=7, steps=(), latents=True)
    record(engine, prompts, folder, options, info={**NOTED, "model": name, "call": call, **info})
    return folder


def frames_of(folder):
    return Frames([folder])


def config_of(recording, name="sd3", **changes):
    """Four optimiser steps; two of the prompts are held out."""
    given = {
        "recordings": [str(recording)],
        "model": name,
        "reward": f"{WORLD}:Brightness",
        "rank": 2,
        "updates": 4,
        "batch": 4,
        "validation": 0.4,
        "validate_every": 2,
        "precision": "no",
        "checkpoint_every": 0,
        "lr": 0.01,
        "prompts": 2,
        "seeds": 3,
        "estimates": [0, 1],
        "device": "cpu",
    }
    return build(DraftConfig, {**given, **changes})


def bytes_in(folder):
    """Every file by its path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
