"""Searches with pipelines that people have patched, by hand or by a package: the winner is what the
stock call makes of its seed, or the search is refused."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline, WanPipeline
from torch import nn

from tests.pipelines import tiny as families
from ttsnap.pipelines import search_class, upgrade
from ttsnap.pipelines.arguments import call_parameters
from ttsnap.pipelines.mixin import SearchMixin

from .test_calls import alone, found, pictures
from .tiny import call_of, stock

SUSPENDED = "PixArtAlphaPipeline"


def own(name=SUSPENDED):
    """A pipeline that a test may change, and a small call."""
    if name in families.FAMILIES:
        family = families.FAMILIES[name]
        return family.build(), {**family.call, "num_inference_steps": 3}
    pipe = copy.copy(stock(name))
    for part in ("transformer", "scheduler"):
        vars(pipe)[part] = copy.deepcopy(getattr(pipe, part))
    return pipe, call_of(name)


def finds_the_stock_image(pipe, call, twin=None):
    out = found(twin or upgrade(pipe), ["a fox"], search="best-of-n", budget="2images", **call)
    expected = alone(pipe, "a fox", out.search[0].images[0].seed, **call)
    torch.testing.assert_close(pictures(out)[0], expected, atol=1e-5, rtol=0)


# --- other objects in the place of parts and methods ----------------------------------------------


class Around(nn.Module):
    """A module of a user around a network."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("around", [functools.partial(torch.compile, backend="eager"), Around])
def test_a_network_inside_another_module_is_searched(around):
    pipe, call = own()
    pipe.transformer = around(pipe.transformer)
    finds_the_stock_image(pipe, call)


def test_a_call_that_hands_its_arguments_on_is_searched():
    pipe, call = own()

    class OwnCall(type(pipe)):  # type: ignore[misc]
        def __call__(self, prompt=None, halved=False, **kwargs):
            out = super().__call__(prompt=prompt, **kwargs)
            out.images = out.images / (2 if halved else 1)
            return out

    pipe.__class__ = OwnCall
    finds_the_stock_image(pipe, {**call, "halved": True, "guidance_scale": 3.0})
    with pytest.raises(ValueError, match=r"halvd.*halved"):
        found(upgrade(pipe), ["a fox"], halvd=True, **call)


def test_a_video_call_that_hands_its_arguments_on_makes_videos():
    class OwnVideos(WanPipeline):  # type: ignore[misc]
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    assert search_class(OwnVideos).output_class is search_class(WanPipeline).output_class


def test_parameters_are_those_of_the_base_where_arguments_are_handed_on():
    class First:
        def __call__(self, prompt, *, steps=3): ...

    class Second(First):
        def __call__(self, *args, **kwargs): ...

    class Third(Second):
        def __call__(self, scale, **kwargs): ...

    assert list(call_parameters(First)) == ["self", "prompt", "steps"]
    assert list(call_parameters(Second)) == ["self", "prompt", "steps", "kwargs"]
    assert list(call_parameters(Third)) == ["self", "scale", "prompt", "steps", "kwargs"]


def test_a_subclass_with_parts_of_its_own_is_searched():
    """As of Kohya's fix, whose U-Net reads one timestep for all rows."""
    pipe, call = own("sd15")
    seen = []

    class OwnUNet(type(pipe.unet)):  # type: ignore[misc]
        def forward(self, sample, timestep, *args, **kwargs):
            factor = 1.5 if timestep > 500 else 1.0
            seen.append(factor)
            return super().forward(sample * factor, timestep, *args, **kwargs)

    class OwnParts(StableDiffusionPipeline):  # type: ignore[misc]
        @functools.wraps(StableDiffusionPipeline.__init__)
        def __init__(self, **parts):
            super().__init__(**parts)

    pipe.unet.__class__, pipe.__class__ = OwnUNet, OwnParts
    assert issubclass(search_class(OwnParts), SearchMixin)
    finds_the_stock_image(pipe, call)
    assert len(set(seen)) == 2


# --- patches --------------------------------------------------------------------------------------


def cached(forward, *, wraps=True):
    """What step caches put in the place of a method."""

    def call(*args, **kwargs):
        return forward(*args, **kwargs)

    return functools.wraps(forward)(call) if wraps else call


def inner_forward(pipe):
    block = pipe.transformer.transformer_blocks[0]
    block.forward = cached(block.forward)


def forward_under_a_hook(pipe):
    pipe.transformer.forward = functools.partial(cached(pipe.transformer.forward, wraps=False))
    cpu_offload(pipe.transformer, torch.device("cpu"))


def own_step(pipe):
    pipe.scheduler.step = cached(pipe.scheduler.step)


def hidden_arguments(pipe):
    class OwnStep(type(pipe.scheduler)):  # type: ignore[misc]
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    pipe.scheduler = OwnStep.from_config(pipe.scheduler.config)


def namesake(pipe):
    kind = type(pipe.scheduler)

    def step(self, out, *args, **kwargs):
        return kind.step(self, out / 2, *args, **kwargs)

    names = {"step": functools.wraps(kind.step)(step), "__module__": __name__}
    pipe.scheduler = type(kind.__name__, (kind,), names).from_config(pipe.scheduler.config)


PATCHES = {
    inner_forward: "transformer_blocks.0.forward.*test_patches",
    forward_under_a_hook: "transformer has forward by .*test_patches",
    own_step: "scheduler has step by .*test_patches",
    hidden_arguments: "OwnStep",
    namesake: r"DPMSolverMultistepScheduler|FlowMatchEulerDiscreteScheduler",
}


@pytest.mark.parametrize("patch", PATCHES)
def test_what_was_set_on_parts_is_refused_by_name(patch):
    pipe, call = own()
    patch(pipe)
    with pytest.raises(ValueError, match=PATCHES[patch]):
        found(upgrade(pipe), ["a fox"], **call)


def test_a_class_whose_method_was_replaced_is_refused(
    monkeypatch,
):
    pipe, call = own()
    twin = upgrade(pipe)
    for kind, method in ((type(pipe.transformer), "forward"), (type(pipe.scheduler), "step")):
        with monkeypatch.context() as patched:
            patched.setattr(kind, method, cached(getattr(kind, method)))
            with pytest.raises(ValueError, match=rf"{method} by .*test_patches"):
                found(twin, ["a fox"], **call)


def test_what_is_the_classs_own_and_what_torch_has_made_is_searched():
    pipe, call = own()
    block = pipe.transformer.transformer_blocks[0]
    block.forward = block.forward  # as a cache that was disabled leaves it
    pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend="eager")
    cpu_offload(pipe.transformer, torch.device("cpu"))
    finds_the_stock_image(pipe, call)


def test_a_step_that_holds_its_scheduler_is_kept_by_plain_calls():
    pipe, call = own()
    own_step(pipe)
    expected = alone(pipe, "a fox", 1, **call)
    assert torch.equal(alone(upgrade(pipe), "a fox", 1, **call), expected)


def test_a_call_that_was_replaced_later_is_the_plain_one(
    monkeypatch,
):
    pipe, call = own()
    twin, kind = upgrade(pipe), type(pipe)

    def halved(self, *args, **kwargs):
        out = before(self, *args, **kwargs)
        out.images = out.images / 2
        return out

    before = kind.__call__
    monkeypatch.setattr(kind, "__call__", functools.wraps(before)(halved))
    assert torch.equal(alone(twin, "a fox", 1, **call), alone(pipe, "a fox", 1, **call))
    finds_the_stock_image(pipe, call, twin)


def test_a_call_that_patches_its_network_or_looks_inside_it_is_refused():
    """As those of reference-only attention and of self-attention guidance."""
    pipe, call = own()
    kind, block = type(pipe), pipe.transformer.transformer_blocks[0]

    class Patching(kind):  # type: ignore[misc, valid-type]
        def __call__(self, **kwargs):
            inner = self.transformer.transformer_blocks[0]
            inner.forward = cached(inner.forward)
            return super().__call__(**kwargs)

    class Looking(kind):  # type: ignore[misc, valid-type]
        def __call__(self, **kwargs):
            super().__call__(**kwargs)
            return self.transformer.seen_last.images

    pipe.__class__ = Patching
    with pytest.raises(ValueError, match=r"transformer_blocks.0.forward by"):
        found(upgrade(pipe), ["a fox"], **call)
    del block.forward
    pipe.__class__ = Looking
    with pytest.raises(ValueError, match=r"Looking.*AttributeError.*seen_last"):
        found(upgrade(pipe), ["a fox"], **call)
