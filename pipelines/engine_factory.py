"""Engines of a spec: on the device of a pipeline that is there, or on many, whose processes load
the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from ttsnap.core.protocols import Engine
from ttsnap.engine.live import LiveEngine
from ttsnap.files.pictured import digests
from ttsnap.files.settings import Json
from ttsnap.options.engine import DeviceOptions
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.pipelines.opening import check_call, opened, placement, settled
from ttsnap.pipelines.record import model_name
from ttsnap.request.request import EngineSpec
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.denoiser import Capability


@contextmanager
def open_engine(
    spec: EngineSpec,
    where: DeviceOptions,
    pipe: Any,
    rewards: Sequence[RewardModel] | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Engine, Any]]:
    """The engine of a spec, and a denoiser in this process, which runs on one device only if the
    search does.

    rewards: those of the spec, where they are loaded here. batch_size: in its place, on one device.
    ValueError where other processes cannot make the same.
    """
    if where != DeviceOptions():
        from ttsnap.cluster.devices import alone, clustered

        asked = pipe.model_options
        kind = (
            pipe._execution_device if asked is None else placement(asked.device, asked.dtype)[0]
        ).type
        if not alone(where, kind):
            if spec.sampler.variety is not None:
                raise ValueError(
                    f"variety {spec.sampler.variety} keeps seeds apart on one device; leave"
                    " devices out"
                )
            with in_ram(pipe):
                denoiser = pipe.sampling_denoiser(spec.sampler, **spec.call)
                there = elsewhere(spec, pipe, kind, previews=Capability.PREVIEW in denoiser.can)
                with clustered(there, lambda bare: EngineBuilder(bare).build, where) as cluster:
                    yield cluster, denoiser
            return
    engine = pipe.engine_of(spec, rewards=rewards, batch_size=batch_size)
    yield engine, engine.denoiser


@contextmanager
def in_ram(pipe: Any) -> Iterator[None]:
    """Keep a pipeline off its device, where an actor loads a copy of it, until the block ends."""
    place = pipe.device
    if place.type == "cpu" or getattr(pipe, "_all_hooks", ()):  # an offloaded one is in RAM
        yield
        return
    pipe.to("cpu")
    torch.accelerator.empty_cache()
    try:
        yield
    finally:
        pipe.to(place)


@dataclass(frozen=True)
class EngineBuilder:
    """Makes the engine of a spec in the process that it was sent to, so that the weights are loaded
    there."""

    spec: EngineSpec

    def build(self) -> LiveEngine:
        """Load the weights, here, and make the engine. ValueError where something is unknown or
        does not fit."""
        return self.engine_of(self.opened())

    def recording(self) -> tuple[LiveEngine, dict[str, Json]]:
        """The engine, and the `info` of a recording with it. ValueError as above."""
        pipe = self.opened()
        check_call(pipe, self.spec.call, self.spec.model.task)
        engine = self.engine_of(pipe)
        return engine, recording_info(pipe, engine, self.spec)

    def opened(self) -> Any:
        """The pipeline, loaded. ValueError for an unknown one."""
        pipe = opened(self.spec.model)
        if self.spec.scheduler is not None:
            pipe.scheduler = self.spec.scheduler
        return pipe

    def engine_of(self, pipe: Any, rewards: Sequence[RewardModel] | None = None) -> LiveEngine:
        """The engine of a pipeline that is there, and of rewards, if they are. ValueError where
        something does not fit."""
        check_call(pipe, self.spec.call)
        engine: LiveEngine = pipe.engine_of(self.spec, rewards=rewards)
        return engine


def recording_info(pipe: Any, engine: LiveEngine, spec: EngineSpec) -> dict[str, Json]:
    """The `info` of a recording by the engine of a spec, of this pipeline: what must be the same to
    resume it. Pictures of the call go by their digests."""
    denoiser: Any = engine.denoiser
    model = spec.model
    sampler = spec.sampler
    call = spec.call
    return {
        "model": model.model,
        **({"lora": model.lora} if model.lora else {}),
        **({"task": model.task} if model.task != TEXT else {}),
        "sampler": type(pipe.scheduler).__name__,
        **sampler.noted(),
        **(
            {"draft_guidance": denoiser.scale} if sampler.drafted_by(None).draft is not None else {}
        ),
        "call": {**call, **digests(call)},
        "device": pipe.device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }


def elsewhere(spec: EngineSpec, pipe: Any, kind: str, *, previews: bool = False) -> EngineSpec:
    """The spec by which other processes make this pipeline and its engine. ValueError for one that
    they cannot make.

    kind: of the devices, "cuda" or "cpu". previews: whether a preview VAE decodes unfinished
        estimates.
    """
    model = pipe.model_options
    if model is None:
        if not pipe.name_or_path:
            raise ValueError(
                "this pipeline was put together in Python, and other processes cannot load it; save"
                " it (save_pretrained), load that folder, and search with several devices then"
            )
        if previews or _adapters(pipe):
            raise ValueError(
                "other processes would load this pipeline without its LoRA or preview VAE; use"
                " ttsnap generate with --lora and --preview-vae, or devices=1"
            )
        name = model_name(pipe)
        local = name not in PACKAGED and Path(name).exists()
        dtype = str(pipe.dtype).removeprefix("torch.")
        task = pipe.task_of(spec.call) or TEXT
        model = ModelOptions(str(Path(name).resolve()) if local else name, task=task, dtype=dtype)
    return replace(spec, model=settled(model, kind), scheduler=pipe.scheduler)


def _adapters(pipe: Any) -> list[str]:
    """The names of the LoRAs on a pipeline."""
    listed = pipe.get_list_adapters() if isinstance(pipe, LoraBaseMixin) else {}
    return [name for names in listed.values() for name in names]
