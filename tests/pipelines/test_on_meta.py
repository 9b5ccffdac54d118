"""Whole searches on a stand-in for an accelerator: where values leave it, what is copied to it, and
what it holds."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from tests.pipelines.meta_device import META, on_device, placed
from tests.pipelines.tiny import FAMILIES
from ttsnap import SeedPruning, search
from ttsnap.options.engine import EngineOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.pipeline_copy import shared_copy
from ttsnap.request.request import EngineSpec
from ttsnap.rewards.reward_model import RewardModel

DECIDE = {
    ("rewards/scoring.py", "landed"): 3,
    ("engine/scoring.py", "RowScorer.begin"): 1,
}
"""What is read of each of three batches: scores, and whether images are finite. Finished images go
once."""
COMPARED = {
    ("pipelines/calls/dummies.py", "_whole_numbers.<locals>.<genexpr>"),
    ("pipelines/calls/joining.py", "_near"),
    ("pipelines/calls/values.py", "_Entry.is_of.<locals>.<genexpr>"),
    ("pipelines/calls/values.py", "Alike._same"),
    ("pipelines/denoiser.py", "PipelineDenoiser.drafted"),
}
"""What is read beside that: whether calls join is tried once, what encoders were given is compared
once for a frame, and times of drafts once a batch of them."""
STOCK = {
    ("pipelines/calls/frame.py", "_program"),
    ("pipelines/calls/hub.py", "Hub._call"),
    ("pipelines/calls/stepping.py", "_begin_stepping"),
}
"""Where code of diffusers runs, which reads lengths of texts, say, and finds its place in a
schedule."""
COPIES = {
    *STOCK,
    ("pipelines/calls/parts.py", "drawing.<locals>.call"),
    ("pipelines/calls/values.py", "Kept.of"),
    ("pipelines/calls/stepping.py", "_telling.<locals>.retimed"),
    ("pipelines/latents/scheduler_kernel.py", "SchedulerKernel._step"),
}
"""Where things are copied to the device with the host waiting: noise, which stock calls draw on the
CPU, what encoders make for the first row of a prompt, and by code of diffusers."""
CASES = {
    **{name: (name, {}) for name in ("sdxl", "sana", "z_image", "lumina2", "flux2_klein")},
    "drafts": ("flux", {"draft": "hot"}),
    "finished drafts": ("flux", {"draft": "hot", "finish": "0.6:2"}),
    "variety": ("sd3", {"variety": "repel:4:0.5"}),
    "sde": ("sd3", {"kernel": "sde"}),
    "ddim": ("pixart_sigma", {"kernel": "ddim"}),
    "unipc": ("pixart_sigma", {"scheduler": UniPCMultistepScheduler}),
    "dpm++": ("pixart_sigma", {"scheduler": DPMSolverMultistepScheduler}),
}
"""Without Qwen-Image, which divides tensors by lengths that it has read."""


class Bright(RewardModel):
    """It reads the noise levels, too."""

    name = "bright"

    def __call__(self, images, prompts, level=None):
        assert level is not None
        return images.float().mean((1, 2, 3)) - 0 * level


def searched(name, n=8, *, scheduler=None, **how):
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
    copies = list[torch.nn.Module]()

    def copied(part):
        copies.append(shared_copy(part))
        return copies[-1]

    with mock.patch("ttsnap.pipelines.denoiser.shared_copy", copied):
        engine = pipe.engine_of(spec)
    place["now"] = engine.denoiser.device = META
    for part in [*stock.components.values(), *copies]:
        if isinstance(part, torch.nn.Module):
            part.to(META)
    with on_device() as device:
        (result,) = search(["a cat"], SeedPruning(n, (0.5,), steps=(1,)), engine)
    return device, result


def check_places(device):
    assert set(device.left) <= {*DECIDE, *COMPARED, *STOCK}
    assert set(device.copied) <= COPIES


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_values_leave_the_device_where_they_are_decided_on_and_nowhere_else(name):
    device, result = searched(name)
    check_places(device)
    assert {at: count for at, count in device.left.items() if at in DECIDE} == DECIDE
    assert result.spent.cost.nfe == 24  # eight rows take two evaluations, and four of them two more


@pytest.mark.parametrize("case", CASES)
def test_so_it_is_for_other_models_and_kinds_of_searches(case):
    name, how = CASES[case]
    check_places(searched(name, 4, **how)[0])


def test_a_seed_holds_three_latents_of_the_device_and_nothing_is_left_there():
    """Beside the stock call's own of a row: what both passes read of its text, and its latents,
    which the network gets twice, puts out twice, and which are guided."""
    (few, _), (many, _) = searched("sd3", 8), searched("sd3", 24)
    latent = 4 * 4 * 8 * 12
    texts = 4 * 2 * (85 * 96 + 64)
    assert many.peak - few.peak <= (24 - 8) * (texts + (6 + 3) * latent + 32)
    assert few.now == many.now == 0
