"""Whole searches on a stand-in for an accelerator: where values leave it, what is copied to it, and
what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
from ttsnap.pipelines import upgrade
from ttsnap.request.request import EngineSpec
from ttsnap.rewards.reward_model import RewardModel

DECIDE: dict[Site, int] = {
    ("rewards/scoring.py", "landed"): 3,
    ("engine/scoring.py", "RowScorer.begin"): 1,
}
"""What is read of each of three batches: scores, and whether images are finite. Finished images go
once."""
COPIES_OF_ALL: set[Site] = set()
REMEMBERED: set[Site] = set()
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in ("sd15", "sdxl", "pixart_sigma", "sana", "qwen_image", "z_image", "lumina2")
    },
    "flux2_klein": ("flux2_klein", {}),
    "drafts": ("flux", {"draft": "hot"}),
    "finished drafts": ("flux", {"draft": "hot", "finish": "0.6:2"}),
    "variety": ("sd3", {"variety": "repel:4:0.5"}),
    "sde": ("sd3", {"kernel": "sde"}),
    "ddim": ("pixart_sigma", {"kernel": "ddim"}),
    "unipc": ("pixart_sigma", {"scheduler": UniPCMultistepScheduler}),
    "dpm++": ("pixart_sigma", {"scheduler": DPMSolverMultistepScheduler}),
}
LEFT: dict[str, set[Site]] = {}
COPIES: dict[str, set[Site]] = {}


class Bright(RewardModel):
    """It reads the noise levels, too."""

    name = "bright"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        assert level is not None
        return images.float().mean((1, 2, 3)) - 0 * level


def searched(name: str, n: int = 8, *, scheduler: Any = None, **how: Any) -> tuple[Device, Any]:
    """What the device saw of a search of n seeds, half of which are pruned.

    The call is rehearsed on the CPU, which reads what networks make.
    """
    stock = FAMILIES[name].build()
    if scheduler is not None:
        stock.scheduler = scheduler.from_config(stock.scheduler.config)
    place = {"now": torch.device("cpu")}
    pipe = placed(upgrade(stock), place)
    call = {**FAMILIES[name].call, "num_inference_steps": 4}
    spec = EngineSpec(None, (Bright(),), SamplerOptions(**how), EngineOptions(batch_size=4), call)
    engine = pipe.engine_of(spec)
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
