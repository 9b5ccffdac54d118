"""What calls take of memory, on torch's meta device, which holds shapes and no numbers: no weights,
seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_COPY = torch.ops.aten._to_copy.default
_SUM = torch.ops.aten.sum.dim_IntList
_ITEM = torch.ops.aten._local_scalar_dense.default


class Live(TorchDispatchMode):
    """Adds up the storages that operators make on one device and that still live; `peak` is the
    most at a time.

    Networks that ask whether a mask is full, which the meta device cannot say, are told that it is;
    and so of how long a text is by its mask.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = 0
        self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()
        self._lengths: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ITEM and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        if (
            func is _COPY
            and args[0] in self._lengths
            and torch.device(kwargs["device"]).type == "cpu"
        ):
            return torch.full(args[0].shape, self._lengths[args[0]])
        if any(isinstance(each, Tensor) and each.is_meta for each in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        made = func(*args, **(kwargs or {}))
        if func is _SUM and not args[0].is_floating_point():
            self._lengths[made] = math.prod(args[0].shape[dim] for dim in args[1])
        given = {
            id(each.untyped_storage())
            for each in tree_leaves((args, kwargs))
            if isinstance(each, Tensor)
        }
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor.untyped_storage(), given)
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: Any, given: set[int]) -> None:
        # a view, or a tensor that was changed in place
        if storage in self._seen or id(storage) in given:
            return
        self._seen[storage] = True
        self.now += storage.nbytes()
        finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size


def _to_meta(tensor: Tensor) -> Tensor:
    """A buffer of a network without weights, which pipelines read on the CPU."""
    return tensor.to("meta")


class Fused(TorchFunctionMode):
    """Attention as fused kernels compute it: the matrix of scores is never kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attended(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attended(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention by a kernel that is fused on all devices, which counts for FLOPs."""
    made: Tensor = _FLASH(query, key, value)[0]
    return made


def peak(call: Callable[[], object], device: str = "meta") -> int:
    """The most bytes that a call on a device holds at a time of what it makes itself."""
    with torch.no_grad(), Fused(), Live(device) as live:
        call()
    found: int = live.peak
    return found
