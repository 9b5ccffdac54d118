"""What was made of arguments, made once for equal ones.

Frames of one prompt call the same encoders for the same texts and pictures. Embeddings may have
hundreds of MB, so that they are shared, and compared where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.pipelines.calls.values import arrays_in, identity_of, mapped, version_of


class Kept:
    """Results by what made them and by its arguments."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, list[_Entry]] = {}
        """By all but the numbers in arrays."""

    def of(self, what: Hashable, args: Any, kwargs: Any, make: Callable[..., Any]) -> Any:
        """What `make` makes of these arguments, in lists of its own: stock calls change those."""
        key = what, identity_of(args), identity_of(kwargs)
        entries, arrays = self._entries.setdefault(key, []), arrays_in((args, kwargs))
        found = next((entry for entry in entries if entry.is_of(arrays)), None)
        if found is None:
            made = make(*args, **kwargs)
            found = _Entry(made, (args, kwargs), arrays, list(map(version_of, arrays)))
            entries.append(found)
        return mapped(found.made, lambda tensor: tensor)


class _Entry(NamedTuple):
    made: Any
    arguments: Any
    """Held, since keys have their ids."""
    arrays: list[Tensor]
    """Those in them."""
    versions: list[int]

    def is_of(self, arrays: Sequence[Tensor]) -> bool:
        """Whether it was made of these numbers."""
        if self.versions != list(map(version_of, self.arrays)):
            return False
        return all(torch.equal(*pair) for pair in zip(self.arrays, arrays, strict=True))
