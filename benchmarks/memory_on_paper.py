"""What well-known models take of memory, worked out without their weights, and how true that is.

    python benchmarks/memory_on_paper.py                            # the table, a minute on a CPU
    python benchmarks/memory_on_paper.py --write FOLDER             # keeps folders for `ttsnap check FOLDER --dry-run`
    python benchmarks/memory_on_paper.py --measure sd15 --pixels 512 --dtype float32
    python benchmarks/memory_on_paper.py --measure sdxl --pixels 512

Configurations are those of the published models. `--measure` gives the network and the VAE random
weights, evaluates a row and decodes an image on the CPU, and compares what torch's allocator handed
out with what paper says. What convolutions of oneDNN take and give back inside themselves is told
apart; neither are cuDNN's workspaces on paper.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import diffusers as d
import torch
from models import (
    SHIFT,
    STABLE_DIFFUSION,
    _flow,
    _flux_full,
    _full_vae,
    _made,
    _sd35_full,
    _sdxl_full,
)
from real_size import filled
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, PreTrainedConfig, Qwen2_5_VLConfig, T5Config

from ttsnap.check.cost import evaluate
from ttsnap.check.dry_run import GIB, Paper, worked_out
from ttsnap.core.prompt import Prompt
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import Budget
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.on_paper import on_paper
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.sampling import rng

CONVOLUTION = "aten::mkldnn_convolution"
META = torch.device("meta")
Texts = dict[str, tuple[str, PreTrainedConfig]]
"""Text encoders by name: the class and its configuration."""


def clip(width: int = 768, layers: int = 12, act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=act,
    )


def t5() -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )


def qwen() -> Qwen2_5_VLConfig:
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


def sd15() -> tuple[Any, Texts]:
    with _made(META, torch.float32):
        unet, vae = d.UNet2DConditionModel(sample_size=64, cross_attention_dim=768), _full_vae(4)
    pndm = d.PNDMScheduler(
        **STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": pndm}
    return ("StableDiffusionPipeline", parts), {"text_encoder": ("CLIPTextModel", clip())}


def _of(case: Any, network: str) -> tuple[str, dict[str, Any]]:
    pipe = case.pipe
    return type(pipe).__name__, {
        name: getattr(pipe, name) for name in (network, "vae", "scheduler")
    }


BIG_G = ("CLIPTextModelWithProjection", clip(1280, 32, "gelu"))
PROJECTED = ("CLIPTextModelWithProjection", clip())
T5_XXL = ("T5EncoderModel", t5())


def sdxl() -> tuple[Any, Texts]:
    texts: Texts = {"text_encoder": ("CLIPTextModel", clip()), "text_encoder_2": BIG_G}
    return _of(_sdxl_full(META, torch.bfloat16), "unet"), texts


def sd35_medium() -> tuple[Any, Texts]:
    texts: Texts = {"text_encoder": PROJECTED, "text_encoder_2": BIG_G, "text_encoder_3": T5_XXL}
    return _of(_sd35_full(META, torch.bfloat16), "transformer"), texts


def sd35_large() -> tuple[Any, Texts]:
    (name, parts), texts = sd35_medium()
    changes = {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "dual_attention_layers": (),
    }
    with _made(META, torch.bfloat16):
        parts["transformer"] = d.SD3Transformer2DModel.from_config(
            {**parts["transformer"].config, **changes}
        )
    return (name, parts), texts


def flux() -> tuple[Any, Texts]:
    texts: Texts = {"text_encoder": ("CLIPTextModel", clip()), "text_encoder_2": T5_XXL}
    return _of(_flux_full(META, torch.bfloat16), "transformer"), texts


def qwen_image() -> tuple[Any, Texts]:
    with _made(META, torch.bfloat16):
        parts: dict[str, Any] = {
            "transformer": d.QwenImageTransformer2DModel(),
            "vae": d.AutoencoderKLQwenImage(),
        }
    parts["scheduler"] = _flow(**SHIFT, shift_terminal=0.02)
    return ("QwenImagePipeline", parts), {
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration", qwen())
    }


MODELS: dict[str, tuple[Callable[[], tuple[Any, Texts]], dict[str, Any]]] = {
    "sd15": (sd15, {}),
    "sdxl": (sdxl, {}),
    "sd35-medium": (sd35_medium, {}),
    "sd35-large": (sd35_large, {}),
    "flux-dev": (flux, {}),
    "qwen-image": (qwen_image, {"height": 1328, "width": 1328, "negative_prompt": ""}),
}
"""What makes the configurations of each, and arguments of its call."""
TOKENS = {"CLIPTextConfig": 77, "T5Config": 512}
"""What tokenizers of these encoders take at most."""


def written(name: str, folder: Path) -> Path:
    """The folder of a model's configurations, as its hub repository has them."""
    (stock, parts), texts = MODELS[name][0]()
    index: dict[str, Any] = {"_class_name": stock, "_diffusers_version": d.__version__}
    for part, made in parts.items():
        made.save_config(folder / part)
        index[part] = ["diffusers", type(made).__name__]
    for part, (kind, config) in texts.items():
        config.save_pretrained(folder / part)
        tokenizer = part.replace("text_encoder", "tokenizer")
        (folder / tokenizer).mkdir(parents=True, exist_ok=True)
        most = {"model_max_length": TOKENS.get(type(config).__name__, 1024)}
        (folder / tokenizer / "tokenizer_config.json").write_text(json.dumps(most))
        index |= {
            part: ["transformers", kind],
            tokenizer: ["transformers", "PreTrainedTokenizerFast"],
        }
    if stock == "StableDiffusionPipeline":
        index |= {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def paper_of(
    name: str, folder: Path, dtype: torch.dtype, **call: Any
) -> tuple[Paper, Any, Any, Any]:
    """A model on paper, with its pipeline, its parts and the search."""
    pipe, networks = on_paper(folder, dtype)
    spec = EngineSpec(ModelOptions(str(folder)), ("brightness",), call={**MODELS[name][1], **call})
    request = SearchRequest(
        (Prompt("a red fox in the snow"),), spec, "seed-pruning", Budget.parse("16images")
    )
    search = prepare(request, ModelDefaults())
    return worked_out(pipe, networks, search, name), pipe, networks, search


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that torch's allocator of the CPU has handed out at a time in a call: without
    what convolutions of oneDNN take and give back inside themselves, and with it."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda each: each.start_ns())
    inside = [
        (each.start_ns(), each.start_ns() + each.duration_ns())
        for each in events
        if each.name() == CONVOLUTION
    ]
    changes = [(each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]"]
    begins = [at for at, _ in changes]
    own = set[int]()
    for begin, end in inside:
        within = range(bisect_left(begins, begin), bisect_right(begins, end))
        for i in within:
            freed = next(
                (j for j in within if j > i and j not in own and changes[j][1] == -changes[i][1]),
                None,
            )
            if changes[i][1] > 0 and freed is not None:
                own |= {i, freed}
    return most([size for i, (_, size) in enumerate(changes) if i not in own]), most(
        [size for _, size in changes]
    )


def most(changes: Iterable[int]) -> int:
    """The highest of the sums so far."""
    return max(accumulate(changes), default=0)


def measured(
    name: str, folder: Path, dtype: torch.dtype, pixels: int
) -> list[tuple[str, int, int, int]]:
    """(what, on paper, allocated, allocated with oneDNN's buffers) of weights, rows and a
    decode."""
    paper, pipe, networks, search = paper_of(name, folder, dtype, height=pixels, width=pixels)
    found = []
    for part in (*paper.denoisers, "vae"):
        network = networks[part].part
        network.__class__ = type(network).__base__  # one that computes
        filled(network)
        weights = sum(p.nbytes for p in network.parameters())
        found.append((f"weights of {part}", paper.weights[part], weights, weights))
    denoiser = pipe.engine_of(search.engine).denoiser
    denoiser.encode(search.prompts[:1])
    for n, add in ((1, 0), (2, 1)):
        size = paper.row.first + add * paper.row.more
        found.append((f"rows: {n}", size, *allocated(lambda n=n: evaluate(denoiser, n))))
    latents = denoiser.init_latents([rng.seeded(0)])
    found.append(("a decode", paper.decode.first, *allocated(lambda: denoiser.decode(latents))))
    return found


def table(papers: list[Paper]) -> str:
    """In Markdown."""
    head = [
        "model",
        "denoiser and VAE, GiB",
        "texts, GiB",
        "a row, GiB",
        "a decode, GiB",
        "TFLOP an evaluation",
        "12 GB",
        "24 GB",
        "48 GB",
        "80 GB",
    ]
    return markdown(head, [_line(paper) for paper in papers])


def _line(paper: Paper) -> list[str]:
    own = sum(size for name, size in paper.weights.items() if name in (*paper.denoisers, "vae"))
    sizes = [own, sum(paper.weights.values()) - own, paper.row.first, paper.decode.first]
    cards = [paper.on(gb) for gb in (12, 24, 48, 80)]
    told = ["no" if card.offload is None else f"{card.rows}{MARKS[card.offload]}" for card in cards]
    size = f"{paper.model}, {paper.width} px"
    return [
        size,
        *(f"{each / GIB:.2f}" for each in sizes),
        f"{paper.flops['an evaluation'] / 1e12:.3g}",
        *told,
    ]


MARKS = {"none": "", "model": " m", "group": " g"}


def main() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    p.add_argument("--measure", choices=tuple(MODELS))
    p.add_argument("--pixels", type=int, default=512)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    p.add_argument(
        "--write", type=Path, metavar="FOLDER", help="keep the folders of configurations here"
    )
    a = p.parse_args()
    dtype = getattr(torch, a.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        root = a.write or Path(temporary)
        if a.measure:
            rows = measured(a.measure, written(a.measure, root / a.measure), dtype, a.pixels)
            off = [
                (
                    what,
                    *(f"{size / GIB:.3f}" for size in (own, real, whole)),
                    f"{100 * (own / real - 1):+.1f} %",
                )
                for what, own, real, whole in rows
            ]
            head = (
                f"{a.measure}, {a.pixels} px, {a.dtype}",
                "paper, GiB",
                "torch, GiB",
                "with oneDNN's",
                "off",
            )
            print(markdown(head, off))
            return
        print(table([paper_of(name, written(name, root / name), dtype)[0] for name in a.models]))


if __name__ == "__main__":
    main()
