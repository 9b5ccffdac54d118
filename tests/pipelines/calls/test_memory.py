"""What suspended calls hold: nothing when they are over, and little while one is opened."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls import frame, runs
from ttsnap.profiling.on_paper import Live, peak
from ttsnap.sampling.rng import seeded

from .test_toy import PROMPTS, found
from .tiny import call_of, stock
from .toy import ToyVae, ToyWriter, toy

CALLS = {
    "plain": lambda: found(upgrade(toy())),
    "decodes": lambda: found(upgrade(toy(vae=ToyVae().eval())), batch_size=3),
    "writes": lambda: found(upgrade(toy(writer=ToyWriter().eval()))),
    "fields": lambda: found(upgrade(toy()), does="duet first"),
    "by seed": lambda: found(upgrade(toy()), does="inline momentum"),
    "path": lambda: found(upgrade(toy()), search="smc", kernel="sde", path="vp", budget="8nfe"),
    "drafts": lambda: found(upgrade(toy()), draft="hot"),
    "edits": lambda: found(
        upgrade(stock("FluxInpaintPipeline")), budget="2images", **call_of("FluxInpaintPipeline")
    ),
    "global": lambda: found(upgrade(toy()), does="global"),
    "mute": lambda: found(upgrade(toy()), does="mute"),
    "duet untuned": lambda: found(upgrade(toy()), does="duet untuned"),
    "no such argument": lambda: found(upgrade(toy()), shift="no picture"),
}
REFUSED = ("global", "mute", "duet untuned", "no such argument")


@pytest.mark.parametrize("name", CALLS)
def test_calls_leave_no_tensor_to_the_cycle_collector(name):
    def tensors():
        return {id(each): each for each in gc.get_objects() if issubclass(type(each), Tensor)}

    def call():
        if name not in REFUSED:
            CALLS[name]()
            return
        with pytest.raises((ValueError, AttributeError)):
            CALLS[name]()

    def left_by_a_call():
        gc.collect()
        gc.disable()
        try:
            before = tensors()
            call()
            return [each.shape for key, each in tensors().items() if key not in before]
        finally:
            gc.enable()

    call()  # what parts make on paper is kept with their pipeline
    assert left_by_a_call() == []


class BigVae(ToyVae):
    """Latents -> an image of 3 MB."""

    def decode(self, z, generator=None):
        return nn.functional.interpolate(super().decode(z, generator), size=512)


@contextmanager
def watched(mode):
    """In here, a mode sees the operators of suspended calls, too."""
    program = frame._program

    def seen(*args):
        with mode:
            return program(*args)

    with mock.patch.object(frame, "_program", seen), mode:
        yield


def test_a_call_is_opened_in_about_the_memory_of_a_stock_call_and_keeps_no_image(
    monkeypatch,
):
    monkeypatch.setattr(runs, "CHUNK", 1 << 12)
    pipe, live = toy(vae=BigVae().eval()), Live("cpu")
    alone = peak(lambda: pipe(PROMPTS[0], generator=seeded(0)), "cpu")
    with watched(live):
        denoiser = upgrade(pipe).denoiser()
    image = 4 * 3 * 512 * 512
    assert (denoiser.height, denoiser.width) == (512, 512)
    assert live.peak < alone + 2 * image
    assert live.now < image


class NoFloat64(TorchDispatchMode):
    """Widens no tensors to float64, as Apple's GPUs. Lists of times and levels are the host's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        widens = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float64
        if widens and args[0].ndim > 1:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", ["FluxInpaintPipeline", "WanPipeline"])
def test_a_call_is_opened_where_float64_is_refused(name):
    with watched(NoFloat64()):
        upgrade(stock(name)).denoiser(**call_of(name))
