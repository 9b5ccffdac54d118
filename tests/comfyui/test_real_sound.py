"""Searches for videos with sound over ComfyUI's own networks of LTX-2 and MiniMax-H3, tiny and with
random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from tests.comfyui.test_search import SEEDS, wanted
from ttsnap.loop.budget import Budget
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines.comfyui.latents import GuiderDrafter, LatentSearch

pytestmark = pytest.mark.usefixtures("comfy")
CPU, STEPS, CFG = torch.device("cpu"), 8, 3.0
SAMPLERS = ("euler", "heun", "uni_pc", "euler_ancestral", "dpmpp_sde", "euler_cfg_pp")
LTX2 = {
    "image_model": "ltxav",
    "in_channels": 128,
    "num_layers": 1,
    "caption_channels": 16,
    "cross_attention_dim": 32,
    "audio_cross_attention_dim": 32,
    "attention_head_dim": 16,
    "audio_attention_head_dim": 16,
    "num_attention_heads": 2,
    "audio_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
H3 = {
    "image_model": "minimax_h3",
    "hidden_size": 32,
    "num_layers": 1,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_hidden_size": 32,
    "text_dim": 16,
    "timestep_input_dim": 16,
    "time_embed_hidden_size": 16,
    "time_embed_dim": 16,
    "rope_inv_freq_len": 2,
}


class Kind(NamedTuple):
    name: str
    """Of its class in comfy.supported_models."""
    config: dict[str, Any]
    width: int
    """Of a text's embedding."""
    shapes: tuple[tuple[int, ...], ...]
    """Of a video and of its sound."""


KINDS = {
    "LTX-2": Kind("LTXAV", LTX2, 32, ((1, 128, 2, 4, 4), (1, 8, 6, 16))),
    "MiniMax-H3": Kind("MiniMaxH3", H3, 16, ((1, 24, 7, 4, 4), (1, 32, 2, 5))),
}


class Sounding(NamedTuple):
    """A model of videos with sound, and the texts of its guiders."""

    model: Any
    texts: tuple[Any, Any]
    shapes: tuple[tuple[int, ...], ...]
    rows: list[int]
    """Of each call of the network."""

    def latent(self, *values):
        from comfy.nested_tensor import NestedTensor

        return NestedTensor(
            [
                torch.full(shape, float(value))
                for shape, value in zip(self.shapes, values, strict=True)
            ]
        )

    def guider(self, cfg):
        from comfy.samplers import CFGGuider

        made = CFGGuider(self.model)
        made.set_conds(*self.texts)
        made.set_cfg(cfg)
        return made

    def search(self, how, name="euler", **more):
        from comfy.samplers import KSampler, sampler_object

        sigmas = KSampler(self.model, STEPS, CPU, name, "simple").sigmas
        given = {"sigmas": sigmas, "latent": self.latent(0, 0), "vae": Channels(), **more}
        return LatentSearch(how, self.guider(CFG), sampler_object(name), **given)

    def stock(self, seed, name="euler", cfg=CFG, latent=None, **more):
        import comfy.sample

        latent, steps = self.latent(0, 0) if latent is None else latent, more.pop("steps", STEPS)
        how = (steps, cfg, name, "simple", *self.texts, latent)
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(self.model, noise, *how, seed=seed, disable_pbar=True, **more)


class Channels:
    """A VAE whose frames are the first three channels of a video's latent."""

    def decode(self, latents):
        return (latents[:, :3].movedim(1, -1) / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def inference():
    with torch.inference_mode():  # as nodes run
        yield


@pytest.fixture(scope="module", params=KINDS)
def sounding(request, comfy, inference):
    import comfy.model_patcher
    import comfy.supported_models

    kind, generator = KINDS[request.param], torch.Generator().manual_seed(0)
    if not hasattr(comfy.supported_models, kind.name):
        pytest.skip(f"this ComfyUI has no {request.param}")
    config = getattr(comfy.supported_models, kind.name)(kind.config | {"dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=CPU).eval()
    for weight in (*model.diffusion_model.parameters(), *model.diffusion_model.buffers()):
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    rows = list[int]()

    def count(apply, args):
        made = apply(args["input"], args["timestep"], **args["c"])
        rows.append(len(args["input"]))
        return made

    patcher.set_model_unet_function_wrapper(count)
    positive, negative = torch.randn(2, 1, 5, kind.width, generator=generator)
    return Sounding(patcher, ([[positive, {}]], [[negative, {}]]), kind.shapes, rows)


def apart(a, b):
    """The largest difference of two nested latents."""
    return max(
        float((one - other).abs().max()) for one, other in zip(a.unbind(), b.unbind(), strict=True)
    )


def check(found, same):
    assert apart(found.latents, same) < 1e-4
    pixels = Channels().decode(same.unbind()[0])[0]
    assert (found.result.best.pixels.movedim(1, -1) - pixels).abs().max() < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_winner_is_the_stock_samplers_video_and_sound(sounding, name):
    sounding.rows.clear()
    found = sounding.search(wanted(), name).run()
    assert sum(sounding.rows) == 2 * found.result.spent.nfe
    check(found, sounding.stock(found.result.best.seed, name))


def test_a_first_frame_is_noised_by_each_seed_as_the_stock_sampler_does(sounding):
    if sounding.shapes[0][1] != 24:
        pytest.skip("MiniMax-H3 alone noises the frames that it is given")
    frame = {"resolved_frame_index": 0, "latent": torch.ones(1, 24, 1, 4, 4)}
    [[text, _]], negative = sounding.texts
    given = {"minimax_keyframes": [frame], "minimax_visual_cond_noise_aug": 0.5}
    framed = sounding._replace(texts=([[text, given]], negative))
    found = framed.search(wanted()).run()
    seed = found.result.best.seed
    assert seed != wanted().seed
    assert apart(found.latents, framed.stock(seed)) < 1e-5


def test_the_sound_that_a_mask_keeps_stays(sounding):
    latent, mask = sounding.latent(0.3, 0.2), sounding.latent(1, 0)
    mask.unbind()[0][..., :2] = 0
    for name in ("euler", "dpmpp_2m"):
        found = sounding.search(wanted(), name, latent=latent, mask=mask).run()
        check(found, sounding.stock(found.result.best.seed, name, latent=latent, noise_mask=mask))
        assert apart(found.latents * (mask - 1), latent * (mask - 1)) < 1e-5


def test_a_finished_draft_is_comfyuis_video_to_video(sounding):
    whole, drafter = (
        sounding.search(wanted(budget=Budget(images=4))),
        GuiderDrafter(sounding.guider(1.0)),
    )
    found = replace(whole, drafter=drafter, rest=whole.sigmas[4:]).run()
    seed = found.result.best.seed
    draft = sounding.stock(seed, cfg=1.0, steps=1)
    check(found, sounding.stock(seed, start_step=4, latent=draft))
    assert found.result.spent.cost.draft_calls == SEEDS


def test_particles_branch(sounding):
    sounding.rows.clear()
    how = wanted(sampler=SamplerOptions("sde"), search="smc", budget=Budget(nfe=40))
    found = sounding.search(how).run()
    assert sum(sounding.rows) == 2 * found.result.spent.nfe
    assert all(field.isfinite().all() for field in found.latents.unbind())


def test_the_node_gives_latents_that_stock_nodes_take_apart(sounding):
    import nodes
    from comfy_extras.nodes_lt import LTXVSeparateAVLatent

    from ttsnap.comfyui.inputs import Weighted
    from ttsnap.comfyui.nodes import search_sampler
    from ttsnap.reward_models.registry import make_reward

    positive, negative = sounding.texts
    latent = {"samples": sounding.latent(0, 0)}
    given = {
        "reward": (Weighted(make_reward("brightness"), 1.0),),
        "prompt": "",
        "seed": 5,
        "budget": Budget(images=4),
    }
    given |= {
        "model": sounding.model,
        "positive": positive,
        "negative": negative,
        "latent_image": latent,
    }
    given |= {
        "vae": Channels(),
        "steps": STEPS,
        "cfg": CFG,
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    given |= {"denoise": 1.0, "algorithm": "seed-pruning", "keep": 2}
    found, images, seeds, _, report = search_sampler.execute(**given).result
    video, sound = (each["samples"] for each in LTXVSeparateAVLatent.execute(found).result)
    how = (STEPS, CFG, "euler", "simple", positive, negative, latent)
    for i, seed in enumerate(seeds):
        [made] = nodes.KSampler().sample(sounding.model, seed, *how)
        for one, same in zip((video, sound), made["samples"].unbind(), strict=True):
            assert (one[i] - same[0]).abs().max() < 1e-4
    assert torch.allclose(nodes.VAEDecode().decode(Channels(), found)[0], images, atol=1e-4)
    assert f"KSampler with seed {seeds[0]} " in report


def test_a_small_vae_of_videos_shows_rewards_all_frames(sounding):
    import comfy.sd
    import latent_preview
    from comfy.taesd.taehv import TAEHV

    if "taeltx_2" not in latent_preview.VIDEO_TAES:
        pytest.skip("this ComfyUI has no small VAE for videos with sound")
    events, channels = list[Any](), sounding.shapes[0][1]
    previewer = latent_preview.TAEHVPreviewerImpl(comfy.sd.VAE(TAEHV(channels).state_dict()))
    search = sounding.search(wanted(), previewer=previewer)
    search.run(lambda event, _: events.append(event))
    first = next(event for event in events if event.kind == "score")
    assert first.image.shape == {24: (22, 3, 64, 64), 128: (9, 3, 128, 128)}[channels]
