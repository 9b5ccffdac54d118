"""Whole searches on a stand-in for an accelerator: where values leave it, what is copied to it, and
what it holds."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from tests.pipelines.meta_device import META, Device, Site, on_device, placed
from tests.pipelines.tiny import FAMILIES
from ttsnap import SeedPruning, search
from ttsnap.options.engine import EngineOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import search_class, upgrade
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.request.request import EngineSpec
from ttsnap.rewards.reward_model import RewardModel

DECIDE: dict[Site, int] = {
    ("rewards/scoring.py", "landed"): 3,
    ("engine/scoring.py", "RowScorer.begin"): 1,
}
"""What is read of each of three batches: scores, and whether images are finite. Finished images go
once."""
ENCODE, FORWARD = (
    ("pipelines/denoiser.py", f"PipelineDenoiser.{name}")
    for name in ("_encode.<locals>.encode", "forward")
)
COPIES_OF_ALL = {("pipelines/denoiser.py", "PipelineDenoiser.init_latents"), ENCODE}
"""Noise, which stock pipelines draw on the CPU, and what their encoders read."""
REMEMBERED = {
    ("pipelines/calls/kept.py", "_Entry.is_of.<locals>.<genexpr>"),
    ("pipelines/calls/joining.py", "_near"),
}
"""Whether calls join is tried once. A frame of another number of images asks for its prompt again,
and what encoders were given is compared once."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in ("sd15", "sdxl", "pixart_sigma", "sana", "qwen_image", "z_image", "lumina2")
    },
    "flux2_klein": ("flux2_klein", {}),
    "suspended flux": ("suspended flux", {}),
    "drafts": ("flux", {"draft": "hot"}),
    "finished drafts": ("flux", {"draft": "hot", "finish": "0.6:2"}),
    "variety": ("sd3", {"variety": "repel:4:0.5"}),
    "sde": ("sd3", {"kernel": "sde"}),
    "ddim": ("pixart_sigma", {"kernel": "ddim"}),
    "unipc": ("pixart_sigma", {"scheduler": UniPCMultistepScheduler}),
    "dpm++": ("pixart_sigma", {"scheduler": DPMSolverMultistepScheduler}),
}
LEFT: dict[str, set[Site]] = {
    "qwen_image": {ENCODE},
    "lumina2": {FORWARD},
    "suspended flux": REMEMBERED,
}
"""What else is read: by networks and encoders that read lengths of texts, and by trials."""
COPIES: dict[str, set[Site]] = {
    "sdxl": {("pipelines/families/stable_diffusion_xl.py", "StableDiffusionXLDenoiser._sized")},
    "flux": {("pipelines/families/flux.py", "FluxDenoiser.encode")},
    "flux2_klein": {("pipelines/families/flux2_klein.py", "Flux2KleinDenoiser.encode")},
    "qwen_image": {
        FORWARD,
        ("pipelines/families/qwen_image.py", "QwenImageDenoiser.pixels.<locals>.<genexpr>"),
    },
    "z_image": {FORWARD},
    "lumina2": {FORWARD},
    "suspended flux": {
        ("pipelines/calls/asking.py", "drawing.<locals>.call"),
        ("pipelines/calls/frame.py", "_program"),
        ("pipelines/calls/kept.py", "Kept.of"),
    },
    "unipc": {("pipelines/latents/scheduler_kernel.py", "SchedulerKernel._step")},
}
"""What else is copied to the device with the host waiting: once a call, or in networks and
schedulers of diffusers."""


def families() -> Any:
    """Those of the benchmarks, with embeddings in the place of texts."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("families")


class Bright(RewardModel):
    """It reads the noise levels, too."""

    name = "bright"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        assert level is not None
        return images.float().mean((1, 2, 3)) - 0 * level


def searched(name: str, n: int = 8, *, scheduler: Any = None, **how: Any) -> tuple[Device, Any]:
    """What the device saw of a search of n seeds, half of which are pruned. name: of a family, or
    of one whose stock call is suspended, after "suspended ".

    A stock call is rehearsed on the CPU, which reads what networks make.
    """
    family = name.removeprefix("suspended ")
    suspended = family != name
    if suspended:
        place, stock, call = (
            {"now": torch.device("cpu")},
            FAMILIES[family].build(),
            FAMILIES[family].call,
        )
        pipe = placed(copied(stock, search_class(type(stock))), place)
    else:
        case = families().build(name, "tiny", META, torch.float32)
        place, stock, call = {"now": META}, case.pipe, case.call
        if scheduler is not None:
            stock.scheduler = scheduler.from_config(stock.scheduler.config)
        pipe = placed(upgrade(stock), place)
    given = {**call, "num_inference_steps": 4}
    spec = EngineSpec(None, (Bright(),), SamplerOptions(**how), EngineOptions(batch_size=4), given)
    with nullcontext() if suspended else on_device():
        engine = pipe.engine_of(spec)
    if suspended:
        place["now"] = engine.denoiser.device = META
        for part in stock.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(META)
    with on_device() as device:
        (result,) = search(["a cat"], SeedPruning(n, (0.5,), steps=(1,)), engine)
    return device, result


def places(found: Counter[Site]) -> set[Site]:
    return {at for at in found if at not in COPIES_OF_ALL}


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_values_leave_the_device_where_they_are_decided_on_and_nowhere_else(name: str) -> None:
    device, result = searched(name)
    assert dict(device.left) == DECIDE
    assert places(device.copied) == COPIES.get(name, set())
    assert result.spent.cost.nfe == 24  # eight rows take two evaluations, and four of them two more


@pytest.mark.parametrize("case", CASES)
def test_so_it_is_for_all_families_and_kinds_of_searches(case: str) -> None:
    name, how = CASES[case]
    device, _ = searched(name, 4, **how)
    assert set(device.left) == set(DECIDE) | LEFT.get(case, set())
    assert places(device.copied) == COPIES.get(name, set()) | COPIES.get(case, set())


def test_a_seed_holds_three_latents_of_the_device_and_nothing_is_left_there() -> None:
    """Those of its step, of the network's output and of the estimate."""
    (few, _), (many, _) = searched("sd3", 8), searched("sd3", 24)
    latent = 4 * 16 * 16 * 16
    assert many.peak - few.peak <= (24 - 8) * 3 * latent
    assert few.now == many.now == 0
