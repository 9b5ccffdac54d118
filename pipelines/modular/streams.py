"""The fields of latents of a row in a modular pipeline: one, or several that are denoised together.

A search sees a candidate as one tensor. Where a loop has several fields, as LTX-2 has for a video and its sound, their
tokens are concatenated in that tensor. They share noise levels, steps and kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """The fields of a row, and the network's outputs for them."""

    fields: tuple[str, ...] = ("latents",)
    """The loop's fields of latents."""
    outputs: tuple[str, ...] = ("noise_pred",)
    """The field with the network's output for each of them."""
    estimates: bool = False
    """Whether outputs are estimates of x0, in place of what the scheduler takes."""

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor of the tokens (N, S, C) of all fields; a single field is returned unchanged, in any shape.
        ValueError for different channels."""
        if len({value.shape[2:] for value in values}) > 1:
            channels = " and ".join(str(value.shape[-1]) for value in values)
            raise ValueError(f"a candidate is one tensor of tokens, but those of {' and '.join(self.fields)} have "
                             f"{channels} channels")  # fmt: skip
        return values[0] if len(values) == 1 else torch.cat(list(values), dim=1)

    def parted(self, x: Tensor, like: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The fields of rows x, with as many tokens and the same strides as `like` gives by name."""
        shown = [like(name) for name in self.fields]
        parts = [x] if len(shown) == 1 else x.split([each.shape[1] for each in shown], dim=1)
        return {name: laid_out(part, of) for name, part, of in zip(self.fields, parts, shown, strict=True)}

    def of(self, get: Callable[[str], Any]) -> Tensor:
        """The latents of a state, whose values `get` gives by name, as one tensor."""
        return self.joined([get(name) for name in self.fields])


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x (N, ...) with the memory layout of `like` (1, ...).

    Blocks pass on latents with permuted axes, and the last digits of a matrix product depend on that.
    """
    strides = like.stride()
    axes = [0, *sorted(range(1, x.ndim), key=lambda axis: -strides[axis])]
    return x.permute(axes).contiguous().permute([axes.index(axis) for axis in range(x.ndim)])


ONE = Streams()
"""Latents and an output, as nearly all loops have them."""
WITH_SOUND = Streams(("latents", "audio_latents"), ("noise_pred_video", "noise_pred_audio"), estimates=True)
"""A video and its sound."""
