"""What one round of a loop steps, as the one tensor of a candidate.

Most loops step one tensor, which has one row. LTX-2 steps a video and its sound, each by a
scheduler of its own. DiT steps two rows for one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fields:
    """The tensors that a round steps, in order. They share noise levels, steps and kernel."""

    shapes: tuple[torch.Size, ...]
    """Of each, with its rows."""
    late: bool = False
    """Whether what the first ones' steps make may be written when the last one's is known, with all
    that was made of it since (between.py)."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.shapes)

    @property
    def plain(self) -> bool:
        """Whether they are one tensor with one row, which a search can take as it is."""
        return self.count == 1 and self.shapes[0][0] == 1

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """That tensor (1, ...), or the numbers of all of them (1, n)."""
        if self.plain:
            return values[0]
        return torch.cat([value.reshape(1, -1) for value in values], dim=1)

    def parted(self, x: Tensor) -> list[Tensor]:
        """The tensors of one that was joined."""
        if self.plain:
            return [x]
        ends = accumulate(shape.numel() for shape in self.shapes)
        # Not by `split`, whose views must not be written into where they have a graph.
        return [
            x[:, end - shape.numel() : end].reshape(shape)
            for end, shape in zip(ends, self.shapes, strict=True)
        ]
