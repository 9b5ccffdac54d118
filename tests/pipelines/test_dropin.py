"""Search pipelines where stock ones are expected: converting, loading, offload, arguments, outputs,
refusals."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import itertools
import json
import pickle
import re
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers import StableDiffusion3Img2ImgPipeline as Img2Img
from diffusers import StableDiffusion3Pipeline as Stock
from diffusers.hooks import apply_pyramid_attention_broadcast
from diffusers.pipelines.stable_diffusion_3 import StableDiffusion3PipelineOutput
from transformers import CLIPImageProcessor, T5Config, T5EncoderModel

from ttsnap import BestOfN, SeedPruning
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core.results import Candidate, Result
from ttsnap.options.call import CALL as READ
from ttsnap.options.every import DECLARED
from ttsnap.pipelines import (
    defaults,
    downgrade,
    load,
    mixin,
    search_class,
    upgrade,
)
from ttsnap.pipelines.drafting import drafters
from ttsnap.pipelines.opening import moves, placed
from ttsnap.pipelines.output import reported, search_output, stock_output
from ttsnap.pipelines.search_pipeline import CallArguments, SearchPipeline
from ttsnap.reward_models.registry import make_rewards

from .modular.test_classic import ALL
from .tiny import FAMILIES as TINY
from .tiny import character_tokenizer, quiet, save_lora, sd3, sd15, sdxl, shared

Twin = search_class(Stock)
CALL = {**TINY["sd3"].call, "num_inference_steps": 4, "output_type": "pt"}
PROMPTS = ["a cat", "two dogs"]


def mean_red(images, prompts):
    return images[:, 0].mean((1, 2))


SEARCH = {
    "search": SeedPruning(4, (0.5,), steps=(1,)),
    "reward": mean_red,
    "seed": 0,
}


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def plain(pipe, seed=1, **changes):
    """The stock image of a seed."""
    return pipe("a cat", generator=generator(seed), **{**CALL, **changes}).images


def found(pipe, prompt="a cat", **changes):
    return pipe(prompt, **{**SEARCH, **CALL, **changes})


def count_calls(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def stock():
    return sd3()


@pytest.fixture(scope="module")
def winner():
    """What a search finds without any of what the tests below add."""
    return found(upgrade(sd3()))


@pytest.fixture
def saved(tmp_path, stock):
    upgrade(stock).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_upgrade_leaves_the_original_untouched(stock):
    stock.enable_model_cpu_offload(device="cpu")
    config, bar, scheduler = dict(stock.config), stock._progress_bar_config, stock.scheduler
    before, hooks = plain(stock), list(stock._all_hooks)
    twin = upgrade(stock)
    assert (twin.transformer, twin._all_hooks) == (stock.transformer, hooks)
    twin.set_progress_bar_config(disable=True, desc="other")
    found(twin)
    str(twin)  # diffusers writes the class's name into the configuration here
    assert type(stock) is Stock
    assert stock._all_hooks == hooks
    assert {k: v for k, v in stock.config.items() if k[0] != "_"} == {
        k: v for k, v in config.items() if k[0] != "_"
    }
    assert stock.config.get("_class_name") != type(twin).__name__
    assert stock._progress_bar_config is bar
    assert stock.scheduler is scheduler is not twin.scheduler
    assert torch.equal(plain(stock), before)
    assert torch.equal(plain(twin), before)
    assert upgrade(twin) is twin
    parameters = inspect.signature(type(twin).__call__).parameters
    assert {*inspect.signature(Stock.__call__).parameters, "search", "budget"} < set(parameters)


def test_half_precision_and_mixed_parts_are_not_cast(stock):
    stock.to(torch.bfloat16).vae.float()
    for twin in (upgrade(stock), Twin.from_pipe(stock)):
        assert {p.dtype for p in stock.transformer.parameters()} == {torch.bfloat16}
        assert twin.vae.dtype == torch.float32
    Twin.from_pipe(stock, dtype=torch.float32)
    assert stock.transformer.dtype == torch.float32  # weights are shared: asked for, it is cast


def test_from_pipe_takes_other_parts(stock):
    make, scheduler = Twin.from_pipe, FlowMatchEulerDiscreteScheduler(shift=1.0)
    stock.enable_model_cpu_offload(device="cpu")
    twin = make(stock, scheduler=scheduler)
    assert (type(twin), twin.scheduler, twin.transformer) == (Twin, scheduler, stock.transformer)
    assert stock.scheduler.config.shift == 3.0
    assert (twin._all_hooks, twin._progress_bar_config) == (
        stock._all_hooks,
        stock._progress_bar_config,
    )
    assert twin._progress_bar_config is not stock._progress_bar_config
    stock.scheduler = scheduler
    assert torch.equal(plain(twin), plain(stock))
    assert type(make(twin)) is type(twin)
    assert make(twin) is not twin
    bare = make(stock, text_encoder_2=None)
    assert (bare.text_encoder_2, bare.config["text_encoder_2"]) == (None, (None, None))
    with pytest.raises(ValueError, match=r"no unet; .*transformer"):
        make(stock, unet=None)


def test_from_and_to_pipelines_of_other_tasks(stock):
    other = quiet(Img2Img(**stock.components))
    twin = Twin.from_pipe(other)
    assert torch.equal(plain(twin), plain(stock))
    assert Img2Img.from_pipe(twin).transformer is stock.transformer
    back = downgrade(upgrade(stock))
    assert type(back) is Stock
    assert back.transformer is stock.transformer
    assert downgrade(stock) is stock
    # AutoPipeline goes by the class's name.
    assert type(diffusers.AutoPipelineForText2Image.from_pipe(back)) is Stock
    assert type(diffusers.AutoPipelineForImage2Image.from_pipe(back)) is Img2Img


def test_no_pipeline_is_made_of_another_familys_parts_unless_they_are_replaced():
    """Their networks bear the same names; stock refuses the same pairs, and nothing is loaded or
    cast."""
    families = [shared(name) for name in TINY if name != "flux_schnell"]
    for other, own in itertools.permutations(families, 2):
        for cls in (type(own), search_class(type(own))):
            with pytest.raises(ValueError, match=r"needs|expected"):
                cls.from_pipe(other)
    own, other = shared("flux"), shared("sd3")
    with pytest.raises(ValueError, match=r"transformer, .* SD3Transformer2D"):
        search_class(type(own)).from_pipe(other)
    parts = {
        name: own.components[name] for name in ("transformer", "text_encoder_2", "tokenizer_2")
    }
    made = search_class(type(own)).from_pipe(other, **parts)
    assert made.transformer is own.transformer
    assert made.vae is other.vae


class OtherEncoding(Stock):  # type: ignore[misc]
    def encode_prompt(self, *args, **kwargs):
        return tuple(e if e is None else -e for e in super().encode_prompt(*args, **kwargs))


class OtherCall(Stock):  # type: ignore[misc]
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Loud(Twin):  # type: ignore[misc]
    def __call__(self, prompt, **kwargs):
        return super().__call__(prompt, **{**SEARCH, **kwargs})


def test_a_subclass_gets_a_twin_of_its_own(stock, winner, tmp_path):
    stock.__class__ = OtherEncoding
    twin = upgrade(stock)
    restored = pickle.loads(pickle.dumps(twin))
    assert type(restored) is type(twin)
    assert type(twin).__name__ == "SearchOtherEncoding"
    assert isinstance(twin, OtherEncoding)
    assert type(twin) is search_class(OtherEncoding)
    assert torch.equal(plain(twin), plain(stock))
    images = found(twin).images
    assert not torch.allclose(images, winner.images, atol=1e-3)
    assert torch.equal(found(restored).images, images)
    assert type(downgrade(twin)) is OtherEncoding
    own = copy.copy(twin)
    own.__class__ = type("Own", (type(twin),), {})
    assert type(copy.copy(own)) is type(own)
    twin.save_config(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "OtherEncoding"
    stock.__class__ = OtherCall
    assert type(upgrade(stock)).__name__ == "SearchOtherCall"
    torch.testing.assert_close(found(upgrade(stock)).images, winner.images, atol=1e-5, rtol=0)
    assert torch.equal(found(Twin.from_pipe(stock)).images, winner.images)
    loud = Loud.from_pipe(stock)  # a subclass of a search pipeline keeps its call
    assert loud("a cat", **CALL).search[0].best
    assert upgrade(loud) is loud
    assert json.loads(loud.to_json_string())["_class_name"] == "StableDiffusion3Pipeline"


def test_saved_and_loaded(stock, saved):
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    made = (cls.from_pretrained(saved, **absent) for cls in (DiffusionPipeline, Twin))
    for pipe, cls in zip((*made, load(saved)), (Stock, Twin, Twin), strict=True):
        assert type(pipe) is cls
        torch.testing.assert_close(plain(quiet(pipe)), plain(stock), atol=1e-5, rtol=0)
    assert load(saved, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


def test_a_revision_may_be_pinned(stock, monkeypatch):
    seen = {}
    there = []
    monkeypatch.setattr("ttsnap.pipelines.require_repository", lambda *which: there.append(which))
    monkeypatch.setattr(
        DiffusionPipeline, "from_pretrained", lambda model, **options: seen.update(options) or stock
    )
    load("someone/model", revision="abc123")
    assert seen == {"use_safetensors": True, "revision": "abc123"}
    assert there == [("someone/model", "abc123", None)], (
        "a copy of that revision will do, of another it will not"
    )


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGES = [
    (f"transformer/{WEIGHTS}", truncated),
    (f"transformer/{WEIGHTS}", lambda path: path.write_bytes(b"\xff" * 64)),
    (f"vae/{WEIGHTS}", lambda path: path.rename(path.with_suffix(".bin"))),  # a pickle
    ("transformer/config.json", truncated),
    ("transformer/config.json", lambda path: path.write_text('{"num_layers": "x"}')),
    ("scheduler/scheduler_config.json", lambda path: path.write_text("[" * 10**5)),
    ("vae/config.json", Path.unlink),
    ("model_index.json", truncated),
    ("model_index.json", lambda path: path.write_text("[1]")),
    ("model_index.json", lambda path: path.write_text('{"_class_name": 3}')),
]


def test_damaged_models_are_one_sentence(saved):
    for name, damage in DAMAGES:
        whole = (saved / name).read_bytes()
        damage(saved / name)
        with pytest.raises(ValueError, match="saved") as caught:
            load(saved)
        assert "\n" not in str(caught.value), name
        (saved / name).write_bytes(whole)
    load(saved)


def test_a_model_names_no_code(saved, tmp_path, monkeypatch):
    """diffusers imports the library that model_index.json names, and the working directory may be
    on the path."""
    (tmp_path / "ttsnap_evil.py").write_text("class Thing: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    index = json.loads((saved / "model_index.json").read_text())
    for part in ("vae", "_class_name"):
        (saved / "model_index.json").write_text(
            json.dumps({**index, part: ["ttsnap_evil", "Thing"]})
        )
        with pytest.raises(
            ValueError, match=f"{part} .*saved is code from 'ttsnap_evil'.* trust_remote_code=True"
        ):
            load(saved)
    assert "ttsnap_evil" not in sys.modules
    (saved / "ttsnap.json").write_text('{"callback": "x"}')
    with pytest.raises(ValueError, match=r"call\.callback"):
        defaults(saved)


def sequential(pipe):
    """As enable_sequential_cpu_offload, which on a CPU fails in accelerate: that cannot onload to
    "cpu:0"."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(
                part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0
            )


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
    "sequential": sequential,
}


@pytest.mark.parametrize(
    ("offload", "before"), [("model", True), ("group", False), ("sequential", True)]
)
def test_offload(stock, winner, offload, before, monkeypatch):
    """Rewards are made and asked where the pipeline computes."""
    seen = []

    def reward(images, prompts):
        seen.append(images.device)
        return mean_red(images, prompts)

    def make(rewards, device):
        seen.append(device)
        return make_rewards(rewards, device=device)

    monkeypatch.setattr(mixin, "make_rewards", make)
    twin = upgrade(OFFLOADS[offload](stock) or stock) if before else upgrade(stock)
    if not before:
        OFFLOADS[offload](twin)
    assert offload != "sequential" or twin.device.type == "meta"
    for _ in range(2):
        torch.testing.assert_close(
            found(twin, reward=reward).images, winner.images, atol=1e-5, rtol=0
        )
    assert {device.type for device in seen} == {"cpu"}
    torch.testing.assert_close(
        plain(stock, winner.search[0].best.seed), winner.images, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("gib", "stays"), [(1e-6, False), (1, True)])
def test_a_vae_that_fits_beside_the_denoiser_does_not_send_it_away(
    stock, winner, gib, stays, monkeypatch
):
    monkeypatch.setattr(
        "ttsnap.pipelines.opening.gauge_of", lambda place: SimpleNamespace(free=lambda: gib * 2**30)
    )
    twin = placed(upgrade(stock), torch.device("cpu"), "model")
    for _ in range(2):  # a call ends by setting hooks anew
        torch.testing.assert_close(found(twin).images, winner.images, atol=1e-5, rtol=0)
        assert hasattr(twin.transformer, "_hf_hook")
        assert (
            hasattr(twin.vae, "_hf_hook")
            is twin.denoiser(**TINY["sd3"].call).offloaded
            is not stays
        )
    assert ("stay there: vae" in moves(twin)) is stays


def test_step_caches_are_refused(stock):
    twin, calls = upgrade(stock), count_calls(stock.transformer)
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: twin.current_timestep,
    )
    apply_pyramid_attention_broadcast(stock.transformer, config)
    for call in (lambda: found(twin), lambda: twin.engine(mean_red)):
        with pytest.raises(ValueError, match="PyramidAttentionBroadcastHook"):
            call()
    assert not calls


def test_rewards_may_read_other_texts_than_the_model(stock):
    read = []

    def reward(images, prompts):
        read.extend(prompts)
        return mean_red(images, prompts)

    twin = upgrade(stock)
    texts = (text for text in PROMPTS)
    output = found(twin, texts, reward_prompts="an animal", reward=reward, report=reward)
    assert torch.equal(output.images, found(twin, PROMPTS).images)
    assert set(read) == {"an animal"}
    assert [result.prompt for result in output.search] == PROMPTS
    with pytest.raises(ValueError, match="needs a prompt"):
        found(twin, texts)  # which is at its end


EMBEDDED = {
    "prompt": None,
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), torch.zeros(2, 85, 96)),
}
EMBEDDED |= dict.fromkeys(
    ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), torch.zeros(2, 64)
)
REFUSED = [
    ({"reward": None}, "reward="),
    ({"prompt": None}, "a prompt"),
    ({"prompt": ["a", 3]}, "list of prompts"),
    ({"budget": "3nfe"}, "too small"),
    ({"budget": "1mflop"}, "FLOPs"),
    ({"effort": "low", "budget": "9nfe"}, "not both: 9nfe and low"),
    ({"search": "beam"}, "'beam'"),
    ({"search": None}, "without search="),
    ({"reward": "nice"}, "'nice'"),
    ({"kernel": "leap"}, "'leap'"),
    ({"utility": "best"}, "'best'"),
    ({"batch_size": 0}, "batch_size .* got 0"),
    (
        {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
        "callback_on_step_end_tensor_inputs",
    ),
    ({"num_inference_steps": "4"}, "num_inference_steps .* got '4'"),
    ({"guidance_scale": "high"}, "guidance_scale .* got 'high'"),
    ({"num_images_per_prompt": 2.5}, "whole number, got 2.5"),
    ({"prompt": ["a", "b"], "negative_prompt_3": ["x"] * 3}, "negative_prompt_3 has 3"),
    (EMBEDDED, "reward_prompts="),
    ({**EMBEDDED, "reward_prompts": ["one"]}, "reward_prompts has 1"),
    ({**EMBEDDED, "prompt": PROMPTS}, "not both"),
    (
        {**EMBEDDED, "pooled_prompt_embeds": torch.zeros(1, 64), "reward_prompts": "a"},
        "pooled_prompt_embeds has 1",
    ),
]


def test_what_cannot_be_honoured_is_refused_before_any_compute(stock):
    calls, twin = count_calls(stock.transformer), upgrade(stock)
    for change, said in REFUSED:
        with pytest.raises(ValueError, match=said):
            found(twin, **{"search": "best-of-n", "budget": "20nfe", **change})
    assert not calls


def test_arguments_at_their_defaults_ask_for_nothing(stock, winner):
    named = {
        "skip_layer_guidance_scale": 2.8,
        "callback_on_step_end_tensor_inputs": ["latents"],
        "latents": None,
    }
    assert torch.equal(found(upgrade(stock), **named).images, winner.images)
    own = {"shared": False, "kernel": "pipeline", "utility": "mean", "seed": None}
    assert torch.equal(
        upgrade(stock)("a cat", generator=generator(), **own, **CALL).images, plain(stock)
    )
    for given in ({"shared": True}, {"seed": 0}, {"kernel": "ode"}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}.* without search="):
            upgrade(stock)("a cat", **given, **CALL)


def test_the_call_that_type_checkers_see_is_the_call_that_pipelines_have():
    parameters = inspect.signature(SearchPipeline.__call__).parameters.values()
    found = [(each.name, each.default) for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert found == [(option.name, option.default) for option in DECLARED.values()]
    calls = [getattr(diffusers, name).__call__ for name in {case.kind for case in ALL.values()}]
    stock = {
        name
        for call in calls
        for name in inspect.signature(call).parameters
        if not name.startswith("_")
    }
    assert set(READ) <= stock - {"self", "kwargs", "prompt"} == set(CallArguments.__annotations__)


def test_what_is_no_prompt_is_refused_as_in_stock(capfd):
    embedded = load()  # has a vocabulary
    assert capfd.readouterr().err == "", "the libraries' bars"
    for how in ({}, SEARCH):
        with pytest.raises(ValueError, match=r"(?s)'cat'.*: .*circle"):
            embedded("a red cat", **how)
    for pipe, call in ((upgrade(shared("sd3")), CALL), (embedded, {})):
        for prompt in (3, {"a": 1}, b"a cat"):
            with pytest.raises(ValueError, match="`prompt`"):
                pipe(prompt, **call)
            for wrong in (prompt, ["a red circle", prompt]):
                with pytest.raises(ValueError, match="needs a prompt"):
                    pipe(wrong, **SEARCH, **call)


def test_misspelt_arguments_are_recognised():
    pipe = upgrade(shared("sd3"))
    steps, asked = "num_inference_steps", {"budgets": "budget", "rewards": "reward"}
    for wrong, right in {**asked, "num_inference_step": steps, "num_steps": steps}.items():
        with pytest.raises(TypeError, match=f"'{wrong}'; did you mean {right}\\?$"):
            found(pipe, **{wrong: "100nfe"})
    # where the call takes any name
    with pytest.raises(ValueError, match=r"\['budgets'\] .*; did you mean budget\?"):
        upgrade(shared("sd15"))("a cat", budgets="100nfe", num_inference_steps=2, **SEARCH)
    with pytest.raises(ValueError, match="heigth"):
        pipe.denoiser(heigth=64)


def test_an_empty_text_for_another_encoder_is_none():
    image = found(
        upgrade(shared("sd3")), search=BestOfN(1), seed=3, prompt_2="", prompt_3=""
    ).images
    torch.testing.assert_close(image, plain(shared("sd3"), 3), atol=1e-5, rtol=0)


def test_output_is_the_familys_own(winner):
    assert isinstance(winner, StableDiffusion3PipelineOutput)
    assert winner[0] is winner.images
    assert winner["search"] is winner.search
    made = search_output(StableDiffusion3PipelineOutput)(images=[1], search=[])
    restored = pickle.loads(pickle.dumps(made))
    assert type(copy.copy(winner)) is type(made) is type(restored) is type(winner)
    assert (restored.images, restored.search) == ([1], [])
    names = [stock_output(type(shared(name)).__call__).__name__ for name in ("sd15", "flux")]
    assert names == ["StableDiffusionPipelineOutput", "FluxPipelineOutput"]


def test_fewer_images_than_asked_come_with_a_warning():
    pipe, two = upgrade(shared("sd3")), {**SEARCH, "search": BestOfN(2), **CALL}
    with pytest.warns(UserWarning, match=r"2 of 2 prompts .* 3 .* \(2 of 'a cat'\)") as seen:
        out = pipe(PROMPTS, **two, num_images_per_prompt=3)
    assert seen[0].filename == __file__
    assert all("2 of the 3 images" in result.warnings[-1] for result in out.search)
    returned = torch.stack(
        [candidate.image for result in out.search for candidate in result.images]
    )
    assert torch.equal(out.images, returned)
    assert len(out.images) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pipe(PROMPTS, **two, num_images_per_prompt=2).images) == 4


@pytest.mark.parametrize("output_type", ["pt", "np", "latent"])
def test_what_comes_back_has_the_dtype_of_the_stock_call(stock, output_type):
    """Pruned winners, too, which share batches with estimates, which are wider."""
    twin, expected = upgrade(stock.to(torch.bfloat16)), plain(stock, 0, output_type=output_type)
    out = found(twin, search=BestOfN(1), output_type=output_type)
    assert out.images.dtype == expected.dtype
    assert (out.images == expected).all()
    assert out.search[0].best.image.dtype == torch.float32  # for rewards, and unchanged by that
    two = {"num_images_per_prompt": 2, "output_type": output_type, "return_dict": False}
    pruned, _ = found(twin, PROMPTS, search=SeedPruning(5, (0.4,), steps=(1,)), batch_size=2, **two)
    assert (pruned.dtype, pruned[0].shape) == (expected.dtype, expected[0].shape)


def test_several_rewards_and_reports(stock):
    def green(images, prompts):
        return images[:, 1].mean((1, 2))

    def broken(images, prompts):
        raise RuntimeError("no")

    search = {
        "search": BestOfN(4),
        "reward": [mean_red, green],
        "utility": [0.0, 1.0],
        "num_images_per_prompt": 4,
    }
    (result,) = found(upgrade(stock), report=[mean_red, broken], **search).search
    assert [c.scores["green"] for c in result.images] == sorted(
        c.scores["green"] for c in result.images
    )[::-1]
    assert all(
        c.metrics["mean_red"] == pytest.approx(c.scores["mean_red"], abs=1e-6)
        for c in result.images
    )
    assert result.spent.cost.reward_calls == 8
    assert "broken: RuntimeError: no" in result.warnings[-1], "which loses no image"


def test_interrupt_ends_the_search_with_what_is_finished(stock):
    twin = upgrade(stock)

    def stop(event):
        if event.kind == "score" and event.step == CALL["num_inference_steps"]:
            twin._interrupt = True

    output = found(twin, search=BestOfN(8), batch_size=2, decode_batch_size=2, on_event=stop)
    (result,) = output.search
    assert (result.spent.finished, len(output.images)) == (2, 1)
    assert "stopped early" in result.warnings[0]
    assert found(twin).search[0].spent.finished == 2  # the flag is the last call's


def test_what_is_interrupted_stays_so_where_another_search_begins(stock):
    """That one is not interrupted."""
    twin, inner = upgrade(stock), []

    def stop(event):
        if event.kind == "score" and event.step == CALL["num_inference_steps"] and not inner:
            twin._interrupt = True
            inner.append(found(twin))
            plain(twin)  # stock calls begin by taking it back

    (result,) = found(
        twin, search=BestOfN(8), batch_size=2, decode_batch_size=2, on_event=stop
    ).search
    assert (result.spent.finished, inner[0].search[0].spent.finished) == (2, 2)
    assert "stopped early" in result.warnings[0]
    assert not inner[0].search[0].warnings


VARIED = [
    {},
    {"seed": 2, "guidance_scale": 1.0, "num_inference_steps": 3, "width": 32},
    {"draft": "hot", "finish": "0.6"},
    {"variety": "repel:2:0.75:3:0.2"},
    {"diverse": True},
    {"kernel": "sde", "path": "cosine", "guide": "dps:1"},
    {"kernel": "sde", "times": "uniform", "search": SMC(n=3), "budget": "30nfe"},
]
"""Searches that differ in what they do with a network."""


def test_one_pipeline_may_be_called_from_several_threads(stock, tmp_path, monkeypatch):
    """Each finds what it finds alone, to the digit, though all are in the network at a time, in all
    pairs: with each other and with their like. A LoRA for drafts is loaded meanwhile, once."""
    kinds = [{"draft": str(save_lora(stock, tmp_path)), "finish": "0.6"}, *VARIED]
    flags = [parameter.requires_grad for parameter in stock.transformer.parameters()]
    alone = [found(quiet(upgrade(stock)), **how).images for how in kinds]
    twin, searches = quiet(upgrade(stock)), sorted(2 * [*range(len(kinds))])
    met, loads, load = Barrier(len(searches), timeout=60), list[int](), drafters._loaded

    def loaded(*given):
        loads.append(1)
        time.sleep(0.1)  # the other thread comes
        return load(*given)

    def meet(*_):
        with suppress(BrokenBarrierError):  # one has ended, and the others go on by themselves
            met.wait()

    def beside(kind):
        try:
            images = found(twin, **kinds[kind]).images
            return images
        finally:
            met.abort()

    monkeypatch.setattr(drafters, "_loaded", loaded)
    stock.transformer.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(len(searches)) as threads:
        together = list(threads.map(beside, searches))
    pairs = zip(searches, together, strict=True)
    assert not [kinds[kind] for kind, images in pairs if not torch.equal(images, alone[kind])]
    assert [parameter.requires_grad for parameter in stock.transformer.parameters()] == flags
    assert len(loads) == 1


def test_the_safety_checker_sees_each_returned_image_once_and_nothing_else():
    """Rewards, events and prices know nothing of it."""
    pipe, checked, seen = sd15(), list[Any](), list[Any]()

    def check(images, clip_input):
        checked.append(images)
        # like a real one, not what it has made black
        flags = [bool((image > -1).any()) for image in images]
        return images * 0, flags

    pipe.feature_extractor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pipe.safety_checker = check
    call = {**TINY["sd15"].call, "num_inference_steps": 4, "output_type": "pt"}
    how = {
        **SEARCH,
        "num_images_per_prompt": 2,
        "report": mean_red,
        "on_event": seen.append,
        **call,
    }
    output = upgrade(pipe)(PROMPTS, **how)
    assert [len(images) for images in checked] == [4]
    assert output.nsfw_content_detected == [True] * 4
    assert all(bool(event.image.any()) for event in seen if event.image is not None)
    candidates = [candidate for result in output.search for candidate in result.images]
    for image, candidate in zip(output.images, candidates, strict=True):
        assert torch.equal(image, candidate.image)
        assert not image.any()
        assert candidate.metrics["mean_red"] == 0
    for result, other in zip(
        output.search, upgrade(shared("sd15"))(PROMPTS, **how).search, strict=True
    ):
        assert (result.best.seed, result.best.scores) == (other.best.seed, other.best.scores)
        assert result.spent.flops == other.spent.flops
    again = pipe(PROMPTS[0], generator=generator(candidates[0].seed), **call)
    assert (again.nsfw_content_detected, bool(again.images.any())) == ([True], False)
    # as in the stock call
    torch.testing.assert_close(checked[0][:1], checked[-1].clamp(-1, 1), atol=1e-4, rtol=0)
    latent = upgrade(pipe)("a", **{**how, "output_type": "latent"})
    assert latent.nsfw_content_detected is None  # as in stock
    assert not latent.search[0].best.image.any()


def test_a_metric_that_writes_into_its_images_changes_neither_results_nor_other_metrics():
    image = torch.full((3, 4, 4), 0.5)
    result = Result("a", (Candidate(0, 0, 0.0, {}, image),), {}, (), None)  # type: ignore[arg-type]
    metrics = make_rewards([lambda images, prompts: images.zero_().mean((1, 2, 3)), "brightness"])
    (found,) = reported(result, metrics).images
    assert found.metrics == {"<lambda>": 0.0, "brightness": pytest.approx(0.5)}
    assert bool((found.image == 0.5).all())


@pytest.mark.usefixtures("modules_cache")
def test_the_documentation_runs(stock, tmp_path, monkeypatch):
    """Every block of docs/pipelines.md, in order, where the model it names is a folder with a tiny
    one."""
    peft = pytest.importorskip("peft")
    page = Path(__file__).parents[2] / "docs" / "pipelines.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    t5 = T5EncoderModel(
        T5Config(vocab_size=200, d_model=96, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    )
    full = type(stock)(
        **{**stock.components, "text_encoder_3": t5.eval(), "tokenizer_3": character_tokenizer()}
    )
    monkeypatch.chdir(tmp_path)
    full.save_pretrained("stabilityai/stable-diffusion-3.5-medium")
    stock.transformer.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "a"
    )
    layers = peft.get_peft_model_state_dict(stock.transformer, adapter_name="a")
    Stock.save_lora_weights("someone/a-style", transformer_lora_layers=layers)
    names = {}
    for block in blocks:
        if "torchao" not in block or importlib.util.find_spec("torchao"):
            exec(block.replace("cpu_offload()", 'cpu_offload(device="cpu")'), names)
    assert len(blocks) > 10


def test_the_script_for_the_community_finds_what_the_stock_pipeline_makes(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "contributing" / "diffusers.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    sdxl().save_pretrained("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16")
    small = {
        '"cuda"': '"cpu"',
        "float16": "float32",
        "imagereward": "brightness",
        "_steps=30": "_steps=4, height=16, width=16",
    }
    for large, other in small.items():
        assert large in script
        script = script.replace(large, other)
    names = {}
    exec(script, names)
    found = names["found"].images[0]
    assert np.abs(np.asarray(found, int) - np.asarray(names["again"], int)).max() <= 1
