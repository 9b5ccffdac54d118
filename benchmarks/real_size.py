"""A rehearsal of `ttsnap check` at real size: published architectures with random weights, from
sharded safetensors.

    python benchmarks/real_size.py sd15                 # 860 million weights, float32
    python benchmarks/real_size.py sdxl sd35 --pixels 128 --steps 3

Each model is written to a folder, in shards, as a published one lies there. A process of its own
then loads it by the folder's name and searches: what loading, an evaluation, a decode and the loop
take, and peak memory beside what weights say. Then `ttsnap check FOLDER` runs. Images are noise, so
that of the verdict nothing but its sentences counts. Text encoders are CLIP-L; SDXL's second one
has 2 of its 32 layers, and T5 is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import torch
from models import STABLE_DIFFUSION, _full_vae, _made, build
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ttsnap.profiling.meter import peak_rss

CPU, META = torch.device("cpu"), torch.device("meta")
GIB = 2**30


def tokenizer() -> CLIPTokenizer:
    """One token a character, with the numbers of CLIP's first and last token."""
    letters = [chr(c) for c in range(33, 127)]
    words = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    vocabulary = {word: n for n, word in enumerate(words)} | {
        "<|startoftext|>": 49406,
        "<|endoftext|>": 49407,
    }
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip(
    kind: Callable[[CLIPTextConfig], Any], width: int = 768, layers: int = 12, **config: Any
) -> Any:
    """CLIP-L's text encoder, or one of another width."""
    return kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=width,
            **config,
        )
    )


def filled(network: Any) -> Any:
    """A network of the meta device on the CPU, with random numbers that repeat: what they are takes
    no time there."""
    numbers = 0.02 * torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0))
    for name, tensor in [
        *network.to_empty(device="cpu").named_parameters(),
        *network.named_buffers(),
    ]:
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.data.fill_(1.0)
            continue
        for part in tensor.data.view(-1).split(len(numbers)):
            part.copy_(numbers[: len(part)])
    return network.eval()


def sd15() -> Any:
    """Stable Diffusion 1.5 in float32."""
    with _made(META, torch.float32):
        unet = d.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = _full_vae(4, scaling_factor=0.18215)
    with _made(CPU, torch.float32):
        return d.StableDiffusionPipeline(
            unet=filled(unet),
            vae=filled(vae),
            text_encoder=clip(CLIPTextModel),
            tokenizer=tokenizer(),
            scheduler=d.PNDMScheduler(
                **STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def sdxl() -> Any:
    """SDXL in bfloat16."""
    return d.StableDiffusionXLPipeline(**_parts("sdxl", CLIPTextModel), add_watermarker=False)


def sd35() -> Any:
    """Stable Diffusion 3.5 medium in bfloat16."""
    return d.StableDiffusion3Pipeline(**_parts("sd3", CLIPTextModelWithProjection))


def _parts(model: str, first: Any) -> dict[str, Any]:
    """The network, VAE and scheduler of a model at full size, and two of its text encoders, in
    bfloat16."""
    parts = build(model, "full", META, torch.bfloat16).pipe.components
    parts = {
        name: filled(part) if isinstance(part, torch.nn.Module) else part
        for name, part in parts.items()
    }
    with _made(CPU, torch.bfloat16):
        parts |= {"text_encoder": clip(first), "tokenizer": tokenizer(), "tokenizer_2": tokenizer()}
        return parts | {
            "text_encoder_2": clip(CLIPTextModelWithProjection, 1280, 2, hidden_act="gelu")
        }


MODELS: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl, "sd35": sd35}


def peak() -> float:
    """The most resident memory of this process so far, in GiB."""
    return (peak_rss() or 0) / GIB


def written(name: str, folder: Path) -> dict[str, Any]:
    """Write the model in shards of 1 GB: how many weights, files and GiB, and the seconds."""
    begin, pipe = time.monotonic(), MODELS[name]()
    pipe.save_pretrained(folder, max_shard_size="1GB")
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    net = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    files = list(folder.rglob("*.safetensors"))
    return {
        "weights of the network": sum(p.numel() for p in net.parameters()),
        "files": len(files),
        "GiB of files": sum(file.stat().st_size for file in files) / GIB,
        "GiB of weights": (
            sum(p.numel() * p.element_size() for part in parts for p in part.parameters()) / GIB
        ),
        "seconds to make and write": time.monotonic() - begin,
    }


def searched(
    folder: Path, dtype: torch.dtype, pixels: int, steps: int, seeds: int, offload: str
) -> dict[str, Any]:
    """Load the folder and search: seconds of loading and of each part, the loop's share, and peak
    memory."""
    from ttsnap import make_algorithm
    from ttsnap.options.model import ModelOptions
    from ttsnap.pipelines.opening import opened

    bare, busy = peak(), time.process_time()
    options = ModelOptions(
        model=str(folder), device="cpu", dtype=str(dtype).removeprefix("torch."), offload=offload
    )
    pipe = opened(options)
    pipe.set_progress_bar_config(disable=True)
    loading, loaded, busy = time.process_time() - busy, peak(), time.process_time()
    found = pipe(
        "a red circle",
        search=make_algorithm("best-of-n", n=seeds),
        reward="brightness",
        seed=0,
        num_inference_steps=steps,
        height=pixels,
        width=pixels,
        batch_size=2,
    )
    spent = found.search[0].spent
    taken, by = spent.seconds, spent.seconds_by
    return {
        "CPU seconds to load": loading,
        "CPU seconds of a search": time.process_time() - busy,
        "seconds of an evaluation": by["denoise"] / spent.cost.nfe,
        "seconds of a decode": by["decode"] / spent.cost.decodes,
        "% of decodes": 100 * by["decode"] / taken,
        "% of the loop": 100 * (1 - sum(by.values()) / taken),
        "GiB before": bare,
        "GiB when loaded": loaded,
        "GiB at most": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--offload", choices=("none", "model", "group"), default="none")
    parser.add_argument("--minutes", type=float, default=2, help="of the check; 0 leaves it out")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where models are written, and kept; a temporary folder by default",
    )
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)  # the process that loads one
    a = parser.parse_args()
    if a.search is not None:
        dtype = torch.float32 if a.models == ["sd15"] else torch.bfloat16
        print(json.dumps(searched(a.search, dtype, a.pixels, a.steps, a.seeds, a.offload)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in a.models:
            folder = (a.folder or Path(temporary)) / name
            own = [sys.executable, __file__, name, "--search", str(folder), "--offload", a.offload]
            own += ["--pixels", str(a.pixels), "--steps", str(a.steps), "--seeds", str(a.seeds)]
            dtype = "float32" if name == "sd15" else "bfloat16"
            words = (
                f"--minutes {a.minutes} --dtype {dtype} --reward brightness --steps {a.steps}"
                " --batch-size 2"
            )
            words += (
                f" --device cpu --height {a.pixels} --width {a.pixels} --offload {a.offload} --out"
            )
            check = [
                sys.executable,
                "-m",
                "ttsnap",
                "check",
                str(folder),
                *words.split(),
                str(folder.parent / "evidence"),
            ]
            if not folder.exists():
                print(
                    name,
                    *(f"{what}: {value:.11g}" for what, value in written(name, folder).items()),
                    sep="\n  ",
                )
            found = json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE).stdout)
            print(
                name,
                *(f"{what}: {value:.3g}" for what, value in found.items()),
                sep="\n  ",
                flush=True,
            )
            if a.minutes:
                subprocess.run(check, check=False)


if __name__ == "__main__":
    main()
