"""FLOPs of a family's denoiser: counted on copies of its networks without memory, or on a real call."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ttsnap.profiling.flops import count_flops, on_meta
from ttsnap.sampling.rng import seeded


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


if TYPE_CHECKING:
    from ttsnap.pipelines.memory.counted import CountedDenoiser

Family = TypeVar("Family", bound="CountedDenoiser")
logger = logging.getLogger(__name__)
_TYPICAL = "a red circle and a blue square"


def counted(denoiser: CountedDenoiser, decoder: str) -> tuple[float, float]:
    """As `count`; kept with the pipeline for every setting."""
    key = ("flops", *denoiser.setting(decoder))
    if key not in denoiser.memo:
        denoiser.memo[key] = count(denoiser, decoder)
    flops: tuple[float, float] = denoiser.memo[key]
    return flops


@torch.no_grad()
def count(denoiser: CountedDenoiser, decoder: str) -> tuple[float, float]:
    """FLOPs of a guided evaluation of a `CountedDenoiser` and of its `decoder`, for a prompt of typical length.

    decoder: "decode" or "preview". The denoiser encodes that prompt, so its own are to be encoded afterwards.
    """
    denoiser.encode([_TYPICAL])
    x, zero = denoiser.init_latents([seeded(0)]), torch.zeros(1, dtype=torch.long)
    try:
        twin, latent = denoiser.meta_twin(), x.to("meta")
        decode = count_flops(lambda: getattr(twin, decoder)(latent))
        return count_flops(lambda: _output(twin, latent)), decode
    except Exception:  # what depends on values (masks) or cannot leave its device (quantised weights)
        logger.debug("FLOPs are counted by a real call", exc_info=True)
    fused = x.device.type != "cpu"
    return (
        count_flops(lambda: denoiser.predict(x, zero, zero), fused=fused),
        count_flops(lambda: getattr(denoiser, decoder)(x), fused=fused),
    )


def counted_draft(denoiser: CountedDenoiser) -> float:
    """FLOPs of one forward pass of its drafter; kept with the pipeline for every setting.

    The denoiser encodes a prompt of typical length, as in `count`.
    """
    key = ("draft flops", *denoiser.drafting().setting())
    if key not in denoiser.memo:
        denoiser.encode([_TYPICAL])
        x, drafting = denoiser.init_latents([seeded(0)]), denoiser.drafting()
        try:
            twin = drafting.meta_twin()
            flops = count_flops(lambda: _output(twin, x.to("meta")))
        except Exception:  # as above
            logger.debug("FLOPs of drafts are counted by a real call", exc_info=True)
            flops = count_flops(lambda: _output(drafting, x), fused=x.device.type != "cpu")
        denoiser.memo[key] = flops / drafting.passes_per_nfe
    counted: float = denoiser.memo[key]
    return counted


def _output(denoiser: CountedDenoiser, x: Tensor) -> Tensor:
    """Of the first step, for the first prompt."""
    zero = torch.zeros(1, dtype=torch.long)
    return denoiser.output(x, denoiser.schedule.timesteps[:1].to(x.device), zero, zero)


def meta_twin(denoiser: Family) -> Family:
    """This denoiser with its network, decoders and encoded prompts on the meta device."""
    twin = copy.copy(denoiser)
    vars(twin).update({name: values_on_meta(value) for name, value in vars(denoiser).items()})
    vars(twin).pop("device", None)
    twin.pipe = copy.copy(denoiser.pipe)
    for name in (denoiser.network, "controlnet", "vae", "preview_vae"):
        part = getattr(denoiser.pipe, name, None)
        if isinstance(part, torch.nn.Module):
            vars(twin.pipe)[name] = on_meta(part)
    return twin


def values_on_meta(value: Any) -> Any:
    """The value with all tensors in it, in lists and dicts of any depth, on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list):
        return [values_on_meta(v) for v in value]
    return {k: values_on_meta(v) for k, v in value.items()} if isinstance(value, dict) else value


def filling(part: Any) -> tuple[Any, ...]:
    """What changes in a network that stays the same: its number of weights, and the names of active LoRA adapters."""
    size = sum(parameter.numel() for parameter in part.parameters())
    try:
        return (size, *part.active_adapters()) if getattr(part, "peft_config", None) else (size,)
    except (AttributeError, ValueError):
        return (size,)
