"""Nested latents of ComfyUI, which have several fields: a video and its sound.

Inside `guider.sample` the fields are joined flat, one after the other, in one tensor (N, 1, L). So
is a candidate of a search. Other latents are one field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Shapes: TypeAlias = tuple[torch.Size, ...]
"""Of the fields of one nested latent, each (1, C, ...); of other latents none."""


def fields_of(latent: Any) -> list[Tensor]:
    """The fields (N, C, ...) of a latent as nodes take it."""
    return list(latent.unbind()) if latent.is_nested else [latent]


def nested(fields: Sequence[Tensor]) -> Any:
    """The latent of these fields (N, C, ...) as nodes take it: a NestedTensor where there are
    several."""
    if len(fields) == 1:
        return fields[0]
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(fields)


def joined(fields: Sequence[Tensor]) -> Tensor:
    """The fields (N, C, ...) of a latent in one tensor (N, 1, L); a single one as it is."""
    if len(fields) == 1:
        return fields[0]
    from comfy.utils import pack_latents

    made: Tensor = pack_latents(fields)[0]
    return made


def split(latents: Tensor, shapes: Shapes) -> list[Tensor]:
    """The fields (N, C, ...) of latents (N, ...) that `joined` made."""
    if not shapes:
        return [latents]
    from comfy.utils import unpack_latents

    fields: list[Tensor] = unpack_latents(latents, shapes)
    return fields
