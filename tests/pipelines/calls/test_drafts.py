"""A drafter in the place of the network of a stock call; and flow maps that draft for
themselves."""

from __future__ import annotations

import gc
import threading

import diffusers
import pytest
import torch

from tests.pipelines import tiny as families
from ttsnap import BestOfN, search
from ttsnap.algorithms import make_algorithm
from ttsnap.loop.budget import Budget
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.parts import changed
from ttsnap.pipelines.calls.pictures import images_of
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.suspended import NAME
from ttsnap.sampling.rng import seeded

from .test_calls import PROMPTS, alone, found, pictures, processors, reward
from .tiny import call_of, stock
from .toy import toy


def test_a_drafter_answers_in_frames_of_its_own_which_go_at_once():
    pipe, call = stock("StableDiffusionPAGPipeline"), call_of("StableDiffusionPAGPipeline")
    before = processors(pipe.components)
    engine = upgrade(pipe).engine(reward, draft="hot", **call)
    denoiser = engine.denoiser
    drafter = denoiser.drafts.twin()
    # Perturbed attention stays where guidance by the negative prompt goes.
    assert (denoiser.passes_per_nfe, drafter.passes_per_nfe) == (3, 2)
    result = search(PROMPTS[:1], make_algorithm("ttsnap"), engine, Budget(nfe=20), seed=1)[0]
    assert drafter._draft.frames.hub.rows["unet"] == result.spent.cost.draft_calls > 4
    assert denoiser.hub.rows["unet"] == result.spent.cost.nfe
    made = alone(pipe, PROMPTS[0], result.images[0].seed, **call)
    assert torch.allclose(torch.as_tensor(result.images[0].pixels), made, atol=1e-5)
    assert changed(before, processors(pipe.components)) == {}
    del engine, denoiser, drafter
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def test_the_network_that_others_lead_is_drafted_by_another():
    pipe, call = (
        stock("StableDiffusionControlNetPipeline"),
        call_of("StableDiffusionControlNetPipeline"),
    )
    out = found(upgrade(pipe), PROMPTS[:1], draft=pipe.unet, finish=0.6, kernel="ode", **call)
    assert out.search[0].spent.cost.draft_calls > 0


def test_flow_maps_draft_for_themselves_as_the_stock_call_of_one_step():
    pipe, call = stock("AnyFlowPipeline"), call_of("AnyFlowPipeline")
    for scale in (1.0, 4.0):
        denoiser = upgrade(pipe).denoiser(**{**call, "guidance_scale": scale})
        denoiser.encode(PROMPTS)
        use_drafter(denoiser, "self")
        x, cond = denoiser.init_latents([seeded(0), seeded(1)]), torch.tensor([0, 1])
        with torch.no_grad():
            made = denoiser.decode(denoiser.drafts.guess(x, torch.zeros(2).long(), cond, 1))
        assert denoiser.drafts.passes == denoiser.passes_per_nfe == 1 + (scale > 1)
        for seed, prompt in enumerate(PROMPTS):
            one = {**call, "num_inference_steps": 1, "guidance_scale": scale}
            assert torch.allclose(made[seed], alone(pipe, prompt, seed, **one), atol=1e-5)
    out = found(upgrade(pipe), PROMPTS, draft="self:2", finish=0.5, budget="8nfe", **call)
    assert all(result.spent.cost.draft_calls > 0 for result in out.search)


def test_what_is_no_flow_map_and_what_cannot_be_drafted_is_refused():
    sd3, redrawn = families.shared("sd3"), "StableDiffusionImg2ImgPipeline"
    for pipe, how, why in (
        (toy(), {"draft": "self"}, "flow map"),
        (sd3, {"draft": "self", **families.FAMILIES["sd3"].call}, "flow map"),
        (toy(), {"draft": "hot", "does": "momentum"}, "steps depend"),
        (toy(), {"draft": "hot", "does": "inline"}, "no latents"),
        (toy(diffusers.EDMEulerScheduler(sigma_max=3.0)), {"draft": "hot"}, "EDMEulerScheduler"),
        (
            stock(redrawn),
            {"draft": "hot", "finish": 0.04, **call_of(redrawn)},
            "picture under noise",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            found(upgrade(pipe), PROMPTS, **how)


def test_a_picture_that_is_redrawn_is_ranked_by_drafts():
    name = "StableDiffusionImg2ImgPipeline"
    pipe, call = stock(name), call_of(name)
    out = found(upgrade(pipe), PROMPTS[:1], draft="hot", search=BestOfN(3), **call)
    assert torch.allclose(
        pictures(out)[0], alone(pipe, PROMPTS[0], out.search[0].images[0].seed, **call), atol=1e-5
    )
    assert images_of(out).shape == (3, 32, 48)
