"""A search pipeline as ModelOptions ask for it: loaded, with its LoRA, on its device, tuned for
memory or time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ttsnap.core.names import did_you_mean, unknown
from ttsnap.files.hub import require_repository
from ttsnap.files.pictured import SUFFIXES
from ttsnap.files.reading import foreign
from ttsnap.options.call import CALL
from ttsnap.options.model import TEXT, ModelOptions
from ttsnap.pipelines import load
from ttsnap.pipelines.lora import load_lora
from ttsnap.profiling.memory import SHARE, gauge_of


def opened(options: ModelOptions) -> Any:
    """All at once. ValueError for an unknown model, device, dtype or VAE, and for a LoRA that does
    not fit."""
    place, kind = placement(options.device, options.dtype)
    pipe = placed(loaded(options.model, kind, options.loras, options.task), place, options.offload)
    prepare(pipe, options)
    return pipe


def placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """torch's device and dtype for --device and --dtype; gpu is the machine's accelerator, cuda
    where it has none.

    ValueError for unknown names. Whether the device is there is for `check_here`: another machine
    may be meant.
    """
    accelerator = _accelerator()
    if device in ("auto", "gpu"):
        device = (
            accelerator.type if accelerator is not None else "cpu" if device == "auto" else "cuda"
        )
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in ("auto", *known):
        raise ValueError(unknown("dtype", dtype, ("auto", *known)))
    try:
        place = torch.device(device)
    except RuntimeError:  # which lists dozens of back-ends
        raise ValueError(
            unknown("device", device, ("auto", "gpu", "cuda:1", *_devices(accelerator)))
        ) from None
    return place, fast_dtype(place) if dtype == "auto" else known[dtype]


def fast_dtype(place: torch.device) -> torch.dtype:
    """bfloat16, or what a device without instructions for it is better at: GPUs before Ampere only
    emulate it."""
    if place.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if place.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(place):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.float16
    return torch.bfloat16


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16, by which the embedded model takes half of
    float32's time or less; without them it takes several times as long as float32."""
    # older torch cannot tell
    found = torch.cpu.get_capabilities() if "get_capabilities" in dir(torch.cpu) else {}
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def reward_placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The same for a reward, whose scores differ by little: by default in float32 on any CPU."""
    place, kind = placement(device, dtype)
    return place, torch.float32 if dtype == "auto" and place.type == "cpu" else kind


def settled(options: ModelOptions, kind: str) -> ModelOptions:
    """A model for processes with devices of one kind, as "cuda" or "cpu", in the dtype that fits
    this machine where it has such devices."""
    here = kind in {torch.device(name).type for name in _devices(_accelerator())}
    dtype = str(placement(kind, options.dtype)[1]).removeprefix("torch.") if here else options.dtype
    return replace(options, device=kind, dtype=dtype)


def check_here(place: torch.device) -> None:
    """ValueError for a device that this machine does not have, with those that it has."""
    there = _devices(accelerator := _accelerator())
    if str(place) not in there:
        why = "" if accelerator is not None else ": torch sees no GPU"
        raise ValueError(
            f"there is no device {str(place)!r} here{why}; choose {' or '.join(there)}"
        )


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _devices(accelerator: torch.device | None) -> list[str]:
    if accelerator is None:
        return ["cpu"]
    return [
        "cpu",
        accelerator.type,
        *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())),
    ]


def loaded(model: str, dtype: torch.dtype, loras: Sequence[str], task: str | None = None) -> Any:
    """The pipeline in RAM, with its LoRAs. ValueError for an unknown model, or a LoRA or a task
    that does not fit."""
    pipe = load(model, task=task, dtype=dtype)
    if loras:
        load_lora(pipe, *loras)
    return pipe


def placed(pipe: Any, place: torch.device, offload: str) -> Any:
    """The pipeline on its device; what the GPU does not need just now stays in RAM, where `offload`
    says so. ValueError for a device that is not there."""
    check_here(place)
    if offload == "none":
        return pipe.to(place)
    if offload == "model":
        keep_decoder(pipe, place)
        pipe.enable_model_cpu_offload(device=place)
    else:
        pipe.enable_group_offload(
            onload_device=place, offload_type="leaf_level", use_stream=place.type == "cuda"
        )
    return pipe


def keep_decoder(pipe: Any, place: torch.device) -> None:
    """Let `enable_model_cpu_offload` leave the VAE on the device where it fits beside the largest
    other network.

    Each batch of decodes would move the denoiser off the device and back.
    """
    gauge = gauge_of(place)
    order = getattr(pipe, "model_cpu_offload_seq", None)
    if gauge is None or order is None:
        return
    if decoder_stays(weights(pipe), gauge.free()):
        pipe.model_cpu_offload_seq = "->".join(name for name in order.split("->") if name != "vae")
        pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, "vae"]


def decoder_stays(sizes: Mapping[str, int], free: float) -> bool:
    """Whether the VAE fits beside the largest other network.

    sizes: bytes of the networks, by name. free: bytes of the device.
    """
    others = [size for name, size in sizes.items() if name != "vae"]
    return "vae" in sizes and sizes["vae"] + max(others, default=0) <= SHARE * free


def weights(pipe: Any) -> dict[str, int]:
    """Bytes of the networks of a pipeline, by name."""
    networks = {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    return {name: sum(each.nbytes for each in part.parameters()) for name, part in networks.items()}


def moves(pipe: Any) -> str:
    """Which networks take turns on the device, and which stay, under `enable_model_cpu_offload`."""
    stay = pipe._exclude_from_cpu_offload
    told = {name: f"{name} ({size / 2**30:.2f} GiB)" for name, size in weights(pipe).items()}
    turns = ", ".join(said for name, said in told.items() if name not in stay)
    kept = ", ".join(said for name, said in told.items() if name in stay)
    return f"take turns on the device: {turns}; stay there: {kept or 'none'}"


def prepare(pipe: Any, options: ModelOptions) -> None:
    """Apply --preview-vae, --attention and --compile. ValueError for a preview VAE that cannot be
    loaded."""
    from ttsnap.pipelines.memory.acceleration import compile_denoiser, use_attention

    pipe.model_options = options
    if options.preview_vae is not None:
        pipe.preview_vae = _preview_vae(options.preview_vae).to(
            *placement(options.device, options.dtype)
        )
    if options.attention != "sdpa":
        use_attention(pipe, options.attention)
    if options.compile:
        compile_denoiser(pipe)


def check_call(pipe: Any, call: Mapping[str, Any], task: str = TEXT) -> None:
    """ValueError for arguments that this pipeline's call does not take under search. task: what the
    pipeline was loaded for; one with pictures is all that it may do."""
    takes = sorted(pipe.call_arguments())
    if set(call) - set(takes):
        strange = sorted(set(call) - set(takes))
        meant = "".join(did_you_mean(name, takes) for name in strange)
        raise ValueError(
            f"unknown argument(s) {strange} for this pipeline; it takes {takes}{meant}"
        )
    texts = {name for name, value in call.items() if name not in CALL and _has_text(value)}
    if texts and (named := sorted(texts & picture_arguments(pipe))):
        given = call[named[0]]
        ends = " or ".join(SUFFIXES)
        raise ValueError(
            f"{named[0]} takes a picture, got {given!r:.80}; give a file that ends in {ends}"
        )
    if task != TEXT and (does := pipe.task_of(call) or TEXT) != task:
        raise ValueError(
            f"the task is {task}, and a call with these pictures does {does}; give the pictures of"
            " the task (--image, --mask-image, --control-image, or a prompt set that names them)"
        )


def _has_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and any(map(_has_text, value)))


def picture_arguments(pipe: Any) -> set[str]:
    """The names of arguments of a pipeline's stock call that are pictures, by its signature."""
    parameters = inspect.signature(pipe.stock_class().__call__).parameters.values()
    annotated = {each.name for each in parameters if "Image" in str(each.annotation)}
    return annotated | {
        each.name for each in parameters if {"image", "video"} & set(each.name.split("_"))
    }


def _preview_vae(name: str) -> Any:
    from diffusers import AutoencoderTiny

    from ttsnap.pipelines.latents.tiny_video_vae import TinyVideoVAE

    where = Path(name).expanduser()
    if where.suffix == ".safetensors":
        return TinyVideoVAE.from_file(where)
    with foreign(f"cannot load --preview-vae {name}"):
        require_repository(name)
        return AutoencoderTiny.from_pretrained(
            where if where.is_dir() else name, use_safetensors=True
        )
