"""Every workflow of a modular pipeline that search runs, beside the stock one; what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoencoderTiny,
    ClassifierFreeGuidance,
    SmoothedEnergyGuidance,
)
from torchvision.transforms.functional import to_tensor

from tests.pipelines import tiny
from tests.pipelines.tiny import FAMILIES, shared
from ttsnap import BestOfN, SeedPruning, search
from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import Picture
from ttsnap.pipelines import downgrade, load, search_class, upgrade

from .tiny import CASES, ONE, SLOW, bright, image_of, named, picture, stock, twin

PROMPTS = ["a cat", "two dogs in snow"]
PRUNING = SeedPruning(4, (0.5,), steps=(1,))
FIRST = {
    *{case.pipeline: name for name, case in reversed(CASES.items()) if name not in SLOW}.values(),
    *(
        "sd3 image2image",
        "sdxl inpainting",
        "qwen_image inpainting",
        "sdxl controlnet",
        "ltx image2video",
    ),
}
"""A case of each class, and those whose conditions differ by candidate or by frame."""


def found(name, prompts, algorithm, **options):
    """The results of a search of this workflow, with all images that it finished."""
    how = {
        "search": algorithm,
        "reward": bright,
        "seed": 2,
        "output_type": "pt",
        **CASES[name].call,
        **options,
    }
    return twin(name)(prompt=prompts, **how).search


@pytest.mark.parametrize("name", named({*CASES} - FIRST))
def test_one_candidate_is_the_image_of_the_stock_pipeline(name):
    (result,) = found(name, PROMPTS[1], BestOfN(1), batch_size=1)
    assert (result.images[0].image - image_of(name, 2, PROMPTS[1])).abs().max() <= CASES[
        name
    ].single


@pytest.mark.parametrize("name", named(FIRST))
def test_pruned_winners_in_mixed_batches_are_made_again_from_their_seeds(name):
    """Rows of two prompts at different steps share batches, and each image is that of its seed.

    The ledger is what the networks were called for.
    """
    engine = twin(name).engine(bright, batch_size=5, **CASES[name].call)
    results = search(PROMPTS, PRUNING, engine, seed=2)
    hub = engine.denoiser.hub
    answered = sum(hub.rows[part] for part in hub.networks - {"controlnet"})
    assert answered == sum(each.spent.forward_passes for each in results) > 0
    for result in results:
        difference = (
            (result.best.image - image_of(name, result.best.seed, result.prompt)).abs().max()
        )
        assert difference < CASES[name].tolerance, (name, result.best.seed, float(difference))


def denoiser(name, *, pipe=None, without="", **given):
    """Of a case's call with these changes, by a pipeline with these parts."""
    made = twin(name)
    for part, value in (pipe or {}).items():
        setattr(made, part, value)
    return made.denoiser(
        **{key: value for key, value in {**CASES[name].call, **given}.items() if key != without}
    )


def encode(name, *prompts, **given):
    denoiser(name, **given).encode(prompts)


GUIDERS = {
    "in part": lambda: ClassifierFreeGuidance(guidance_scale=4.0, start=0.3, stop=0.8),
    "with momentum": lambda: AdaptiveProjectedGuidance(
        4.0, adaptive_projected_guidance_momentum=-0.5
    ),
    "by hooks": lambda: SmoothedEnergyGuidance(4.0, seg_guidance_layers=[0]),
}


@pytest.mark.parametrize("which", GUIDERS)
def test_any_guider_guides_as_in_the_stock_pipeline(which):
    """Also where searches of two threads would put hooks into one network."""
    guided, name = copy.copy(stock("sd3")), "sd3"
    guided.update_components(guider=GUIDERS[which]())
    hooks = [len(vars(part)) for part in guided.transformer.modules()]
    how = {
        "search": PRUNING,
        "reward": bright,
        "output_type": "pt",
        "batch_size": 4,
        **CASES[name].call,
    }
    twins = [tiny.quiet(upgrade(guided)) for _ in range(1 + (which == "by hooks"))]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda twin: twin(prompt=PROMPTS, seed=2, **how).search, twins))
    for result in (result for results in made for result in results):
        assert (
            result.best.image - image_of(name, result.best.seed, result.prompt, guided)
        ).abs().max() < 1e-5
    assert [len(vars(part)) for part in guided.transformer.modules()] == hooks


def test_a_negative_prompt_is_refused_where_the_call_reads_none():
    klein = upgrade(shared("flux2_klein")).denoiser(**FAMILIES["flux2_klein"].call)
    with pytest.raises(ValueError, match=r"reads no negative.*'snow'"):
        klein.encode([Prompt("a cat", negative="snow")])


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sd3 image2image", {"kernel": "sde", "path": "vp"}, "kernel, path"),
        ("sd3 image2image", {"latents": torch.zeros(1)}, "draws its own"),
        ("sd3 image2image", {"state": object()}, "values by name"),
        ("sd3 image2image", {"image": [picture(), picture(), picture()]}, "got 3"),
    ],
)
def test_what_a_search_cannot_honour_is_refused(name, given, words):
    with pytest.raises(ValueError, match=words):
        twin(name)(prompt="a cat", **ONE, **{**CASES[name].call, **given})


def test_guidance_scale_is_that_of_a_guider_of_the_call():
    pipe, call = twin("sd3"), CASES["sd3"].call
    guided = pipe.denoiser(guidance_scale=2.5, **call)
    assert (
        guided.pipe.guider.guidance_scale,
        guided.passes_per_nfe,
        pipe.guider.guidance_scale,
    ) == (2.5, 2, 7.0)
    assert pipe.denoiser(guidance_scale=1.0, **call).passes_per_nfe == 1


def test_prompts_carry_their_own_pictures_wherever_they_are_among_others():
    prompts = [Prompt("the same words", inputs={"image": picture(seed)}) for seed in range(3)]
    made = denoiser("flux kontext", image=picture(0))
    made.encode(prompts)
    sources = made.sources(torch.arange(3))
    made.encode([prompts[2], prompts[1]])
    assert torch.equal(made.sources(torch.arange(2)), sources[[2, 1]])


def test_several_pictures_make_one_image_where_the_model_takes_them():
    name, files = "flux2_klein edit", []
    for seed in range(2):
        picture(seed, (64, 80)).save(file := io.BytesIO(), format="PNG")
        files.append(Picture(file.getvalue()))
    engine = twin(name).engine(
        "brightness", **{**CASES[name].call, "num_inference_steps": 1, "image": tuple(files)}
    )
    (result,) = search(["x"], BestOfN(1), engine)
    wanted = image_of(name, 0, "x", num_inference_steps=1, image=[each.opened() for each in files])
    torch.testing.assert_close(result.best.pixels, wanted.float(), atol=2e-5, rtol=0)


class Sources:
    """A reward that remembers what it is shown of the pictures that are changed."""

    name = "sources"
    needs: ClassVar = {"source"}

    def __init__(self):
        self.seen: list[Any] = []

    def __call__(self, images, prompts, level, source):
        self.seen += zip(images, prompts, source, strict=True)
        return -(images.mean((1, 2, 3)) - source.mean((1, 2, 3))).abs()


@pytest.mark.parametrize(
    ("name", "shape"), [("sd3 image2image", (3, 16, 32)), ("wan image2video", (3, 8, 16))]
)
def test_rewards_see_frames_and_the_picture_that_is_edited_or_set_in_motion(name, shape):
    reward, pictures = Sources(), {"one": picture(1), "two": picture(2)}
    how = {
        "search": BestOfN(2),
        "reward": reward,
        "seed": 0,
        **CASES[name].call,
        "image": [*pictures.values()],
    }
    moving = {"frames": 3, "batch_size": 1} if "wan" in name else {}
    results = twin(name)(prompt=[*pictures], **how, **moving).search
    shown = {prompt: to_tensor(image).mean((1, 2)) for prompt, image in pictures.items()}
    for image, prompt, source in reward.seen:
        assert image.shape == shape
        torch.testing.assert_close(source.mean((1, 2)).cpu(), shown[prompt], atol=1e-5, rtol=0)
    assert len(reward.seen) == 4 * moving.get("frames", 1)
    assert [result.spent.cost.reward_calls for result in results] == [
        2 * moving.get("frames", 1)
    ] * 2


def test_without_search_the_call_is_the_stock_one_and_downgrade_goes_back():
    made = [image_of("flux", 1, "a cat", pipe) for pipe in (twin("flux"), stock("flux"))]
    assert torch.equal(*made)
    assert type(downgrade(twin("flux"))) is type(stock("flux"))


def test_twins_of_classes_that_no_file_defines_are_pickled():
    for cls in (type(twin("flux")), search_class(diffusers.FluxImg2ImgPipeline)):
        assert type(pickle.loads(pickle.dumps(cls.__new__(cls)))) is cls


def test_a_model_is_loaded_for_a_task(tmp_path):
    shared("sd3").save_pretrained(tmp_path)
    for task, kind in (("image-to-image", "Img2Img"), ("inpainting", "Inpaint")):
        pipe = load(tmp_path, task=task)
        assert type(pipe).__name__ == f"SearchStableDiffusion3{kind}Pipeline"
        assert str(pipe.name_or_path) == str(tmp_path)
    with pytest.raises(ValueError, match=r"editing .* StableDiffusion3Pipeline"):
        load(tmp_path, task="editing")


def test_a_preview_vae_that_the_blocks_cannot_use_is_refused():
    pipe = twin("flux2_klein")
    pipe.preview_vae = AutoencoderTiny(latent_channels=4)
    with pytest.raises(ValueError, match=r"Flux2KleinModularPipeline .* preview_vae: .* channels"):
        pipe(
            prompt="a cat",
            search="seed-pruning",
            reward=bright,
            budget="12nfe",
            **CASES["flux2_klein"].call,
        )
