"""What a recording says of the model and the sampler that it was made with, so that it is gone on with by no others."""

from __future__ import annotations

from typing import Any

from ttsnap.engine.live import LiveEngine
from ttsnap.files.pictured import digests
from ttsnap.files.settings import Json
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.request.request import EngineSpec


def recording_info(pipe: Any, engine: LiveEngine, spec: EngineSpec) -> dict[str, Json]:
    """The `info` of a recording by the engine of a spec, of this pipeline. Pictures of its call go by their digests."""
    denoiser: Any = engine.denoiser
    model, sampler, call = spec.model or ModelOptions(), spec.sampler, spec.call
    return {
        "model": model.model,
        **({"lora": model.lora} if model.lora else {}),
        **({"task": model.task} if model.task != TEXT else {}),
        "sampler": type(pipe.scheduler).__name__,
        **sampler.noted(),
        **({"draft_guidance": denoiser.scale} if sampler.drafted_by(None).draft is not None else {}),
        "call": {**call, **digests(call)},
        "device": pipe.device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
