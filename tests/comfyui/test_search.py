"""Searches over a guider of ComfyUI, on a double with known answers (double.py)."""

from __future__ import annotations

import gc
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from tests.comfyui import double
from tests.comfyui.double import (
    EVALUATIONS,
    LOOPS,
    SHAPE,
    Const,
    Exploding,
    Guider,
    Model,
    NestedTensor,
    Stock,
    Vae,
)
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import Finish, SamplerOptions
from ttsnap.pipelines.comfyui.drafts import finishing_sigmas
from ttsnap.pipelines.comfyui.fields import fields_of
from ttsnap.pipelines.comfyui.latents import GuiderDrafter, LatentSearch, rows_that_fit
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare

STEPS, SEEDS = 8, 6
PRUNED = {"name": "seed-pruning", "n": SEEDS, "keep": [2 / SEEDS], "levels": [0.7]}
EMPTY = torch.zeros(SHAPE)


@pytest.fixture(autouse=True)
def management():
    threads = threading.active_count()
    with double.comfyui() as management, torch.inference_mode():  # as nodes run
        yield management
    assert threading.active_count() == threads


@pytest.fixture(params=[Const, Exploding], ids=["flow", "eps"])
def model(request):
    return Model(request.param())


def sigmas(model, steps=STEPS):
    falling = torch.linspace(1, 0, steps + 1)
    return falling if isinstance(model.model_sampling, Const) else 10 * falling**2


def wanted(batch=SEEDS, sampler=None, **more):
    spec = EngineSpec(
        ModelOptions(),
        ("brightness",),
        sampler or SamplerOptions(),
        EngineOptions(batch_size=batch),
    )
    given = {"search": PRUNED, "budget": Budget(), "seed": 11, **more}
    return prepare(SearchRequest((Prompt("a red circle"),), spec, **given), ModelDefaults())


def searching(model, how, name="euler", cfg=2.0, **more):
    given = {"sigmas": sigmas(model), "latent": EMPTY, "vae": Vae(), **more}
    return LatentSearch(how, Guider(model, cfg), Stock(LOOPS.get(name, name)), **given)


def half_masked():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    return torch.full(SHAPE, 0.3), mask


def alone(
    model,
    seed,
    name,
    cfg,
    latent=EMPTY,
    mask=None,
    at=None,
):
    """What the sampler makes of a seed without a search, at these sigmas."""
    generator, at = torch.Generator().manual_seed(seed), sigmas(model) if at is None else at
    noise = [torch.randn(field.shape, generator=generator) for field in fields_of(latent)]
    given = NestedTensor(noise) if latent.is_nested else noise[0]
    return Guider(model, cfg).sample(given, latent, Stock(LOOPS[name]), at, mask, seed=seed)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("name", LOOPS)
def test_the_winner_is_what_the_sampler_makes_of_its_seed(model, name, cfg):
    found = searching(model, wanted(), name, cfg).run()
    made, spent = sum(model.rows), found.result.spent
    winner = found.result.best.seed
    assert torch.allclose(alone(model, winner, name, cfg), found.latents, atol=1e-5)
    assert made == spent.nfe * spent.price.passes_per_nfe
    each = EVALUATIONS[name] * (STEPS - 1) + 1
    assert spent.nfe < SEEDS * each
    assert spent.price.passes_per_nfe == (2 if cfg != 1 or name == "unguided" else 1)


def test_an_image_is_the_vaes_and_latents_come_back_in_its_scale(model):
    found = searching(model, wanted(keep=2, search="best-of-n", budget=Budget(images=4))).run()
    assert found.latents.shape == (2, *SHAPE[1:])
    for image, latent in zip(found.result.images, found.latents, strict=True):
        assert torch.allclose(image.pixels.movedim(0, -1), Vae().decode(latent[None])[0], atol=1e-6)


def test_rows_at_one_noise_level_share_a_call_and_others_do_not(model):
    searching(model, wanted(batch=4)).run()
    assert max(model.rows) == 8
    assert set(model.rows) <= {8, 4}


def test_a_masked_latent_is_painted_anew_as_the_sampler_does_alone(model):
    latent, mask = half_masked()
    for name in LOOPS:
        found = searching(model, wanted(), name, latent=latent, mask=mask).run()
        assert torch.allclose(
            alone(model, found.result.best.seed, name, 2.0, latent, mask), found.latents, atol=1e-5
        )
    how = wanted(sampler=SamplerOptions("sde"), search="smc", budget=Budget(nfe=40))
    found = searching(model, how, latent=latent, mask=mask).run()
    assert torch.allclose(found.latents[..., :2], latent[..., :2], atol=1e-6)
    assert not torch.allclose(found.latents[..., 2:], latent[..., 2:], atol=1e-2)


def test_ttsnaps_ode_is_euler_and_all_its_kernels_end_where_the_model_does(model):
    found = searching(model, wanted(sampler=SamplerOptions("ode"))).run()
    assert torch.allclose(
        alone(model, found.result.best.seed, "euler", 2.0), found.latents, atol=1e-4
    )
    model.spread = 1e-4  # it has one image only
    for kernel in ("ode", "sde", "ddim:0.5"):
        model.rows.clear()
        more = {} if kernel == "ode" else {"search": "smc", "budget": Budget(nfe=40)}
        found = searching(model, wanted(sampler=SamplerOptions(kernel), **more), cfg=1.0).run()
        assert torch.allclose(found.latents, torch.full(SHAPE, 0.25), atol=1e-2), kernel
        assert sum(model.rows) == found.result.spent.nfe <= 40


def test_a_previewer_decodes_what_is_unfinished(model):
    decode = Mock(return_value=Image.new("RGB", (4, 4)))
    searching(model, wanted(), previewer=Mock(decode_latent_to_preview=decode)).run()
    assert decode.call_count == SEEDS


def test_a_draft_of_a_model_without_spread_is_its_image(model):
    model.spread = 1e-4
    drafts, events = Model(model.model_sampling, spread=1e-4), list[Any]()
    how = wanted(search={"name": "seed-pruning", "n": 20})
    search = searching(model, how, drafter=GuiderDrafter(Guider(drafts, 1.0), 2, 0.9))
    calls = search.run(lambda *_: events.append).result.spent.cost.draft_calls
    assert sum(drafts.rows) == calls >= 40
    drafted = [
        event for event in events if event.kind == "score" and event.look.startswith("draft")
    ]
    assert len(drafted) == calls / 2
    assert all(torch.allclose(event.image, torch.tensor(0.625), atol=1e-2) for event in drafted)


def test_networks_are_loaded_again_after_each_decode_and_for_each_other(model, management):
    assert searching(model, wanted()).run().result.spent.cost.decodes == SEEDS + 2
    assert len(management.loads) == 2  # before the first call, and after the check's decode
    management.loads.clear()
    model.rows.clear()
    how = wanted(search={"name": "seed-pruning", "n": 20})  # with the model as its own drafter
    spent = (
        searching(model, how, cfg=1.0, drafter=GuiderDrafter(Guider(model, 1.0), 1, 0.87))
        .run()
        .result.spent
    )
    assert sum(model.rows) == spent.cost.nfe + spent.cost.draft_calls
    assert spent.cost.draft_calls > 0
    assert len(management.loads) >= 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*LOOPS, "ode"])
def test_a_finished_draft_is_what_the_sampler_makes_of_its_latent(model, name, masked):
    """The draft is a step of the drafter from noise to the end, and its finish image-to-image with
    the same noise."""
    latent, mask = half_masked()
    how = {"latent": latent, "mask": mask} if masked else {}
    drafts, rest, loop = (
        Model(model.model_sampling, 0.9, 0.5),
        sigmas(model)[5:],
        "euler" if name == "ode" else name,
    )
    pruned = wanted(
        sampler=SamplerOptions("ode" if name == "ode" else "pipeline"), budget=Budget(images=4)
    )
    found = searching(
        model, pruned, loop, drafter=GuiderDrafter(Guider(drafts, 1.0)), rest=rest, **how
    ).run()
    spent, seed = found.result.spent, found.result.best.seed
    assert (sum(model.rows), sum(drafts.rows)) == (2 * spent.cost.nfe, spent.cost.draft_calls)
    assert spent.cost.draft_calls == SEEDS
    assert spent.budget == f"{4 * (EVALUATIONS[loop] * (STEPS - 1) + 1)}nfe"  # of images from noise
    draft = alone(drafts, seed, "euler", 1.0, at=sigmas(model)[[0, -1]], **how)
    made = alone(model, seed, loop, 2.0, draft, mask if masked else None, rest)
    assert torch.allclose(made, found.latents, atol=1e-5, rtol=0)
    assert not torch.allclose(alone(model, seed, loop, 2.0, **how), found.latents, atol=1e-3)


def test_mixed_noise_begins_from_its_own_draft(model):
    drafts, rest = Model(model.model_sampling, 0.9, 0.5), sigmas(model)[5:]
    how = wanted(search={"name": "zero-order"}, budget=Budget(nfe=30), keep=4)
    found = searching(model, how, drafter=GuiderDrafter(Guider(drafts, 1.0)), rest=rest).run()
    cost = found.result.spent.cost
    assert (sum(model.rows), sum(drafts.rows)) == (2 * cost.nfe, cost.draft_calls)
    assert cost.draft_calls == cost.nfe / 3
    assert (found.result.particles.parent >= 0).any()
    assert len({tuple(latent.flatten().tolist()) for latent in found.latents}) == 4


def test_where_drafts_are_finished(model):
    levels = sigmas(model, 12) / (
        1 if isinstance(model.model_sampling, Const) else 1 + sigmas(model, 12)
    )
    for level in (0.1, 0.5, 0.9):
        steps, rest = finishing_sigmas(Finish(level), partial(sigmas, model), 12, model)
        assert (steps, rest[0]) == (12, sigmas(model, 12)[(levels[:-1] - level).abs().argmin()])
        if level < 0.9:
            steps, rest = finishing_sigmas(Finish(level, 3), partial(sigmas, model), 12, model)
            assert torch.equal(rest, sigmas(model, steps)[-4:])
    for nothing in (Finish(1.0), Finish(0.999), Finish(0.9, 3)):
        with pytest.raises(ValueError, match=f"{nothing}.*as 0\\.[0-9]+"):
            finishing_sigmas(nothing, partial(sigmas, model), 12, model)
    drafter = GuiderDrafter(Guider(Model(model.model_sampling), 1.0))
    plain, begun = (
        searching(model, wanted(), drafter=drafter, rest=rest).run()
        for rest in (None, sigmas(model))
    )
    assert torch.equal(plain.latents, begun.latents)  # from pure noise: a draft changes nothing
    assert plain.result.spent.cost == begun.result.spent.cost


def test_a_dropped_candidates_thread_ends_at_once(model):
    seen = []
    model.on_call = lambda: seen.append(threading.active_count())
    threads = threading.active_count()
    searching(model, wanted(), "heun").run()
    gc.collect()
    assert (max(seen), seen[-1]) == (threads + SEEDS, threads + 2)


def test_a_fault_in_a_sampler_is_the_searchs(model):
    def broken(model, x, sigmas, args, step):
        if args["seed"] == 13:
            raise RuntimeError("no such step")
        return LOOPS["euler"](model, x, sigmas, args, step)

    with pytest.raises(RuntimeError, match="no such step"):
        searching(model, wanted(), broken).run()


@pytest.mark.parametrize(
    ("how", "more", "why"),
    [
        ({}, {"name": double.churning}, "s_churn"),
        ({}, {"name": double.adaptive}, "dpm_adaptive"),
        ({}, {"latent": torch.zeros(2, *SHAPE[1:])}, "batch of 2"),
        ({}, {"sigmas": torch.tensor([1.0, 0.5])}, "0.5"),
        ({"budget": Budget(flops=1e9)}, {}, "FLOPs"),
        ({"sampler": SamplerOptions("sde", guide="dps:1")}, {}, "gradient"),
        ({"sampler": SamplerOptions("ode", path="vp")}, {}, "path"),
        ({"search": "smc", "budget": Budget(nfe=40)}, {}, "sampler"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_model_runs(how, more, why):
    model = Model(Exploding())
    with pytest.raises(ValueError, match=why):
        searching(model, wanted(**how), **more).run()
    assert model.rows == []


def test_the_batch_is_as_large_as_free_memory_allows(management):
    patcher = Guider(Model(Const())).model_patcher
    assert rows_that_fit(patcher, EMPTY) == 16
    management.free = 1000
    assert rows_that_fit(patcher, EMPTY) == 3
    patcher.size = 700
    assert rows_that_fit(patcher, EMPTY) == 1


def test_videos_are_scored_by_their_frames():
    latent = torch.zeros(1, 2, 3, 4, 4)
    found = searching(Model(Const()), wanted(), latent=latent).run()
    assert found.result.best.pixels.shape == (3, 3, 4, 4)
    assert found.result.spent.cost.reward_calls == 3 * found.result.spent.cost.decodes
    assert found.latents.shape == latent.shape


def with_sound(video=0.0, sound=0.0):
    return NestedTensor([torch.full((1, 2, 3, 4, 4), video), torch.full((1, 3, 2, 5), sound)])


def nested_apart(a, b):
    return max(
        float((one - other).abs().max()) for one, other in zip(a.unbind(), b.unbind(), strict=True)
    )


@pytest.mark.parametrize("most_rows", [None, 1])
@pytest.mark.parametrize("name", [*LOOPS, "ode"])
def test_videos_with_sound_are_the_samplers(model, name, most_rows):
    """Where they begin from noise, from a latent that is half painted anew, and from drafts, by a
    model of one row."""
    kernel, loop = ("ode", "euler") if name == "ode" else ("pipeline", name)
    how, model.most_rows = wanted(sampler=SamplerOptions(kernel), keep=2), most_rows
    mask = with_sound(1.0, 0.0)
    mask.unbind()[0][..., :2] = 0
    for given in ({"latent": with_sound()}, {"latent": with_sound(0.3, 0.2), "mask": mask}):
        model.rows.clear()
        found = searching(model, how, loop, **given).run()
        best, spent = found.result.best, found.result.spent
        assert sum(model.rows) == 2 * spent.nfe
        assert max(model.rows) == 2 * (most_rows or SEEDS)
        assert found.latents.shape[0] == len(found.result.images) == 2
        made = alone(model, best.seed, loop, 2.0, **given)
        assert (
            nested_apart(made, NestedTensor([field[:1] for field in found.latents.unbind()])) < 1e-4
        )
        assert torch.allclose(
            best.pixels.movedim(1, -1), Vae().decode(made.unbind()[0])[0], atol=1e-4
        )
        assert spent.cost.reward_calls == 3 * spent.cost.decodes
    drafts = Model(model.model_sampling, 0.9, 0.5, most_rows=most_rows)
    drafter, rest = GuiderDrafter(Guider(drafts, 1.0)), sigmas(model)[5:]
    how = wanted(sampler=SamplerOptions(kernel), budget=Budget(images=4))
    found = searching(model, how, loop, drafter=drafter, rest=rest, latent=with_sound()).run()
    seed = found.result.best.seed
    assert sum(drafts.rows) == found.result.spent.cost.draft_calls == SEEDS
    draft = alone(drafts, seed, "euler", 1.0, with_sound(), at=sigmas(model)[[0, -1]])
    assert nested_apart(alone(model, seed, loop, 2.0, draft, at=rest), found.latents) < 1e-4


@pytest.mark.parametrize("name", [*LOOPS, "ode"])
def test_what_is_noised_by_the_seed_is_so_for_each_candidate(model, name):
    """As frames that a video begins with."""
    kernel, loop = ("ode", "euler") if name == "ode" else ("pipeline", name)
    how, model.noised = wanted(sampler=SamplerOptions(kernel), budget=Budget(images=4)), True
    found = searching(model, how, loop).run()
    assert sum(model.rows) == 2 * found.result.spent.nfe
    assert torch.allclose(alone(model, found.result.best.seed, loop, 2.0), found.latents, atol=1e-4)
    drafts, rest = Model(model.model_sampling, 0.9, 0.5, noised=True), sigmas(model)[5:]
    found = searching(model, how, loop, drafter=GuiderDrafter(Guider(drafts, 1.0)), rest=rest).run()
    draft = alone(drafts, found.result.best.seed, "euler", 1.0, at=sigmas(model)[[0, -1]])
    assert torch.allclose(
        alone(model, found.result.best.seed, loop, 2.0, draft, at=rest), found.latents, atol=1e-4
    )


def test_particles_of_videos_with_sound_end_where_the_model_does(model):
    model.spread = 1e-4  # it has one image only
    for name in ("smc", "zero-order"):
        kernel = "sde" if name == "smc" else "pipeline"
        how = wanted(sampler=SamplerOptions(kernel), search=name, budget=Budget(nfe=40))
        found = searching(model, how, latent=with_sound(), cfg=1.0).run()
        assert nested_apart(with_sound(0.25, 0.25), found.latents) < 1e-2


@pytest.mark.parametrize("latent", [torch.zeros(1, 2, 3, 4, 4), with_sound()])
def test_rewards_see_frames_of_previews(latent):
    """Of the first frame alone, or of all where ComfyUI has a small VAE of videos."""
    seen = []

    def first(x0):
        seen.append(tuple(x0.shape))
        return Image.new("RGB", (4, 4))

    small = SimpleNamespace(decode=Vae().decode, first_stage_model=None)
    for previewer, frames in (
        (Mock(decode_latent_to_preview=first, taesd=None), 1),
        (Mock(taesd=small), 3),
    ):
        events = list[Any]()
        search = searching(Model(Const()), wanted(), latent=latent, previewer=previewer)
        search.run(lambda *_, events=events: events.append)  # type: ignore[misc]
        pictures = [event.image for event in events if event.kind == "score"]
        assert len(pictures) > SEEDS
        assert {tuple(picture.shape) for picture in pictures[:SEEDS]} == {(frames, 3, 4, 4)}
    assert set(seen) == {(1, 2, 3, 4, 4)}
