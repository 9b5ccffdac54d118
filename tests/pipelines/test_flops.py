"""FLOPs are kept with the pipeline: what changes the length of the encoded texts must not find another call's."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from ttsnap.pipelines import upgrade
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.memory.flops import Memo

from .tiny import FAMILIES, jitter

pytestmark = pytest.mark.usefixtures("real_flops")
LENGTHS = (8, 40)
# Stable Diffusion and SDXL always read 77 tokens, and Z-Image pads to multiples of 32, which the prompt just fills.
TAKES_LENGTH = [name for name in FAMILIES if name not in {"sd15", "sdxl", "z_image"}]
# Their texts are as long as their words; those of the others are padded to max_sequence_length.
BY_WORDS = ["qwen_image", "z_image", "lumina2"]
GUIDED: dict[str, dict[str, Any]] = {"qwen_image": {"max_sequence_length": 64}, "z_image": {"max_sequence_length": 64}}


def fast(*names: str, among: Iterable[str]) -> list[Any]:
    """The families, as parameters of a test, of which it runs all but these in the slow tier."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in among]


@pytest.fixture(autouse=True)
def _of_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes, whose FLOPs no length of a text changes, are not counted."""
    monkeypatch.setattr(PipelineDenoiser, "decode", lambda self, latents: latents)


def predictions(name: str, *changes: dict[str, Any]) -> tuple[list[float], list[float]]:
    """FLOPs of a prediction with each of these changes: by one pipeline, and by one for each but the first, which that
    pipeline counts as any other."""
    stock = FAMILIES[name].build()
    pipe, calls = upgrade(stock), [{**FAMILIES[name].call, "num_inference_steps": 2, **change} for change in changes]
    one = [pipe.denoiser(**call).costs().nfe for call in calls]
    return one, one[:1] + [upgrade(stock).denoiser(**call).costs().nfe for call in calls[1:]]


@pytest.mark.parametrize("name", fast("sd3", "flux", "lumina2", among=TAKES_LENGTH))
def test_the_longest_text_that_is_read(name: str) -> None:
    if name == "lumina2":  # its template alone is longer than the shorter one
        one, alone = predictions(name, {"max_sequence_length": 8}, {"max_sequence_length": 24})
    else:
        one, alone = predictions(name, *({"max_sequence_length": n} for n in LENGTHS))
    assert one == alone
    assert one[0] < one[1]


@pytest.mark.parametrize("name", fast("z_image", among=BY_WORDS))
def test_the_negative_prompt(name: str) -> None:
    words = ["snow", "snow, rain, hail, wind, storm, thunder and lightning"]
    one, alone = predictions(name, *({**GUIDED.get(name, {}), "negative_prompt": text} for text in words))
    assert one == alone
    assert one[0] < one[1]


def test_what_lumina2_is_told_beside_the_prompt() -> None:
    one, alone = predictions("lumina2", {"system_prompt": "d"}, {"system_prompt": "draw very well"})
    assert one == alone
    assert one[0] < one[1]


WIDTHS = {"sd3": 96, "flux": 32, "flux2_klein": 16, "sana": 8, "qwen_image": 16, "z_image": 16, "lumina2": 8}


@pytest.mark.parametrize("name", fast("sd3", "qwen_image", among=WIDTHS))
def test_embeddings_of_any_length(name: str) -> None:
    width = WIDTHS[name]

    def given(tokens: int) -> dict[str, Any]:
        embeds: Any = torch.zeros(1, tokens, width)
        if name == "z_image":
            embeds = [embeds[0]]
        found: dict[str, Any] = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
        if name == "sd3":
            found |= dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), torch.zeros(1, 64))
        elif name == "flux":
            found = {"prompt_embeds": embeds, "pooled_prompt_embeds": torch.zeros(1, 32)}
        elif name in ("sana", "lumina2"):
            mask = torch.ones(1, tokens, dtype=torch.long)
            found |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
        elif name == "qwen_image":
            found |= {"negative_prompt": None, "max_sequence_length": 128}  # it cuts embeddings, too
        return found

    # As many tokens as max_sequence_length, to which SD3 adds those of CLIP.
    one, alone = predictions(name, {}, given(FAMILIES[name].call["max_sequence_length"]), given(100))
    assert one == alone
    assert one[1] < one[2]


# --- other networks ------------------------------------------------------------------------------------------------


def flops(pipe: Any) -> float:
    found: float = pipe.denoiser(**FAMILIES["sd3"].call, num_inference_steps=2).costs().nfe
    return found


def transformer(layers: int) -> Any:
    config = {**FAMILIES["sd3"].build().transformer.config, "num_layers": layers}
    return jitter(SD3Transformer2DModel.from_config(config))


def test_a_network_that_took_anothers_place_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it took the place in memory, and so the id; the next one often does."""
    pipe = upgrade(FAMILIES["sd3"].build())
    monkeypatch.setattr("ttsnap.pipelines.denoiser.id", lambda _: 1, raising=False)
    one, expected = flops(pipe), {2: flops(pipe)}
    for layers in (4, 2, 1):
        pipe.transformer = transformer(layers)
        gc.collect()
        found = flops(pipe)
        assert expected.setdefault(layers, found) == found
    assert expected[4] > one > expected[1]
    assert len(pipe._search_memo) == 1  # those of networks that are gone were dropped


def test_an_adapter_of_the_same_name_is_counted_anew() -> None:
    peft = pytest.importorskip("peft")
    pipe = upgrade(FAMILIES["sd3"].build())
    found = []
    for rank in (1, 8, 1):
        pipe.transformer.add_adapter(peft.LoraConfig(r=rank, target_modules=["to_q"]), "style")
        found.append(flops(pipe))
        pipe.transformer.delete_adapters("style")
    assert found[0] == found[2] < found[1]


def test_a_pipeline_with_a_memo_is_copied_and_pickled_without_it() -> None:
    pipe = FAMILIES["sd3"].build()
    pipe._search_memo = Memo()
    denoiser = upgrade(pipe).denoiser(**FAMILIES["sd3"].call)
    denoiser.memo()["a"] = 1
    memo = upgrade(pipe)._search_memo
    assert upgrade(pipe).denoiser(**FAMILIES["sd3"].call).memo() == {"a": 1}
    assert copy.deepcopy(memo) == pickle.loads(pickle.dumps(memo)) == {}
    assert len(memo) == 1
