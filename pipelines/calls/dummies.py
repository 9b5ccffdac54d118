"""Results of networks and decoders that nobody computes: of the right shapes and dtypes, filled by a number.

They lead a frame to a later step, and tell what a stock call does without a network's time. Shapes come from copies of
the networks without weights, on the meta device, which also count FLOPs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ttsnap.pipelines.calls.joining import holds_memory
from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.profiling.flops import count_flops, on_meta

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What a call makes, on the meta device, and what it takes."""

    made: Any
    flops: float
    draws: bool
    """Whether it draws noise."""


class Dummies:
    """Of one call of a pipeline. shown: what others of the same networks have seen, and where this one adds to it."""

    def __init__(self, shown: dict[Any, Shown] | None = None) -> None:
        self._copies: dict[int, tuple[nn.Module, nn.Module]] = {}
        """Copies without weights, by the id of a part, which is held."""
        self._shown: dict[Any, Shown] = {} if shown is None else shown

    def of(self, part: nn.Module, call: PartCall, fill: float = 0.0) -> Any:
        """What this call of a part makes, filled with a ramp up to this number, which tells rows apart."""
        device = _device(call, part)
        return mapped(self.shown(part, call).made, lambda each: _ramp(each, fill, device))

    def shown(self, part: nn.Module, call: PartCall) -> Shown:
        """What this call of a part makes, and its FLOPs."""
        key = (weakref.ref(part), call.method, _shapes(call.args), _shapes(call.kwargs))
        if key in self._shown:
            return self._shown[key]
        shown = self._show(part, call)
        if not holds_memory((call.args, call.kwargs, shown.made)):  # which each frame's own calls fill and read
            self._shown[key] = shown
        return shown

    def _show(self, part: nn.Module, call: PartCall) -> Shown:
        found, draws = list[Any](), _Draws()

        def run(by: nn.Module, args: Any, kwargs: Any) -> None:
            with draws:
                found.append(getattr(by, call.method)(*args, **kwargs))

        try:
            if id(part) not in self._copies:
                self._copies[id(part)] = part, on_meta(part)
            copy, args, kwargs = self._copies[id(part)][1], _on_meta(call.args), _on_meta(call.kwargs)
            flops = count_flops(lambda: run(copy, args, kwargs))
        except Exception:  # what depends on values, or cannot leave its device
            logger.debug("%s is seen by a real call", call.part, exc_info=True)
            found.clear()
            flops = count_flops(lambda: run(part, call.args, call.kwargs))
        return Shown(_on_meta(found[0]), flops, draws.found)


class _Draws(TorchDispatchMode):
    """Sees whether noise is drawn. On the meta device none is: its generators are no other device's."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name():
            self.found = True
            if torch.device(kwargs.get("device") or "cpu").type == "meta" and "generator" in kwargs:
                kwargs.pop("generator")
                return func.overloadpacket(*args, **kwargs)
        return func(*args, **kwargs)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with all its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        inside = {name: mapped(each, change) for name, each in value.items()}
        return inside if type(value) is dict else type(value)(**inside)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


def _ramp(like: Tensor, fill: float, device: torch.device) -> Tensor:
    steps = torch.linspace(fill / 2, fill, like.numel(), device=device)
    return steps.view(like.shape).to(like.dtype)


def _on_meta(value: Any) -> Any:
    return mapped(value, lambda each: each.to("meta"))


def _shapes(value: Any) -> Any:
    """A value as a key: tensors by shape and dtype, others by type."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _shapes(inside)) for name, inside in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_shapes, value))
    return type(value), value if isinstance(value, bool | int | str | None) else None


def _device(call: PartCall, part: nn.Module) -> torch.device:
    """Where the result of a call will be."""
    for value in (*call.args, *call.kwargs.values()):
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Tensor) and each.ndim:
                return each.device
    return next(part.parameters()).device
