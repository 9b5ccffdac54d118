"""Estimates scored at a guidance of their own: the x0 that a denoiser at that guidance predicts, at no evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.pipelines import upgrade
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES

SCALE = {"qwen_image": "true_cfg_scale"}
TWO_PASSES = ["sd15", "sdxl", "sd3", "pixart_sigma", "sana", "qwen_image", "flux2_klein"]


def dark(images: Any, prompts: Any) -> Any:
    return -images.mean((1, 2, 3))


# Of families on other paths, one of each kind will do.
@pytest.mark.parametrize(
    ("name", "path"), [*((name, None) for name in TWO_PASSES), *((name, "vp") for name in ("sd15", "sdxl", "sd3"))]
)
def test_the_second_estimate_is_that_of_a_denoiser_at_that_guidance(name: str, path: str | None) -> None:
    twin, call = upgrade(FAMILIES[name].build()), FAMILIES[name].call
    both = twin.denoiser(**call, num_inference_steps=3)
    other = twin.denoiser(**{**call, SCALE.get(name, "guidance_scale"): 1.7}, num_inference_steps=3)
    both.guide_estimates(1.7)
    with torch.no_grad():
        for denoiser in (both, other):
            denoiser.encode(["a cat"])
            if path is not None:
                denoiser.convert(path)
        x = both.init_latents([seeded(s) for s in range(3)])
        k, cond = torch.arange(3), torch.zeros(3, dtype=torch.long)
        found, expected = both.predict(x, k, cond), other.predict(x, k, cond)
    assert found.estimate is not None
    torch.testing.assert_close(found.estimate, expected.x0, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found.x0, expected.x0, atol=1e-3)


def test_images_stay_what_they_are_and_scores_of_estimates_change() -> None:
    twin, call = upgrade(FAMILIES["sd3"].build()), {**FAMILIES["sd3"].call, "num_inference_steps": 4}
    runs = {}
    for scale in (None, 5.0, 1.5):  # 5 is the guidance of the images
        engine = twin.engine(dark, batch_size=4, estimate_guidance=scale, **call)
        (runs[scale],) = search(["a cat"], SeedPruning(6, (0.5,), steps=(1,)), engine, keep=3)
    plain, same, other = (runs[scale].particles.scores[:, :, 0] for scale in (None, 5.0, 1.5))
    assert runs[None].spent.cost == runs[5.0].spent.cost == runs[1.5].spent.cost
    assert torch.equal(torch.from_numpy(plain[:, 1]), torch.from_numpy(same[:, 1]))
    assert (plain[:, 1] != other[:, 1]).all()
    finished = {c.seed: c.image for c in runs[None].images}
    again = {c.seed: c.image for c in runs[1.5].images}
    assert finished.keys() & again.keys()
    for seed in finished.keys() & again.keys():
        assert torch.equal(finished[seed], again[seed])


@pytest.mark.parametrize(("name", "call"), [
    ("sd3", {"guidance_scale": 1.0}),
    ("flux", {}),
    ("flux_schnell", {}),
    ("z_image", {}),
    ("lumina2", {}),
])  # fmt: skip
def test_calls_without_two_passes_refuse_it(name: str, call: dict[str, Any]) -> None:
    twin = upgrade(FAMILIES[name].build())
    with pytest.raises(
        ValueError, match=r"estimate_guidance 2 needs two passes at every step, which this call of \w+ "
    ):
        twin("a cat", search=BestOfN(1), reward=dark, estimate_guidance=2.0, num_inference_steps=2,
             **{**FAMILIES[name].call, **call})  # fmt: skip
