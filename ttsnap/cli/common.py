"""What commands share: arguments, prompts, rewards, the model, Ctrl-C."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

EMBEDDED = "embedded"
REWARD_HELP = (
    "what to search for: scenes (the embedded world's checker), imagereward, pickscore and others (NAME:FOLDER takes "
    "other weights), 'CHEAP then COSTLY', an http:// address, file.py:function, module:attribute, or a list of them; "
    "a function takes (images (N, 3, H, W) in [0, 1], prompts) and returns N scores"
)


def formatter() -> Any:
    """A help formatter that keeps the examples' line breaks."""
    import argparse

    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the examples' line breaks."""

    return Formatter


# --- arguments ----------------------------------------------------------------------------------------------------


def add_prompt_arguments(p: ArgumentParser) -> None:
    """prompts, --config, --prompts-file, --model, --lora."""
    p.add_argument("prompts", nargs="*", default=[], help="one or more prompts, each quoted")
    p.add_argument("--config", action="config", help="YAML or JSON file with the same keys as these options")
    p.add_argument("--prompts-file", type=str | None, help="text file, one prompt a line; # starts a comment")
    p.add_argument("--model", type=str, default=EMBEDDED, help="embedded, a diffusers folder, or a hub id")
    p.add_argument(
        "--lora",
        type=str | None,
        help="LoRA on top of the model: folder, .safetensors file or hub id, with its scale as FOLDER:0.5 (default: 1)",
    )


def add_call_arguments(p: ArgumentParser) -> None:
    """The pipeline's own arguments, --kernel, --path, --times and --noises."""
    p.add_argument("--steps", type=int | None, help="denoising steps (the model's default where not given)")
    p.add_argument("--guidance", type=float | None, help="classifier-free guidance scale")
    p.add_argument("--negative-prompt", type=str | None, help="what not to show, for all prompts")
    p.add_argument("--height", type=int | None, help="pixels")
    p.add_argument("--width", type=int | None, help="pixels")
    p.add_argument("--call", type=dict[str, Any], default={}, help="more pipeline arguments, as --call.clip_skip 1")
    p.add_argument(
        "--kernel",
        type=str,
        default="pipeline",
        help="pipeline (its own scheduler), ode, sde, sde:DIFFUSION:SCALE, ddim:ETA, ancestral, or renoise",
    )
    p.add_argument(
        "--path",
        type=str | None,
        help="for other kernels, the path between data and noise: linear, vp, cosine, linear-vp, polynomial "
        "(default: the model's own)",
    )
    p.add_argument(
        "--times", type=str, default="pipeline", help="for other kernels, the path's points: pipeline, uniform, sqrt"
    )
    p.add_argument(
        "--noises",
        type=Literal["independent", "orthogonal", "antithetic"],
        default="independent",
        help="initial noises: independent, as in diffusers, orthogonal in groups of 8 seeds, or antithetic in pairs",
    )


def add_device_arguments(p: ArgumentParser) -> None:
    """--device, --dtype."""
    p.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument(
        "--dtype", type=str, default="auto", help="auto (cpu: float32, else bfloat16), float32, bfloat16, float16"
    )


def add_memory_arguments(p: ArgumentParser) -> None:
    """--offload, --preview-vae, --attention, --compile, --grid-intensity."""
    p.add_argument(
        "--offload",
        type=Literal["none", "model", "group"],
        default="none",
        help="keep in RAM what the GPU does not need just now: whole networks (model) or single layers (group)",
    )
    p.add_argument(
        "--preview-vae",
        type=str | None,
        help="AutoencoderTiny (hub id or folder) that decodes unfinished estimates, as madebyollin/taesdxl for SDXL",
    )
    p.add_argument("--attention", type=str, default="sdpa", help="attention kernels: sdpa, xformers, flash, ...")
    p.add_argument("--compile", action="store_true", help="compile the denoiser: slow at first, then faster")
    p.add_argument(
        "--grid-intensity", type=float, default=458.0, help="g CO2e per kWh where the GPU is (the world's, Ember 2025)"
    )


def add_batch_arguments(p: ArgumentParser, default: int | None = 32) -> None:
    """--batch-size, --decode-batch-size."""
    fallback = "" if default else " (default: as many as fit into the GPU's memory, 16 without one)"
    kind = int if default else int | None
    p.add_argument("--batch-size", type=kind, default=default, help=f"most candidates per denoiser call{fallback}")
    p.add_argument("--decode-batch-size", type=int | None, help="most images per decode (default: the batch size)")


# --- reading them -------------------------------------------------------------------------------------------------


def read_prompts(a: Namespace, command: str) -> list[str]:
    """The prompts given and those in the file. ValueError for an unreadable file, no prompt, or an empty one."""
    prompts, file = list(a.prompts), a.prompts_file
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read prompts file {file}: {error}") from None
        lines = [line.strip() for line in text.splitlines()]
        prompts += [line for line in lines if line and not line.startswith("#")]
        if not prompts:
            raise ValueError(f"prompts file {file} holds no prompt; write one a line")
    if not prompts:
        raise ValueError(f'no prompt: ttsnap {command} "a red circle", or --prompts-file FILE')
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError(f"prompt {[p.strip() for p in prompts].index('') + 1} of {len(prompts)} is empty")
    return prompts


def canonical(prompts: Sequence[str], model: str) -> list[str]:
    """The prompts, for the embedded model in the words and the form that it was trained on.

    ValueError for a prompt outside its vocabulary.
    """
    if model != EMBEDDED:
        return list(prompts)
    from ttsnap.scenes import caption, parse

    return [caption(parse(prompt)) for prompt in prompts]


def require_reward(a: Namespace) -> Any:
    """--reward as given, or the embedded world's checker for the embedded model; ValueError for other models."""
    if a.reward is None and a.model != EMBEDDED:
        raise ValueError(f"model {a.model} needs a --reward: file.py:function, module:attribute or a known name")
    return "scenes" if a.reward is None else a.reward


def call_arguments(a: Namespace) -> dict[str, Any]:
    """Arguments of the pipeline call: the model's recommended ones, overridden by what was given."""
    from ttsnap.pipelines import defaults

    given = {
        "num_inference_steps": a.steps,
        "guidance_scale": a.guidance,
        "negative_prompt": a.negative_prompt,
        "height": a.height,
        "width": a.width,
    }
    return {**defaults(a.model), **{k: v for k, v in given.items() if v is not None}, **a.call}


def check_call(pipe: Any, call: dict[str, Any]) -> None:
    """ValueError for arguments that this pipeline's call does not take under search."""
    takes = [name for name in inspect.signature(type(pipe).denoiser_class).parameters if name != "pipe"]
    if set(call) - set(takes):
        raise ValueError(f"unknown argument(s) {sorted(set(call) - set(takes))} for this pipeline; it takes {takes}")


# --- the model ----------------------------------------------------------------------------------------------------


def load_model(model: str, device: str, dtype: str, offload: str = "none", lora: str | None = None) -> Any:
    """The search pipeline on its device. ValueError for an unknown model, device or dtype, or a bad --lora."""
    from ttsnap.pipelines import load

    place, kind = placement(device, dtype)
    if offload != "none" and place.type == "cpu":
        raise ValueError(f"--offload {offload} moves parts between a GPU and RAM, but the device is {place}")
    with _quiet() if model == EMBEDDED else nullcontext():
        pipe = load(model, dtype=kind)
    if lora is not None:
        from ttsnap.cli.lora import load_lora

        load_lora(pipe, lora)
    if offload == "none":
        return pipe.to(place)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=place)
    else:
        pipe.enable_group_offload(onload_device=place, offload_type="leaf_level", use_stream=place.type == "cuda")
    return pipe


def prepare_model(pipe: Any, a: Namespace) -> None:
    """Apply --preview-vae, --attention and --compile. ValueError for a preview VAE that cannot be loaded."""
    from ttsnap.pipelines.attention import use_attention
    from ttsnap.pipelines.compilation import compile_denoiser

    if a.preview_vae is not None:
        pipe.preview_vae = _preview_vae(a.preview_vae).to(*placement(a.device, a.dtype))
    if a.attention != "sdpa":
        use_attention(pipe, a.attention)
    if a.compile:
        compile_denoiser(pipe)


def _preview_vae(name: str) -> Any:
    from diffusers import AutoencoderTiny

    where = Path(name).expanduser()
    try:
        return AutoencoderTiny.from_pretrained(where if where.is_dir() else name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load --preview-vae {name}: {str(error).splitlines()[0]}") from error


def placement(device: str, dtype: str) -> tuple[Any, Any]:
    """torch's device and dtype for --device and --dtype. ValueError for unknown ones."""
    import torch

    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found.type if found is not None else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}; choose auto, float32, bfloat16 or float16")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    return place, getattr(torch, dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading bars of diffusers and transformers: the embedded model loads at once."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    yield
    for library in (diffusers_logging, transformers_logging):
        library.enable_progress_bar()


class StopOnInterrupt:
    """The first Ctrl-C ends the search with its best finished image; a second one aborts as usual."""

    def __enter__(self) -> StopOnInterrupt:
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._before)
        print("\nstopping; the best finished image will be written (Ctrl-C again to abort)", file=sys.stderr)

    def __call__(self) -> bool:
        return self._asked
