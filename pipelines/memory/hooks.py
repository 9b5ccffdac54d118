"""Hidden states of a network: a hook that lives for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def captured(blocks: nn.ModuleList | None, block: int | None) -> Iterator[list[Any]]:
    """A list that receives what `block` puts out, in one call; None: nothing."""
    states: list[Any] = []
    hook = None
    if blocks is not None and block is not None:
        hook = blocks[block].register_forward_hook(lambda _, __, out: states.append(out))
    try:
        yield states
    finally:
        if hook is not None:
            hook.remove()
