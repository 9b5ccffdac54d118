"""FLOPs are kept with the pipeline: what changes the length of the encoded texts must not find
another call's."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from diffusers import SD3Transformer2DModel

from ttsnap.pipelines import upgrade
from ttsnap.pipelines.memory.memo import Memo

from .tiny import FAMILIES, jitter


def flops(pipe, name="sd3", **change):
    found = pipe.denoiser(**{**FAMILIES[name].call, "num_inference_steps": 2, **change}).costs().nfe
    return found


WORDS = ("snow", "snow, rain, hail, wind, storm, thunder and lightning")
SHORTER = {
    **{name: [{"max_sequence_length": n} for n in (8, 40)] for name in ("flux", "lumina2")},
    "z_image": [{"negative_prompt": text, "max_sequence_length": 64} for text in WORDS],
    "lumina2 system": [{"system_prompt": text} for text in WORDS],
    "qwen_image": [
        {"prompt_embeds": torch.zeros(1, n, 16), "negative_prompt": None} for n in (8, 15)
    ],
}
SHORTER["sd3"] = [
    dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), torch.zeros(1, n, 96))
    for n in (8, 100)
]
for change in SHORTER["sd3"]:
    change |= dict.fromkeys(
        ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), torch.zeros(1, 64)
    )


@pytest.mark.parametrize("name", SHORTER)
def test_longer_texts_are_counted_anew_by_a_pipeline_that_counted_others(name):
    family = name.split()[0]
    stock, changes = FAMILIES[family].build(), [{}, *SHORTER[name]]
    pipe = upgrade(stock)
    one = [flops(pipe, family, **change) for change in changes]
    assert one[1:] == [flops(upgrade(stock), family, **change) for change in changes[1:]]
    assert one[1] < one[2]


def transformer(layers):
    config = {**FAMILIES["sd3"].build().transformer.config, "num_layers": layers}
    return jitter(SD3Transformer2DModel.from_config(config))


def test_a_network_that_took_anothers_place_is_counted_anew(
    monkeypatch,
):
    """Also where it took the place in memory, and so the id; the next one often does."""
    pipe = upgrade(FAMILIES["sd3"].build())
    monkeypatch.setattr("ttsnap.pipelines.denoiser.id", lambda _: 1, raising=False)
    one, expected = flops(pipe), {2: flops(pipe)}
    kept = set(pipe._search_memo)
    for layers in (4, 2, 1):
        pipe.transformer = transformer(layers)
        gc.collect()
        found = flops(pipe)
        assert expected.setdefault(layers, found) == found
    assert expected[4] > one > expected[1]
    assert not pipe._search_memo.keys() & kept  # those of networks that are gone were dropped


def test_an_adapter_of_the_same_name_is_counted_anew():
    peft = pytest.importorskip("peft")
    pipe = upgrade(FAMILIES["sd3"].build())
    found = []
    for rank in (1, 8, 1):
        pipe.transformer.add_adapter(peft.LoraConfig(r=rank, target_modules=["to_q"]), "style")
        found.append(flops(pipe))
        pipe.transformer.delete_adapters("style")
    assert found[0] == found[2] < found[1]


def test_a_pipeline_with_a_memo_is_copied_and_pickled_without_it():
    pipe = FAMILIES["sd3"].build()
    pipe._search_memo = Memo()
    denoiser = upgrade(pipe).denoiser(**FAMILIES["sd3"].call)
    denoiser.memo()["a"] = 1
    memo = upgrade(pipe)._search_memo
    assert upgrade(pipe).denoiser(**FAMILIES["sd3"].call).memo() == {"a": 1}
    assert copy.deepcopy(memo) == pickle.loads(pickle.dumps(memo)) == {}
    assert memo
