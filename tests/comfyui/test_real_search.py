"""Searches over ComfyUI's own objects: the winner is the stock KSampler's image at that seed, with
every sampler."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.comfyui.server import LATENT
from tests.comfyui.test_search import wanted
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare

pytestmark = pytest.mark.usefixtures("comfy", "inference")
STEPS, TEXT = 12, "a red circle left of a blue square"
EMPTY = torch.zeros(LATENT)
AMPLIFIES = {"dpmpp_2s_ancestral_cfg_pp", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"}
"""Samplers that make much of the network's rounding, which depends on the rows of a call: if its
output is off by 1e-7 of its value, the stock image is off by up to 1e-2. Here the network takes
their rows one by one, so that nothing may differ."""


@pytest.fixture(scope="module")
def inference():
    with torch.inference_mode():  # as nodes run
        yield


@pytest.fixture(scope="module", params=["flow", "eps"])
def model(request, comfy):
    from tests.comfyui.toy_nodes.embedded import embedded_model

    return embedded_model(request.param)


@pytest.fixture(scope="module")
def samplers(comfy):
    from comfy.samplers import SAMPLER_NAMES

    return [name for name in SAMPLER_NAMES if name != "dpm_adaptive"]


def texts():
    from tests.comfyui.toy_nodes.embedded import conditioning

    return conditioning(TEXT), conditioning("")


def guider(model, cfg):
    from comfy.samplers import CFGGuider

    made = CFGGuider(model)
    made.set_conds(*texts())
    made.set_cfg(cfg)
    return made


def searching(model, how, name="euler", cfg=4.0, denoise=1.0, **more):
    from comfy.samplers import KSampler, sampler_object

    from tests.comfyui.toy_nodes.embedded import embedded_vae
    from ttsnap.pipelines.comfyui.latents import LatentSearch

    sigmas = KSampler(model, STEPS, model.load_device, name, "simple", denoise).sigmas
    given = {"sigmas": sigmas, "latent": EMPTY, "vae": embedded_vae(), **more}
    return LatentSearch(how, guider(model, cfg), sampler_object(name), **given)


def stock(model, seed, name="euler", cfg=4.0, **more):
    import comfy.sample

    latent, steps = more.pop("latent", EMPTY), more.pop("steps", STEPS)
    how = (steps, cfg, name, "simple", *texts(), latent)
    noise = comfy.sample.prepare_noise(latent, seed)
    made = comfy.sample.sample(model, noise, *how, seed=seed, disable_pbar=True, **more)
    return made


def apart(a, b):
    return float((a - b).abs().max())


def counted(model, *, singly=False):
    """A copy of a MODEL, and the rows of its calls. singly: its network takes them one by one."""
    rows = list[int]()
    clone = model.clone()

    def count(apply, args):
        number = len(args["input"])
        rows.append(number)
        size = 1 if singly else number
        parts = []
        for row in range(0, number, size):
            call = slice(row, row + size)
            given = {
                key: value[call] if isinstance(value, Tensor) else value
                for key, value in args["c"].items()
            }
            parts.append(apply(args["input"][call], args["timestep"][call], **given))
        return torch.cat(parts)

    clone.set_model_unet_function_wrapper(count)
    return clone, rows


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_winner_is_the_stock_samplers_image_with_every_sampler(model, cfg, samplers):
    wrong, threads = {}, threading.active_count()
    for name in samplers:
        clone, rows = counted(model, singly=name in AMPLIFIES)
        found = searching(clone, wanted(), name, cfg).run()
        assert sum(rows) == found.result.spent.nfe * found.result.spent.price.passes_per_nfe, name
        difference = apart(stock(clone, found.result.best.seed, name, cfg), found.latents)
        if difference > (1e-6 if name in AMPLIFIES else 1e-3):
            wrong[name] = difference
    assert wrong == {}
    assert threading.active_count() == threads


def half_masked():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:] = 1
    return {
        "latent": torch.randn(LATENT, generator=torch.Generator().manual_seed(3)),
        "noise_mask": mask,
    }


def test_a_part_of_an_image_is_painted_anew_as_the_stock_sampler_does(model):
    latent, mask = half_masked().values()
    for name in ("euler", "ddim", "dpmpp_2m", "dpmpp_sde"):
        found = searching(model, wanted(), name, latent=latent, mask=mask, denoise=0.8).run()
        same = stock(model, found.result.best.seed, name, **half_masked(), denoise=0.8)
        assert apart(same, found.latents) < 1e-3, name
        assert apart(latent[..., :3], found.latents[..., :3]) < 1e-5, name


@pytest.mark.parametrize("masked", [False, True])
def test_a_finished_draft_is_comfyuis_image_to_image_of_its_latent(
    model, masked, monkeypatch, samplers
):
    from ttsnap.pipelines.comfyui.latents import GuiderDrafter

    # whose rounding the model would make more of
    for name in ("process_latent_in", "process_latent_out"):
        monkeypatch.setattr(model.model, name, lambda latent: latent)
    wrong, estimates, how = {}, list[Tensor](), half_masked() if masked else {}
    request, (drafts, drafted) = wanted(1, search={"name": "best-of-n", "n": 2}), counted(model)
    for name in ("euler", "ddim", "dpmpp_2m", "dpmpp_sde") if masked else samplers:
        clone, rows = counted(model)
        search = searching(
            clone, request, name, latent=how.get("latent", EMPTY), mask=how.get("noise_mask")
        )
        found = replace(
            search, drafter=GuiderDrafter(guider(drafts, 1.0)), rest=search.sigmas[7:]
        ).run()
        spent, seed = found.result.spent, found.result.best.seed
        assert (sum(rows), sum(drafted)) == (2 * spent.cost.nfe, spent.cost.draft_calls), name
        drafted.clear()
        stock(model, seed, cfg=1.0, steps=1, callback=lambda i, x0, *_: estimates.append(x0), **how)
        made = stock(model, seed, name, start_step=7, **how | {"latent": estimates[-1]})
        if apart(made, found.latents) > 1e-5:
            wrong[name] = apart(made, found.latents)
    assert wrong == {}


def test_the_winner_is_that_of_the_pipeline(comfy):
    """`ttsnap generate` on the same model, seeds, sigmas and reward."""
    from tests.comfyui.toy_nodes.embedded import embedded_model
    from ttsnap.pipelines import load

    how = {"name": "seed-pruning", "n": 12, "keep": [0.25], "levels": [0.7]}
    with torch.inference_mode(False):
        pipe = load("embedded", dtype=torch.float32)
        made = pipe(
            TEXT,
            search=how,
            reward="scenes",
            seed=5,
            guidance_scale=4.0,
            num_inference_steps=STEPS,
            batch_size=12,
            draft=None,
            output_type="pt",
        )
    spec = EngineSpec(ModelOptions(), ("scenes",), batch=EngineOptions(batch_size=12))
    request = prepare(SearchRequest((Prompt(TEXT),), spec, how, Budget(), seed=5), ModelDefaults())
    pipe.scheduler.set_timesteps(STEPS)
    theirs, ours = (
        made.search[0],
        searching(embedded_model(), request, sigmas=pipe.scheduler.sigmas).run().result,
    )
    assert ours.best.seed == theirs.best.seed
    assert ours.spent.cost == theirs.spent.cost
    assert ours.best.reward == pytest.approx(theirs.best.reward, abs=1e-3)
    assert apart(ours.best.pixels, theirs.best.pixels) < 1e-3
