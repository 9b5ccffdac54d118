"""How a stock call is told to make several images of one prompt.

Widening("num_images_per_prompt").of({"prompt": "a fox"}, 3)
# {"prompt": "a fox", "num_images_per_prompt": 3}
Widening().of({"prompt": "a fox"}, 3)
# {"prompt": ["a fox", "a fox", "a fox"]}
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.tasks import PICTURES

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
"""Arguments that say how many."""


class Widening(NamedTuple):
    """One way."""

    number: str | None = None
    """The argument that says how many; None: prompts and pictures are lists."""
    rowed: Mapping[str, frozenset[Any]] = {}
    """Which arguments of each part's calls have a row for each image (joining.Path)."""

    def of(self, arguments: Mapping[str, Any], n: int) -> dict[str, Any]:
        """The arguments of n images."""
        if self.number is not None:
            return {**arguments, self.number: n}
        return {name: _repeated(name, value, n) for name, value in arguments.items()}


def ways(arguments: Collection[str]) -> list[Widening]:
    """What a call with these arguments may know."""
    return [*(Widening(name) for name in COUNTS if name in arguments), Widening()]


def _repeated(name: str, value: Any, n: int) -> Any:
    """An argument of one image, for n."""
    if value is None or not ("prompt" in name or name in PICTURES):
        return value
    if isinstance(value, Tensor):
        return torch.cat([value] * n)
    if isinstance(value, list):
        return value * n
    return [value] * n
