"""What suspended calls hold: nothing when they are over, and little while one is opened."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from ttsnap.pipelines import upgrade

from .test_toy import found
from .tiny import call_of, stock
from .toy import ToyVae, ToyWriter, toy

CALLS: dict[str, Callable[[], Any]] = {
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
def test_calls_leave_no_tensor_to_the_cycle_collector(name: str) -> None:
    def tensors() -> dict[int, Tensor]:
        return {id(each): each for each in gc.get_objects() if issubclass(type(each), Tensor)}

    def call() -> None:
        if name not in REFUSED:
            CALLS[name]()
            return
        with pytest.raises((ValueError, AttributeError)):
            CALLS[name]()

    call()  # what parts make on paper is kept with their pipeline
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        call()
        left = [each.shape for key, each in tensors().items() if key not in before]
    finally:
        gc.enable()
    assert left == []
