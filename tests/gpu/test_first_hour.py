"""What owners of a GPU try first: offloading, a card that is too small,
two cards."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline

from tests.gpu.conftest import evidence
from tests.gpu.test_pipelines import CLOSE, ONLY_GPU, SEED, apart, redder_left
from tests.pipelines.tiny import FAMILIES, quiet
from ttsnap import BestOfN
from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.pipelines import load, upgrade
from ttsnap.pipelines.opening import moves, placed

SEARCH = {"reward": redder_left, "seed": SEED, "batch_size": 2, "output_type": "pt"}


def found(pipe, family, n=2, **more):
    call = {**FAMILIES[family].call, "num_inference_steps": 3, **more}
    return pipe("a cat", search=BestOfN(n), **{**SEARCH, **call})


def test_a_suspended_call_makes_the_images_of_the_stock_pipeline(device):
    parts = FAMILIES["sd15"].build().components
    stock = quiet(StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)).to(device)
    call = {**FAMILIES["sd15"].call, "num_inference_steps": 3, "output_type": "pt"}
    best = found(upgrade(copy.deepcopy(stock)), "sd15").search[0].best
    expected = stock("a cat", generator=torch.Generator().manual_seed(best.seed), **call).images[0]
    assert apart(best.image, expected) < CLOSE["fp32"]


@ONLY_GPU
@pytest.mark.parametrize("offload", ["model", "group"])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_offloaded_networks_find_the_same(name, offload, device):
    stock = FAMILIES[name].build()
    expected = found(upgrade(copy.deepcopy(stock)).to(device), name).search[0].best
    pipe = placed(upgrade(stock), device, offload)
    if offload == "model":
        assert "stay there: vae" in moves(pipe)
    best = found(pipe, name).search[0].best
    assert best.seed == expected.seed
    assert apart(best.image, expected.image) < CLOSE["fp32"]


@pytest.mark.parametrize("part", ["network", "vae", "reward"])
def test_a_row_that_does_not_fit_is_one_sentence(part, device):
    """On a GPU by a tensor of a thousand TiB; on a CPU that is an error of its allocator."""
    pipe = upgrade(FAMILIES["sd3"].build().to(device))
    found(pipe, "sd3")  # its FLOPs are counted

    def too_much(*args, **kwargs):
        return torch.empty(2**50, dtype=torch.uint8, device=device)

    if part == "network":
        kind = type(pipe.transformer)
        own = {"forward": staticmethod(too_much)}
        pipe.transformer.__class__ = type(kind.__name__, (kind,), own)
    if part == "vae":
        pipe.vae.decode = too_much
    reward = too_much if part == "reward" else redder_left
    with pytest.raises(NotEnoughMemoryError):
        found(pipe, "sd3", 4, reward=reward, batch_size=4)


@ONLY_GPU
def test_two_cards_find_what_one_finds(device, tmp_path):
    if torch.accelerator.device_count() < 2:
        pytest.skip("this machine has one accelerator")
    pytest.importorskip("ray")
    FAMILIES["sd3"].build().save_pretrained(tmp_path)
    pipe = quiet(load(tmp_path)).to(device)
    one, two = (found(pipe, "sd3", 8, devices=n).search[0] for n in (1, 2))
    assert (two.best.seed, two.spent.cost.nfe) == (one.best.seed, one.spent.cost.nfe)
    assert apart(two.best.image, one.best.image) < CLOSE["fp32"]


@ONLY_GPU
def test_the_second_card_is_timed_by_its_own_clock(device):
    if torch.accelerator.device_count() < 2:
        pytest.skip("this machine has one accelerator")
    pipe = upgrade(FAMILIES["sd3"].build()).to(torch.device(device.type, 1))
    spent = found(pipe, "sd3", 8).search[0].spent
    assert 0 < spent.seconds_by["denoise"] <= spent.seconds


def test_what_to_send_names_the_device_and_what_failed_and_no_folder():
    report = SimpleNamespace(
        nodeid="tests/gpu/test_x.py::test_y", longreprtext="E\n/home/me/secret/x.py:3: OutOfMemory"
    )
    page = "\n".join(evidence({"passed": [1, 2], "failed": [report]}))
    assert page.startswith("# tests/gpu on ")
    assert "2 passed, 1 failed" in page
    assert "- test_x.py::test_y: OutOfMemory" in page
