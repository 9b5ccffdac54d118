"""Rows of calls with different numbers of steps, in one call of a network: each finds what it finds in its own call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, shared

PROMPTS = ["a cat", "a dog on a mat"]


def compare(pipe: Any, call: dict[str, Any], steps: tuple[int, int], path: str | None = None) -> None:
    """x0 and output of rows at all positions of two calls, of the first call's denoiser and of their own."""
    twin = upgrade(pipe)
    joint, *own = (twin.denoiser(**call, num_inference_steps=n) for n in (steps[0], *steps))
    with torch.no_grad():
        for denoiser in (joint, *own):
            if path is not None:
                denoiser.convert(path)
            denoiser.encode(PROMPTS)
        starts = (0, joint.merge_schedule(own[1]))
        assert starts[1] == len(own[0].schedule.timesteps)
        parts = [torch.arange(len(denoiser.schedule.timesteps)) for denoiser in own]
        noise = [d.init_latents([seeded(s) for s in at.tolist()]) for d, at in zip(own, parts, strict=True)]
        prompt = [at % 2 for at in parts]
        expected = [d.predict(x, k, c) for d, x, k, c in zip(own, noise, parts, prompt, strict=True)]
        at = torch.cat([start + part for start, part in zip(starts, parts, strict=True)])
        found = joint.predict(torch.cat(noise), at, torch.cat(prompt))
    # An estimate differs by as much as an output, times the noise level, which some schedulers let be 15.
    for name, atol in (("out", 2e-5), ("x0", 5e-4)):
        wanted = torch.cat([getattr(one, name) for one in expected])
        torch.testing.assert_close(getattr(found, name), wanted, atol=atol, rtol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    compare(shared(name), FAMILIES[name].call, (2, 3))


def test_a_step_where_guidance_ends_is_found_in_each_grid() -> None:
    call = {**FAMILIES["lumina2"].call, "cfg_trunc_ratio": 0.5}
    compare(shared("lumina2"), call, (2, 4))


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_schedulers_that_scale_and_that_take_two_evaluations(scheduler: Any) -> None:
    compare(FAMILIES["sd15"].build(scheduler()), FAMILIES["sd15"].call, (2, 3))


def test_another_path() -> None:
    compare(shared("sd3"), FAMILIES["sd3"].call, (3, 2), path="vp")


def test_calls_that_differ_in_more_are_refused() -> None:
    twin, call = upgrade(shared("sd3")), FAMILIES["sd3"].call
    one = twin.denoiser(**call, num_inference_steps=2)
    for other in ({"guidance_scale": 2.0}, {"height": 32}, {"guidance_scale": 1.0}):
        with pytest.raises(ValueError, match="agree in size and guidance"):
            one.merge_schedule(twin.denoiser(**{**call, **other}, num_inference_steps=3))
    converted = twin.denoiser(**call, num_inference_steps=3)
    converted.convert("vp")
    with pytest.raises(ValueError, match="one scheduler, path"):
        one.merge_schedule(converted)
