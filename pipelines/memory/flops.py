"""FLOPs of a family's denoiser: counted on copies of its networks without memory, or on a real call."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor
from ttsnap.pipelines.guidance.passes import Texts
from ttsnap.pipelines.latents.schedule import Schedule

from ttsnap.core.prompt import Prompt
from ttsnap.profiling.flops import count_flops, on_meta
from ttsnap.sampling.kernels import Prediction
from ttsnap.sampling.rng import seeded

logger = logging.getLogger(__name__)
_TYPICAL = "a red circle and a blue square"


class Memo(dict[tuple[Hashable, ...], Any]):
    """What was measured of a pipeline (FLOPs, batch sizes), by what it was measured of: keys may hold weak references
    to networks. Entries of networks that are gone are dropped.

    An `id` in their place would sooner or later be another network's. Deep copies and pickles of a pipeline are of
    other networks, and begin with an empty memo.
    """

    def __setitem__(self, key: tuple[Hashable, ...], value: Any) -> None:
        gone = [old for old in self if any(isinstance(part, weakref.ref) and part() is None for part in old)]
        for old in gone:
            del self[old]
        super().__setitem__(key, value)

    def of(self, setting: tuple[Hashable, ...]) -> dict[Hashable, Any]:
        """All that was measured in one setting of a denoiser."""
        if setting not in self:
            self[setting] = {}
        found: dict[Hashable, Any] = self[setting]
        return found

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()


class Countable(Protocol):
    """What a denoiser of a pipeline has for its FLOPs to be counted (pipelines/denoiser.py)."""

    pipe: Any
    network: ClassVar[str]
    passes_per_nfe: int
    schedule: Schedule

    def encode(self, prompts: Sequence[str | Prompt]) -> None: ...

    def init_latents(self, generators: Sequence[torch.Generator]) -> Tensor: ...

    def predict(self, x: Tensor, step: Tensor, cond: Tensor) -> Prediction: ...

    def output(self, x: Tensor, t: Tensor, step: Tensor, at: Tensor) -> Tensor: ...

    def memo(self, decoder: str = "decode") -> MutableMapping[Hashable, Any]: ...

    def meta_twin(self) -> Self: ...


Family = TypeVar("Family", bound=Countable)


def counted(denoiser: Countable, decoder: str) -> tuple[float, float]:
    """As `count`; kept with the pipeline for every setting."""
    memo = denoiser.memo(decoder)
    if "flops" not in memo:
        memo["flops"] = count(denoiser, decoder)
    flops: tuple[float, float] = memo["flops"]
    return flops


def counted_draft(denoiser: Countable, twin: Callable[[], Countable]) -> float:
    """As `count_draft`; kept with the pipeline for every setting."""
    memo = twin().memo()
    if "draft" not in memo:
        memo["draft"] = count_draft(denoiser, twin)
    flops: float = memo["draft"]
    return flops


@torch.no_grad()
def count(denoiser: Countable, decoder: str) -> tuple[float, float]:
    """FLOPs of a guided evaluation of a denoiser and of its `decoder`, "decode" or "preview", for a prompt of typical
    length. The denoiser encodes that prompt, so its own are to be encoded afterwards."""
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


def count_draft(denoiser: Countable, twin: Callable[[], Countable]) -> float:
    """FLOPs of one forward pass of a drafter, for the same prompt. twin: makes the denoiser's copy that calls it."""
    denoiser.encode([_TYPICAL])
    x, drafting = denoiser.init_latents([seeded(0)]), twin()
    try:
        on_paper = drafting.meta_twin()
        flops = count_flops(lambda: _output(on_paper, x.to("meta")))
    except Exception:  # as above
        logger.debug("FLOPs of drafts are counted by a real call", exc_info=True)
        flops = count_flops(lambda: _output(drafting, x), fused=x.device.type != "cpu")
    return flops / drafting.passes_per_nfe


def _output(denoiser: Countable, x: Tensor) -> Tensor:
    """Of the first step, for the first prompt."""
    zero = torch.zeros(1, dtype=torch.long)
    return denoiser.output(x, denoiser.schedule.timesteps[:1].to(x.device), zero, zero)


def meta_twin(denoiser: Family) -> Family:
    """This denoiser with its network, decoders and encoded prompts on the meta device."""
    twin = copy.copy(denoiser)
    vars(twin).update({name: values_on_meta(value) for name, value in vars(denoiser).items()})
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
    if isinstance(value, Texts):
        return Texts(*(values_on_meta(side) for side in value))
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
