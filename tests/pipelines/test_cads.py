"""Seeds that read their encoded prompts under noise of their own, in every family that allows for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ttsnap import BestOfN
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.modular.denoiser import ModularDenoiser
from ttsnap.results import png_info
from ttsnap.results.record import parse_record
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, shared

PROMPTS = ["a red circle", "two blue squares"]
REFUSED = ("lumina2", "qwen_image")
CADS = "cads:1:0.1:0.5"


def family(name: str) -> tuple[Any, dict[str, Any]]:
    return upgrade(shared(name)), {**FAMILIES[name].call, "num_inference_steps": 4}


@torch.no_grad()
def predicted(name: str, variety: str | None, rows: list[tuple[int, int, int]]) -> Tensor:
    """The model's outputs for rows of (prompt, seed, position)."""
    pipe, call = family(name)
    denoiser = pipe.sampling_denoiser(SamplerOptions(variety=variety), **call)
    denoiser.encode(PROMPTS)
    x = denoiser.init_latents([seeded(seed) for _, seed, _ in rows])
    cond = denoiser.conditions(torch.tensor([prompt for prompt, _, _ in rows]), [seed for _, seed, _ in rows])
    out: Tensor = denoiser.predict(x, torch.tensor([k for _, _, k in rows]), cond).out
    return out


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {*REFUSED}))
def test_each_seed_has_noise_of_its_own(name: str) -> None:
    rows = [(0, 5, 0), (1, 5, 1), (0, 6, 0), (1, 6, 3)]
    plain, noised = predicted(name, None, rows), predicted(name, CADS, rows)
    assert torch.equal(predicted(name, "cads:0:0.1:0.5", rows), plain)
    for row in rows[:3]:
        alone = predicted(name, CADS, [row])
        torch.testing.assert_close(noised[rows.index(row)], alone[0], rtol=1e-4, atol=1e-5)
        assert not torch.equal(alone, predicted(name, None, [row])), row
    free = predicted(name, "cads:1:0.95:1", rows)  # at the last position the prompt is as it is
    torch.testing.assert_close(free[3], plain[3], rtol=1e-4, atol=1e-5)


def test_noise_depends_on_seed_and_step_to_the_bit() -> None:
    pipe, call = family("sd3")
    denoiser = pipe.sampling_denoiser(SamplerOptions(variety=CADS), **call)
    denoiser.encode(PROMPTS)

    def read(prompts: list[int], seeds: list[int], steps: list[int]) -> Tensor:
        cond = denoiser.conditions(torch.tensor(prompts), seeds)
        texts, at = denoiser.prompt_noise.texts(denoiser.texts, torch.tensor(steps), cond)
        made: Tensor = texts.positive[0][at]
        return made

    many = read([0, 0, 0, 1], [2**64 - 1, 4, 4, 4], [0, 0, 1, 0])
    assert torch.equal(many[:1], read([0], [2**64 - 1], [0]))
    assert torch.equal(many[3:], read([1], [4], [0]))
    assert not torch.equal(many[0], many[1])
    assert not torch.equal(many[1], many[2])


def dark(images: Any, prompts: Any) -> Any:
    return -images.mean((1, 2, 3))


def test_an_image_says_how_and_is_made_again_from_its_seed() -> None:
    pipe, call = family("sd3")
    how = {"reward": dark, "variety": CADS, **call}
    out = pipe(PROMPTS, search=BestOfN(3), seed=11, num_images_per_prompt=3, batch_size=5, **how)
    plain = pipe(PROMPTS, search=BestOfN(3), seed=11, num_images_per_prompt=3, batch_size=5, reward=dark, **call)
    assert out.images[0].tobytes() not in [image.tobytes() for image in plain.images]
    for image in out.images:
        image.save(file := io.BytesIO(), "PNG", pnginfo=png_info(image))
        record = parse_record(file.getvalue(), Path("x.png"))
        assert (record.sampler.variety, record.sampler.stock, record.image.place) == (CADS, False, None)
        assert f'ttsnap variety: "{CADS}"' in image.info["parameters"]
        given = {**how, "variety": record.sampler.variety}
        (again,) = pipe(record.image.prompt, search=BestOfN(1), seed=record.image.seed, **given).images
        assert np.abs(np.asarray(again, int) - np.asarray(image, int)).max() <= 1


def test_what_cannot_be_is_refused() -> None:
    for name in REFUSED:
        pipe, call = family(name)
        with pytest.raises(ValueError, match="pads prompts"):
            pipe.sampling_denoiser(SamplerOptions(variety="cads"), **call)
    pipe, call = family("sd3")
    with pytest.raises(ValueError, match="on one device"):
        pipe(PROMPTS[0], search=BestOfN(2), reward=dark, devices=2, variety="cads", **call)
    with pytest.raises(ValueError, match="keep seeds apart"):
        pipe.engine(dark, network=SharedDenoiser(pipe.denoiser(**call)), variety="cads", **call)
    with pytest.raises(ValueError, match="noise no prompts"):
        ModularDenoiser.must(ModularDenoiser.__new__(ModularDenoiser), Capability.NOISE_PROMPTS)


def test_it_takes_no_evaluation() -> None:
    pipe, call = family("sd3")
    assert pipe.engine(dark, variety="cads", **call).price == pipe.engine(dark, **call).price
