"""FLOPs are kept with the pipeline: what changes the length of the encoded texts must not find another call's."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from ttsnap.pipelines import upgrade
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.memory.flops import Memo

from .tiny import FAMILIES, jitter

pytestmark = pytest.mark.usefixtures("real_flops")


@pytest.fixture(autouse=True)
def _of_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes, whose FLOPs no length of a text changes, are not counted."""
    monkeypatch.setattr(PipelineDenoiser, "decode", lambda self, latents: latents)


def embeddings(name: str, tokens: int) -> dict[str, Any]:
    embeds: Any = torch.zeros(1, tokens, {"sd3": 96, "flux": 32, "sana": 8, "lumina2": 8}.get(name, 16))
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


def flops(pipe: Any, name: str = "sd3", **change: Any) -> float:
    found: float = pipe.denoiser(**{**FAMILIES[name].call, "num_inference_steps": 2, **change}).costs().nfe
    return found


WORDS = ("snow", "snow, rain, hail, wind, storm, thunder and lightning")
# Stable Diffusion and SDXL always read 77 tokens, and Z-Image pads to multiples of 32, which the prompt just fills.
# Lumina2's template alone is longer than 8.
LONGEST = {name: 24 if name == "lumina2" else 40 for name in FAMILIES if name not in {"sd15", "sdxl", "z_image"}}
# Their texts are as long as their words; those of the others are padded to max_sequence_length.
MOST: dict[str, Any] = {"max_sequence_length": 64}
NEGATIVE: dict[str, dict[str, Any]] = {"lumina2": {}, "qwen_image": MOST, "z_image": MOST}
EMBEDDED = ("sd3", "flux", "flux2_klein", "sana", "qwen_image", "z_image", "lumina2")
# As many tokens as max_sequence_length, to which SD3 adds those of CLIP.
GIVEN = {name: FAMILIES[name].call["max_sequence_length"] for name in EMBEDDED}
CHANGES: dict[tuple[str, str], list[dict[str, Any]]] = {
    **{(name, "longest"): [{"max_sequence_length": n} for n in (8, most)] for name, most in LONGEST.items()},
    **{(name, "negative"): [{"negative_prompt": text, **more} for text in WORDS] for name, more in NEGATIVE.items()},
    ("lumina2", "system"): [{"system_prompt": text} for text in WORDS],
    **{(name, "embeddings"): [{}, embeddings(name, n), embeddings(name, 100)] for name, n in GIVEN.items()},
}
"""By family and what they change: changes of a call, of which the last makes its texts longer."""
FAST = (("flux", "longest"), ("lumina2", "longest"), ("z_image", "negative"), ("lumina2", "system"),
        ("sd3", "embeddings"), ("qwen_image", "embeddings"))  # fmt: skip


@pytest.mark.parametrize(("name", "what"), [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CHANGES
])  # fmt: skip
def test_longer_texts_are_counted_anew_by_a_pipeline_that_counted_others(name: str, what: str) -> None:
    stock, changes = FAMILIES[name].build(), CHANGES[name, what]
    pipe = upgrade(stock)
    one = [flops(pipe, name, **change) for change in changes]
    assert one[1:] == [flops(upgrade(stock), name, **change) for change in changes[1:]]
    assert one[-2] < one[-1]


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
