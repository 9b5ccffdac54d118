"""Searches over ComfyUI's own objects: the winner is the stock KSampler's image at that seed, with every sampler."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comfyui.real import LATENT
from ttsnap.core.prompt import Prompt
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.request import EngineSpec, ModelDefaults, Prepared, SearchRequest, prepare

pytestmark = pytest.mark.usefixtures("comfy", "inference")
STEPS, SEEDS = 12, 6
EMPTY = torch.zeros(LATENT)
PRUNED = {"name": "seed-pruning", "n": SEEDS, "keep": [2 / SEEDS], "levels": [0.7]}
AMPLIFIES = {"dpmpp_2s_ancestral_cfg_pp"}
"""Samplers that make much of the rounding of other batches."""


@pytest.fixture(scope="module")
def inference() -> Iterator[None]:
    with torch.inference_mode():  # as nodes run
        yield


@pytest.fixture(scope="module", params=["flow", "eps"])
def model(request: pytest.FixtureRequest, comfy: None) -> Any:
    from tests.comfyui.toy_nodes.embedded import embedded_model

    return embedded_model(request.param)


def wanted(batch: int = SEEDS, sampler: SamplerOptions | None = None, **more: Any) -> Prepared:
    spec = EngineSpec(ModelOptions(), ("brightness",), sampler or SamplerOptions(), EngineOptions(batch_size=batch))
    given = {"search": PRUNED, "budget": Budget(), "seed": 11, **more}
    return prepare(SearchRequest((Prompt("a red circle"),), spec, **given), ModelDefaults())


def guider(model: Any, cfg: float) -> Any:
    from comfy.samplers import CFGGuider

    from tests.comfyui.toy_nodes.embedded import conditioning

    made = CFGGuider(model)
    made.set_conds(conditioning("a red circle left of a blue square"), conditioning(""))
    made.set_cfg(cfg)
    return made


def searching(
    model: Any, how: Prepared, name: str = "euler", cfg: float = 4.0, denoise: float = 1.0, **more: Any
) -> Any:
    from comfy.samplers import KSampler, sampler_object

    from tests.comfyui.toy_nodes.embedded import embedded_vae
    from ttsnap.pipelines.comfyui.latents import LatentSearch

    sigmas = KSampler(model, STEPS, model.load_device, name, "simple", denoise).sigmas
    given = {"latent": EMPTY, "vae": embedded_vae(), **more}
    return LatentSearch(how, guider(model, cfg), sampler_object(name), sigmas, **given)


def stock(model: Any, seed: int, name: str = "euler", cfg: float = 4.0, **more: Any) -> Tensor:
    import comfy.sample

    from tests.comfyui.toy_nodes.embedded import conditioning

    latent, steps = more.pop("latent", EMPTY), more.pop("steps", STEPS)
    texts = conditioning("a red circle left of a blue square"), conditioning("")
    noise = comfy.sample.prepare_noise(latent, seed)
    made: Tensor = comfy.sample.sample(
        model, noise, steps, cfg, name, "simple", *texts, latent, seed=seed, disable_pbar=True, **more
    )
    return made


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


class Counter:
    """The rows of a model's calls, as a wrapper that the MODEL carries."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, apply: Any, args: dict[str, Any]) -> Tensor:
        self.rows.append(len(args["input"]))
        made: Tensor = apply(args["input"], args["timestep"], **args["c"])
        return made


def counted(model: Any) -> tuple[Any, Counter]:
    counter, clone = Counter(), model.clone()
    clone.set_model_unet_function_wrapper(counter)
    return clone, counter


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_winner_is_the_stock_samplers_image_with_every_sampler(model: Any, cfg: float) -> None:
    from comfy.samplers import SAMPLER_NAMES

    wrong, threads = {}, threading.active_count()
    for name in SAMPLER_NAMES:
        if name == "dpm_adaptive":
            continue
        clone, counter = counted(model)
        found = searching(clone, wanted(1 if name in AMPLIFIES else SEEDS), name, cfg).run()
        assert sum(counter.rows) == found.result.spent.nfe * found.result.spent.price.passes_per_nfe, name
        difference = apart(stock(model, found.result.best.seed, name, cfg), found.latents)
        if difference > (1e-6 if name in AMPLIFIES else 1e-3):
            wrong[name] = difference
    assert wrong == {}
    assert threading.active_count() == threads


def test_samplers_whose_candidates_have_no_common_steps_or_no_seed_are_refused(model: Any) -> None:
    from comfy.samplers import ksampler

    with pytest.raises(ValueError, match="chooses its steps by the image"):
        searching(model, wanted(), "dpm_adaptive").run()
    churning = replace(searching(model, wanted()), sampler=ksampler("euler", {"s_churn": 5.0}))
    with pytest.raises(ValueError, match="s_churn"):
        churning.run()


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "uni_pc", "dpmpp_2m_cfg_pp"])
def test_in_the_same_batch_the_winner_is_the_same_to_rounding(model: Any, name: str) -> None:
    found = searching(model, wanted(1), name).run()
    assert apart(stock(model, found.result.best.seed, name), found.latents) < 1e-6


def test_a_part_of_an_image_is_painted_anew_as_the_stock_sampler_does(model: Any) -> None:
    latent, mask = torch.randn(LATENT, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 1, 8, 8)
    mask[..., 3:] = 1
    for name in ("euler", "ddim", "dpmpp_2m", "dpmpp_sde"):
        found = searching(model, wanted(), name, latent=latent, mask=mask, denoise=0.8).run()
        same = stock(model, found.result.best.seed, name, latent=latent, noise_mask=mask, denoise=0.8)
        assert apart(same, found.latents) < 1e-3, name
        assert apart(latent[..., :3], found.latents[..., :3]) < 1e-5, name


@pytest.mark.parametrize("kernel", ["ode", "sde", "ddim:0.5"])
def test_particles_run_on_ttsnaps_own_kernels(model: Any, kernel: str) -> None:
    clone, counter = counted(model)
    algorithm = PRUNED if kernel == "ode" else "smc"
    how = wanted(sampler=SamplerOptions(kernel), search=algorithm, budget=Budget(nfe=100))
    result = searching(clone, how).run().result
    assert sum(counter.rows) == 2 * result.spent.nfe
    assert result.spent.nfe <= 100
    assert len(result.images) == 1


def test_ttsnaps_ode_is_comfyuis_euler(model: Any) -> None:
    found = searching(model, wanted(sampler=SamplerOptions("ode"))).run()
    assert apart(stock(model, found.result.best.seed), found.latents) < 1e-3


def test_cancelling_leaves_no_thread_and_a_model_that_works(model: Any) -> None:
    from comfy import model_management

    threads, clone = threading.active_count(), model.clone()
    counter = Counter()

    def cancel(apply: Any, args: dict[str, Any]) -> Tensor:
        if len(counter.rows) == 3:
            model_management.interrupt_current_processing()
        return counter(apply, args)

    clone.set_model_unet_function_wrapper(cancel)
    with pytest.raises(model_management.InterruptProcessingException):
        searching(clone, wanted(), "dpmpp_2m").run()
    assert len(counter.rows) == 4
    assert threading.active_count() == threads
    assert torch.isfinite(stock(model, 1)).all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_finished_draft_is_comfyuis_image_to_image_of_its_latent(
    model: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.samplers import SAMPLER_NAMES

    from ttsnap.pipelines.comfyui.latents import GuiderDrafter

    for name in ("process_latent_in", "process_latent_out"):  # whose rounding the model would make more of
        monkeypatch.setattr(model.model, name, lambda latent: latent)
    mask, wrong, estimates = torch.zeros(1, 1, 8, 8), {}, list[Tensor]()
    mask[..., 3:] = 1
    latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(3)) if masked else EMPTY
    how = {"latent": latent, "noise_mask": mask} if masked else {}
    request, (drafts, drafter) = wanted(1, search={"name": "best-of-n", "n": 2}), counted(model)
    for name in ("euler", "ddim", "dpmpp_2m", "dpmpp_sde") if masked else SAMPLER_NAMES:
        if name == "dpm_adaptive":
            continue
        clone, counter = counted(model)
        search = searching(clone, request, name, latent=latent, mask=mask if masked else None)
        found = replace(search, drafter=GuiderDrafter(guider(drafts, 1.0)), rest=search.sigmas[7:]).run()
        spent, seed = found.result.spent, found.result.best.seed
        assert (sum(counter.rows), sum(drafter.rows)) == (2 * spent.cost.nfe, spent.cost.draft_calls), name
        drafter.rows.clear()
        stock(model, seed, cfg=1.0, steps=1, callback=lambda i, x0, *_: estimates.append(x0), **how)
        made = stock(model, seed, name, start_step=7, **how | {"latent": estimates[-1]})
        if apart(made, found.latents) > 1e-5:
            wrong[name] = apart(made, found.latents)
    assert wrong == {}


def test_the_winner_is_that_of_the_pipeline(comfy: None) -> None:
    """`ttsnap generate` on the same model, seeds, sigmas and reward."""
    from comfy.samplers import CFGGuider, sampler_object

    from tests.comfyui.toy_nodes.embedded import conditioning, embedded_model, embedded_vae
    from ttsnap.pipelines import load
    from ttsnap.pipelines.comfyui.latents import LatentSearch

    text = "a red circle left of a blue square"
    how = {"name": "seed-pruning", "n": 12, "keep": [0.25], "levels": [0.7]}
    with torch.inference_mode(False):
        pipe = load("embedded", dtype=torch.float32)
        made = pipe(text, search=how, reward="scenes", seed=5, guidance_scale=4.0,
                    num_inference_steps=STEPS, batch_size=12, draft=None, output_type="pt")  # fmt: skip
    spec = EngineSpec(ModelOptions(), ("scenes",), batch=EngineOptions(batch_size=12))
    request = prepare(SearchRequest((Prompt(text),), spec, how, Budget(), seed=5), ModelDefaults())
    guider = CFGGuider(embedded_model())
    guider.set_conds(conditioning(text), conditioning(""))
    guider.set_cfg(4.0)
    pipe.scheduler.set_timesteps(STEPS)
    found = LatentSearch(request, guider, sampler_object("euler"), pipe.scheduler.sigmas, EMPTY, embedded_vae()).run()
    theirs, ours = made.search[0], found.result
    assert ours.best.seed == theirs.best.seed
    assert ours.spent.cost == theirs.spent.cost
    assert ours.best.reward == pytest.approx(theirs.best.reward, abs=1e-3)
    assert apart(ours.best.pixels, theirs.best.pixels) < 1e-3
