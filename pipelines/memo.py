"""What was measured of a pipeline (FLOPs, batch sizes), kept by what it was measured of."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any


class Memo(dict[tuple[Hashable, ...], Any]):
    """A dict whose keys may hold weak references to networks. Entries of networks that are gone are dropped.

    An `id` in their place would sooner or later be another network's. Deep copies and pickles of a pipeline are of
    other networks, and begin with an empty memo.
    """

    def __setitem__(self, key: tuple[Hashable, ...], value: Any) -> None:
        gone = [old for old in self if any(isinstance(part, weakref.ref) and part() is None for part in old)]
        for old in gone:
            del self[old]
        super().__setitem__(key, value)

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()
