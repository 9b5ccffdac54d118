"""Prompts that stay are not encoded again when others come, and calls that differ in steps alone
share a network."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, shared

PROMPTS = ["a cat", "a dog on a mat"]
APART = ("sd15", "sdxl", "sd3", "pixart_sigma", "sana")


def small(name: str, **more: Any) -> Any:
    denoiser: Any = upgrade(shared(name)).denoiser(
        **FAMILIES[name].call, num_inference_steps=2, **more
    )
    denoiser.pipe.encode_prompt = Mock(wraps=denoiser.pipe.encode_prompt)
    return denoiser


def counts(denoiser: Any) -> list[int]:
    """How many prompts each call of encode_prompt was given."""
    return [len(call.kwargs["prompt"]) for call in denoiser.pipe.encode_prompt.call_args_list]


def predicted(denoiser: Any, prompts: int) -> torch.Tensor:
    x = denoiser.init_latents([seeded(i) for i in range(prompts)])
    out: torch.Tensor = denoiser.predict(
        x, torch.zeros(prompts, dtype=torch.long), torch.arange(prompts)
    ).out
    return out


@pytest.mark.parametrize("name", APART)
@torch.no_grad()
def test_only_new_prompts_are_encoded_and_all_are_as_if_all_were(name: str) -> None:
    one, other = (small(name) for _ in range(2))
    assert one.encodes_apart
    one.encode(PROMPTS)
    for denoiser in (one, other):
        denoiser.encode(["a dog on a mat", "two long trains of thought", "a cat", "a cat"])
    assert counts(one) == [2, 1]
    torch.testing.assert_close(predicted(one, 4), predicted(other, 4), atol=2e-5, rtol=2e-5)
    for prompt in ("a cat", "a cat", "a dog on a mat"):
        one.encode([prompt])
    assert counts(one) == [2, 1, 1], "what no job has any more is forgotten"


@torch.no_grad()
def test_texts_of_their_own_and_those_padded_to_the_longest_are_encoded_each_time() -> None:
    denoiser = small("sd3", prompt_2=["x", "y"])
    for _ in range(2):
        denoiser.encode(["a cat", "a cat"])
    assert counts(denoiser) == [2, 2]
    assert not any(small(name).encodes_apart for name in set(FAMILIES) - set(APART))


@torch.no_grad()
def compare(
    pipe: Any, call: dict[str, Any], steps: tuple[int, int], path: str | None = None
) -> None:
    """x0 and output of rows at all positions of two calls, of the first call's denoiser and of
    their own."""
    joint, *own = (
        upgrade(pipe).denoiser(**call, num_inference_steps=n) for n in (steps[0], *steps)
    )
    for denoiser in (joint, *own):
        if path is not None:
            denoiser.convert(path)
        denoiser.encode(PROMPTS)
    parts = [torch.arange(len(denoiser.schedule.timesteps)) for denoiser in own]
    assert joint.merge_schedule(own[1]) == len(parts[0])
    noise = [
        d.init_latents([seeded(s) for s in at.tolist()]) for d, at in zip(own, parts, strict=True)
    ]
    expected = [d.predict(x, k, k % 2) for d, x, k in zip(own, noise, parts, strict=True)]
    found = joint.predict(
        torch.cat(noise), torch.arange(sum(map(len, parts))), torch.cat(parts) % 2
    )
    # An estimate differs by as much as an output, times the noise level, which some schedulers let
    # be 15.
    for name, atol in (("out", 2e-5), ("x0", 5e-4)):
        wanted = torch.cat([getattr(one, name) for one in expected])
        torch.testing.assert_close(getattr(found, name), wanted, atol=atol, rtol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_of_every_family_share_a_network(name: str) -> None:
    compare(shared(name), FAMILIES[name].call, (2, 3))


def test_steps_where_guidance_ends_other_paths_and_schedulers_that_scale_and_evaluate_twice() -> (
    None
):
    compare(shared("lumina2"), {**FAMILIES["lumina2"].call, "cfg_trunc_ratio": 0.5}, (2, 4))
    compare(shared("sd3"), FAMILIES["sd3"].call, (3, 2), path="vp")
    for scheduler in (EulerDiscreteScheduler(), HeunDiscreteScheduler()):
        compare(FAMILIES["sd15"].build(scheduler), FAMILIES["sd15"].call, (2, 3))


def test_calls_that_differ_in_more_are_refused() -> None:
    twin, call = upgrade(shared("sd3")), {**FAMILIES["sd3"].call, "num_inference_steps": 2}
    one, converted = (twin.denoiser(**call) for _ in range(2))
    for other in ({"guidance_scale": 2.0}, {"height": 32}, {"guidance_scale": 1.0}):
        with pytest.raises(ValueError, match="size and guidance"):
            one.merge_schedule(twin.denoiser(**{**call, **other}))
    converted.convert("vp")
    with pytest.raises(ValueError, match="one scheduler, path"):
        one.merge_schedule(converted)
