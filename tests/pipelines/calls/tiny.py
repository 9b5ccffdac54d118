"""Stock pipelines of more classes, over tiny parts, and a small call of each."""

from __future__ import annotations

import functools

import torch

from benchmarks import support_parts
from ttsnap.pipelines.memory.memo import Memo

NAMES = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionPAGPipeline",
    "LatentConsistencyModelPipeline",
    "AnimateDiffPipeline",
    "AnyFlowPipeline",
    "StableDiffusionXLPAGPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxInpaintPipeline",
    "PixArtAlphaPipeline",
    "Flux2KleinInpaintPipeline",
)


@functools.cache
def made(name):
    """The stock pipeline of a class and the arguments of a small call, which no test changes.

    Its twins keep in one place what calls of its parts make, which takes longer than a search.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = support_parts.stock(name)
    case.pipe._search_memo = Memo()
    return case


def stock(name):
    """The stock pipeline of a class."""
    return made(name).pipe


def call_of(name):
    """The arguments of a small call of a class."""
    return dict(made(name).call)
