"""Results of networks and decoders that nobody computes: right in shape and dtype, a ramp in value.

They lead a frame to a later step, and show what a stock call does without a network's time. Shapes
come from copies of the networks without weights, on the meta device, which also count FLOPs.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ttsnap.pipelines.calls.joining import PartArguments, joined, stacked
from ttsnap.pipelines.calls.parts import forget_own_methods
from ttsnap.pipelines.calls.stops import PartCall
from ttsnap.pipelines.calls.values import holds_memory, leaves, mapped, size_of
from ttsnap.profiling.flops import count_flops, on_meta

logger = logging.getLogger(__name__)

FLEX = "flex"
"""What diffusers calls the backend of attention that is compiled."""


class Shown(NamedTuple):
    """What a call makes, on the meta device, and what it takes."""

    made: Any
    flops: float
    draws: bool
    """Whether it draws noise."""
    by_value: bool = False
    """Whether that depends on values, as of masks that say how long texts are."""


class Dummies:
    """Of one call of a pipeline.

    shown: what other calls of the same parts have seen, and where this one adds to it.
    """

    def __init__(self, shown: dict[Any, Shown | None] | None = None) -> None:
        self._copies: dict[int, tuple[nn.Module, nn.Module]] = {}
        """Copies without weights, by the id of a part, which is held."""
        self._shown: dict[Any, Shown | None] = {} if shown is None else shown
        """None for kinds of calls that are told apart by their whole numbers, too."""

    def of(self, part: nn.Module, call: PartCall, fill: float = 0.0) -> Any:
        """What this call makes, filled with a ramp up to this number, which tells rows apart."""
        device = _device(call, part)
        return mapped(self.shown(part, call).made, lambda like: _ramp(like, fill, device))

    def of_images(self, part: nn.Module, call: PartCall, arguments: PartArguments) -> Any:
        """The same of a call of several images, for each of them. arguments: its own."""
        if arguments.width == 1:
            return self.of(part, call)
        one = joined([arguments.alone(0)], aligned=True)
        made = self.of(part, call._replace(args=one.args, kwargs=dict(one.kwargs)))
        return stacked([made] * arguments.width, arguments)

    def shown(self, part: nn.Module, call: PartCall) -> Shown:
        """What this call of a part makes, and its FLOPs."""
        kind = weakref.ref(part), call.method, size_of(call.args), size_of(call.kwargs)
        key: Any = kind
        if kind in self._shown and self._shown[kind] is None:
            key = kind, _whole_numbers(call)
        if (known := self._shown.get(key)) is not None:
            return known
        shown = self._show(part, call)
        # Each frame's own calls fill and read what holds memory.
        if holds_memory((call.given, shown.made)):
            return shown
        if shown.by_value:
            self._shown[kind] = None
            key = kind, _whole_numbers(call)
        self._shown[key] = shown
        return shown

    def _show(self, part: nn.Module, call: PartCall) -> Shown:
        if _compiles(part):
            return _seen(part, call)
        found = list[Any]()
        draws = _Draws()
        by_value = False

        def run(by: nn.Module, given: tuple[Any, Any]) -> None:
            args, kwargs = given
            with draws:
                found.append(getattr(by, call.method)(*args, **kwargs))

        try:
            copy = self._copy(part)
            given = _on_meta(call.given)
            flops = count_flops(lambda: run(copy, given))
        except Exception:  # what depends on values, or cannot leave its device
            logger.debug("%s is seen by a real call", call.part, exc_info=True)
            by_value = True
            found.clear()
            flops = count_flops(lambda: run(part, call.given))
        return Shown(_on_meta(found[0]), flops, draws.found, by_value)

    def _copy(self, part: nn.Module) -> nn.Module:
        """A part without weights."""
        if id(part) not in self._copies:
            self._copies[id(part)] = part, on_meta(part)
            forget_own_methods(self._copies[id(part)][1])
        return self._copies[id(part)][1]


def _whole_numbers(call: PartCall) -> tuple[tuple[int, ...], ...]:
    """The values of masks and other tensors of whole numbers that a call is given."""
    tensors = [each for each in leaves(call.given) if isinstance(each, Tensor)]
    whole = [each for each in tensors if not (each.is_floating_point() or each.is_complex())]
    return tuple(tuple(each.flatten().tolist()) for each in whole)


def _compiles(part: nn.Module) -> bool:
    """Whether a part has flex attention, as LTX-2.5's decoder and AnyFlow's causal networks.

    torch compiles it at once, so that it is neither traced without weights nor counted.
    """
    processors = [getattr(module, "processor", None) for module in part.modules()]
    return any(getattr(processor, "_attention_backend", None) == FLEX for processor in processors)


def _seen(part: nn.Module, call: PartCall) -> Shown:
    """What a real call makes that is not counted.

    Its FLOPs are those of each weight at each position.
    """
    own = [leaf for leaf in leaves(call.given) if isinstance(leaf, Generator)]
    generators = [torch.default_generator, *own]
    args, kwargs = call.given
    before = [generator.get_state() for generator in generators]
    made = getattr(part, call.method)(*args, **kwargs)
    after = [generator.get_state() for generator in generators]
    draws = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    read = [each for each in leaves(call.given) if isinstance(each, Tensor) and each.ndim]
    positions = max(each.numel() // each.shape[-1] for each in read)
    weights = sum(each.numel() for each in part.parameters())
    return Shown(_on_meta(made), 2.0 * weights * positions, draws)


class _Draws(TorchDispatchMode):
    """Sees whether noise is drawn. On the meta device none is: generators are of other devices."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name():
            self.found = True
            if torch.device(kwargs.get("device") or "cpu").type == "meta" and "generator" in kwargs:
                kwargs.pop("generator")
                return func.overloadpacket(*args, **kwargs)
        return func(*args, **kwargs)


def _ramp(like: Tensor, fill: float, device: torch.device) -> Tensor:
    steps = torch.linspace(fill / 2, fill, like.numel(), device=device)
    return steps.view(like.shape).to(like.dtype)


def _on_meta(value: Any) -> Any:
    return mapped(value, lambda each: each.to("meta"))


def _device(call: PartCall, part: nn.Module) -> torch.device:
    """Where the result of a call will be."""
    for leaf in leaves(call.given):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.device
    return next(part.parameters()).device
