"""The networks of benchmarks/models.py at full size."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

PUBLISHED = {
    "sdxl": ("unet", 2_567_463_684),
    # of SD3.5 medium; with its table of positions a file of 4.94 GB
    "sd3": ("transformer", 2_243_171_520),
    "flux": ("transformer", 11_901_408_320),
}


def test_full_size_networks_are_the_published_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    models = importlib.import_module("models")
    for name, (part, published) in PUBLISHED.items():
        case = models.build(name, "full", torch.device("meta"), torch.bfloat16)
        parameters = list(getattr(case.pipe, part).parameters())
        assert (sum(p.numel() for p in parameters), {p.dtype for p in parameters}) == (
            published,
            {torch.bfloat16},
        )
        assert case.pipe.vae.use_slicing
        assert case.call["height"] == case.call["width"] == 1024
