"""What a recording says of the model and the sampler that it was made with, so that it is gone on with by no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsnap.engine.live import LiveEngine
from ttsnap.files.pictured import digests
from ttsnap.files.settings import Json
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.options.sampler import SamplerOptions


def recording_info(
    pipe: Any, engine: LiveEngine, model: ModelOptions, sampler: SamplerOptions, call: Mapping[str, Any]
) -> dict[str, Json]:
    """The `info` of a recording by an engine of this pipeline. call: what was given of the pipeline's own call, whose
    pictures go by their digests."""
    denoiser: Any = engine.denoiser
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
