"""Repel: seeds of one prompt are pushed apart inside attention, while they are still noise.

Large flow models draw nearly the same picture from every seed. Rethinking Test Time Scaling for
Flow-Matching Generative Models (arXiv 2511.22242) therefore couples the seeds of a group by
negative token merging (NegToMe, arXiv 2412.01339): each image token moves away from the token of
the other images that is most like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttsnap.options.variety import Repel
from ttsnap.sampling import rng

MOST_BYTES = 2**28
"""Of similarities that are computed at once."""


def repelled(h: Tensor, kept: Tensor, how: Repel) -> Tensor:
    """h <- (1 + a) h - a h_match for the tokens h (n, T, D) of one group, after attention.

    h_match is the token of all other images with the largest cosine. A token stays as it is where
    that is not above the threshold, and where `kept` (n, T) is False.
    """
    n, tokens, _ = h.shape
    if n == 1:
        return h
    unit = nn.functional.normalize(h if h.dtype == torch.float64 else h.float(), dim=-1).to(h.dtype)
    everyone = unit.flatten(0, 1)
    flat = h.flatten(0, 1)
    out = torch.empty_like(h)
    most = max(1, MOST_BYTES // (n * tokens * h.element_size()))
    parts = [(image, slice(i, i + most)) for image in range(n) for i in range(0, tokens, most)]
    for image, part in parts:
        cosine = unit[image, part] @ everyone.T
        cosine[:, image * tokens : (image + 1) * tokens] = -torch.inf
        best, match = cosine.max(1)
        moves = ((best > how.threshold) & kept[image, part])[:, None]
        own = h[image, part]
        out[image, part] = torch.where(
            moves, (1 + how.factor) * own - how.factor * flat[match], own
        )
    return out


def attentions(net: nn.Module) -> list[nn.Module]:
    """The attention of image tokens to each other in a network of diffusers, in order; none to a
    text alone."""
    return [
        module
        for name, module in net.named_modules()
        if getattr(module, "processor", None) is not None and hasattr(module, "set_processor")
        if not getattr(module, "is_cross_attention", False) and not _of_text(name)
    ]


def _of_text(name: str) -> bool:
    """Whether a module of this name refines texts, as the network begins."""
    return "refiner" in name and "noise_refiner" not in name


@contextmanager
def coupled(
    net: nn.Module,
    how: Repel,
    image: Callable[[int], slice | None],
    key: rng.Key,
    rows: int | None = None,
) -> Iterator[None]:
    """Within it, calls of the network couple their rows: `how.size` seeds, and with guidance these
    again, apart.

    net: called by nobody else meanwhile, and not compiled: compiled code does not see hooks. image:
    where image tokens are in a sequence of this length; None for one of a text. key: which with the
    layer says what tokens are let off, so that a run repeats. rows: of a call, where attention may
    see each as several, as it does the frames of videos.
    """
    with ExitStack() as stack:
        for layer, attention in enumerate(attentions(net)):
            change = partial(_changed, how=how, image=image, key=(*key, layer), rows=rows)
            stack.callback(_hooked(attention, change).remove)
        yield


def _changed(
    h: Tensor,
    how: Repel,
    image: Callable[[int], slice | None],
    key: rng.Key,
    rows: int | None,
) -> Tensor:
    """Tokens (M, L, D) after attention, those of images coupled."""
    if len(h) % (rows or len(h)):
        return h
    out = h.reshape(rows or len(h), -1, h.shape[-1]).clone()
    where = image(out.shape[1])
    if where is None:
        return h
    halves = out[:, where].split(how.size)
    kept = torch.rand(halves[0].shape[:2], generator=rng.generator(key)) >= how.drop
    out[:, where] = torch.cat(
        [repelled(half, kept.to(h.device, non_blocking=True), how) for half in halves]
    )
    return out.reshape(h.shape)


def _hooked(attention: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change what comes out of an attention, before its projection: that is linear, and every
    back-end ends there."""
    out = getattr(attention, "to_out", None)
    if out is None:  # FLUX projects it later, together with the MLP
        return attention.register_forward_hook(lambda _, inputs, h: _first_changed(h, change))
    if isinstance(out, nn.ModuleList):
        return out[0].register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
    width = attention.inner_dim  # FLUX.2 projects it together with the MLP, whose part comes second
    return out.register_forward_pre_hook(
        lambda _, inputs: (torch.cat([change(inputs[0][..., :width]), inputs[0][..., width:]], -1),)
    )


def _first_changed(made: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What an attention returns, of which the image's part comes first."""
    return (change(made[0]), *made[1:]) if isinstance(made, tuple) else change(made)
