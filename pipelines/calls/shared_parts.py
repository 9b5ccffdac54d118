"""What a stock call changes in parts that frames share, and puts back at its end.

Other frames are under way then. Perturbed-attention guidance puts processors of its own into a
network. SDXL widens its VAE to decode. The rehearsal finds the first, which is then held while
there are frames; where it finds the second, calls end one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn


class Processor(NamedTuple):
    """The attention processor of a module."""

    module: Any
    processor: Any

    def hold(self) -> None:
        """Put it back, where another call has taken it out."""
        if self.module.processor is not self.processor:
            self.module.processor = self.processor


def processors(parts: Mapping[str, nn.Module]) -> dict[str, list[Processor]]:
    """Those of each part."""
    found: dict[str, list[Processor]] = {name: [] for name in parts}
    for name, part in parts.items():
        for module in part.modules():
            if hasattr(module, "processor"):
                found[name].append(Processor(module, module.processor))
    return found


def changed(
    before: Mapping[str, list[Processor]],
    after: Mapping[str, list[Processor]],
) -> dict[str, list[Processor]]:
    """Those of parts in which any differs."""
    return {name: now for name, now in after.items() if _differ(before[name], now)}


def _differ(before: list[Processor], now: list[Processor]) -> bool:
    pairs = zip(before, now, strict=True)
    return any(one.processor is not other.processor for one, other in pairs)


def dtypes(parts: Mapping[str, nn.Module]) -> dict[str, torch.dtype]:
    """The dtype of each part's first weight."""
    first = {name: next(part.parameters(), None) for name, part in parts.items()}
    return {name: weight.dtype for name, weight in first.items() if weight is not None}


@contextmanager
def dtypes_kept(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Parts have the dtypes that they had, whether what changes them puts them back or not."""
    before = dtypes(parts)
    try:
        yield
    finally:
        for name, dtype in dtypes(parts).items():
            if dtype is not before[name]:
                parts[name].to(before[name])
