"""Arguments that several commands share. `p` is a parser, or a group of one."""

from __future__ import annotations

from typing import Any, Literal

EMBEDDED = "embedded"
SETTINGS = "YAML or JSON file of settings, named as these options; options on the command line win over it"
REWARD = (
    "what scores the images: scenes (the embedded world's checker), imagereward, pickscore and others (NAME:FOLDER "
    "takes other weights), 'CHEAP then COSTLY', an http:// address, file.py:function, module:attribute, or a list of "
    "them; a function takes (images (N, 3, H, W) in [0, 1], prompts) and returns N scores"
)


def add_config(p: Any) -> None:
    """--config, and with it jsonargparse's --print_config."""
    p.add_argument("--config", action="config", metavar="FILE", help=SETTINGS)
    p.add_argument(
        "--trust", action="store_true", help="use the code, models, addresses and files elsewhere that --config names"
    )


def add_prompts(p: Any) -> None:
    """prompts, --prompts-file."""
    from argparse import SUPPRESS

    # With any other default, no prompts on the command line would count as a choice and override those of --config.
    p.add_argument("prompts", nargs="*", default=SUPPRESS, metavar="PROMPT", help="one or more prompts, each quoted")
    p.add_argument(
        "--prompts-file", type=str | None, metavar="FILE", help="text file, one prompt a line; # starts a comment"
    )


def add_picture(p: Any) -> None:
    """--negative-prompt, --height, --width."""
    p.add_argument("--negative-prompt", type=str | None, metavar="TEXT", help="what not to show, for all prompts")
    p.add_argument("--height", type=int | None, metavar="PIXELS", help="of the image (default: the model's own)")
    p.add_argument("--width", type=int | None, metavar="PIXELS", help="of the image (default: the model's own)")


def add_reward(p: Any) -> None:
    """--reward, one or a list."""
    p.add_argument("--reward", type=str | list[str] | None, help=REWARD)


def add_sampler(p: Any) -> None:
    """--steps, --guidance, --kernel, --path, --times, --noises, --call."""
    p.add_argument("--steps", type=int | None, metavar="N", help="denoising steps (default: the model's own)")
    p.add_argument(
        "--guidance", type=float | None, metavar="SCALE", help="classifier-free guidance (default: the model's own)"
    )
    p.add_argument(
        "--kernel",
        type=str,
        default="pipeline",
        help="pipeline (the model's own scheduler), ode, or one that draws noise: sde, sde:DIFFUSION:SCALE, ddim:ETA, "
        "ancestral, renoise",
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
        metavar="KIND",
        help="initial noises: independent, as in diffusers, orthogonal in groups of 8 seeds, or antithetic in pairs",
    )
    p.add_argument(
        "--call",
        type=dict[str, Any],
        default={},
        metavar="JSON",
        help="more arguments of the pipeline's call, as --call.clip_skip 1",
    )


def add_model(p: Any) -> None:
    """--model, --lora."""
    p.add_argument("--model", type=str, default=EMBEDDED, help="embedded, a diffusers folder, or a hub id")
    p.add_argument(
        "--lora",
        type=str | None,
        help="LoRA on top of the model: folder, .safetensors file or hub id, with its scale as FOLDER:0.5",
    )


def add_device(p: Any) -> None:
    """--device, --dtype."""
    p.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument(
        "--dtype", type=str, default="auto", help="auto (float32 on a CPU, else bfloat16), float32, bfloat16, float16"
    )


def add_batch(p: Any, default: int | None = 32) -> None:
    """--batch-size, --decode-batch-size."""
    fallback = "" if default else " (default: as many as fit into the GPU's memory, 16 without one)"
    kind = int if default else int | None
    p.add_argument(
        "--batch-size", type=kind, default=default, metavar="N", help=f"most candidates per denoiser call{fallback}"
    )
    p.add_argument(
        "--decode-batch-size", type=int | None, metavar="N", help="most images per decode (default: the batch size)"
    )


def add_memory(p: Any) -> None:
    """--offload, --preview-vae, --attention, --compile."""
    p.add_argument(
        "--offload",
        type=Literal["none", "model", "group"],
        default="none",
        metavar="WHAT",
        help="keep in RAM what the GPU does not need just now: none, whole networks (model) or single layers (group)",
    )
    p.add_argument(
        "--preview-vae",
        type=str | None,
        metavar="VAE",
        help="AutoencoderTiny (hub id or folder) that decodes unfinished estimates, as madebyollin/taesdxl for SDXL",
    )
    p.add_argument("--attention", type=str, default="sdpa", help="attention kernels: sdpa, xformers, flash, ...")
    p.add_argument("--compile", action="store_true", help="compile the denoiser: slow at first, then faster")
