"""What searches over modular pipelines refuse, and what they hand to rewards."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, AutoencoderTiny, ClassifierFreeGuidance

from tests.pipelines.tiny import FAMILIES, shared
from ttsnap import BestOfN, search
from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import Picture
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import downgrade, load, upgrade
from ttsnap.pipelines.modular.workflows import check_version, workflow_for
from ttsnap.request.request import EngineSpec
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice

from .test_workflows import PROMPTS, bright, stock
from .tiny import CASES, built, picture


def twin(name: str) -> Any:
    case = CASES[name]
    pipe = upgrade(built(case.pipeline, case.parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("version", ["0.41.0", "0.43.0", "1.0.0"])
def test_other_versions_of_diffusers_are_refused(version: str) -> None:
    with pytest.raises(ValueError, match=rf"tested with diffusers 0.42 and later, before 0.43, and this is {version}"):
        check_version(version)
    check_version("0.42.7")


def test_unknown_pipelines_and_workflows_are_refused() -> None:
    with pytest.raises(ValueError, match="search does not support AnimaModularPipeline yet; supported are Stable"):
        workflow_for("AnimaModularPipeline", {})
    with pytest.raises(ValueError, match="has no workflow for a call with mask_image; give one of: no image; image; "):
        workflow_for("QwenImageModularPipeline", {"mask_image": picture()})


def test_guiders_with_a_memory_or_a_window_are_refused() -> None:
    pipe = twin("sd3")
    pipe.guider = AdaptiveProjectedGuidance()
    with pytest.raises(ValueError, match="cannot use AdaptiveProjectedGuidance as guider"):
        pipe.denoiser(**CASES["sd3"].call)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=4.0, start=0.2)
    with pytest.raises(ValueError, match=r"guider guides steps from 0.2 to 1.0 alone"):
        pipe.denoiser(**CASES["sd3"].call)


def test_guidance_scale_is_that_of_a_guider_of_the_call() -> None:
    pipe = twin("sd3")
    denoiser = pipe.denoiser(guidance_scale=2.5, **CASES["sd3"].call)
    assert (denoiser.pipe.guider.guidance_scale, denoiser.passes_per_nfe) == (2.5, 2)
    assert pipe.guider.guidance_scale == 7.0
    assert pipe.denoiser(guidance_scale=1.0, **CASES["sd3"].call).passes_per_nfe == 1


def test_images_larger_than_the_table_of_positions_are_refused() -> None:
    pipe = twin("sd3")
    most = pipe.transformer.config.pos_embed_max_size * pipe.transformer.config.patch_size * pipe.vae_scale_factor
    with pytest.raises(ValueError, match=f"draws at most {most} x {most} pixels, got width 8 and height {2 * most}"):
        pipe.denoiser(**{**CASES["sd3"].call, "height": 2 * most, "width": 8})


def test_an_absent_negative_prompt_is_empty_where_it_would_be_the_prompt_itself() -> None:
    """Stable Diffusion 3's stock blocks guide by two passes on one text then, which is no guidance."""
    pipe, call = twin("sd3"), {name: v for name, v in CASES["sd3"].call.items() if name != "negative_prompt"}

    def image(**given: Any) -> Any:
        return pipe(prompt="x", search="best-of-n", reward=bright, budget="2nfe", seed=0, output_type="pt",
                    **{**call, "num_inference_steps": 2, **given}).images  # fmt: skip

    unguided, empty = image(guidance_scale=1.0), image(negative_prompt="")
    assert not torch.equal(unguided, empty)
    assert torch.equal(image(), empty)
    assert torch.equal(image(negative_prompt=None), empty)
    images = []
    for scale in (1.0, 7.0):
        stock = built(CASES["sd3"].pipeline, CASES["sd3"].parts)
        guider, stock.guider = stock.guider, ClassifierFreeGuidance(guidance_scale=scale)
        images.append(stock(prompt="x", generator=torch.Generator().manual_seed(0), output="images",
                            output_type="pt", **call))  # fmt: skip
        stock.guider = guider
    assert torch.equal(*images), "if this fails, the blocks encode a negative prompt of their own"


def test_prompts_carry_their_own_pictures_wherever_they_are_among_others() -> None:
    pipe, call = twin("flux kontext"), CASES["flux kontext"].call
    pictures = [picture(seed) for seed in range(3)]
    denoiser = pipe.denoiser(**{**call, "image": pictures[0]})
    prompts = [Prompt("the same words", inputs={"image": each}) for each in pictures]
    denoiser.encode(prompts)
    sources = denoiser.sources(torch.arange(3))
    denoiser.encode([prompts[2], prompts[1]])
    assert torch.equal(denoiser.sources(torch.arange(2)), sources[[2, 1]])
    with pytest.raises(ValueError, match="has mask_image of its own, and this call is for none"):
        denoiser.encode([Prompt("x", inputs={"mask_image": picture()})])
    with pytest.raises(ValueError, match="FluxKontextModularPipeline takes one image for each prompt, got 2"):
        denoiser.encode([Prompt("x", inputs={"image": pictures[:2]})])


def test_several_pictures_make_one_image_where_the_model_takes_them() -> None:
    files, call = [], CASES["flux2_klein edit"].call
    for seed in range(2):
        picture(seed, (64, 80)).save(file := io.BytesIO(), format="PNG")
        files.append(Picture(file.getvalue()))
    engine = twin("flux2_klein edit").engine("brightness", **{**call, "image": tuple(files)})
    (result,) = search(["x"], BestOfN(1), engine)
    images = [each.opened() for each in files]
    stock = built(CASES["flux2_klein edit"].pipeline, CASES["flux2_klein edit"].parts)
    wanted = stock(prompt="x", generator=torch.Generator().manual_seed(0), output="images", output_type="pt",
                   **{**call, "image": images})  # fmt: skip
    torch.testing.assert_close(result.best.pixels, wanted[0].float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kernel": "sde", "path": "vp"}, "an image is redrawn from where its strength says"),
        ({"guide": "dps:1", "kernel": "sde"}, "the blocks of modular pipelines run without gradients"),
        ({"draft": "hot"}, "have no drafts"),
        ({"latents": torch.zeros(1)}, "every candidate draws its own"),
        ({"state": object()}, "pass its values by name"),
        ({"image": [picture(), picture(), picture()]}, "image has 3 entries, but there are 1 prompts"),
    ],
)
def test_what_a_search_cannot_honour_is_refused(given: dict[str, Any], words: str) -> None:
    call = {**CASES["sd3 image2image"].call, **given}
    with pytest.raises(ValueError, match=words):
        twin("sd3 image2image")(prompt="a cat", search=BestOfN(1), reward=bright, **call)


def test_noise_of_ones_own_kernels_goes_from_where_the_strength_says() -> None:
    call = CASES["flux image2image"].call
    (result,) = twin("flux image2image")(
        prompt="a cat", search="svdd", kernel="sde", reward=bright, seed=1, budget="12nfe", output_type="pt", **call
    ).search
    assert torch.isfinite(result.images[0].image).all()


def test_rewards_see_the_image_that_is_edited() -> None:
    class Unchanged:
        name = "unchanged"
        needs: ClassVar = {"source"}
        seen: ClassVar[list[Any]] = []

        def __call__(self, images: Any, prompts: Any, level: Any, source: Any) -> Any:
            self.seen.append((source, list(prompts)))
            return -(images.mean((1, 2, 3)) - source.mean((1, 2, 3))).abs()

    reward, images = Unchanged(), [picture(1), picture(2)]
    call = {**CASES["sd3 image2image"].call, "image": images}
    twin("sd3 image2image")(prompt=["one", "two"], search=BestOfN(2), reward=reward, seed=0, **call)
    means = {"one": images[0], "two": images[1]}
    assert len(reward.seen)
    for sources, prompts in reward.seen:
        for source, prompt in zip(sources, prompts, strict=True):
            pixels = torch.from_numpy(np.array(means[prompt])).float() / 255
            torch.testing.assert_close(source.mean((1, 2)).cpu(), pixels.mean((0, 1)), atol=1e-5, rtol=0)


def test_mixed_noise_is_noise_on_the_same_image() -> None:
    """begin is linear in the noise: x = alpha image + sigma noise, as the scheduler's scale_noise has it."""
    call = CASES["sd3 image2image"].call
    denoiser = twin("sd3 image2image").denoiser(**call)
    denoiser.encode(["a cat"])
    cond = denoiser.conditions(torch.zeros(1, dtype=torch.long), [5])
    (own,) = denoiser._conditions.rows(cond)
    other = torch.randn_like(own["latents"])
    sigma = float(denoiser.schedule.sigma[0])
    assert 0 < sigma < 1
    image = (own["latents"] - sigma * own["initial noise"]) / (1 - sigma)
    torch.testing.assert_close(denoiser.begin(other, cond), sigma * other + (1 - sigma) * image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [lambda: upgrade(shared("flux2_klein")).denoiser(**FAMILIES["flux2_klein"].call),
                                  lambda: twin("flux kontext").denoiser(**CASES["flux kontext"].call)])  # fmt: skip
def test_a_negative_prompt_is_refused_where_none_is_read(make: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        make().encode([Prompt("a cat", negative="snow")])


def test_without_search_the_call_is_the_stock_one_and_downgrade_goes_back() -> None:
    pipe, case = twin("flux"), CASES["flux"]
    plain = built(case.pipeline, case.parts)
    made = [
        each(prompt="a cat", generator=torch.Generator().manual_seed(1), output_type="pt", output="images", **case.call)
        for each in (pipe, plain)
    ]
    assert torch.equal(made[0], made[1])
    assert type(downgrade(pipe)) is type(plain)


@pytest.mark.parametrize(
    ("name", "cls", "scale"),
    [
        ("sdxl image2image", diffusers.StableDiffusionXLImg2ImgPipeline, {"guidance_scale": 7.5}),
        ("qwen_image inpainting", diffusers.QwenImageInpaintPipeline, {"negative_prompt": "", "true_cfg_scale": 4.0}),
    ],
)
def test_a_classic_pipeline_is_searched_over_the_blocks_of_its_parts(name: str, cls: Any, scale: Any) -> None:
    """test_classic.py tells of all of them, in the other tier."""
    case, (taken, known) = CASES[name], (inspect.signature(each).parameters for each in (cls.__init__, cls.__call__))
    parts = shared(name.split()[0]).components
    pipe = upgrade(cls(**{part: value for part, value in parts.items() if part in taken}))
    pipe.set_progress_bar_config(disable=True)
    call = {argument: value for argument, value in case.call.items() if argument in known} | scale
    call |= {"prompt": PROMPTS[1], "search": BestOfN(1), "reward": bright, "seed": 2, "output_type": "pt"}
    image = pipe(**call, batch_size=1).search[0].best.image
    assert (image - stock(name, 2, PROMPTS[1])).abs().max() <= max(1e-5, case.single)


def test_flux2_dev_is_told_its_guidance_and_makes_the_classic_pipelines_image() -> None:
    case = CASES["flux2_dev"]
    classic, call = diffusers.Flux2Pipeline(**case.parts().components), {"prompt": "a cat", **case.call}
    classic.set_progress_bar_config(disable=True)
    images = [
        classic(
            generator=torch.Generator().manual_seed(2), output_type="pt", **{**call, "guidance_scale": scale}
        ).images
        for scale in (3.0, 4.0)
    ]
    pipe = upgrade(classic)
    assert type(pipe).__name__ == "SearchFlux2Pipeline"
    pipe.set_progress_bar_config(disable=True)
    found = pipe(search=BestOfN(1), reward=bright, seed=2, batch_size=1, output_type="pt", **call)
    assert (found.images - images[0]).abs().max() <= 1e-5
    assert (found.images - images[1]).abs().max() > 1e-4
    assert found.search[0].spent.forward_passes == 4


def test_a_model_is_loaded_for_a_task(tmp_path: Path) -> None:
    shared("sd3").save_pretrained(tmp_path)
    pipe = load(tmp_path, task="image-to-image")
    assert type(pipe).__name__ == "SearchStableDiffusion3ModularPipeline"
    assert pipe.name_or_path == str(tmp_path)
    with pytest.raises(
        ValueError, match="no modular pipeline does inpainting with the parts of a StableDiffusion3Pipeline; it can be"
    ):
        load(tmp_path, task="inpainting")


@pytest.mark.usefixtures("real_flops")
def test_a_preview_vae_that_the_blocks_cannot_use_is_refused() -> None:
    pipe = twin("flux2_klein")
    pipe.preview_vae = AutoencoderTiny(latent_channels=4)
    with pytest.raises(ValueError, match=r"Flux2KleinModularPipeline cannot decode by preview_vae: .*bn.*; set pipe"):
        pipe(prompt="a cat", search="seed-pruning", reward=bright, budget="12nfe", **CASES["flux2_klein"].call)


def test_engines_of_a_service_have_a_network_each() -> None:
    """Their conditions are the call's own, so that no other call's rows can be denoised under them."""
    reward = make_rewards(bright)[0]
    made = OneDevice(twin("sd3"), {"bright": reward})
    call = tuple(sorted(CASES["sd3"].call.items()))
    with made.engine(EngineSpec(ModelOptions(), ("bright",), call=dict(call))) as engine:
        (result,) = search(["a cat"], BestOfN(2), engine, seed=2)
    assert {candidate.seed for candidate in result.images} <= {2, 3}
