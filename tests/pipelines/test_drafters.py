"""Drafters beside a pipeline's own network: what they guess, that nothing leaks, what is shared and refused."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.drafting.drafters import Drafter, _settings
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.memory.acceleration import compile_denoiser
from ttsnap.pipelines.memory.flops import setting_of
from ttsnap.sampling.drafts import HOT_SETTINGS, Checked, DraftSettings, write_draft, write_settings
from ttsnap.sampling.rng import seeded

from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, UNGUIDED, save_lora, shared

STEPS = 5


def denoiser(pipe: Any, name: str, **call: Any) -> Any:
    """A denoiser of a small call, for two prompts."""
    made = upgrade(pipe).denoiser(**{**FAMILIES[name].call, "num_inference_steps": STEPS, **call})
    made.encode(["a red circle", "two dogs"])
    return made


def unguided(pipe: Any, name: str) -> Any:
    """The same without guidance."""
    made = denoiser(pipe, name, **UNGUIDED[name])
    if name == "sana":  # its scheduler tells the network whole timesteps, cut off below the noise that is there
        made.schedule = replace(made.schedule, timesteps=1000 * made.schedule.sigma)
    return made


def rows(made: Any, *steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, grid steps and prompts of as many rows."""
    x = made.init_latents([seeded(i) for i in range(len(steps))])
    return x, torch.tensor(steps), torch.arange(len(steps)) % 2


def told(**settings: Any) -> DraftSettings:
    return DraftSettings(**settings)


def close(one: Tensor, other: Tensor) -> None:
    """Within what float32 makes of the times, relative to the size of the whole."""
    assert one.dtype == other.dtype == torch.float32
    assert float((one - other).norm() / other.norm()) < 2e-5


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., str]:
    """A folder with a random LoRA for the network of a pipeline."""
    return lambda pipe, name="draft", **options: str(save_lora(pipe, tmp_path / name, **options))


# --- what is guessed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_one_hot_call_told_the_truth_is_the_stock_estimate_without_guidance(name: str) -> None:
    pipe = shared(name)
    base, plain = denoiser(pipe, name), unguided(pipe, name)
    use_drafter(base, Drafter(base.net, told(first_time=1.0)))
    x, steps, at = rows(base, 0, 3, 1, 2)
    position = torch.from_numpy(base.grid.calls)[steps]
    close(base.drafts.guess(x, steps, at, 1), plain.predict(x, position, at).x0)
    assert [base.drafts.level(k, 1) for k in steps.tolist()] == pytest.approx([base.grid.levels[k] for k in steps])
    assert base.drafts.passes == 1


@pytest.mark.parametrize(("name", "scheduler", "convert"), [
    ("sd15", DDIMScheduler(**STABLE_DIFFUSION_BETAS, prediction_type="v_prediction"), None),
    ("sd15", DDIMScheduler(**STABLE_DIFFUSION_BETAS, prediction_type="sample"), None),
    ("sd15", HeunDiscreteScheduler(**STABLE_DIFFUSION_BETAS), None),
    ("sdxl", EulerDiscreteScheduler(**STABLE_DIFFUSION_BETAS), "linear"),
    ("sd3", FlowMatchEulerDiscreteScheduler(shift=3.0), "vp"),
])  # fmt: skip
def test_other_schedulers_and_paths_are_brought_to_the_network_at_equal_signal_to_noise_ratio(
    name: str, scheduler: Any, convert: str | None
) -> None:
    pipe = FAMILIES[name].build(scheduler)
    base, plain = denoiser(pipe, name), denoiser(pipe, name, **UNGUIDED[name])
    if convert is not None:
        base.convert(convert)
        plain.convert(convert)
    use_drafter(base, Drafter(base.net, told(first_time=1.0)))
    x, steps, at = rows(base, 1, 3)
    position = torch.from_numpy(base.grid.calls)[steps]
    close(base.drafts.guess(x, steps, at, 1), plain.predict(x, position, at).x0)
    assert [base.drafts.level(k, 1) for k in steps.tolist()] == pytest.approx([base.grid.levels[k] for k in steps])


def test_a_flow_is_told_less_noise_and_moves_along_the_same_noise() -> None:
    """Of the network's own output at the times that the contract names: FLUX, whose times are the noise levels."""
    base = denoiser(shared("flux_schnell"), "flux_schnell")
    use_drafter(base, "hot:2")
    x, steps, at = rows(base, 0, 2)
    t = base.times[steps].float().view(-1, 1, 1)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = base.guided(x, 1000 * t.flatten(), steps, at)
        return out

    first = x - 0.87 * t * velocity(x, 0.87 * t)
    close(base.drafts.guess(x, steps, at, 1), first)
    half = t / 2
    moved = (1 - half) * first + half * (x - (1 - t) * first) / t
    close(base.drafts.guess(x, steps, at, 2), moved - half * velocity(moved, half))
    assert base.drafts.calls == 2
    assert base.drafts.level(2, 1) == pytest.approx(0.87 * base.grid.levels[2])
    assert base.drafts.level(2, 2) == pytest.approx(base.grid.levels[2] / 2)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_the_batch_decides_nothing(name: str, lora: Callable[..., str]) -> None:
    pipe = shared(name)
    base = denoiser(pipe, name)
    use_drafter(base, lora(pipe))
    x, steps, at = rows(base, 0, 3, 1)
    together = base.drafts.guess(x, steps, at, 2)
    assert torch.equal(together, base.drafts.guess(x, steps, at, 2))
    for i in range(3):
        alone = base.drafts.guess(x[i : i + 1], steps[i : i + 1], at[i : i + 1], 2)
        torch.testing.assert_close(alone, together[i : i + 1], atol=2e-5, rtol=2e-5)


# --- a LoRA -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"pixart_sigma"}))
def test_a_lora_drafts_as_the_stock_pipeline_estimates_under_it(name: str, lora: Callable[..., str]) -> None:
    pipe = shared(name)
    folder = lora(pipe)
    write_draft(folder, told(first_time=1.0))
    base, bare = denoiser(pipe, name), unguided(pipe, name)
    use_drafter(base, folder)
    x, steps, at = rows(base, 0, 3)
    position = torch.from_numpy(base.grid.calls)[steps]
    under = FAMILIES[name].build()
    under.load_lora_weights(folder)
    plain = unguided(under, name)
    guess = base.drafts.guess(x, steps, at, 1)
    close(guess, plain.predict(x, position, at).x0)
    assert float((guess - bare.predict(x, position, at).x0).norm() / guess.norm()) > 1e-3


@pytest.mark.parametrize("name", ["sd15", "sd3"])  # of others tests/gpu tells
def test_nothing_leaks_into_the_models_own_evaluations(name: str, lora: Callable[..., str]) -> None:
    pipe = FAMILIES[name].build()
    base = denoiser(pipe, name)
    x, steps, at = rows(base, 0, 2)
    position = torch.from_numpy(base.grid.calls)[steps]
    modules, weights = list(base.net.modules()), [p.detach().clone() for p in base.net.parameters()]
    flags = [p.requires_grad for p in base.net.parameters()]
    before = base.predict(x, position, at)
    use_drafter(base, lora(pipe))
    loaded = base.predict(x, position, at)
    base.drafts.guess(x, steps, at, 2)
    after = base.predict(x, position, at)
    for other in (loaded, after):
        assert torch.equal(before.out, other.out)
        assert torch.equal(before.x0, other.x0)
    assert all(one is other for one, other in zip(modules, base.net.modules(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights, base.net.parameters(), strict=True))
    assert flags == [p.requires_grad for p in base.net.parameters()]
    assert not any(pipe.get_list_adapters().values())
    assert setting_of(base, "decode") == setting_of(denoiser(pipe, name), "decode")


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_a_merged_lora_guesses_as_its_adapters_do(
    name: str, lora: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = FAMILIES[name].build()
    folder, base = lora(pipe), denoiser(pipe, name)
    use_drafter(base, folder)
    merged = base.drafts
    assert not getattr(merged.drafter.net, "peft_config", None)
    base.pipe._search_memo.clear()
    monkeypatch.setattr("ttsnap.pipelines.drafting.drafters.MOST_MERGED", 0)
    use_drafter(base, folder)
    assert base.drafts.drafter.net.peft_config
    x, steps, at = rows(base, 0, 2)
    close(merged.guess(x, steps, at, 2), base.drafts.guess(x, steps, at, 2))


def test_a_merged_drafter_follows_weights_that_change_in_place(lora: Callable[..., str]) -> None:
    pipe = FAMILIES["sd3"].build()
    folder, base = lora(pipe), denoiser(pipe, "sd3")
    use_drafter(base, folder)
    first = base.drafts.drafter.net
    for parameter in base.net.parameters():
        parameter.data.mul_(1.01)  # as fusing a LoRA does, without a word to torch
    use_drafter(base, folder)
    assert base.drafts.drafter.net is not first


def test_the_users_own_lora_stays_in_force_under_a_draft(lora: Callable[..., str]) -> None:
    pipe = FAMILIES["sd3"].build()
    pipe.load_lora_weights(lora(pipe, "style", seed=1), adapter_name="style")
    pipe.set_adapters(["style"], [0.5])
    folder = lora(pipe, "draft", seed=2)
    base = denoiser(pipe, "sd3")
    x, steps, at = rows(base, 0, 2)
    before = base.predict(x, steps, at).x0
    flags = [p.requires_grad for p in base.net.parameters()]
    use_drafter(base, folder)
    both = base.drafts.guess(x, steps, at, 1)
    assert torch.equal(before, base.predict(x, steps, at).x0)
    assert flags == [p.requires_grad for p in base.net.parameters()]
    assert pipe.get_active_adapters() == ["style"]
    together = FAMILIES["sd3"].build()
    together.load_lora_weights(lora(together, "style", seed=1), adapter_name="style")
    together.load_lora_weights(folder, adapter_name="draft")
    together.set_adapters(["style", "draft"], [0.5, 1.0])
    close(both, denoiser(together, "sd3", guidance_scale=1.0).predict(x, steps, at).x0)
    # Another scale of it is another drafter; without it, its layers go.
    pipe.set_adapters(["style"], [1.0])
    use_drafter(base, folder)
    assert not torch.equal(base.drafts.guess(x, steps, at, 1), both)
    pipe.disable_lora()
    use_drafter(base, folder)
    alone = FAMILIES["sd3"].build()
    alone.load_lora_weights(folder)
    close(base.drafts.guess(x, steps, at, 1), denoiser(alone, "sd3", guidance_scale=1.0).predict(x, steps, at).x0)


def test_layers_for_text_encoders_are_left_out(lora: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    pipe = FAMILIES["sd15"].build()
    base = denoiser(pipe, "sd15")
    words = pipe.text_encoder.state_dict().keys()
    with caplog.at_level(logging.WARNING, "ttsnap"):
        use_drafter(base, lora(pipe, text_encoder=True))
    assert "its layers for text encoders are left out" in caplog.text
    assert pipe.text_encoder.state_dict().keys() == words
    assert base.drafts is not None


def test_a_single_file_drafts_by_the_settings_beside_it(lora: Callable[..., str]) -> None:
    pipe = FAMILIES["sd3"].build()
    folder = Path(lora(pipe))
    write_draft(folder, told(first_time=0.5))
    base = denoiser(pipe, "sd3")
    x, steps, at = rows(base, 0, 2)
    use_drafter(base, str(folder))
    whole = base.drafts.guess(x, steps, at, 1)
    (folder / "pytorch_lora_weights.safetensors").rename(folder / "mine.safetensors")
    use_drafter(base, f"{folder}/mine.safetensors:2")
    assert base.drafts.calls == 2
    assert torch.equal(base.drafts.guess(x, steps, at, 1), whole)


def test_the_settings_of_a_draft_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer: Path | Exception = tmp_path / "draft.json"

    def download(repository: str, file: str) -> str:
        assert (repository, file) == ("a/b", "draft.json")
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    write_draft(tmp_path, told(first_time=0.5))
    for where in ("a/b", "a/b/c.safetensors", "a/b/c/d.safetensors"):
        assert _settings(where) == told(first_time=0.5)
    answer = EntryNotFoundError("no such file")
    assert _settings("a/b") == told()
    assert not caplog.text
    answer = LocalEntryNotFoundError("offline")
    assert _settings("a/b") == told()
    assert "the hub cannot be asked for its draft.json" in caplog.text


# --- other networks -----------------------------------------------------------------------------------------------


def test_another_network_drafts_from_its_folder_from_a_pipelines_and_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = FAMILIES["sd3"].build()
    other = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(tmp_path / "network")
    other.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    write_draft(tmp_path / "pipeline", told(first_time=0.5))
    base = denoiser(pipe, "sd3")
    x, steps, at = rows(base, 0, 2)
    found = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    for draft in ("~/network", other, f"{tmp_path / 'pipeline'}:3"):
        use_drafter(base, draft)
        guess = found[base.drafts.drafter.settings.first_time, base.drafts.calls] = base.drafts.guess(x, steps, at, 1)
        assert torch.equal(base.drafts.guess(x, steps, at, 1), guess)
    assert found.keys() == {(1.0, 1), (0.5, 3)}
    swapped = type(pipe)(**{**pipe.components, "transformer": other})
    close(found[1.0, 1], denoiser(swapped, "sd3", guidance_scale=1.0).predict(x, steps, at).x0)
    assert not torch.equal(found[1.0, 1], found[0.5, 3])


def test_schnell_drafts_for_dev_which_reads_a_scale_of_guidance() -> None:
    dev, schnell = shared("flux"), shared("flux_schnell")
    base = denoiser(dev, "flux")
    x, steps, at = rows(base, 0, 2)
    use_drafter(base, schnell.transformer)
    fast = FAMILIES["flux"].build()
    fast.transformer = schnell.transformer
    close(base.drafts.guess(x, steps, at, 1), denoiser(fast, "flux").predict(x, steps, at).x0)
    use_drafter(base, Drafter(base.net, told(guidance=1.5)))
    close(base.drafts.guess(x, steps, at, 1), denoiser(dev, "flux", guidance_scale=1.5).predict(x, steps, at).x0)
    use_drafter(base, Drafter(base.net))  # at the scale of the call
    close(base.drafts.guess(x, steps, at, 1), base.predict(x, steps, at).x0)


def test_a_draft_may_be_guided_where_the_call_prepares_two_passes() -> None:
    pipe = shared("sd3")
    base = denoiser(pipe, "sd3")
    use_drafter(base, Drafter(base.net, told(guidance=2.0)))
    x, steps, at = rows(base, 0, 2)
    close(base.drafts.guess(x, steps, at, 1), denoiser(pipe, "sd3", guidance_scale=2.0).predict(x, steps, at).x0)
    assert base.drafts.passes == 2
    with pytest.raises(ValueError, match="guidance 2"):
        use_drafter(denoiser(pipe, "sd3", guidance_scale=1.0), Drafter(base.net, told(guidance=2.0)))


def test_a_draft_beside_a_compiled_network_is_not_compiled_and_leaves_the_other_so(lora: Callable[..., str]) -> None:
    pipe = FAMILIES["flux"].build()
    folder = lora(pipe)
    eager = denoiser(pipe, "flux")
    use_drafter(eager, folder)
    x, steps, at = rows(eager, 0, 2)
    guess = eager.drafts.guess(x, steps, at, 1)
    compile_denoiser(pipe, backend="eager")
    base = denoiser(pipe, "flux")
    base.pipe._search_memo.clear()
    use_drafter(base, folder)
    assert torch.equal(base.drafts.guess(x, steps, at, 1), guess)
    compiled = {type(m) for m in base.net.modules() if m._compiled_call_impl is not None}
    assert len(compiled) == 2  # both kinds of blocks
    assert not any(m._compiled_call_impl is not None for m in base.drafts.drafter.net.modules())


# --- what it costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", pytest.param("flux", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("real_flops")
def test_cost_is_counted_on_meta_for_one_pass(
    name: str, lora: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = FAMILIES[name].build()
    base = denoiser(pipe, name)
    assert (base.drafts, base.costs().draft) == (None, 0.0)
    use_drafter(base, "hot")
    one = base.costs().nfe / base.passes_per_nfe
    assert base.costs().draft == one
    use_drafter(base, folder := lora(pipe))
    assert base.costs().draft == one
    monkeypatch.setattr("ttsnap.pipelines.drafting.drafters.MOST_MERGED", 0)
    base.pipe._search_memo.clear()
    use_drafter(base, folder)
    assert one < base.costs().draft < 1.5 * one  # the LoRA's own products come on top
    use_drafter(base, Drafter(base.net, HOT_SETTINGS))
    assert base.costs().draft == one


# --- what is remembered, and what is refused ----------------------------------------------------------------------


def test_a_second_call_finds_the_drafter_of_the_first(lora: Callable[..., str], tmp_path: Path) -> None:
    pipe = upgrade(FAMILIES["sd3"].build())
    folder = lora(pipe)
    first = pipe.denoiser(**FAMILIES["sd3"].call)
    use_drafter(first, folder)
    write_draft(folder, told(first_time=0.5))  # as after a check
    second = pipe.denoiser(**FAMILIES["sd3"].call)
    use_drafter(second, f"{folder}:2")
    assert second.drafts.drafter.net is first.drafts.drafter.net
    assert (first.drafts.drafter.settings, second.drafts.drafter.settings) == (told(), told(first_time=0.5))
    assert (first.drafts.calls, second.drafts.calls) == (1, 2)
    (weights,) = (tmp_path / "draft").glob("*.safetensors")
    os.utime(weights, (0, 0))  # others in its place
    use_drafter(second, folder)
    assert second.drafts.drafter.net is not first.drafts.drafter.net
    weights.unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        use_drafter(upgrade(FAMILIES["sd3"].build()).denoiser(**FAMILIES["sd3"].call), folder)


def dark(images: Any, prompts: Any) -> Any:
    return 1 - images.mean((1, 2, 3))


def test_a_call_takes_a_draft_and_its_winner_says_so(
    lora: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = upgrade(FAMILIES["sd3"].build())
    folder, call = lora(pipe), {**FAMILIES["sd3"].call, "num_inference_steps": 2}
    plain = pipe("a cat", search=BestOfN(2), reward=dark, seed=3, **call)
    with caplog.at_level(logging.WARNING, "ttsnap"):
        drafted = pipe("a cat", search=BestOfN(2), reward=dark, seed=3, draft=f"{folder}:2", **call)
    here = "StableDiffusion3Pipeline at 2 steps and guidance 5"
    assert f"this draft was not checked for {here}: how well it ranks seeds there is not known" in caplog.text
    assert plain.search[0].best.seed == drafted.search[0].best.seed
    assert (np.asarray(plain.images[0]) == np.asarray(drafted.images[0])).all()
    payloads = [json.loads(output.images[0].info["ttsnap"]) for output in (plain, drafted)]
    assert [payload.get("draft") for payload in payloads] == [None, f"{folder}:2"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ttsnap"):  # once is enough
        pipe("a cat", search=BestOfN(1), reward=dark, draft=folder, **call)
    assert not caplog.text
    write_draft(folder, told(checked=(Checked("StableDiffusion3Pipeline", 2, 5.0),)))
    again = upgrade(FAMILIES["sd3"].build())
    again("a cat", search=BestOfN(1), reward=dark, draft=folder, **call)
    assert not caplog.text
    with pytest.raises(ValueError, match="unknown draft 'hut'"):
        pipe("a cat", search=BestOfN(1), reward=dark, draft="hut", **call)
    with pytest.raises(ValueError, match=r"^draft .*search="):
        pipe("a cat", draft="hot", **call)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_search_by_drafts_pays_for_what_runs_and_returns_the_stock_image(name: str, lora: Callable[..., str]) -> None:
    stock = FAMILIES[name].build()
    twin, call = upgrade(stock), {**FAMILIES[name].call, "num_inference_steps": 3}
    engine = twin.engine(dark, batch_size=4, draft=f"{lora(stock)}:2", **call)
    made: Any = engine.denoiser
    seen = {"base": 0, "draft": 0}

    def count(who: str) -> Callable[..., None]:
        return lambda module, arguments, named, out: seen.update({who: seen[who] + len(out[0])})

    made.net.register_forward_hook(count("base"), with_kwargs=True)
    made.drafts.drafter.net.register_forward_hook(count("draft"), with_kwargs=True)
    pruning = SeedPruning(n=6, keep=(0.5,), steps=(1,), draft_share=0.4)
    result = search(["a cat"], pruning, engine, seed=7)[0]
    spent = result.spent.cost
    assert 0 < spent.draft_calls == seen["draft"] == 2 * 6
    assert seen["base"] == spent.nfe * made.passes_per_nfe
    drafts = result.particles.scores[:, 0].ravel()
    assert np.isfinite(drafts).all()
    assert len(set(drafts.tolist())) == 6
    best = result.best
    again = stock("a cat", generator=torch.Generator().manual_seed(best.seed), output_type="pt", **call).images[0]
    torch.testing.assert_close(best.image, again, atol=1e-4, rtol=0)


def test_the_guidance_of_a_call_is_what_its_network_reads_or_what_guides_its_passes() -> None:
    scales = {"flux": 3.5, "flux_schnell": 1.0, "sd15": 5.0, "qwen_image": 3.0, "z_image": 3.0}
    assert {name: denoiser(shared(name), name).scale for name in scales} == scales


@pytest.mark.parametrize(("draft", "said"), [
    ("", "cannot read draft ''"), ("hot:0", "draft 'hot:0'.* 1 to 16"), ("hot:17", "draft 'hot:17'"),
    ("hot:-1", "draft 'hot:-1'"), ("nowhere", "'nowhere'; choose one of hot, embedded"), ("embeded:2", "embedded"),
    ("/nowhere/at/all", "no such folder"), ("a/b/c.bin", "no such folder"), (3, "got int"),
    (torch.nn.Linear(1, 1), "Linear.* SD3Transformer2DModel"),
])  # fmt: skip
def test_what_names_no_drafter_is_refused(draft: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use_drafter(denoiser(shared("sd3"), "sd3"), draft)


def test_the_untrained_drafter_takes_its_settings_from_a_file(tmp_path: Path) -> None:
    settings, file = replace(HOT_SETTINGS, first_time=0.8, checked=(Checked("m", 2, 5.0),)), tmp_path / "hot.json"
    write_settings(file, settings)
    made = denoiser(shared("sd3"), "sd3")
    use_drafter(made, f"{file}:2")
    assert (made.drafts.drafter.net, made.drafts.drafter.settings, made.drafts.calls) == (made.net, settings, 2)
    with pytest.raises(ValueError, match=r"cold\.json"):
        use_drafter(made, str(tmp_path / "cold.json"))


def test_a_peft_that_runs_what_a_file_names_is_refused(
    lora: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = upgrade(FAMILIES["sd3"].build())
    folder = lora(pipe)
    monkeypatch.setattr(
        "diffusers.utils.import_utils.is_peft_version", lambda operation, version: (operation, version) == ("<", "0.20")
    )
    with pytest.raises(ValueError, match=r"peft>=0\.20"):
        use_drafter(pipe.denoiser(**FAMILIES["sd3"].call), folder)


def test_a_network_with_a_step_cache_is_refused() -> None:
    base = denoiser(shared("flux"), "flux")
    cached = type(base.net).from_config(base.net.config)
    cached.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for draft, name in ((cached, "draft"), (Drafter(cached), "draft.net")):
        with pytest.raises(ValueError, match=rf"^{name} .*{name}\.disable_cache\(\)"):
            use_drafter(base, draft)
    cached.disable_cache()
    use_drafter(base, cached)


def test_networks_and_loras_of_other_models_are_refused(lora: Callable[..., str], tmp_path: Path) -> None:
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


def test_pipelines_with_hooks_and_fused_loras_draft_by_networks_of_their_own_only(lora: Callable[..., str]) -> None:
    pipe = FAMILIES["sd3"].build()
    folder = lora(pipe)
    pipe.load_lora_weights(lora(pipe, "style", seed=1), adapter_name="style")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"fused .*pipe\.unload_lora"):
        use_drafter(denoiser(pipe, "sd3"), folder)
    pipe = FAMILIES["sd3"].build()
    pipe.enable_model_cpu_offload(device="cpu")
    base = denoiser(pipe, "sd3")
    with pytest.raises(ValueError, match="offloading"):
        use_drafter(base, folder)
    x, steps, at = rows(base, 0, 2)
    use_drafter(base, "hot")
    whole = denoiser(FAMILIES["sd3"].build(), "sd3")
    use_drafter(whole, "hot")
    close(base.drafts.guess(x, steps, at, 1), whole.drafts.guess(x, steps, at, 1))
