"""FLOPs of a family's denoiser: counted on copies of its networks without memory, or on a real
call."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.guidance import Texts
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.profiling.flops import count_flops, on_meta
from ttsnap.sampling.rng import seeded

logger = logging.getLogger(__name__)
_TYPICAL = "a red circle and a blue square"


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


def counted(denoiser: Any, decoder: str) -> tuple[float, float]:
    """FLOPs of a guided evaluation and of the decoder, "decode" or "preview"; kept with the
    pipeline by setting."""
    memo = denoiser.memo(decoder)
    if "flops" not in memo:
        memo["flops"] = count(denoiser, lambda: denoiser, decoder)
    flops: tuple[float, float] = memo["flops"]
    return flops


def counted_draft(denoiser: Any, twin: Callable[[], Any]) -> float:
    """FLOPs of one forward pass of a drafter, kept in the same way. twin: copies the denoiser for
    the drafter."""
    memo = twin().memo()
    if "draft" not in memo:
        memo["draft"] = count(denoiser, twin)[0] / twin().passes_per_nfe
    flops: float = memo["draft"]
    return flops


def counted_coupled(
    denoiser: Any,
    size: int,
    twin: Callable[[], Any],
    within: Callable[[Any], AbstractContextManager[None]],
) -> float:
    """FLOPs that coupling a seed with the others of a group takes beside its evaluation, kept in
    the same way."""
    memo = denoiser.memo()
    if ("coupled", size) not in memo:
        memo["coupled", size] = count(denoiser, twin, rows=size, within=within)[0] / size
    return max(0.0, float(memo["coupled", size]) - counted(denoiser, "decode")[0])


@torch.no_grad()
def count(
    denoiser: Any,
    caller: Callable[[], Any],
    *decoders: str,
    rows: int = 1,
    within: Callable[[Any], AbstractContextManager[None]] = nullcontext,
) -> tuple[float, ...]:
    """FLOPs of a guided evaluation of so many rows by `caller()`, the denoiser or a copy, and of
    its decoders.

    within: in which the copy that is counted is called. The denoiser encodes a prompt of typical
    length, so that its own are to be encoded afterwards.
    """
    denoiser.encode([_TYPICAL])
    own = caller()
    x = denoiser.init_latents([seeded(0)] * rows)
    zero = torch.zeros(rows, dtype=torch.long)

    def made(by: Any, latents: Tensor) -> tuple[float, ...]:
        calls = [
            partial(by.predict, latents, zero, zero),
            *(partial(getattr(by, name), latents) for name in decoders),
        ]
        with within(by):
            return tuple(map(count_flops, calls))

    try:
        return made(own.meta_twin(), x.to("meta"))
    except Exception:
        # What depends on values (masks) or cannot leave its device (quantised weights).
        logger.debug("FLOPs are counted by a real call", exc_info=True)
    return made(own.by(shared_copy(own.net)) if _compiled(own.net) else own, x)


def _compiled(net: Any) -> bool:
    """Whether torch compiles any of a network."""
    parts = any(part._compiled_call_impl is not None for part in net.modules())
    return parts or hasattr(net, "_orig_mod")


def meta_twin(denoiser: Any) -> Any:
    """The denoiser of a pipeline with its network, decoders and encoded prompts on the meta
    device."""
    twin = copy.copy(denoiser)
    vars(twin).update({name: values_on_meta(value) for name, value in vars(denoiser).items()})
    twin.pipe = copy.copy(denoiser.pipe)
    for name in (denoiser.network, "controlnet", "vae", "preview_vae"):
        part = getattr(denoiser.pipe, name, None)
        if isinstance(part, torch.nn.Module):
            vars(twin.pipe)[name] = on_meta(part)
    return twin


def values_on_meta(value: Any) -> Any:
    """The value with all its tensors, also in nested lists and dicts, on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Texts):
        return Texts(*(values_on_meta(side) for side in value))
    if isinstance(value, list):
        return [values_on_meta(v) for v in value]
    return {k: values_on_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def setting_of(denoiser: Any, decoder: str) -> tuple[Hashable, ...]:
    """What the cost and the memory of a row depend on: networks, size, passes, length of texts."""
    parts = (denoiser.net, denoiser.pipe.vae if decoder == "decode" else denoiser.pipe.preview_vae)
    call = (
        denoiser.layout.height,
        denoiser.layout.width,
        denoiser.passes_per_nfe,
        denoiser.text_length,
    )
    return (*(weakref.ref(part) for part in parts), *map(filling, parts), *call)


def filling(part: Any) -> tuple[Any, ...]:
    """What may change within a network: the number of weights, and the names of active LoRA
    adapters."""
    size = sum(parameter.numel() for parameter in part.parameters())
    try:
        return (size, *part.active_adapters()) if getattr(part, "peft_config", None) else (size,)
    except (AttributeError, ValueError):
        return (size,)
