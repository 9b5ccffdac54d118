"""What a call makes between the steps of one round, of latents that are known at its end alone.

LTX-2 steps its video and then its sound, and a search steps both at once. Until then the call goes
on with stand-ins. What it has made of them, as where it puts a given first frame before the others,
is made again of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Between(TorchDispatchMode):
    """Sees the operators of the thread that enters it, and keeps those that read a stand-in."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.stand_ins: list[Tensor] = []
        self._made: list[tuple[Any, Any, Any, Any]] = []
        """The operator, its arguments and what it made, of each that read a stand-in."""
        self._read = set[int]()
        """The memory of stand-ins, and of what was made of them."""

    def stand_in(self, sample: Tensor) -> Tensor:
        """In the place of the latents that a step makes of these."""
        self.stand_ins.append(sample.clone())
        self._read |= _memory(self.stand_ins[-1:])
        return self.stand_ins[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if self._read & _memory(tree_leaves((args, kwargs))):
            self._read |= _memory(tree_leaves(made))
            self._made.append((func, args, kwargs, made))
        return made

    def settle(self, latents: Sequence[Tensor]) -> None:
        """Write latents into their stand-ins, and make again what was made of these."""
        for stand_in, moved in zip(self.stand_ins, latents, strict=False):
            stand_in.copy_(moved)
        for func, args, kwargs, made in self._made:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and not _memory([old]) & _memory([new]):
                    old.copy_(new)


def _memory(values: Iterable[Any]) -> set[int]:
    """Where tensors are kept, which views share."""
    return {value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)}
