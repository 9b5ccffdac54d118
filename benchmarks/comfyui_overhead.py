"""What a search inside ComfyUI takes beside the calls of the model, on a stand-in that sleeps.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/comfyui_overhead.py

COMFYUI_PATH names a checkout of ComfyUI, whose own samplers, guider and wrappers run here, on the
CPU. The network is a stand-in that sleeps 50 ms a call and returns noise. Latents have SDXL's
shape, 4 x 128 x 128. "beside" is the time that is not spent in the stand-in, as a share of that
time: of ComfyUI's own call on a batch of the same seeds, and of a search that prunes none of them,
in turns: the least of the repeats, to which other programs only add. Ratios of one run on one
machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttsnap import BestOfN
from ttsnap.core.prompt import Prompt
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.comfyui.latents import LatentSearch
from ttsnap.request.request import EngineSpec, SearchRequest

SAMPLERS = (
    "euler",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "uni_pc",
    "heun",
    "ddim",
    "lcm",
    "res_multistep",
)


class Sleeping(torch.nn.Module):
    """A network of SDXL's shape that sleeps, and counts its calls."""

    dtype = torch.float32

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.each, self.calls = seconds, 0

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, **_: Any
    ) -> Tensor:
        time.sleep(self.each)
        self.calls += 1
        return x


def sleeping_model(seconds: float) -> tuple[Any, Sleeping]:
    """A MODEL of ComfyUI over such a network, which predicts noise."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "in_channels": 4})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(
        config, comfy.model_base.ModelType.EPS, device=torch.device("cpu")
    )
    model.diffusion_model = network = Sleeping(seconds)
    here = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=here, offload_device=here), network


class FlatVae:
    """A VAE whose images are tiny: decoding is no part of what is measured."""

    def decode(self, samples_in: Tensor) -> Tensor:
        return torch.full((len(samples_in), 8, 8, 3), 0.5)


def beside(network: Sleeping, call: Callable[[], object]) -> float:
    """The processor time of a call, as a share of the time that the network sleeps in it."""
    network.calls, begun = 0, time.process_time()
    call()
    return (time.process_time() - begun) / (network.calls * network.each)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=16, help="of latents")
    parser.add_argument("--ms", type=float, default=50.0, help="of a call")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sys.path.append(os.environ["COMFYUI_PATH"])
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.samplers

    torch.set_num_threads(1)
    model, network = sleeping_model(args.ms / 1000)
    text, latent = [[torch.zeros(1, 4, 8), {}]], torch.zeros(1, 4, args.side, args.side)
    rows = []
    for name in args.samplers:
        sigmas = comfy.samplers.KSampler(
            model, args.steps, model.load_device, name, "normal", 1.0
        ).sigmas
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(text, text)
        guider.set_cfg(7.0)
        spec = EngineSpec(
            ModelOptions(), ("brightness",), batch=EngineOptions(batch_size=args.seeds)
        )
        how = SearchRequest((Prompt(""),), spec, BestOfN(n=args.seeds), Budget(), keep=args.seeds)
        search = LatentSearch(
            how, guider, comfy.samplers.sampler_object(name), sigmas, latent, FlatVae()
        )
        batch = latent.expand(args.seeds, -1, -1, -1)

        def stock(name: str = name, batch: Tensor = batch) -> None:
            noise = comfy.sample.prepare_noise(batch, 0)
            comfy.sample.sample(
                model,
                noise,
                args.steps,
                7.0,
                name,
                "normal",
                text,
                text,
                batch,
                seed=0,
                disable_pbar=True,
            )

        own, ours = [], []
        with torch.inference_mode():
            search.run()
            for _ in range(args.repeats):
                own.append(beside(network, stock))
                ours.append(beside(network, search.run))
        a, b = min(own), min(ours)
        rows.append([name, f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{100 * (b - a):+.1f} %"])
    head = ["sampler", "stock batch, beside", "search, beside", "added"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
