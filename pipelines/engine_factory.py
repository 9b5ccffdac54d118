"""A search of one call on several devices: what the actors are made from, and that they find what the call would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.loaders.lora_base import LoraBaseMixin
from ttsnap.pipelines.settings import model_name

from ttsnap.cluster.recipe import Recipe
from ttsnap.core.protocols import Engine
from ttsnap.options.devices import DeviceOptions
from ttsnap.options.engine import BatchOptions, EngineOptions
from ttsnap.options.model import PACKAGED, TEXT, ModelOptions
from ttsnap.options.option import Spec, values
from ttsnap.options.sampler import SamplerOptions


class Wanted(NamedTuple):
    """What an engine is asked for. keep: what it hands to listeners; call: arguments of the denoiser."""

    reward: Spec
    sampler: SamplerOptions
    batches: BatchOptions
    keep: Sequence[str]
    call: Mapping[str, Any]

    @property
    def options(self) -> EngineOptions:
        return EngineOptions(**values(self.batches), keep=self.keep)


@contextmanager
def engine_for(pipe: Any, wanted: Wanted, where: DeviceOptions) -> Iterator[tuple[Engine, Any]]:
    """The engine of one search, and a denoiser in this process, which runs on one device only if the search does.

    ValueError where other processes cannot make the same.
    """
    kind = pipe._execution_device.type if pipe.model_options is None else _kind(pipe.model_options)
    spread = where != DeviceOptions()
    if spread:
        from ttsnap.cluster.devices import alone, clustered

        spread = not alone(where, kind)
    if not spread:
        given = {**values(wanted.sampler), **values(wanted.options)}
        engine = pipe.engine(wanted.reward, **given, **wanted.call)
        yield engine, engine.denoiser
        return
    denoiser = pipe.sampling_denoiser(wanted.sampler, **wanted.call)
    with clustered(recipe_of(pipe, wanted, kind, previews=denoiser.previews), where) as cluster:
        yield cluster, denoiser


def recipe_of(pipe: Any, wanted: Wanted, kind: str, *, previews: bool = False) -> Recipe:
    """How other processes make this pipeline and its engine. ValueError for a pipeline that they cannot make.

    kind: of the devices, "cuda" or "cpu". previews: whether a preview VAE decodes unfinished estimates.
    """
    from ttsnap.pipelines.opening import settled

    model = pipe.model_options
    if model is None:
        if not pipe.name_or_path:
            raise ValueError("this pipeline was put together in Python, and other processes cannot load it; save it "
                             "(save_pretrained), load that folder, and search with several devices then")  # fmt: skip
        if previews or _adapters(pipe):
            raise ValueError("other processes would load this pipeline without its LoRA or preview VAE; use ttsnap "
                             "generate with --lora and --preview-vae, or devices=1")  # fmt: skip
        name = model_name(pipe)
        local = name not in PACKAGED and Path(name).exists()
        dtype = str(pipe.dtype).removeprefix("torch.")
        task = pipe.task_of(wanted.call) or TEXT
        model = ModelOptions(str(Path(name).resolve()) if local else name, task=task, dtype=dtype)
    return Recipe(settled(model, kind), wanted.reward, wanted.sampler, wanted.options, wanted.call, pipe.scheduler)


def _kind(model: ModelOptions) -> str:
    """Of the devices that a model was asked for."""
    from ttsnap.pipelines.opening import placement

    return placement(model.device, model.dtype)[0].type


def _adapters(pipe: Any) -> list[str]:
    """The names of the LoRAs on a pipeline."""
    listed = pipe.get_list_adapters() if isinstance(pipe, LoraBaseMixin) else {}
    return [name for names in listed.values() for name in names]
