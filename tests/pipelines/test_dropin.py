"""Search pipelines where stock ones are expected: loading, converting, saving, adapters, offload, outputs, refusals."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import itertools
import json
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DiffusionPipeline,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.hooks import apply_pyramid_attention_broadcast
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion_3 import StableDiffusion3PipelineOutput
from diffusers.utils import dynamic_modules_utils
from transformers import CLIPConfig, CLIPImageProcessor, T5Config, T5EncoderModel

from ttsnap import BestOfN, SeedPruning
from ttsnap.core.results import Candidate, Result
from ttsnap.pipelines import FAMILIES, custom_pipeline, defaults, downgrade, load, mixin, search_class, upgrade
from ttsnap.pipelines.families.stable_diffusion_3 import SearchStableDiffusion3Pipeline
from ttsnap.pipelines.output import reported, search_output, stock_output
from ttsnap.reward_models.registry import make_rewards

from ..cover import each_once  # noqa: TID252
from .tiny import FAMILIES as TINY
from .tiny import character_tokenizer, flux, sd3, sd15, shared

CALL: dict[str, Any] = {
    "num_inference_steps": 4,
    "height": 32,
    "width": 32,
    "guidance_scale": 5.0,
    "max_sequence_length": 8,
    "output_type": "pt",
}


def mean_red(images: Any, prompts: Any) -> Any:
    return images[:, 0].mean((1, 2))


SEARCH: dict[str, Any] = {"search": SeedPruning(4, (0.5,), steps=(1,)), "reward": mean_red, "seed": 0}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(pipe: Any) -> Any:
    """The stock image of seed 1."""
    return pipe("a cat", generator=generator(), **CALL).images


def found(pipe: Any, **changes: Any) -> Any:
    return pipe("a cat", **{**SEARCH, **CALL, **changes})


def count_calls(module: Any) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def stock() -> Any:
    return sd3()


@pytest.fixture(scope="module")
def winner() -> Any:
    """What a search finds without any of what the tests below add."""
    return found(upgrade(sd3()))


@pytest.fixture
def saved(tmp_path: Path, stock: Any) -> Path:
    upgrade(stock).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def without_t5() -> dict[str, Any]:
    return {"text_encoder_3": None, "tokenizer_3": None}


# --- twins --------------------------------------------------------------------------------------------------------


def test_upgrade_leaves_the_original_untouched(stock: Any) -> None:
    stock.enable_model_cpu_offload(device="cpu")
    config, bar, scheduler = dict(stock.config), stock._progress_bar_config, stock.scheduler
    before = plain(stock)
    hooks = list(stock._all_hooks)
    twin = upgrade(stock)
    assert (twin.transformer, twin._all_hooks) == (stock.transformer, hooks)
    twin.set_progress_bar_config(disable=True, desc="other")
    found(twin)
    str(twin)  # diffusers writes the class's name into the configuration here
    assert type(stock) is StableDiffusion3Pipeline
    assert stock._all_hooks == hooks
    assert {k: v for k, v in stock.config.items() if k[0] != "_"} == {k: v for k, v in config.items() if k[0] != "_"}
    assert stock.config.get("_class_name") != type(twin).__name__
    assert stock._progress_bar_config is bar
    assert stock.scheduler is scheduler is not twin.scheduler
    assert torch.equal(plain(stock), before)
    assert torch.equal(plain(twin), before)
    assert upgrade(twin) is twin
    parameters = inspect.signature(type(twin).__call__).parameters
    assert {*inspect.signature(StableDiffusion3Pipeline.__call__).parameters, "search", "budget"} < set(parameters)


def test_half_precision_and_mixed_parts_are_not_cast(stock: Any) -> None:
    stock.to(torch.bfloat16).vae.float()
    for twin in (upgrade(stock), SearchStableDiffusion3Pipeline.from_pipe(stock)):
        assert {p.dtype for p in stock.transformer.parameters()} == {torch.bfloat16}
        assert twin.vae.dtype == torch.float32
    SearchStableDiffusion3Pipeline.from_pipe(stock, dtype=torch.float32)
    assert stock.transformer.dtype == torch.float32  # weights are shared: asked for, it is cast


def test_from_pipe_takes_other_parts(stock: Any) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    stock.enable_model_cpu_offload(device="cpu")
    twin = SearchStableDiffusion3Pipeline.from_pipe(stock, scheduler=scheduler)
    assert type(twin) is SearchStableDiffusion3Pipeline
    assert twin.scheduler is scheduler
    assert stock.scheduler.config.shift == 3.0
    assert twin.transformer is stock.transformer
    assert twin._all_hooks == stock._all_hooks
    assert twin._progress_bar_config == stock._progress_bar_config
    stock.scheduler = scheduler
    assert torch.equal(plain(twin), plain(stock))
    another = SearchStableDiffusion3Pipeline.from_pipe(twin)
    assert type(another) is type(twin)
    assert another is not twin
    bare = SearchStableDiffusion3Pipeline.from_pipe(stock, text_encoder_2=None)
    assert bare.text_encoder_2 is None
    assert bare.config["text_encoder_2"] == (None, None)
    with pytest.raises(ValueError, match=r"has no unet; it is made of .*transformer"):
        SearchStableDiffusion3Pipeline.from_pipe(stock, unet=None)


def test_from_and_to_pipelines_of_other_tasks(stock: Any) -> None:
    other = StableDiffusion3Img2ImgPipeline(**stock.components)
    other.set_progress_bar_config(disable=True)
    twin = SearchStableDiffusion3Pipeline.from_pipe(other)
    assert torch.equal(plain(twin), plain(stock))
    again = StableDiffusion3Img2ImgPipeline.from_pipe(twin)
    assert again.transformer is stock.transformer
    with pytest.raises(ValueError, match=r"needs .*transformer.*, which StableDiffusionPipeline does not have"):
        SearchStableDiffusion3Pipeline.from_pipe(sd15())


def test_no_pipeline_is_made_of_another_familys_parts() -> None:
    """Their networks bear the same names; stock refuses the same pairs, and nothing is loaded or cast."""
    families = [shared(name) for name in TINY if name != "flux_schnell"]
    for other, own in itertools.permutations(families, 2):
        for cls in (type(own), search_class(type(own))):
            with pytest.raises(ValueError, match=r"needs|expected"):
                cls.from_pipe(other)
    with pytest.raises(ValueError, match=r"needs transformer, .* its transformer is SD3Transformer2D"):
        search_class(type(shared("flux"))).from_pipe(shared("sd3"))


def test_a_part_of_another_class_is_replaced_by_what_is_given() -> None:
    own, other = flux(), shared("sd3")
    parts = {name: part for name, part in own.components.items() if name in ("transformer", "text_encoder_2")}
    made = search_class(type(own)).from_pipe(other, **parts, tokenizer_2=own.tokenizer_2)
    assert made.transformer is own.transformer
    assert made.vae is other.vae


def test_downgrade(stock: Any) -> None:
    twin = upgrade(stock)
    back = downgrade(twin)
    assert type(back) is StableDiffusion3Pipeline
    assert back.transformer is stock.transformer
    assert type(AutoPipelineForText2Image.from_pipe(back)) is StableDiffusion3Pipeline
    assert downgrade(stock) is stock
    # AutoPipeline goes by the class's name.
    with pytest.raises(ValueError, match="can't find a pipeline linked to SearchStableDiffusion3Pipeline"):
        AutoPipelineForText2Image.from_pipe(twin)


class OtherEncoding(StableDiffusion3Pipeline):  # type: ignore[misc]
    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(e if e is None else -e for e in super().encode_prompt(*args, **kwargs))


class OtherCall(StableDiffusion3Pipeline):  # type: ignore[misc]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_subclass_gets_a_twin_of_its_own(stock: Any, winner: Any, tmp_path: Path) -> None:
    stock.__class__ = OtherEncoding
    twin = upgrade(stock)
    assert type(twin).__name__ == "SearchOtherEncoding"
    assert isinstance(twin, SearchStableDiffusion3Pipeline)
    assert isinstance(twin, OtherEncoding)
    assert type(twin) is search_class(OtherEncoding)
    assert torch.equal(plain(twin), plain(stock))
    assert not torch.allclose(found(twin).images, winner.images, atol=1e-3)
    assert type(downgrade(twin)) is OtherEncoding
    twin.save_config(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "OtherEncoding"
    stock.__class__ = OtherCall
    with pytest.raises(ValueError, match="OtherCall has a __call__ of its own"):
        upgrade(stock)
    forced = SearchStableDiffusion3Pipeline.from_pipe(stock)
    assert torch.equal(found(forced).images, winner.images)


def test_a_subclass_of_a_search_pipeline_keeps_its_call(stock: Any) -> None:
    class Loud(SearchStableDiffusion3Pipeline):
        def __call__(self, prompt: Any, **kwargs: Any) -> Any:
            return super().__call__(prompt, **{**SEARCH, **kwargs})

    loud = Loud.from_pipe(stock)
    assert loud("a cat", **CALL).search[0].best
    assert upgrade(loud) is loud
    assert json.loads(loud.to_json_string())["_class_name"] == "StableDiffusion3Pipeline"


# --- disk ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(stock: Any, saved: Path) -> None:
    expected = plain(stock)
    ways: list[Callable[[], Any]] = [
        lambda: DiffusionPipeline.from_pretrained(saved, **without_t5()),
        lambda: SearchStableDiffusion3Pipeline.from_pretrained(saved, **without_t5()),
        lambda: load(saved),
    ]
    for way, cls in zip(ways, [StableDiffusion3Pipeline, *[SearchStableDiffusion3Pipeline] * 2], strict=True):
        pipe = way()
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe) is cls
        torch.testing.assert_close(plain(pipe), expected, atol=1e-5, rtol=0)
    assert load(saved, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies custom code to a cache that it puts on sys.path."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("modules_cache")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_custom_pipeline(family: str) -> None:
    module, _, name = FAMILIES[family].partition(":")
    path = Path(custom_pipeline(family))
    assert str(path) == custom_pipeline(module.rpartition(".")[2])
    cls = dynamic_modules_utils.get_class_from_dynamic_module(path.parent, path.name, trust_remote_code=True)
    assert cls.__name__ == name
    assert cls.stock_class().__name__ == family
    assert "images" in cls.output_class.__dataclass_fields__


@pytest.mark.usefixtures("modules_cache")
def test_custom_pipeline(stock: Any, saved: Path, winner: Any) -> None:
    option = {"custom_pipeline": custom_pipeline("stable_diffusion_3"), **without_t5()}
    pipe = DiffusionPipeline.from_pretrained(saved, trust_remote_code=True, **option)
    assert type(pipe).__name__ == "SearchStableDiffusion3Pipeline"
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(found(pipe).images, winner.images, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(saved, **option)
    with pytest.raises(ValueError, match=r"no family 'flux99'; choose one of .*stable_diffusion_3"):
        custom_pipeline("flux99")


def test_no_code_of_a_model_runs_unasked(saved: Path) -> None:
    (saved / "evil.py").write_text("raise SystemExit('ran')")
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "_class_name": ["evil", "Evil"]}))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load(saved)


def test_a_revision_may_be_pinned(stock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    there: list[Any] = []
    monkeypatch.setattr("ttsnap.pipelines.require_repository", lambda *which: there.append(which))
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda model, **options: seen.update(options) or stock)
    load("someone/model", revision="abc123")
    assert seen == {"use_safetensors": True, "revision": "abc123"}
    assert there == [("someone/model", "abc123", None)], "a copy of that revision will do, of another it will not"


def test_pickled_weights_are_refused(saved: Path) -> None:
    weights = saved / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot load model"):
        load(saved)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", truncated),
        ("transformer/diffusion_pytorch_model.safetensors", garbled),
        ("transformer/config.json", truncated),
        ("transformer/config.json", lambda path: path.write_text('{"num_layers": "x"}')),
        ("scheduler/scheduler_config.json", lambda path: path.write_text("[" * 10**5)),
        ("vae/config.json", Path.unlink),
        ("model_index.json", truncated),
        ("model_index.json", lambda path: path.write_text("[1]")),
        ("model_index.json", lambda path: path.write_text('{"_class_name": 3}')),
    ],
)
def test_damaged_models_are_one_sentence(name: str, damage: Callable[[Path], Any], saved: Path) -> None:
    damage(saved / name)
    with pytest.raises(ValueError, match="saved") as caught:
        load(saved)
    assert "\n" not in str(caught.value)


def test_a_model_names_no_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers imports the library that model_index.json names, and the working directory may be on the path."""
    (tmp_path / "ttsnap_evil.py").write_text("class Thing: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    index = json.loads((saved / "model_index.json").read_text())
    for part, kind in {"vae": ["ttsnap_evil", "Thing"], "_class_name": ["ttsnap_evil", "Thing"]}.items():
        (saved / "model_index.json").write_text(json.dumps({**index, part: kind}))
        with pytest.raises(ValueError, match=f"the {part} of model .*saved is code from 'ttsnap_evil'"):
            load(saved)
    assert "ttsnap_evil" not in sys.modules
    (saved / "ttsnap.json").write_text('{"callback": "x"}')
    with pytest.raises(ValueError, match=r"asks for call\.callback, which no file may set"):
        defaults(saved)


# --- adapters, offload, quantisation ------------------------------------------------------------------------------


def sequential(pipe: Any) -> None:
    """As enable_sequential_cpu_offload, which on a CPU fails in accelerate: that cannot onload to "cpu:0"."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


OFFLOADS: dict[str, Callable[[Any], Any]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level"),
    "sequential": sequential,
}


@pytest.mark.parametrize(("offload", "before"), each_once(list(OFFLOADS), [True, False]))
def test_offload(stock: Any, winner: Any, offload: str, before: bool) -> None:
    seen: list[torch.device] = []

    def reward(images: Any, prompts: Any) -> Any:
        seen.append(images.device)
        return mean_red(images, prompts)

    if before:
        OFFLOADS[offload](stock)
    twin = upgrade(stock)
    if not before:
        OFFLOADS[offload](twin)
    for _ in range(2):
        torch.testing.assert_close(found(twin, reward=reward).images, winner.images, atol=1e-5, rtol=0)
    assert {device.type for device in seen} == {"cpu"}
    again = stock("a cat", generator=generator(winner.search[0].best.seed), **CALL).images
    torch.testing.assert_close(again, winner.images, atol=1e-4, rtol=0)


def test_rewards_are_made_where_an_offloaded_pipeline_computes(stock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequential(stock)
    twin = upgrade(stock)
    assert twin.device.type == "meta"
    made: list[Any] = []

    def make(rewards: Any, device: Any) -> Any:
        made.append(device)
        return make_rewards(rewards, device=device)

    monkeypatch.setattr(mixin, "make_rewards", make)
    found(twin)
    assert {device.type for device in made} == {"cpu"}


def test_quantised(stock: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(stock.transformer, quantization.Int8WeightOnlyConfig())
    twin = SearchStableDiffusion3Pipeline.from_pipe(stock)
    output = found(twin)
    again = stock("a cat", generator=generator(output.search[0].best.seed), **CALL).images
    torch.testing.assert_close(output.images, again, atol=1e-3, rtol=0)


def test_step_caches_are_refused(stock: Any) -> None:
    twin = upgrade(stock)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: twin.current_timestep
    )
    apply_pyramid_attention_broadcast(stock.transformer, config)
    calls = count_calls(stock.transformer)
    for call in (lambda: found(twin), lambda: twin.engine(mean_red)):
        with pytest.raises(ValueError, match="PyramidAttentionBroadcastHook"):
            call()
    assert not calls
    other = flux()
    other.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"transformer\.disable_cache\(\)"):
        upgrade(other).engine(mean_red)
    other.transformer.disable_cache()
    upgrade(other).engine(mean_red)


# --- arguments ----------------------------------------------------------------------------------------------------


def embeddings(pipe: Any, prompts: list[str]) -> dict[str, Any]:
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        return dict(zip(names, pipe.encode_prompt(prompts, None, None, max_sequence_length=8), strict=True))


@pytest.mark.parametrize("embedded", [True, False], ids=["embeddings", "prompts"])
def test_rewards_may_read_other_texts_than_the_model(stock: Any, embedded: bool) -> None:
    read: list[str] = []

    def reward(images: Any, prompts: Any) -> Any:
        read.extend(prompts)
        return mean_red(images, prompts)

    twin, prompts = upgrade(stock), ["a cat", "two dogs"]
    given = embeddings(stock, prompts) if embedded else {"prompt": prompts}
    texts: Any = ["cat", "dogs"] if embedded else "an animal"
    search = {**SEARCH, "reward": reward, "report": reward}
    output = twin(**given, reward_prompts=texts, **search, **CALL)
    assert torch.equal(output.images, twin(prompts, **SEARCH, **CALL).images)
    assert set(read) == (set(texts) if embedded else {texts})
    assert [result.prompt for result in output.search] == (texts if embedded else prompts)


def test_embeddings_need_texts_for_the_rewards_and_no_prompts(stock: Any) -> None:
    twin, prompts = upgrade(stock), ["a cat", "two dogs"]
    embeds = embeddings(stock, prompts)
    short = {**embeds, "pooled_prompt_embeds": embeds["pooled_prompt_embeds"][:1]}
    calls = count_calls(stock.transformer)
    for given, said in (
        (embeds, "reward_prompts="),
        ({**embeds, "reward_prompts": ["one"]}, "reward_prompts has 1"),
        ({**embeds, "prompt": prompts}, "not both"),
        ({**short, "reward_prompts": "a"}, "pooled_prompt_embeds has 1"),
    ):
        with pytest.raises(ValueError, match=said):
            twin(**given, **SEARCH, **CALL)
    assert not calls


REFUSED: list[tuple[dict[str, Any], str]] = [
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
    ({"seed": 2**64}, "seed"),
    ({"generator": [generator(1), generator(2)], "seed": None}, "list"),
    ({"output_type": "jpg"}, "output_type"),
    ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs"),
    ({"ip_adapter_image": torch.zeros(1)}, "image prompts"),
    ({"skip_layer_guidance_scale": 1.0}, "skip_layer_guidance_scale"),
    ({"num_inference_steps": "4"}, "num_inference_steps .* got '4'"),
    ({"guidance_scale": "high"}, "guidance_scale .* got 'high'"),
    ({"num_images_per_prompt": 2.5}, "whole number, got 2.5"),
    *[({"prompt": ["a", "b"], name: ["x"] * 3}, f"{name} has 3") for name in ("negative_prompt", "prompt_2")],
    ({"prompt": ["a", "b"], "negative_prompt_3": ["x"] * 3}, "negative_prompt_3 has 3"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[f"{'-'.join(each)}-{said}" for each, said in REFUSED])
def test_what_cannot_be_honoured_is_refused_before_any_compute(change: dict[str, Any], said: str) -> None:
    stock = sd3()
    calls = count_calls(stock.transformer)
    with pytest.raises(ValueError, match=said):
        upgrade(stock)(**{"prompt": "a cat", **SEARCH, "search": "best-of-n", "budget": "20nfe", **CALL, **change})
    assert not calls


def test_other_classes_and_places_are_refused() -> None:
    with pytest.raises(ValueError, match="int"):
        upgrade(3)
    with pytest.raises(ValueError, match=r"\./nowhere"):
        load("./nowhere")


def test_defaults_may_be_written_out(stock: Any, winner: Any) -> None:
    named = {"skip_layer_guidance_scale": 2.8, "callback_on_step_end_tensor_inputs": ["latents"], "latents": None}
    assert torch.equal(found(upgrade(stock), **named).images, winner.images)


# --- output -------------------------------------------------------------------------------------------------------


def test_output_is_the_familys_own(winner: Any) -> None:
    assert isinstance(winner, StableDiffusion3PipelineOutput)
    assert winner[0] is winner.images
    assert winner["search"] is winner.search
    for again in (copy.copy(winner), search_output(StableDiffusion3PipelineOutput)(images=[1], search=[])):
        assert type(again) is type(winner)
    empty = pickle.loads(pickle.dumps(type(winner)(images=[1], search=[])))
    assert (empty.images, empty.search) == ([1], [])
    assert stock_output(type(sd15()).__call__).__name__ == "StableDiffusionPipelineOutput"
    assert stock_output(type(flux()).__call__).__name__ == "FluxPipelineOutput"


def test_latents_come_back_as_from_stock(stock: Any) -> None:
    call = {**CALL, "output_type": "latent"}
    output = upgrade(stock)(["a cat", "two dogs"], **SEARCH, num_images_per_prompt=2, **call)
    assert output.images.shape == (4, 4, 16, 16)
    rows = iter(output.images)
    for result in output.search:
        for candidate in result.images:
            expected = stock(result.prompt, generator=generator(candidate.seed), **call).images[0]
            torch.testing.assert_close(next(rows), expected, atol=1e-4, rtol=0)
            assert candidate.image.shape == (3, 32, 32)


def test_output_forms(stock: Any) -> None:
    twin, call = upgrade(stock), {**CALL, "search": BestOfN(2), "reward": mean_red, "num_images_per_prompt": 2}
    pil = twin("a cat", seed=0, **{**call, "output_type": "pil"})
    assert [i.size for i in pil.images] == [(32, 32)] * 2
    array, results = twin("a cat", seed=0, return_dict=False, **{**call, "output_type": "np"})
    assert array.shape == (2, 32, 32, 3)
    assert results[0].best.seed == pil.search[0].best.seed
    assert twin("a cat", generator=generator(77), **call).search[0].particles.seed.tolist() == [77, 78]


def test_several_rewards_and_reports(stock: Any) -> None:
    def green(images: Any, prompts: Any) -> Any:
        return images[:, 1].mean((1, 2))

    def broken(images: Any, prompts: Any) -> Any:
        raise RuntimeError("no")

    search = {"search": BestOfN(4), "reward": [mean_red, green], "utility": [0.0, 1.0], "num_images_per_prompt": 4}
    (result,) = upgrade(stock)("a cat", report=[mean_red, broken], **search, **CALL).search
    assert [c.scores["green"] for c in result.images] == sorted(c.scores["green"] for c in result.images)[::-1]
    assert all(c.metrics["mean_red"] == pytest.approx(c.scores["mean_red"], abs=1e-6) for c in result.images)
    assert result.spent.cost.reward_calls == 8
    assert "broken: RuntimeError: no" in result.warnings[-1], "which loses no image"


def test_interrupt_ends_the_search_with_what_is_finished(stock: Any) -> None:
    twin = upgrade(stock)

    def stop(event: Any) -> None:
        if event.kind == "score" and event.step == CALL["num_inference_steps"]:
            twin._interrupt = True

    output = found(twin, search=BestOfN(8), batch_size=2, decode_batch_size=2, on_event=stop)
    (result,) = output.search
    assert result.spent.finished == 2
    assert len(output.images) == 1
    assert "stopped early" in result.warnings[0]
    assert found(twin).search[0].spent.finished == 2  # the flag is the last call's


def test_one_pipeline_may_be_called_from_several_threads(stock: Any) -> None:
    """Each finds what it finds alone, to the digit."""
    twin = upgrade(stock)

    def call(seed: int) -> Any:
        asked = {**SEARCH, **CALL, "search": SeedPruning(6, (0.5,), steps=(1,)), "output_type": "pt"}
        return twin("a cat", generator=generator(seed), **{k: v for k, v in asked.items() if k != "seed"})

    alone = [call(seed) for seed in (1, 2, 3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(call, (1, 2, 3)))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.images, other.images, atol=0, rtol=0)
        np.testing.assert_array_equal(one.search[0].particles.scores, other.search[0].particles.scores)


def safety_checker(threshold: float) -> Any:
    """A tiny one; a concept is found where the cosine with it, the same for all, exceeds the threshold."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    checker.concept_embeds_weights.fill_(threshold)
    return checker


def all_but_black(images: Any, clip_input: Any) -> Any:
    """Like a real one it does not flag what it has made black."""
    flags = [bool((image > -1).any()) for image in images]
    return torch.stack([image * (not flag) for image, flag in zip(images, flags, strict=True)]), flags


@pytest.mark.parametrize(
    ("make", "unsafe"),
    [(lambda: safety_checker(2.0), False), (lambda: all_but_black, True)],
    ids=["none", "all-but-black"],
)
def test_the_safety_checker_sees_what_is_returned(make: Callable[[], Any], unsafe: bool) -> None:
    pipe = sd15()
    size = {"shortest_edge": 32}
    pipe.feature_extractor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    pipe.safety_checker = make()
    call = {"num_inference_steps": 4, "height": 16, "width": 24, "output_type": "pt"}
    twin = upgrade(pipe)
    output = twin(["a", "b"], num_images_per_prompt=2, report=mean_red, **SEARCH, **call)
    assert output.nsfw_content_detected == [unsafe] * 4
    candidates = [candidate for result in output.search for candidate in result.images]
    assert len(candidates) == 4
    for image, candidate in zip(output.images, candidates, strict=True):
        assert torch.equal(image, candidate.image)
        assert bool(image.any()) is not unsafe
        assert (candidate.metrics["mean_red"] > 0) is not unsafe
    again = pipe("a", generator=generator(candidates[0].seed), **call)
    assert again.nsfw_content_detected == [unsafe]
    torch.testing.assert_close(output.images[:1], again.images, atol=1e-4, rtol=0)
    latent = twin("a", **SEARCH, **{**call, "output_type": "latent"})
    assert latent.nsfw_content_detected is None  # as in stock
    assert bool(latent.search[0].best.image.any()) is not unsafe


def test_the_safety_checker_sees_each_returned_image_once_and_nothing_else() -> None:
    """Rewards, events and prices know nothing of it."""
    pipe, checked = sd15(), []
    call = {"num_inference_steps": 4, "height": 16, "width": 24, "output_type": "pt"}
    before = upgrade(pipe)("a", **SEARCH, **call)

    def checker(images: Any, clip_input: Any) -> Any:
        checked.append(len(images))
        return all_but_black(images, clip_input)

    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32})
    pipe.safety_checker = checker
    seen: list[Any] = []
    after = upgrade(pipe)("a", on_event=seen.append, **SEARCH, **call)
    assert checked == [1]
    assert not bool(after.images.any())
    assert all(bool(event.image.any()) for event in seen if event.image is not None)
    found, expected = after.search[0], before.search[0]
    assert (found.best.seed, found.best.scores) == (expected.best.seed, expected.best.scores)
    assert found.spent.flops == expected.spent.flops


# --- documentation ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("modules_cache")
def test_the_documentation_runs(stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/pipelines.md, in order, where the model it names is a folder with a tiny one."""
    peft = pytest.importorskip("peft")
    page = Path(__file__).parents[2] / "docs" / "pipelines.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    t5 = T5EncoderModel(T5Config(vocab_size=200, d_model=96, d_kv=8, d_ff=8, num_layers=1, num_heads=2))
    full = type(stock)(**{**stock.components, "text_encoder_3": t5.eval(), "tokenizer_3": character_tokenizer()})
    monkeypatch.chdir(tmp_path)
    full.save_pretrained("stabilityai/stable-diffusion-3.5-medium")
    stock.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "a")
    layers = peft.get_peft_model_state_dict(stock.transformer, adapter_name="a")
    StableDiffusion3Pipeline.save_lora_weights("someone/a-style", transformer_lora_layers=layers)
    names: dict[str, Any] = {}
    for block in blocks:
        if "torchao" not in block or importlib.util.find_spec("torchao"):
            exec(block.replace("cpu_offload()", 'cpu_offload(device="cpu")'), names)
    assert len(blocks) > 10


def test_a_metric_that_writes_into_its_images_changes_neither_results_nor_other_metrics() -> None:
    image = torch.full((3, 4, 4), 0.5)
    result = Result("a", (Candidate(0, 0, 0.0, {}, image),), {}, (), None)  # type: ignore[arg-type]
    metrics = make_rewards([lambda images, prompts: images.zero_().mean((1, 2, 3)), "brightness"])
    (found,) = reported(result, metrics).images
    assert found.metrics == {"<lambda>": 0.0, "brightness": pytest.approx(0.5)}
    assert bool((found.image == 0.5).all())
