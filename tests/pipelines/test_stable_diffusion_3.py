"""The search pipeline against stock diffusers: equal where nothing is searched, reproducible where something is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    StableDiffusion3Pipeline,
)

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import load, upgrade
from ttsnap.reward_models.registry import make_rewards

from .tiny import sd3

CALL: dict[str, Any] = {
    "num_inference_steps": 5,
    "height": 32,
    "width": 32,
    "guidance_scale": 5.0,
    "max_sequence_length": 8,
}
PROMPTS = ["a cat", "two dogs in snow"]


def mean_red(images: Any, prompts: Any) -> Any:
    return images[:, 0].mean((1, 2))


def generators(seeds: Any) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.fixture(scope="module")
def stock() -> StableDiffusion3Pipeline:
    return sd3()


CHANGES: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 1.0},
    {"negative_prompt": "snow"},
    {"clip_skip": 1},
    {"prompt_2": "a dog"},
    {"sigmas": [1.0, 0.6, 0.3]},
    {"height": 16, "width": 48},
    {"max_sequence_length": 256},
]
DYNAMIC = [(change, [] if change.keys() <= {"sigmas", "height", "width"} else [pytest.mark.slow]) for change in CHANGES]
"""Those that change what a dynamic shift goes by, the steps and the size, are fast."""


@pytest.mark.parametrize(
    ("scheduler", "change"),
    [
        *(pytest.param({}, change, id=f"shift-{change}") for change in CHANGES),
        *(
            pytest.param({"use_dynamic_shifting": True}, change, marks=marks, id=f"dynamic-{change}")
            for change, marks in DYNAMIC
        ),
    ],
)
def test_unpruned_seeds_equal_the_stock_batch(change: dict[str, Any], scheduler: dict[str, Any]) -> None:
    pipe = sd3(**scheduler)
    call = {**CALL, **change}
    if "sigmas" in change:
        call["num_inference_steps"] = 3
    many = {**call, "num_images_per_prompt": 3}
    expected = pipe("a cat", generator=generators([4, 5, 6]), output_type="pt", **many).images
    latents = pipe("a cat", generator=generators([4, 5, 6]), output_type="latent", **many).images
    twin = upgrade(pipe)
    output = twin(
        "a cat",
        search=BestOfN(3),
        reward=mean_red,
        seed=4,
        num_images_per_prompt=3,
        output_type="pt",
        batch_size=3,
        **call,
    )
    by_seed = {c.seed: c.image for c in output.search[0].images}
    ours = torch.stack([by_seed[s] for s in (4, 5, 6)])
    assert torch.equal(ours, expected)
    # The latents too, by running the denoiser's own kernel.
    denoiser = twin.denoiser(**call)
    with torch.no_grad():
        denoiser.encode(["a cat"])
        x = denoiser.init_latents(generators([4, 5, 6]))
        for k in range(denoiser.grid.steps):
            step = torch.full((3,), k)
            x, _ = denoiser.kernel.step(x, denoiser.predict(x, step, torch.zeros(3, dtype=torch.long)), step, [], [])
    assert torch.equal(x, latents)


@pytest.mark.parametrize(
    "scheduler",
    [EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler],
    ids=lambda scheduler: scheduler.__name__,
)
def test_schedulers_that_scale_their_input_are_not_asked_to(scheduler: Any) -> None:
    """As in the stock pipeline, which never calls scale_model_input."""
    stock = sd3(scheduler())
    (generator,) = generators([4])
    expected = stock("a cat", generator=generator, output_type="pt", **CALL).images
    found = upgrade(stock)("a cat", search=BestOfN(1), reward=mean_red, seed=4, output_type="pt", **CALL).images
    assert torch.equal(found, expected)
    assert bool(found.isfinite().all())


def test_pruned_winner_is_reproduced_by_stock_diffusers(stock: StableDiffusion3Pipeline) -> None:
    twin = upgrade(stock)
    output = twin(
        PROMPTS,
        search=SeedPruning(6, (0.5, 0.5), steps=(1, 3)),
        reward=mean_red,
        seed=0,
        output_type="pt",
        batch_size=4,
        **CALL,
    )
    for result, image in zip(output.search, output.images, strict=True):
        (generator,) = generators([result.best.seed])
        again = stock(result.prompt, generator=generator, output_type="pt", **CALL)
        torch.testing.assert_close(image, again.images[0], atol=1e-4, rtol=0)
        assert result.best.seed < 6


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_rows_at_different_steps_and_prompts_share_batches(stock: StableDiffusion3Pipeline, batch: int) -> None:
    twin = upgrade(stock)
    results = []
    for prompts in (PROMPTS, PROMPTS[::-1]):
        engine = LiveEngine(twin.denoiser(**CALL), make_rewards(mean_red), EngineOptions(batch))
        found = search(prompts, SeedPruning(5, (0.4,), steps=(2,)), engine, keep=2)
        results.append({r.prompt: r for r in found})
        assert engine.stats["nfe"] == sum(r.spent.nfe for r in found)
    for prompt in PROMPTS:
        a, b = (r[prompt] for r in results)
        assert [c.seed for c in a.images] == [c.seed for c in b.images]
        for x, y in zip(a.images, b.images, strict=True):
            torch.testing.assert_close(x.image, y.image, atol=1e-4, rtol=0)


def test_without_search_it_is_the_stock_call(stock: StableDiffusion3Pipeline) -> None:
    twin = upgrade(stock)
    a = stock("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **CALL).images
    b = twin("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **CALL).images
    assert torch.equal(a, b)
    parameters = inspect.signature(type(twin).__call__).parameters
    assert set(inspect.signature(StableDiffusion3Pipeline.__call__).parameters) < set(parameters)
    assert {"search", "reward", "budget"} < set(parameters)


def test_upgrade_shares_weights_and_leaves_the_original_alone(stock: StableDiffusion3Pipeline) -> None:
    before = dict(stock.scheduler.config), stock.scheduler.timesteps.clone()
    twin = upgrade(stock)
    twin("a cat", search="best-of-n", budget="10nfe", reward=mean_red, **CALL)
    assert twin.transformer is stock.transformer
    assert type(stock) is StableDiffusion3Pipeline
    assert dict(stock.scheduler.config) == before[0]
    assert torch.equal(stock.scheduler.timesteps, before[1])
    assert upgrade(twin) is twin


def test_save_and_load(stock: StableDiffusion3Pipeline, tmp_path: Path) -> None:
    twin = upgrade(stock)
    twin.save_pretrained(tmp_path / "saved")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "saved", text_encoder_3=None, tokenizer_3=None)
    assert type(plain) is StableDiffusion3Pipeline
    again = load(tmp_path / "saved")
    assert type(again).__name__ == "SearchStableDiffusion3Pipeline"
    again.set_progress_bar_config(disable=True)
    a, b = (p("a cat", generator=generators([1])[0], output_type="pt", **CALL).images for p in (stock, again))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("real_flops")
def test_flops_are_counted_without_running(stock: StableDiffusion3Pipeline) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    denoiser = upgrade(stock).denoiser(**CALL)
    calls: list[int] = []
    hook = stock.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    predict, decode, *_ = denoiser.costs()
    hook.remove()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser.encode(["a"])
        before = counter.get_total_flops()
        x, zero = denoiser.init_latents(generators([0])), torch.zeros(1, dtype=torch.long)
        denoiser.predict(x, zero, zero)
        middle = counter.get_total_flops()
        denoiser.decode(x)
    assert predict == middle - before
    assert decode == counter.get_total_flops() - middle
    assert predict > 1e6


def test_output_forms(stock: StableDiffusion3Pipeline) -> None:
    twin = upgrade(stock)
    call = {**CALL, "search": BestOfN(2), "reward": mean_red, "num_images_per_prompt": 2}
    pil = twin("a cat", seed=0, **call)
    assert [i.size for i in pil.images] == [(32, 32)] * 2
    array, results = twin("a cat", seed=0, output_type="np", return_dict=False, **call)
    assert array.shape == (2, 32, 32, 3)
    assert results[0].best.seed == pil.search[0].best.seed
    generator = torch.Generator().manual_seed(77)
    assert twin("a cat", generator=generator, **call).search[0].particles.seed.tolist() == [77, 78]


def test_several_rewards_and_report(stock: StableDiffusion3Pipeline) -> None:
    def green(images: Any, prompts: Any) -> Any:
        return images[:, 1].mean((1, 2))

    twin = upgrade(stock)
    output = twin(
        "a cat",
        search=BestOfN(4),
        reward=[mean_red, green],
        utility=[0.0, 1.0],
        report=mean_red,
        num_images_per_prompt=4,
        **CALL,
    )
    images = output.search[0].images
    assert [c.scores["green"] for c in images] == sorted((c.scores["green"] for c in images), reverse=True)
    assert all(c.metrics["mean_red"] == pytest.approx(c.scores["mean_red"], abs=1e-6) for c in images)
    assert output.search[0].spent.cost.reward_calls == 8


def test_a_broken_report_does_not_lose_the_images(stock: StableDiffusion3Pipeline) -> None:
    def broken(images: Any, prompts: Any) -> Any:
        raise RuntimeError("no")

    output = upgrade(stock)("a cat", search=BestOfN(2), reward=mean_red, report=broken, **CALL)
    assert len(output.images) == 1
    assert "broken: RuntimeError: no" in output.search[0].warnings[-1]


def test_sde_kernel_is_reproduced_from_the_seed(stock: StableDiffusion3Pipeline) -> None:
    twin = upgrade(stock)
    many = twin("a cat", search=BestOfN(3), reward=mean_red, kernel="sde", seed=0, output_type="pt", **CALL)
    seed = many.search[0].best.seed
    alone = twin("a cat", search=BestOfN(1), reward=mean_red, kernel="sde", seed=seed, output_type="pt", **CALL)
    torch.testing.assert_close(many.images, alone.images, atol=1e-4, rtol=0)
    plain = twin("a cat", search=BestOfN(1), reward=mean_red, seed=seed, output_type="pt", **CALL)
    assert not np.allclose(plain.images, alone.images, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "in Python reward="),
        ({"prompt": None}, "search needs a prompt"),
        ({"budget": "4nfe"}, "too small for one image"),
        ({"budget": "1mflop"}, "FLOPs of 1e"),
        ({"search": "beam"}, "unknown algorithm 'beam'"),
        ({"reward": "nice"}, "unknown reward 'nice'"),
        ({"kernel": "leap"}, "unknown kernel 'leap'"),
        ({"latents": torch.zeros(1)}, "latents= cannot be used"),
        ({"output_type": "jpg"}, "output_type must be"),
        ({"generator": generators([1, 2])}, "not a list"),
        ({"seed": 2**64}, "seed must be"),
        ({"height": 31}, "divisible"),
        ({"skip_guidance_layers": [1]}, "skip-layer guidance"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"utility": "best"}, "unknown utility 'best'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"search": None}, "without search="),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_input_is_refused_before_any_compute(
    stock: StableDiffusion3Pipeline, change: dict[str, Any], message: str
) -> None:
    twin = upgrade(stock)
    calls: list[int] = []
    hook = stock.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    arguments = {"prompt": "a cat", "search": "best-of-n", "reward": mean_red, "budget": "20nfe", **CALL, **change}
    with pytest.raises(ValueError, match=message):
        twin(**arguments)
    hook.remove()
    assert not calls


def test_other_schedulers_and_families_are_refused(stock: StableDiffusion3Pipeline) -> None:
    twin = upgrade(stock)
    twin.scheduler = IPNDMScheduler()
    with pytest.raises(ValueError, match="cannot use IPNDMScheduler"):
        twin("a cat", search="best-of-n", reward=mean_red, budget="20nfe", **CALL)
    with pytest.raises(ValueError, match="does not support int yet"):
        upgrade(3)
    with pytest.raises(ValueError, match=r"no diffusers pipeline at \./nowhere"):
        load("./nowhere")
