"""What a rehearsal finds out of a pipeline that nobody knows, and searches that keep to it."""

from __future__ import annotations

import copy
import gc
import threading
from collections import Counter

import diffusers
import pytest
import torch

from ttsnap.core.needs import Need
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.pictures import images_of, pictures_for
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.suspended import NAME
from ttsnap.sampling.rng import seeded

from .toy import ToyCombined, ToyFlexNet, ToyVae, ToyWriter, toy

PROMPTS = ["a fox", "three red hens"]
ALONE = (
    "",
    "inline",
    "veil",
    "first",
    "momentum",
    "cache",
    "mask",
    "inline veil first momentum mask",
)
BEHAVIOURS = (*ALONE, "duet", "duet first", "duet inline mask", "duet peek", "rows")


SEEDED = ("inline", "veil", "first", "rows")
"""What makes a call depend on more of its seed than the latents that can be put in."""


def reward(images, prompts):
    return [float(image[0].mean()) for image in images]


def found(pipe, **how):
    asked = {
        "search": "ttsnap",
        "reward": reward,
        "seed": 1,
        "budget": "5images",
        "output_type": "pt",
        **how,
    }
    return pipe(PROMPTS, **asked)


@pytest.mark.parametrize("does", BEHAVIOURS)
def test_winners_are_the_stock_calls_whatever_that_does(does):
    pipe = toy()
    out = found(upgrade(pipe), does=does, batch_size=3, budget="3images")
    for prompt, result, made in zip(PROMPTS, out.search, out.images, strict=True):
        stock = pipe(prompt, generator=seeded(result.images[0].seed), does=does).images[0]
        assert torch.allclose(made, stock, atol=1e-6)
    if "duet" in does:
        each = zip(PROMPTS, out.search, strict=True)
        sounds = [
            pipe(p, generator=seeded(result.best.seed), does=does).audio for p, result in each
        ]
        assert torch.allclose(out.audio, torch.cat(sounds), atol=1e-6)


def growing():
    """As Cosmos 2 has it: noise is added to an image that is not scaled down."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=3.0, sigma_min=0.02)
    return scheduler


SCHEDULERS = {
    # Mochi, OmniGen
    "inverted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "growing": growing,
    "flow map": lambda: diffusers.FlowMapEulerDiscreteScheduler(shift=2.0),
    "minimax h3": diffusers.MiniMaxH3Scheduler,
    "edm": lambda: diffusers.EDMEulerScheduler(sigma_max=3.0),
    "edm multistep": lambda: diffusers.EDMDPMSolverMultistepScheduler(sigma_max=3.0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_are_not_known_are_measured(name):
    pipe = toy(SCHEDULERS[name]())
    twin = upgrade(pipe)
    out = found(twin, num_inference_steps=5, budget="3images")
    stock = pipe(PROMPTS[0], generator=seeded(out.search[0].best.seed), num_inference_steps=5)
    assert torch.allclose(out.images[0], stock.images[0], atol=1e-6)
    assert 0.01 < stock.images.std() < 0.4
    schedule = twin.denoiser(num_inference_steps=5).schedule
    # Of an image and noise, the scheduler's own last step makes the image, and so does the
    # estimate.
    x, out = torch.randn(2, 1, 3, 8, 8, generator=seeded(0))
    scheduler, last = copy.deepcopy(schedule.scheduler), len(schedule.timesteps) - 1
    scheduler._step_index = last
    moved = scheduler.step(out, scheduler.timesteps[last], x).prev_sample
    assert torch.allclose(schedule.x0(x, out, torch.tensor([last])), moved, atol=1e-5)
    with pytest.raises(ValueError, match="leave kernel"):
        found(twin, kernel="sde")


def test_a_scheduler_keeps_latents_that_the_call_changes_in_place_as_that_does():
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    pipe, how = toy(scheduler), {"num_inference_steps": 5, "does": "over"}
    out = found(upgrade(pipe), batch_size=3, **how)
    made = pipe(PROMPTS[0], generator=seeded(out.search[0].best.seed), **how).images[0]
    assert torch.allclose(out.images[0], made, atol=1e-6)
    with pytest.raises(ValueError, match="changes in place"):
        found(upgrade(pipe), num_inference_steps=5, does="over mask")


@pytest.mark.parametrize(("vae", "does"), [(ToyVae().eval(), ""), (None, "late")])
def test_what_is_drawn_after_the_last_step_is_the_stock_calls(vae, does):
    pipe = toy(vae=vae)
    out = found(upgrade(pipe), does=does, batch_size=3, budget="3images")
    for prompt, result, made in zip(PROMPTS, out.search, out.images, strict=True):
        stock = pipe(prompt, generator=seeded(result.best.seed), does=does).images[0]
        assert torch.allclose(made, stock, atol=1e-6)
        # its rows go one by one
        assert any("vae" in said for said in result.warnings) == (vae is not None)
    draws = toy(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), vae)
    with pytest.raises(ValueError, match="after its last step"):
        found(upgrade(draws), does=does)


def test_a_language_model_writes_once_for_each_prompt(monkeypatch):
    pipe, calls, forward = toy(writer=ToyWriter().eval()), Counter[float](), ToyWriter.forward

    def counted(self, length, cache):
        if length.device.type != "meta":
            calls[float(length)] += 1
        return forward(self, length, cache)

    monkeypatch.setattr(ToyWriter, "forward", counted)
    out = found(upgrade(pipe), batch_size=3)
    asked = list(calls.values())
    stock = pipe(PROMPTS[0], generator=seeded(out.search[0].best.seed)).images[0]
    assert torch.allclose(out.images[0], stock, atol=1e-6)
    assert asked == [1] * 5 * (1 + len(PROMPTS))  # of the rehearsal's prompt, too


def test_frames_are_one_video_and_several_pictures():
    frame = torch.zeros(3, 8, 8)
    videos = [[frame] * 5, torch.zeros(5, 3, 8, 8)], torch.zeros(2, 5, 3, 8, 8)
    assert (
        pictures_for({"video": [frame] * 5})
        == pictures_for({"video": torch.zeros(5, 3, 8, 8)})
        == {}
    )
    assert [len(pictures_for({"video": each})["video"]) for each in videos] == [2, 2]
    assert len(pictures_for({"image": [frame] * 5})["image"]) == 5


def test_pictures_are_asked_for_in_a_form_in_which_the_call_makes_them():
    pipe = toy()
    out = found(upgrade(pipe), does="raw")
    best = out.search[0].best

    def made(form):
        return pipe(PROMPTS[0], generator=seeded(best.seed), does="raw", output_type=form).images

    assert torch.allclose(best.image, images_of(made("np")[None]), atol=1e-6)
    # which come back as the stock call returns them
    assert torch.allclose(out.images[0], made("pt")[0], atol=1e-6)


def test_what_torch_compiles_is_neither_traced_nor_counted():
    pipe = toy()
    pipe.transformer = ToyFlexNet().eval()
    out = found(upgrade(pipe))
    made = pipe(PROMPTS[0], generator=seeded(out.search[0].best.seed)).images[0]
    assert torch.allclose(out.images[0], made, atol=1e-6)
    assert out.search[0].spent.flops_by["denoise"] > 0


def test_what_a_call_changes_of_its_arguments_is_its_own():
    pipe, shift = toy(), torch.zeros(1, 3, 8, 8)
    out = found(upgrade(pipe), shift=shift)
    assert shift.abs().max() == 0
    stock = pipe(
        PROMPTS[0], generator=seeded(out.search[0].images[0].seed), shift=shift.clone()
    ).images[0]
    assert torch.allclose(out.images[0], stock, atol=1e-6)


@pytest.mark.parametrize("does", BEHAVIOURS)
def test_only_what_the_call_allows_is_offered(does):
    engine = upgrade(toy()).engine(reward, does=does)
    rehearsed = engine.denoiser.rehearsed
    assert rehearsed.by_seed == any(word in does for word in (*SEEDED, "momentum", "cache"))
    assert rehearsed.remembers == ("momentum" in does or "cache" in does)
    assert (Need.MIX in engine.offers) == (not rehearsed.by_seed)
    kept = any(word in does for word in ("inline", "momentum", "cache", "rows"))
    assert (Need.RENOISE in engine.offers) != kept


def test_rows_that_are_made_twice_to_try_joining_are_told():
    pipe, rows = toy(vae=ToyVae().eval()), Counter[str]()
    pipe.transformer.register_forward_hook(lambda module, args, made: rows.update(nfe=len(args[0])))
    pipe.vae.layer.register_forward_hook(
        lambda module, args, made: rows.update(decodes=len(args[0]))
    )
    twin = upgrade(pipe)
    spent = [result.spent for result in found(twin, batch_size=3).search]
    tried = spent[0].calibration
    assert tried.nfe > 0
    assert rows == {
        "nfe": sum(each.cost.nfe for each in spent) + tried.nfe,
        "decodes": sum(each.cost.decodes for each in spent) + tried.decodes,
    }


def test_calls_that_failed_together_once_are_tried_again_by_the_next_search():
    twin, rows = upgrade(toy()), torch.zeros(5).long()
    apart = list[set[str]]()
    for fails in (True, False):
        denoiser = twin.denoiser()
        denoiser.encode(["a fox"])
        if fails:
            denoiser.hub._joined = lambda *args, **how: None
        x = denoiser.init_latents([seeded(seed) for seed in range(5)])
        with torch.no_grad():
            denoiser.predict(x, rows, rows)
        apart.append(denoiser.hub.apart)
        called = denoiser.hub.calls["transformer"]
    assert apart == [{"transformer"}, set()]
    assert called == 1 + 2, "together, and two of them apart"


def test_states_go_on_in_other_frames_and_children_from_their_parents():
    """Zero-order search mixes noise, RBF renoises, SMC branches: with rows at many steps, on two
    paths."""
    for how in (
        {"search": "zero-order"},
        {"search": "rbf", "kernel": "sde", "path": "vp"},
        {"search": "smc", "kernel": "sde"},
        {"search": "smc", "kernel": "sde", "does": "mask duet"},
    ):
        out = found(upgrade(toy()), budget="40nfe", **{"does": "mask", **how})
        assert [result.spent.nfe <= 40 for result in out.search] == [True, True]
        assert all(
            (made[..., :4] - 0.1 * len(prompt) / 4 - 0.5).abs().max() < 1e-5
            for prompt, made in zip(PROMPTS, out.images, strict=True)
        )


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("global", "global generator"),
        ("twice", "timesteps"),
        ("mute", "neither"),
        ("duet untuned", "noise levels"),
        ("duet momentum", "before"),
        ("duet twice", "in turn"),
    ],
)
def test_what_cannot_be_searched_is_refused(does, why):
    with pytest.raises(ValueError, match=why):
        found(upgrade(toy()), does=does)


def test_a_step_that_reads_tensors_of_the_call_is_refused_without_a_position():
    with pytest.raises(ValueError, match="dmd_sigmas"):
        found(upgrade(toy(diffusers.HeliosDMDScheduler(stages=1))), does="told")


def test_pipelines_in_a_pipeline_are_named():
    with pytest.raises(ValueError, match=r"pipe\.decoder_pipe"):
        found(upgrade(ToyCombined(**toy().components)))


@pytest.mark.parametrize(
    ("does", "late"), [("duet", True), ("duet first", True), ("duet peek", False)]
)
def test_frames_that_step_several_fields_stay_where_tensors_alone_are_made_between(does, late):
    assert upgrade(toy()).denoiser(does=does).rehearsed.fields.late == late


def test_frames_are_no_more_than_particles_and_go_with_the_search(
    monkeypatch,
):
    trim, counts = PipelineDenoiser.trim, list[tuple[int, int]]()

    def counted(self, particles):
        trim(self, particles)
        counts.append((sum(thread.name == NAME for thread in threading.enumerate()), particles))

    monkeypatch.setattr(PipelineDenoiser, "trim", counted)
    found(upgrade(toy()), batch_size=4, budget="20images")
    assert all(frames <= particles for frames, particles in counts)
    assert max(frames for frames, _ in counts) > 8
    gc.collect()
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def test_an_error_in_the_middle_of_a_call_is_its_own_and_leaves_no_thread():
    pipe = toy()

    def broken(module, args, kwargs):
        raise RuntimeError("the network is broken")

    pipe.transformer.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(RuntimeError, match="the network is broken"):
        found(upgrade(pipe))
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def test_calls_of_frames_for_which_memory_is_short_are_halved_and_still_joined():
    pipe, rows = toy(), list[int]()
    free = found(upgrade(pipe), batch_size=8)

    def cramped(module, args, kwargs):
        rows.append(len(args[0] if args else kwargs["hidden_states"]))
        if rows[-1] > 4:
            raise RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            )

    pipe.transformer.register_forward_pre_hook(cramped, with_kwargs=True)
    short = found(upgrade(pipe), batch_size=8)
    later = rows[rows.index(max(rows)) + 1 :]
    assert max(rows) > 4 >= max(later) > 1
    for one, other in zip(free.search, short.search, strict=True):
        assert (one.best.seed, one.spent.cost) == (other.best.seed, other.spent.cost)
