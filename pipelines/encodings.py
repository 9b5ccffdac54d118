"""Encoded prompts that are kept while their jobs live, so that only new ones are encoded when others come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Parts: TypeAlias = "Sequence[Tensor | None]"
"""What a pipeline's encode_prompt returns for P prompts: tensors (P, ...), or None where it makes none."""


class Encodings:
    """Of one denoiser, of a family that encodes each prompt as in any other company."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Tensor | None, ...]] = {}

    def __call__(self, prompts: Sequence[str], encode: Callable[[Sequence[str]], Parts]) -> Parts:
        """What encode(prompts) returns, asked of those alone that the last call did not have; all others are forgotten.

        Where none is known, all are encoded in one call, so that a search encodes its prompts as the stock call does.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if len(new) == len(set(prompts)):
            parts = encode(prompts)
            self._rows = _by_prompt(prompts, parts)
            return parts
        known = self._rows | (_by_prompt(new, encode(new)) if new else {})
        self._rows = {prompt: known[prompt] for prompt in prompts}
        return [_stacked(column) for column in zip(*(known[prompt] for prompt in prompts), strict=True)]


def _by_prompt(prompts: Sequence[str], parts: Parts) -> dict[str, tuple[Tensor | None, ...]]:
    """The rows of each prompt, apart from those of the others, which may be forgotten sooner."""
    rows = (tuple(None if part is None else part[i].clone() for part in parts) for i in range(len(prompts)))
    return dict(zip(prompts, rows, strict=True))


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    there = [row for row in rows if row is not None]
    return torch.stack(there) if there else None
