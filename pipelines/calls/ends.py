"""What the end of a stock call, after its last step, asks of its parts, and what it needs each of them for.

A call with sound decodes that, too. Pictures of estimates do without, and the sound of a winner without its pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class End:
    """One that was seen, with parts that answered with dummies."""

    made: Any = None
    """What the call returned."""
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of each part."""
    given: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """The tensors that each part was given."""

    def all_flops(self, asleep: frozenset[str]) -> float:
        """Of all parts but these."""
        return sum(flops for part, flops in self.flops.items() if part not in asleep)

    def without(self, others: Mapping[str, End], of: Callable[[Any], Tensor | None]) -> frozenset[str]:
        """The parts on which this of what is made does not depend.

        others: the end where one part answered with another number, by that part.
        """
        reads = {part: self._readers(other) for part, other in others.items()}
        needed = {part for part, other in others.items() if not _equal([of(self.made)], [of(other.made)])}
        while more := {part for part in others if reads[part] & needed} - needed:
            needed |= more
        return frozenset(others.keys() - needed)

    def _readers(self, other: End) -> set[str]:
        """The parts that are given something else in another end."""
        return {part for part in self.given if not _equal(self.given[part], other.given[part])}


def _equal(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(torch.equal(*pair) for pair in zip(some, others, strict=True))
