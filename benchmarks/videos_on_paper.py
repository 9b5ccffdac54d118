"""What videos of Wan 2.1 and LTX-Video take in memory, worked out without a GPU and without their
weights.

    python benchmarks/videos_on_paper.py                      # a minute on a CPU
    python benchmarks/videos_on_paper.py --models ltx --height 512 --width 704 --frames 121 --json ltx.json

Networks and VAEs are the published ones, on the meta device, which holds shapes and no numbers. An
evaluation of one row and a decode of one video run there, and a dispatch mode adds up the storages
that live at a time: their most is what is needed beside the weights, in bfloat16, as far as
PyTorch's operators allocate it. A GPU's allocator takes more than that (fragments, workspaces of
cuDNN), and kernels may take less. Under guidance the blocks of these models run one pass after the
other, so that a row is one pass. Text encoders are not in these figures; they can be offloaded once
texts are encoded.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)
from torch import nn

from ttsnap.files.writing import markdown
from ttsnap.pipelines.latents.tiny_video_vae import TinyVideoVAE
from ttsnap.profiling.memory import SHARE
from ttsnap.profiling.on_paper import peak

GIB = 2**30
GPUS = (24, 80)
"""GiB of the GPUs for which rows are worked out."""


class Size(NamedTuple):
    """Of a video in pixels."""

    frames: int
    height: int
    width: int


class Model(NamedTuple):
    """name: for people. network, vae: make the published ones. latent: shape (C, T, h, w) of a
    video's latents.
    call: arguments of an evaluation of one row. tiny: makes the VAE for previews, where one is
        published."""

    name: str
    network: Callable[[], Any]
    vae: Callable[[], Any]
    latent: Callable[[Size], tuple[int, ...]]
    call: Callable[[tuple[int, ...]], dict[str, Any]]
    tiny: Callable[[], Any] | None


def _wan_call(latent: tuple[int, ...]) -> dict[str, Any]:
    text = torch.zeros(1, 512, 4096, dtype=torch.bfloat16)
    x = torch.zeros(1, *latent, dtype=torch.bfloat16)
    return {"hidden_states": x, "timestep": torch.zeros(1), "encoder_hidden_states": text}


def _ltx_call(latent: tuple[int, ...]) -> dict[str, Any]:
    channels, frames, height, width = latent
    x = torch.zeros(1, frames * height * width, channels, dtype=torch.bfloat16)
    text, mask = torch.zeros(1, 128, 4096, dtype=torch.bfloat16), torch.ones(1, 128)
    told = {
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (1.0, 32.0, 32.0),
    }
    return {
        "hidden_states": x,
        "timestep": torch.zeros(1),
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        **told,
    }


def _wan_latent(size: Size) -> tuple[int, ...]:
    return 16, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8


def _ltx_latent(size: Size) -> tuple[int, ...]:
    return 128, (size.frames - 1) // 8 + 1, size.height // 32, size.width // 32


SMALL_WAN = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
MODELS = {
    "wan-1.3b": Model(
        "Wan 2.1 1.3B",
        lambda: WanTransformer3DModel(**SMALL_WAN),
        AutoencoderKLWan,
        _wan_latent,
        _wan_call,
        TinyVideoVAE,
    ),
    "wan-14b": Model(
        "Wan 2.1 14B", WanTransformer3DModel, AutoencoderKLWan, _wan_latent, _wan_call, TinyVideoVAE
    ),
    "ltx": Model(
        "LTX-Video 2B",
        LTXVideoTransformer3DModel,
        AutoencoderKLLTXVideo,
        _ltx_latent,
        _ltx_call,
        None,
    ),
}


@dataclass(frozen=True)
class Paper:
    """What one model takes, in bytes. weights: network and VAE in bfloat16. latent: of a candidate
    that waits, in float32. row: an evaluation of one row, beside the weights. decode, tiled,
    preview: of one video, likewise.
    video: one that is finished, in float32."""

    model: str
    weights: int
    latent: int
    row: int
    decode: int
    tiled: int
    preview: int | None
    video: int

    def fit(self, each: int, gib: int) -> int:
        """How many of `each` fit beside the weights into so many GiB, of the share that a search
        plans with."""
        return max(0, int((SHARE * gib * GIB - self.weights) // each))


def worked_out(model: Model, size: Size) -> Paper:
    """Build the model on the meta device, evaluate one row, decode one video, and count."""
    latent = model.latent(size)
    with torch.device("meta"):
        network = model.network().to(torch.bfloat16).eval()
        call = model.call(latent)
        row = peak(lambda: network(**call))
    of_vae, decode, tiled = decodes(model.vae, latent)
    return Paper(
        model=model.name,
        weights=_weights(network) + of_vae,
        latent=4 * math.prod(latent),
        row=row,
        decode=decode,
        tiled=tiled,
        preview=None if model.tiny is None else decodes(model.tiny, latent)[1],
        video=4 * 3 * size.frames * size.height * size.width,
    )


@functools.cache
def decodes(make: Callable[[], Any], latent: tuple[int, ...]) -> tuple[int, int, int]:
    """Of a VAE: its weights, a decode of one video, and one in tiles, if it has those; else the
    same again."""
    with torch.device("meta"):
        vae, z = make().to(torch.bfloat16).eval(), torch.zeros(1, *latent, dtype=torch.bfloat16)
        whole = tiled = peak(lambda: vae.decode(z))
        if make is not TinyVideoVAE:
            vae.enable_tiling()
            tiled = peak(lambda: vae.decode(z))
    return _weights(vae), whole, tiled


def _weights(part: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in part.parameters())


def table(papers: list[Paper], gpus: tuple[int, ...] = GPUS) -> str:
    """In Markdown."""
    gib = ["weights", "a row", "a decode", "tiled", "a preview"]
    head = ["model", *(f"{name}, GiB" for name in gib), "latents, MiB", "a video, MiB"]
    head += [f"rows / decodes / tiled in {each} GiB" for each in gpus]
    lines = []
    for paper in papers:
        sizes = (paper.weights, paper.row, paper.decode, paper.tiled, paper.preview)
        line = [paper.model, *("no" if size is None else f"{size / GIB:.2f}" for size in sizes)]
        line += [f"{paper.latent / 2**20:.1f}", f"{paper.video / 2**20:.0f}"]
        each = (paper.row, paper.decode, paper.tiled)
        lines.append(
            line + [" / ".join(str(paper.fit(size, gpu)) for size in each) for gpu in gpus]
        )
    return markdown(head, lines)


def main() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # of dtypes, which cost nothing here
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    p.add_argument("--frames", type=int, default=81)
    p.add_argument("--height", type=int, default=480)
    p.add_argument("--width", type=int, default=832)
    p.add_argument("--json", type=Path, help="file for the figures")
    a = p.parse_args()
    papers = [worked_out(MODELS[name], Size(a.frames, a.height, a.width)) for name in a.models]
    print(table(papers))
    if a.json is not None:
        a.json.write_text(json.dumps([asdict(paper) for paper in papers], indent=1) + "\n")


if __name__ == "__main__":
    main()
