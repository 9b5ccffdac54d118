"""torch.compile for the denoiser, so that batches that shrink as candidates are dropped do not recompile each time."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from ttsnap.pipelines.attention import network

RECOMPILE_LIMIT = 64
"""Block kinds times batch sizes; PyTorch's 8 would be an error in a search of a larger batch."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def compile_denoiser(
    pipe: Any, *, mode: str | None = None, regional: bool = True, dynamic: bool | None = False, **options: Any
) -> None:
    """Compile the denoising network in place, at its first calls; the weights and the module stay the same.

    mode: of torch.compile, as "max-autotune-no-cudagraphs". ValueError for those with CUDA graphs, which reuse the
    memory of outputs that a search keeps. regional: only the repeated blocks, as full graphs, where diffusers names
    them (U-Nets, Flux, Flux.2, Qwen-Image, Z-Image): quicker to compile; elsewhere the whole network is compiled.
    dynamic: False compiles once per batch size, and `pipe._search_buckets = True` makes `SearchMixin.engine` fill
    batches up to a few sizes (ttsnap/profiling/buckets.py); True compiles for any size, and batches stay as they are.
    options: more arguments of torch.compile.

    Hidden features cannot be read from a network that is compiled whole: it skips the hooks that capture them.
    """
    if mode in CUDA_GRAPHS:
        raise ValueError(f"mode {mode!r} reuses the memory of outputs; choose 'max-autotune-no-cudagraphs' or None")
    model = network(pipe)
    settings: dict[str, Any] = {"mode": mode, "dynamic": dynamic, **_limit(), **options}
    if regional and getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks(**{"fullgraph": True, **settings})
    else:
        model.compile(**settings)
    pipe._search_buckets = dynamic is not True


def _limit() -> dict[str, int]:
    """The number of compilations to allow: per call where PyTorch can, else for the process."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": RECOMPILE_LIMIT}
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return {}
