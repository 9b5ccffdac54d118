"""Hidden states of a network: a hook that lives for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def captured(blocks: Any, block: int | None) -> Iterator[list[Any]]:
    """A list that receives what `block` puts out, in one call; None: nothing."""
    states: list[Any] = []
    hook = blocks[block].register_forward_hook(lambda _, __, out: states.append(out)) if block is not None else None
    try:
        yield states
    finally:
        if hook is not None:
            hook.remove()
