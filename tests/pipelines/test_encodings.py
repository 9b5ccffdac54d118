"""Prompts that stay are not encoded again when others come, and each is what it is in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, shared

APART = ("sd15", "sdxl", "sd3", "pixart_sigma", "sana")


def counted(denoiser: Any) -> list[int]:
    """How many prompts each call of encode_prompt is given."""
    counts: list[int] = []
    encode = denoiser.pipe.encode_prompt

    def counting(**given: Any) -> Any:
        counts.append(len(given["prompt"]))
        return encode(**given)

    denoiser.pipe.encode_prompt = counting
    return counts


def predicted(denoiser: Any, prompts: int) -> torch.Tensor:
    x = denoiser.init_latents([seeded(i) for i in range(prompts)])
    out: torch.Tensor = denoiser.predict(x, torch.zeros(prompts, dtype=torch.long), torch.arange(prompts)).out
    return out


@pytest.mark.parametrize("name", APART)
@torch.no_grad()
def test_only_new_prompts_are_encoded_and_all_are_as_if_all_were(name: str) -> None:
    family = FAMILIES[name]
    twin = upgrade(shared(name))
    one, other = (twin.denoiser(**family.call, num_inference_steps=2) for _ in range(2))
    assert one.encodes_apart
    counts = counted(one)
    one.encode(["a cat", "a dog on a mat"])
    one.encode(["a dog on a mat", "two long trains of thought", "a cat", "a cat"])
    other.encode(["a dog on a mat", "two long trains of thought", "a cat", "a cat"])
    assert counts == [2, 1]
    torch.testing.assert_close(predicted(one, 4), predicted(other, 4), atol=2e-5, rtol=2e-5)
    one.encode(["a cat"])
    one.encode(["a cat"])
    assert counts == [2, 1]
    one.encode(["a dog on a mat"])
    assert counts == [2, 1, 1], "what no job has any more is forgotten"


@torch.no_grad()
def test_prompts_with_texts_of_their_own_are_encoded_each_time() -> None:
    call = {**FAMILIES["sd3"].call, "prompt_2": ["x", "y"]}
    denoiser = upgrade(shared("sd3")).denoiser(**call, num_inference_steps=2)
    counts = counted(denoiser)
    for _ in range(2):
        denoiser.encode(["a cat", "a cat"])
    assert counts == [2, 2]


def test_families_whose_texts_are_padded_to_the_longest_do_not_remember() -> None:
    for name in set(FAMILIES) - set(APART):
        family = FAMILIES[name]
        denoiser = upgrade(shared(name)).denoiser(**family.call, num_inference_steps=2)
        assert not denoiser.encodes_apart
