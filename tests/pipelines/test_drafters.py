"""Drafters beside a pipeline's own network: what they guess, that nothing leaks, what is shared and
refused; and drafts that are finished, as stock diffusers makes them in two calls."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.drafting.drafters import Drafter, _settings
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.memory.acceleration import compile_denoiser
from ttsnap.sampling.drafts import HOT_SETTINGS, Checked, DraftSettings, write_draft, write_settings
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, UNGUIDED, jitter, quiet, save_lora, shared

PROMPTS = ["a red circle", "two dogs"]
HALF = DraftSettings(first_time=0.5)


def denoiser(pipe, name, **call):
    """A denoiser of a small call, for two prompts."""
    made = upgrade(pipe).denoiser(**{**FAMILIES[name].call, "num_inference_steps": 5, **call})
    made.encode(PROMPTS)
    return made


def unguided(pipe, name):
    made = denoiser(pipe, name, **UNGUIDED[name])
    # its scheduler tells the network whole timesteps, cut off below the noise that is there
    if name == "sana":
        made._times = replace(made._times, converted=True)
        made._follow(replace(made.schedule, timesteps=1000 * made.schedule.sigma))
        made.encode(PROMPTS)
    return made


def rows(made, *steps):
    """Noise, grid steps and prompts of as many rows."""
    x = made.init_latents([seeded(i) for i in range(len(steps))])
    return x, torch.tensor(steps), torch.arange(len(steps)) % 2


def drafted(base, spec, calls=1):
    """What a drafter guesses for a denoiser, which has it from now on."""
    use_drafter(base, spec)
    guess = base.drafts.guess(*rows(base, 0, 2), calls)
    return guess


def estimated(plain, *steps):
    """The x0 estimates of a denoiser itself at grid steps."""
    x, step, at = rows(plain, *(steps or (0, 2)))
    x0 = plain.predict(x, torch.from_numpy(plain.grid.calls)[step], at).x0
    return x0


def close(one, other):
    """Within what float32 makes of the times, relative to the size of the whole."""
    assert one.dtype == other.dtype == torch.float32
    assert float((one - other).norm() / other.norm()) < 2e-5


@pytest.fixture(autouse=True)
def no_graphs():
    with torch.no_grad():
        yield


@pytest.fixture
def lora(tmp_path):
    """A folder with a random LoRA for the network of a pipeline."""
    return lambda pipe, name="draft", **options: str(save_lora(pipe, tmp_path / name, **options))


def told_the_truth(base, plain, *steps):
    use_drafter(base, Drafter(base.net, DraftSettings(first_time=1.0)))
    close(base.drafts.guess(*rows(base, *steps), 1), estimated(plain, *steps))
    assert [base.drafts.level(k, 1) for k in steps] == pytest.approx(
        [base.grid.levels[k] for k in steps]
    )
    assert base.drafts.passes == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_one_hot_call_told_the_truth_is_the_stock_estimate_without_guidance(name):
    told_the_truth(denoiser(shared(name), name), unguided(shared(name), name), 0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "scheduler", "convert"),
    [
        (
            "sd15",
            diffusers.DDIMScheduler(**STABLE_DIFFUSION_BETAS, prediction_type="v_prediction"),
            None,
        ),
        ("sd15", diffusers.DDIMScheduler(**STABLE_DIFFUSION_BETAS, prediction_type="sample"), None),
        ("sd15", diffusers.HeunDiscreteScheduler(**STABLE_DIFFUSION_BETAS), None),
        ("sdxl", diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION_BETAS), "linear"),
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "vp"),
    ],
)
def test_other_schedulers_and_paths_are_told_of_equal_noise(name, scheduler, convert):
    pipe = FAMILIES[name].build(scheduler)
    base, plain = denoiser(pipe, name), denoiser(pipe, name, **UNGUIDED[name])
    for made in (base, plain) if convert else ():
        made.convert(convert)
        made.encode(PROMPTS)
    told_the_truth(base, plain, 1, 3)


def test_a_flow_is_told_less_noise_and_moves_along_the_same_noise():
    """Of the network's own output at the times that the contract names: FLUX, whose times are the
    noise levels."""
    base = denoiser(shared("flux_schnell"), "flux_schnell")
    x, steps, at = rows(base, 0, 2)
    t = base.times[steps].float().view(-1, 1, 1)
    made = drafted(base, "hot:2")

    def velocity(x, t):
        out = base.drafts.twin().drafted(x, 1000 * t.flatten(), steps, at)
        return out

    first = x - 0.87 * t * velocity(x, 0.87 * t)
    close(made, first)
    half = t / 2
    moved = (1 - half) * first + half * (x - (1 - t) * first) / t
    close(base.drafts.guess(x, steps, at, 2), moved - half * velocity(moved, half))
    assert base.drafts.calls == 2
    assert base.drafts.level(2, 1) == pytest.approx(0.87 * base.grid.levels[2])
    assert base.drafts.level(2, 2) == pytest.approx(base.grid.levels[2] / 2)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"pixart_sigma"}))
def test_a_lora_drafts_as_the_stock_pipeline_estimates_under_it(name, lora):
    folder, under = lora(shared(name)), FAMILIES[name].build()
    under.load_lora_weights(folder)
    guess = drafted(denoiser(shared(name), name), folder)
    close(guess, estimated(unguided(under, name)))
    assert float((guess - estimated(unguided(shared(name), name))).norm() / guess.norm()) > 1e-3


def test_nothing_leaks_into_the_model(lora, caplog):
    """Of others than SD 1.5, whose LoRA has layers for its text encoder, too, tests/gpu tells."""
    pipe = FAMILIES["sd15"].build()
    base = denoiser(pipe, "sd15")
    modules, parameters, words = (
        list(base.net.modules()),
        base.net.parameters,
        pipe.text_encoder.state_dict().keys(),
    )
    weights, flags = (
        [p.detach().clone() for p in parameters()],
        [p.requires_grad for p in parameters()],
    )
    given = rows(base, 0, 2)
    before = base.predict(*given)
    with caplog.at_level(logging.WARNING, "ttsnap"):
        use_drafter(base, lora(pipe, text_encoder=True))
    assert "its layers for text encoders are left out" in caplog.text
    loaded, _, after = base.predict(*given), base.drafts.guess(*given, 2), base.predict(*given)
    assert torch.equal(loaded.out, before.out)
    assert torch.equal(after.out, before.out)
    assert all(one is other for one, other in zip(modules, base.net.modules(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights, parameters(), strict=True))
    assert flags == [p.requires_grad for p in parameters()]
    assert pipe.text_encoder.state_dict().keys() == words
    assert not any(pipe.get_list_adapters().values())


def test_the_users_own_lora_stays_in_force_under_a_draft(lora):
    def under(**adapters):
        pipe = FAMILIES["sd3"].build()
        for name, where in adapters.items():
            pipe.load_lora_weights(where, adapter_name=name)
        return pipe

    style, draft = (
        lora(shared("sd3"), name, seed=seed) for name, seed in (("style", 1), ("draft", 2))
    )
    pipe, together = under(style=style), under(style=style, draft=draft)
    pipe.set_adapters(["style"], [0.5])
    together.set_adapters(["style", "draft"], [0.5, 1.0])
    base = denoiser(pipe, "sd3")
    before = estimated(base)
    both = drafted(base, draft)
    assert torch.equal(before, estimated(base))
    assert pipe.get_active_adapters() == ["style"]
    close(both, estimated(unguided(together, "sd3")))
    # Another scale of it is another drafter; without it, its layers go.
    pipe.set_adapters(["style"], [1.0])
    assert not torch.equal(drafted(base, draft), both)
    pipe.disable_lora()
    close(drafted(base, draft), estimated(unguided(under(draft=draft), "sd3")))


def test_the_settings_of_a_draft_are_beside_a_single_file_and_on_the_hub(
    lora,
    tmp_path,
    monkeypatch,
    caplog,
):
    folder, base = Path(lora(shared("sd3"), "here")), denoiser(shared("sd3"), "sd3")
    write_draft(folder, HALF)
    whole = drafted(base, str(folder))
    (folder / "pytorch_lora_weights.safetensors").rename(folder / "mine.safetensors")
    assert torch.equal(drafted(base, f"{folder}/mine.safetensors:2"), whole)
    assert base.drafts.calls == 2
    write_draft(tmp_path, HALF)
    hub = Mock(return_value=str(tmp_path / "draft.json"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    for where in ("a/b", "a/b/c.safetensors", "a/b/c/d.safetensors"):
        assert _settings(where) == HALF
        assert hub.call_args.args == ("a/b", "draft.json")
    for failure, said in ((EntryNotFoundError(""), False), (LocalEntryNotFoundError(""), True)):
        hub.side_effect = failure
        assert _settings("a/b") == DraftSettings()
        assert ("the hub cannot be asked" in caplog.text) == bool(caplog.text) == said


def test_another_network_drafts_from_its_folder_from_a_pipelines_and_from_python(
    tmp_path, monkeypatch
):
    pipe = FAMILIES["sd3"].build()
    other = jitter(copy.deepcopy(pipe.transformer))
    other.save_pretrained(tmp_path / "network")
    other.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    write_draft(tmp_path / "pipeline", HALF)
    monkeypatch.setenv("HOME", str(tmp_path))
    base = denoiser(pipe, "sd3")
    from_folder, from_python = drafted(base, "~/network"), drafted(base, other)
    swapped = type(pipe)(**{**pipe.components, "transformer": other})
    close(from_folder, estimated(unguided(swapped, "sd3")))
    assert torch.equal(from_python, from_folder)
    assert not torch.equal(drafted(base, f"{tmp_path / 'pipeline'}:3"), from_folder)
    assert (base.drafts.drafter.settings, base.drafts.calls) == (HALF, 3)


@pytest.mark.parametrize(("name", "passes"), [("flux", 1), ("sd3", 2)])
def test_a_draft_may_be_guided_where_a_network_reads_the_scale_or_the_call_prepares_two_passes(
    name, passes
):
    base = denoiser(shared(name), name)
    twice = Drafter(base.net, DraftSettings(guidance=2.0))
    close(drafted(base, twice), estimated(denoiser(shared(name), name, guidance_scale=2.0)))
    assert base.drafts.passes == passes
    if name == "sd3":
        close(
            drafted(unguided(shared(name), name), twice),
            estimated(denoiser(shared(name), name, guidance_scale=2.0)),
        )
        return
    close(drafted(base, Drafter(base.net)), estimated(base))  # at the scale of the call
    fast, schnell = FAMILIES["flux"].build(), shared("flux_schnell").transformer
    fast.transformer = schnell
    close(drafted(base, schnell), estimated(denoiser(fast, "flux")))


def test_a_draft_beside_a_compiled_network_is_not_compiled_and_leaves_the_other_so(
    lora,
):
    pipe, folder = FAMILIES["flux"].build(), lora(shared("flux"))
    compile_denoiser(pipe, backend="eager")
    base = denoiser(pipe, "flux")
    assert torch.equal(drafted(base, folder), drafted(denoiser(shared("flux"), "flux"), folder))
    compiled = {type(m) for m in base.net.modules() if m._compiled_call_impl is not None}
    assert len(compiled) == 2  # both kinds of blocks
    assert not any(m._compiled_call_impl is not None for m in base.drafts.drafter.net.modules())


def test_a_lora_that_is_not_merged_costs_more(lora, monkeypatch):
    """What a merged one and `hot` cost tests/gpu tells, also on the CPU."""
    monkeypatch.setattr("ttsnap.pipelines.drafting.drafters.MOST_MERGED", 0)
    base = denoiser(FAMILIES["sd3"].build(), "sd3")
    assert (base.drafts, base.costs().draft) == (None, 0.0)
    use_drafter(base, lora(shared("sd3")))
    one = base.costs().nfe / base.passes_per_nfe
    assert one < base.costs().draft < 1.5 * one


def test_a_second_call_finds_the_drafter_of_the_first(lora, tmp_path):
    pipe = upgrade(FAMILIES["sd3"].build())
    first, second, folder = denoiser(pipe, "sd3"), denoiser(pipe, "sd3"), lora(pipe)

    def net():
        use_drafter(second, f"{folder}:2")
        return second.drafts.drafter.net

    use_drafter(first, folder)
    write_draft(folder, HALF)  # as after a check
    assert net() is first.drafts.drafter.net
    assert [made.drafts.drafter.settings for made in (first, second)] == [DraftSettings(), HALF]
    assert (first.drafts.calls, second.drafts.calls) == (1, 2)
    for parameter in first.net.parameters():
        parameter.data.mul_(1.01)  # as fusing a LoRA does, without a word to torch
    assert (changed := net()) is not first.drafts.drafter.net
    (weights,) = (tmp_path / "draft").glob("*.safetensors")
    os.utime(weights, (0, 0))  # others in its place
    assert net() is not changed
    weights.unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        net()


def dark(images, prompts):
    return 1 - images.mean((1, 2, 3))


def test_a_call_takes_a_draft_and_its_winner_says_so(lora, caplog):
    pipe, call = (
        upgrade(FAMILIES["sd3"].build()),
        {**FAMILIES["sd3"].call, "num_inference_steps": 2},
    )
    folder = lora(pipe)

    def said(pipe, **draft):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ttsnap"):
            out = pipe("a cat", search=BestOfN(2), reward=dark, seed=3, **draft, **call)
        return out, caplog.text

    (plain, _), (drafted, doubt) = said(pipe), said(pipe, draft=f"{folder}:2")
    assert "not checked for StableDiffusion3Pipeline at 2 steps and guidance 5:" in doubt
    assert plain.search[0].best.seed == drafted.search[0].best.seed
    assert (np.asarray(plain.images[0]) == np.asarray(drafted.images[0])).all()
    payloads = [json.loads(output.images[0].info["ttsnap"]) for output in (plain, drafted)]
    assert [payload.get("draft") for payload in payloads] == [None, f"{folder}:2"]
    assert not said(pipe, draft=folder)[1]  # once is enough
    write_draft(folder, DraftSettings(checked=(Checked("StableDiffusion3Pipeline", 2, 5.0),)))
    assert not said(upgrade(FAMILIES["sd3"].build()), draft=folder)[1]
    with pytest.raises(ValueError, match=r"^draft .*search="):
        pipe("a cat", draft="hot", **call)


def test_a_search_by_drafts_pays_for_what_runs_and_returns_the_stock_image(
    lora,
):
    stock, call = FAMILIES["sd15"].build(), {**FAMILIES["sd15"].call, "num_inference_steps": 3}
    engine = upgrade(stock).engine(dark, batch_size=4, draft=f"{lora(stock)}:2", **call)
    made = engine.denoiser
    seen = {"base": 0, "draft": 0}
    for who, net in (("base", made.net), ("draft", made.drafts.drafter.net)):
        net.register_forward_hook(
            lambda *a, who=who: seen.update({who: seen[who] + len(a[-1][0])}), with_kwargs=True
        )
    pruning = SeedPruning(n=6, keep=(0.5,), steps=(1,), draft_share=0.4)
    result = search(["a cat"], pruning, engine, seed=7)[0]
    spent, best, tried = result.spent.cost, result.best, engine.calibration_cost
    assert spent.draft_calls == 2 * 6
    assert seen["draft"] == spent.draft_calls + tried.draft_calls
    assert seen["base"] == (spent.nfe + tried.nfe) * made.passes_per_nfe
    drafts = result.particles.scores[:, 0].ravel()
    assert np.isfinite(drafts).all()
    assert len(set(drafts.tolist())) == 6
    again = stock(
        "a cat", generator=torch.Generator().manual_seed(best.seed), output_type="pt", **call
    ).images[0]
    torch.testing.assert_close(best.image, again, atol=1e-4, rtol=0)


def test_the_untrained_drafter_takes_its_settings_from_a_file(tmp_path):
    scales = {"flux": 3.5, "flux_schnell": 1.0, "sd15": 5.0, "qwen_image": 3.0, "z_image": 3.0}
    # which checks are made for
    assert {name: denoiser(shared(name), name).scale for name in scales} == scales
    settings, file = (
        replace(HOT_SETTINGS, first_time=0.8, checked=(Checked("m", 2, 5.0),)),
        tmp_path / "hot.json",
    )
    write_settings(file, settings)
    made = denoiser(shared("sd3"), "sd3")
    use_drafter(made, f"{file}:2")
    assert (made.drafts.drafter.net, made.drafts.drafter.settings, made.drafts.calls) == (
        made.net,
        settings,
        2,
    )
    with pytest.raises(ValueError, match=r"cold\.json"):
        use_drafter(made, str(tmp_path / "cold.json"))


def latents_of(pipe, call, **how):
    """Of the winner of a search by drafts, or a plain one."""
    return pipe(
        prompt=PROMPTS[0],
        search=BestOfN(1),
        reward=dark,
        seed=3,
        output_type="latent",
        **how,
        **call,
    ).images


@pytest.mark.parametrize(
    ("name", "redraws", "scheduler"),
    [
        ("sd3", diffusers.StableDiffusion3Img2ImgPipeline, None),
        ("flux", diffusers.FluxImg2ImgPipeline, None),
        ("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline, None),
        *(
            (
                "sd15",
                diffusers.StableDiffusionImg2ImgPipeline,
                getattr(diffusers, kind)(**STABLE_DIFFUSION_BETAS, **more),
            )
            for kind in ("DPMSolverMultistepScheduler", "HeunDiscreteScheduler")
            for more in ({}, {"prediction_type": "v_prediction"})
        ),
    ],
)
def test_stock_makes_the_winner_again_in_two_calls(name, redraws, scheduler):
    """A draft is one step of the stock call with the drafter's weights, and its finish the stock
    image-to-image call from that latent: `strength` says from which step, and the generator of the
    seed draws the same noise."""
    stock, call = copy.copy(shared(name)), {**FAMILIES[name].call, "num_inference_steps": 12}
    stock.scheduler, network = (
        scheduler or stock.scheduler,
        "unet" if hasattr(stock, "unet") else "transformer",
    )
    drafter = Drafter(jitter(copy.deepcopy(getattr(stock, network))), DraftSettings())
    found = latents_of(upgrade(stock), call, draft=drafter, finish="0.6:3")
    denoiser = upgrade(stock).sampling_denoiser(
        SamplerOptions(draft=drafter, finish="0.6:3"), **call
    )
    assert (len(denoiser.drafts.whole.timesteps) < 12, denoiser.grid.steps) == (True, 3)

    def one_of(kind, **net):
        parts = {**stock.components, "scheduler": copy.deepcopy(stock.scheduler), **net}
        return quiet(
            kind(**{key: parts[key] for key in inspect.signature(kind).parameters if key in parts})
        )

    whole, first_time = denoiser.drafts.whole, drafter.settings.first_time
    first = {"sigmas": [first_time]}
    if whole.prediction != "flow":
        first = {"timesteps": [float(whole.timesteps[0]) * first_time]}
    scale = {"guidance_scale": call["guidance_scale"] if name == "flux" else 1.0}
    of_prompt = {"prompt": PROMPTS[0], "output_type": "latent"}
    draws = one_of(type(stock), **{network: drafter.net})
    again = {**call, **scale, "num_inference_steps": 1, **first, **of_prompt}
    again.pop("negative_prompt", None)
    latents = draws(**again, generator=seeded(3)).images
    redraw, redrawn = one_of(redraws), {**call, "num_inference_steps": whole.grid.steps}
    if name == "flux":
        size = denoiser.height, denoiser.width
        latents = redraw._unpack_latents(latents, *size, redraw.vae_scale_factor)
    if network == "unet":  # its image-to-image takes the size of the picture
        redrawn = {k: value for k, value in redrawn.items() if k not in ("height", "width")}
    share = denoiser.grid.steps / whole.grid.steps
    expected = redraw(
        image=latents, strength=share, generator=seeded(3), **{**redrawn, **of_prompt}
    ).images
    # latents of SDXL are as large as 10
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_drafts_of_every_model_are_finished(name):
    pipe, call = upgrade(shared(name)), {**FAMILIES[name].call, "num_inference_steps": 4}
    if name == "sd15":  # its own PNDM begins at the start alone
        pipe.scheduler = diffusers.DDIMScheduler(**STABLE_DIFFUSION_BETAS)
    denoiser = pipe.sampling_denoiser(SamplerOptions(draft="hot", finish=0.5), **call)
    assert 0 < denoiser.grid.levels[0] < 0.8
    assert denoiser.grid.steps < 4
    plain = latents_of(pipe, call)
    assert torch.equal(latents_of(pipe, call, draft="hot", finish=1), plain)
    assert not torch.equal(latents_of(pipe, call, draft="hot", finish=0.5), plain)


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ("", "cannot read draft ''"),
        ("hot:0", "draft 'hot:0'.* 1 to 16"),
        ("hot:17", "draft 'hot:17'"),
        ("hot:-1", "draft 'hot:-1'"),
        ("nowhere", "'nowhere'; choose one of hot, self, embedded"),
        ("embeded:2", "embedded"),
        ("/nowhere/at/all", "no such folder"),
        ("a/b/c.bin", "no such folder"),
        (3, "got int"),
        (torch.nn.Linear(1, 1), "Linear.* SD3Transformer2DModel"),
    ],
)
def test_what_names_no_drafter_is_refused(draft, said):
    with pytest.raises(ValueError, match=said):
        use_drafter(denoiser(shared("sd3"), "sd3"), draft)


def test_step_caches_and_a_peft_that_runs_what_a_file_names_are_refused(lora, monkeypatch):
    monkeypatch.setattr(
        "diffusers.utils.import_utils.is_peft_version", lambda *asked: asked == ("<", "0.20")
    )
    with pytest.raises(ValueError, match=r"peft>=0\.20"):
        use_drafter(denoiser(shared("sd3"), "sd3"), lora(shared("sd3")))
    base = denoiser(shared("flux"), "flux")
    cached = type(base.net).from_config(base.net.config)
    cached.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    for draft, name in ((cached, "draft"), (Drafter(cached), "draft.net")):
        with pytest.raises(ValueError, match=rf"^{name} .*{name}\.disable_cache\(\)"):
            use_drafter(base, draft)
    cached.disable_cache()
    use_drafter(base, cached)


def test_networks_and_loras_of_other_models_are_refused(lora, tmp_path):
    base = denoiser(shared("sd3"), "sd3")
    wider = type(base.net).from_config({**base.net.config, "in_channels": 8, "out_channels": 8})
    wider.save_pretrained(tmp_path / "wider")
    shared("flux").transformer.save_pretrained(tmp_path / "flux")
    (tmp_path / "empty").mkdir()
    folder = Path(lora(shared("sd3")))
    (folder / "draft.json").write_text(json.dumps({"format": 7}))
    for draft, said in (
        (wider, "draft: its in_channels is 8"),
        (str(tmp_path / "wider"), "wider: its in_channels is 8"),
        (str(tmp_path / "flux"), "FluxTransformer2DModel"),
        (lora(shared("sd15"), "unet"), "another family"),
        (str(tmp_path / "empty"), "not a LoRA"),
        (str(folder), "format 7"),
    ):
        with pytest.raises(ValueError, match=said):
            use_drafter(base, draft)
    assert base.drafts is None
    with pytest.raises(ValueError, match="SearchPixArtSigmaPipeline"):
        use_drafter(denoiser(shared("pixart_sigma"), "pixart_sigma"), lora(shared("sd3"), "unfit"))


def test_pipelines_with_hooks_and_fused_loras_draft_by_networks_of_their_own_only(
    lora,
):
    fused, folder = FAMILIES["sd3"].build(), lora(shared("sd3"))
    fused.load_lora_weights(lora(fused, "style", seed=1), adapter_name="style")
    fused.fuse_lora()
    with pytest.raises(ValueError, match=r"fused .*pipe\.unload_lora"):
        use_drafter(denoiser(fused, "sd3"), folder)
    pipe = FAMILIES["sd3"].build()
    pipe.enable_model_cpu_offload(device="cpu")
    base = denoiser(pipe, "sd3")
    with pytest.raises(ValueError, match="offloading"):
        use_drafter(base, folder)
    close(drafted(base, "hot"), drafted(denoiser(shared("sd3"), "sd3"), "hot"))


def test_drafts_that_cannot_be_finished_are_refused():
    stock = copy.copy(shared("sd15"))
    stock.scheduler = diffusers.PNDMScheduler(**STABLE_DIFFUSION_BETAS, skip_prk_steps=True)
    pipe, call = upgrade(stock), {**FAMILIES["sd15"].call, "num_inference_steps": 6}
    refused = (
        (0.6, "hot", "PNDMScheduler from a"),
        (0.6, None, "no drafter"),
        ("draft", "hot", "nothing is"),
    )
    for finish, draft, why in refused:
        with pytest.raises(ValueError, match=why):
            latents_of(pipe, call, draft=draft, finish=finish)
    sigmas = {**FAMILIES["sd3"].call, "sigmas": [1.0, 0.7, 0.4, 0.1]}
    with pytest.raises(ValueError, match="sigmas says"):
        latents_of(upgrade(shared("sd3")), sigmas, draft="hot", finish="0.6:3")
