"""What a row of a modular pipeline is made of: one field of latents, or several that are denoised together.

A candidate is one tensor wherever a search sees it. Where a loop keeps several, as LTX-2 does with a video and its
sound, their tokens follow each other in that tensor: they share the noise levels, the steps and the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """fields: the loop's fields of latents. outputs: where its blocks leave what they make of each. estimates: whether
    that is an estimate of x0, and not yet what the scheduler takes."""

    fields: tuple[str, ...] = ("latents",)
    outputs: tuple[str, ...] = ("noise_pred",)
    estimates: bool = False

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor of the tokens (N, S, C) of each field; the only one as it is, whatever its shape. ValueError where
        they differ in their channels."""
        if len({value.shape[2:] for value in values}) > 1:
            channels = " and ".join(str(value.shape[-1]) for value in values)
            raise ValueError(f"a candidate is one tensor of tokens, but those of {' and '.join(self.fields)} have "
                             f"{channels} channels")  # fmt: skip
        return values[0] if len(values) == 1 else torch.cat(list(values), dim=1)

    def parted(self, x: Tensor, like: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The fields of rows x, of as many tokens as those that `like` tells by name, and laid out in memory as they
        are."""
        shown = [like(name) for name in self.fields]
        parts = [x] if len(shown) == 1 else x.split([each.shape[1] for each in shown], dim=1)
        return {name: laid_out(part, of) for name, part, of in zip(self.fields, parts, shown, strict=True)}

    def of(self, get: Callable[[str], Any]) -> Tensor:
        """The latents of a state, whose values `get` tells by name, as one tensor."""
        return self.joined([get(name) for name in self.fields])


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x (N, ...) with its numbers in the order in memory of those of `like` (1, ...).

    Blocks hand on latents whose axes were exchanged, and the last digits of a matrix product depend on that.
    """
    strides = like.stride()
    axes = [0, *sorted(range(1, x.ndim), key=lambda axis: -strides[axis])]
    return x.permute(axes).contiguous().permute([axes.index(axis) for axis in range(x.ndim)])


ONE = Streams()
"""Latents and an output, as nearly all loops have them."""
WITH_SOUND = Streams(("latents", "audio_latents"), ("noise_pred_video", "noise_pred_audio"), estimates=True)
"""A video and its sound."""
