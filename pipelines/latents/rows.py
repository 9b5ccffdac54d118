"""Rows of what was encoded for the prompts, texts and tokens: what the denoisers of the families need of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def take(encoded: Any, at: Tensor) -> Any:
    """Rows `at` (N,) of encoded prompts: of a tensor (P, ...), or of a list with one tensor a prompt; None stays."""
    if encoded is None:
        return None
    if isinstance(encoded, list):
        return [encoded[i] for i in at.tolist()]
    return encoded[at.to(encoded.device, non_blocking=True)]


def taken(fields: Sequence[Any], at: Tensor) -> list[Any]:
    """Rows `at` (N,) of each of these fields."""
    return [take(field, at) for field in fields]


def chained(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """The rows of these fields, tensors or lists, then those of the others, as one batch."""
    return [
        a + b if isinstance(a, list) else None if a is None else torch.cat([a, b])
        for a, b in zip(first, second, strict=True)
    ]


def texts(value: str | Sequence[str] | None, n: int) -> list[str] | None:
    """One text for each of n prompts: of one for all, or of a list (its first n). ValueError for too short a list."""
    if value is None:
        return None
    if not isinstance(value, str) and len(value) < n:
        raise ValueError(f"{len(value)} texts for {n} prompts: {value!r}")
    return [value] * n if isinstance(value, str) else list(value)[:n]


def first(embeds: Any, n: int) -> Any:
    """Given embeddings, a tensor or one tensor a prompt, of the first n prompts: FLOPs are counted with a single one.

    ValueError for fewer.
    """
    if embeds is not None and len(embeds) < n:
        raise ValueError(f"embeddings of {len(embeds)} prompts for {n} prompts")
    return None if embeds is None else embeds[:n]


def tokens(embeds: Any) -> int | None:
    """Tokens of given embeddings: a tensor (P, L, D), or one (L, D) a prompt, of which the first counts."""
    if embeds is None or not len(embeds):
        return None
    return int(embeds.shape[1]) if isinstance(embeds, Tensor) else len(embeds[0])


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents as this VAE decodes them: by its own scale and shift, where it has them."""
    c = vae.config
    return latents / (c.get("scaling_factor") or 1.0) + (c.get("shift_factor") or 0.0)


def check_sides(pipe: Any, net: Any, height: int, width: int) -> None:
    """ValueError for an image, in pixels, that is larger than the network has positions for, where they are a table."""
    most = net.config.get("pos_embed_max_size")
    if most is not None and max(height, width) > (pixels := most * net.config["patch_size"] * pipe.vae_scale_factor):
        raise ValueError(f"this model draws at most {pixels} x {pixels} pixels, got width {width} and height {height}")
