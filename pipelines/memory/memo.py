"""What was measured of a pipeline, kept with it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from typing import Any


class Memo(dict[tuple[Hashable, ...], Any]):
    """Measurements of a pipeline (FLOPs, batch sizes) by their setting, which holds weak references
    to networks.

    Entries of networks that are gone are dropped. An `id` in place of a reference could become
    another network's. Deep copies and pickles of a pipeline have other networks, and begin with an
    empty memo.
    """

    def __setitem__(self, key: tuple[Hashable, ...], value: Any) -> None:
        for old in list(self):  # other threads add theirs meanwhile
            if any(isinstance(part, weakref.ref) and part() is None for part in old):
                self.pop(old, None)
        super().__setitem__(key, value)

    def of(self, setting: tuple[Hashable, ...]) -> dict[Hashable, Any]:
        """The measurements in one setting of a denoiser."""
        if setting not in self:
            self[setting] = {}
        found: dict[Hashable, Any] = self[setting]
        return found

    def of_copies(self, nets: Mapping[Any, Any]) -> Memo:
        """The same measurements of copies of networks, which cost what these cost."""
        copies: dict[Hashable, Hashable] = {
            weakref.ref(net): weakref.ref(copied) for net, copied in nets.items()
        }
        return Memo(
            {
                tuple(copies.get(part, part) for part in key): dict(value)
                for key, value in list(self.items())
                if not copies.keys().isdisjoint(key)
            }
        )

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


def filling(part: Any) -> tuple[Any, ...]:
    """What may change within a network: the number of weights, and the names of active LoRA
    adapters."""
    size = sum(parameter.numel() for parameter in part.parameters())
    try:
        return (size, *part.active_adapters()) if getattr(part, "peft_config", None) else (size,)
    except (AttributeError, ValueError):
        return (size,)
