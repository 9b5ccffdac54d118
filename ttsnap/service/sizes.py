"""Sizes: what a model draws, what it does not, and pictures that it brings to one size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import Blank
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.request.limits import FieldError
from ttsnap.request.request import EngineSpec
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.rewards.scoring import ask
from ttsnap.service.engines import Engines

MOST_SIZES = 256
"""Calls of which sizes are kept."""


@torch.no_grad()
def check_size(engines: Engines, spec: EngineSpec) -> None:
    """FieldError for a size that the model cannot draw exactly, and for one that a reward cannot score.

    Initial noise and a gray picture show it, without an evaluation. A spec without a size passes.
    """
    call = dict(spec.call)
    if "width" not in call or "height" not in call:
        return
    own = {name: value for name, value in call.items() if name not in ("width", "height")}
    width, height = int(str(call["width"])), int(str(call["height"]))
    sampler = replace(spec.sampler, draft=None)  # its errors name the operator's files
    try:
        usual: UsualSize | None = _usual(engines.pipe, sampler, own)
    except (RuntimeError, ValueError):  # a first frame may have sides that do not fit the model's own size
        usual = None
    try:
        drawn = _noise(engines.pipe.sampling_denoiser(sampler, **call)).numel()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # latents that do not fit each other, or of no pixels
        drawn = 0
    instead = "leave size out, or give another"
    if usual is not None:
        instead = f"leave size out for {usual.width}x{usual.height}, or give another"
    # The model cuts sides that are no multiples of its patches, and so the noise is smaller.
    if not drawn or (usual is not None and drawn * usual.width * usual.height != usual.noise * width * height):
        raise FieldError(
            "size", f"the model does not draw {width}x{height}, whose sides do not fit its latents; {instead}"
        )
    if usual is None:
        return
    for name in spec.rewards:
        reward = engines.rewards[name]
        if reward.tokens or reward.needs:
            continue
        if _scored(reward, usual.width, usual.height) and not _scored(reward, width, height):
            raise FieldError("size", f"the reward {name} cannot score images of {width}x{height}; {instead}")


@dataclass(frozen=True)
class UsualSize:
    """The size of what a call without one draws."""

    width: int
    height: int
    noise: int
    """How many numbers its latents are."""


_SIZES: WeakKeyDictionary[Any, dict[str, UsualSize]] = WeakKeyDictionary()
"""Of pipelines, by sampler and call."""


def _usual(pipe: SearchMixin, sampler: SamplerOptions, call: Mapping[str, Any]) -> UsualSize:
    """Found once for a call. RuntimeError and ValueError for one that has no size of its own."""
    known, key = _SIZES.setdefault(pipe, {}), repr((sampler, sorted(call.items())))
    if key not in known:
        denoiser = pipe.sampling_denoiser(sampler, **call)
        if len(known) == MOST_SIZES:
            known.clear()
        known[key] = UsualSize(denoiser.layout.width, denoiser.layout.height, _noise(denoiser).numel())
    return known[key]


def _scored(reward: RewardModel, width: int, height: int) -> bool:
    """Whether a reward takes a gray picture of this size. Only a ValueError says that it does not: others may pass."""
    gray = reward.trial_image()[:, :, :1, :1].expand(-1, -1, height, width).contiguous()
    _, error = ask(reward, gray, [reward.example], torch.zeros(1, device=gray.device))
    return not isinstance(error, ValueError)


def _noise(denoiser: Any) -> Tensor:
    denoiser.encode([Prompt("")])
    noise: Tensor = denoiser.seen(denoiser.init_latents([torch.Generator().manual_seed(0)]))
    return noise


class Representatives:
    """Specs whose engines serve others as well, which differ in the sizes of pictures alone: the model brings these
    pictures to one size."""

    def __init__(self, pipe: SearchMixin) -> None:
        self._pipe = pipe
        self._known: dict[EngineSpec, EngineSpec] = {}
        self._first: dict[Hashable, EngineSpec] = {}

    def of(self, spec: EngineSpec) -> EngineSpec:
        """The first spec that serves this one; itself where the model cannot do it."""
        sizeless = replace(spec, call={name: _sizeless(value) for name, value in spec.call.items()})
        if spec == sizeless:
            return spec
        if spec not in self._known:
            if len(self._known) == MOST_SIZES:
                self._known.clear()
                self._first.clear()
            try:
                denoiser = self._pipe.sampling_denoiser(replace(spec.sampler, draft=None), **spec.call)
            except (RuntimeError, TypeError, ValueError):  # no engine can be made either, which says why
                return spec
            shapes = denoiser.layout, denoiser.text_length
            self._known[spec] = self._first.setdefault((sizeless, shapes), spec)
        return self._known[spec]


def _sizeless(value: Any) -> Any:
    """A blank picture, or several, without a size."""
    if isinstance(value, tuple):
        return tuple(map(_sizeless, value))
    return replace(value, size=(0, 0)) if isinstance(value, Blank) else value
