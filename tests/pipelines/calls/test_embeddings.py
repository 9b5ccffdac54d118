"""Searches by embeddings in place of prompts: winners beside stock calls, negative prompts,
refusals."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.pipelines.tiny import FAMILIES, shared
from ttsnap import BestOfN, Budget, search
from ttsnap.cli import main
from ttsnap.core.prompt import Prompt
from ttsnap.pipelines import search_class
from ttsnap.pipelines.calls.pictures import images_of
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.pipelines.replay import replay
from ttsnap.results.media import png_info
from ttsnap.results.record import read_record
from ttsnap.sampling.rng import seeded

from .tiny import call_of, stock

PROMPTS = ["a cat", "two dogs in snow"]
NEGATIVE = ["mud", "a red ball"]
PAIR = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*PAIR, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
GIVES = {
    **dict.fromkeys(("sd15", "z_image", "StableDiffusionControlNetPipeline"), PAIR),
    **dict.fromkeys(("sdxl", "sd3", "StableDiffusion3InpaintPipeline"), POOLED),
    **dict.fromkeys(("pixart_sigma", "sana", "lumina2"), MASKED),
}
"""What encode_prompt gives, as the call names it."""
APART = {
    "flux": ("prompt_embeds", "pooled_prompt_embeds"),
    "qwen_image": ("prompt_embeds", "prompt_embeds_mask"),
    "flux2_klein": ("prompt_embeds",),
}
"""The same of those that are asked once for each kind of prompt."""
OPTIONS = ("max_sequence_length", "text_encoder_out_layers", "system_prompt")
FIRST = {
    **dict.fromkeys(("sd15", "StableDiffusionControlNetPipeline"), ("cpu", 1, True)),
    **dict.fromkeys(("sd3", "StableDiffusion3InpaintPipeline"), (None, None)),
}


def model(name):
    """A stock pipeline and a call without texts."""
    if name in FAMILIES:
        pipe, call = shared(name), {**FAMILIES[name].call, "num_inference_steps": 3}
    else:
        pipe, call = stock(name), call_of(name)
    return pipe, {key: value for key, value in call.items() if key != "negative_prompt"}


def twin_of(pipe):
    return copied(pipe, search_class(type(pipe)))


@torch.no_grad()
def embeddings(name, pipe, call):
    """What a pipeline makes of PROMPTS and NEGATIVE, as arguments of its call."""
    options = {key: call[key] for key in OPTIONS if key in call}
    if name in GIVES:
        first = FIRST.get(name, ())
        made = pipe.encode_prompt(PROMPTS, *first, negative_prompt=NEGATIVE, **options)
        return dict(zip(GIVES[name], made, strict=True))
    given = {}
    for sign, texts in (("", PROMPTS), ("negative_", NEGATIVE)):
        made = pipe.encode_prompt(prompt=texts, **options)
        given |= {f"{sign}{key}": each for key, each in zip(APART[name], made, strict=False)}
    return {key: each for key, each in given.items() if each is not None}


def of_prompt(given, i):
    """Those of one prompt."""
    return {key: each[i : i + 1] for key, each in given.items()}


def reward(images, prompts):
    return images.flatten(1)[:, ::3].mean(1)


def found(twin, **call):
    how = {"search": "best-of-n", "reward": reward, "seed": 3, "budget": "3images"}
    return twin(**{**how, "output_type": "pt", **call})


def alone(pipe, seed, **call):
    """What the stock call makes of a seed."""
    if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
        call["negative_prompt"] = None  # in place of "", which some classes refuse beside them
    return images_of(pipe(generator=seeded(seed), output_type="pt", **call))


@pytest.mark.parametrize("name", [*GIVES, *APART])
def test_winners_are_what_the_stock_call_makes_of_their_embeddings(name):
    pipe, call = model(name)
    given, twin = embeddings(name, pipe, call), twin_of(pipe)
    for count in (1, 2):
        own = {key: each[:count] for key, each in given.items()}
        out = found(twin, reward_prompts=PROMPTS[:count], **own, **call)
        assert [result.prompt for result in out.search] == PROMPTS[:count]
        for i, result in enumerate(out.search):
            made = alone(pipe, result.best.seed, **of_prompt(given, i), **call)
            assert torch.allclose(out.images[i], made, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"search": "ttsnap", "batch_size": 3},
        {"search": "zero-order"},
        {"search": "smc", "kernel": "sde"},
    ],
    ids=lambda how: how["search"],
)
@pytest.mark.parametrize("name", ["sd15", "sd3"])  # wide by numbers, and by lists
def test_embeddings_are_searched_as_their_prompts_are(name, how):
    pipe, call = model(name)
    given, twin = embeddings(name, pipe, call), twin_of(pipe)
    assert twin.denoiser(**of_prompt(given, 0), **call)._widening is not None
    call |= {**how, "budget": "5images"}
    texts = found(twin, prompt=PROMPTS, negative_prompt=NEGATIVE, **call)
    embeds = found(twin, reward_prompts=PROMPTS, **given, **call)
    assert torch.allclose(embeds.images, texts.images, atol=1e-5)
    for one, other in zip(embeds.search, texts.search, strict=True):
        assert (one.best.seed, one.spent.nfe) == (other.best.seed, other.spent.nfe)


def test_either_prompts_or_negative_ones_may_be_texts():
    pipe, call = model("sd15")
    given, twin = embeddings("sd15", pipe, call), twin_of(pipe)
    embeds, negative = (given[key] for key in PAIR)
    both = found(twin, prompt=PROMPTS, negative_prompt=NEGATIVE, **call).images
    for some in (
        {"prompt": PROMPTS, "negative_prompt_embeds": negative},
        {"prompt_embeds": embeds, "negative_prompt": NEGATIVE, "reward_prompts": PROMPTS},
    ):
        assert torch.allclose(found(twin, **some, **call).images, both, atol=1e-5)


def test_prompts_with_texts_and_with_embeddings_share_an_engine():
    pipe, call = model("sd15")
    given, twin = embeddings("sd15", pipe, call), twin_of(pipe)
    engine = twin.engine(reward, **call)
    prompts = [Prompt("x", inputs=of_prompt({"prompt_embeds": given["prompt_embeds"]}, 0))]
    prompts.append(Prompt(PROMPTS[1]))
    some = search(prompts, BestOfN(), engine, Budget.parse("2images"), seed=3)
    texts = search(PROMPTS, BestOfN(), engine, Budget.parse("2images"), seed=3)
    for one, other in zip(some, texts, strict=True):
        assert torch.allclose(one.best.pixels, other.best.pixels, atol=1e-5)
    with pytest.raises(ValueError, match="of one prompt, got those of 2"):
        twin.denoiser(**given, **call)


def test_a_png_made_from_embeddings_says_so_and_is_not_replayed(tmp_path, capsys):
    pipe, call = model("sd15")
    given, twin = of_prompt(embeddings("sd15", pipe, call), 0), twin_of(pipe)
    path = tmp_path / "one.png"

    def record(**how):
        image = found(twin, **how, **call, output_type="pil").images[0]
        image.save(path, pnginfo=png_info(image))
        return read_record(path)

    assert record(prompt=PROMPTS[0], prompt_embeds=None).embeddings is None
    with pytest.raises(ValueError, match="prompt_embeds"):
        replay(twin, record(reward_prompts=PROMPTS[0], **given))
    assert main(["replay", str(path)]) != 0
    assert "prompt_embeds" in capsys.readouterr().err


EMBEDS = torch.zeros(2, 77, 32)
GIVEN = {"prompt_embeds": EMBEDS, "reward_prompts": "a"}
REFUSED = [
    ({"prompt_embeds": EMBEDS}, "reward_prompts="),
    ({**GIVEN, "prompt": "a fox"}, "not both.*'a fox'"),
    ({**GIVEN, "reward_prompts": ["a"] * 3}, "reward_prompts has 3"),
    ({**GIVEN, "negative_prompt": ["mud"]}, "negative_prompt has 1"),
    ({**GIVEN, "negative_prompt_embeds": EMBEDS[:1]}, "negative_prompt_embeds has 1"),
    ({**GIVEN, "negative_prompt_embeds": EMBEDS, "negative_prompt": "mud"}, "not both.*'mud'"),
    ({**GIVEN, "prompt_embeds": [EMBEDS[0], None]}, "None for some of the 2"),
    (
        {"prompt": [Prompt("a", negative="mud"), "b"], "negative_prompt_embeds": EMBEDS},
        "not both.*'mud'",
    ),
    ({**GIVEN, "prompt_embeds": EMBEDS[0, 0], "negative_prompt_embeds": EMBEDS}, "has 2 entries"),
    ({**GIVEN, "prompt_embeds": EMBEDS[:0]}, "no prompts"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_does_not_fit_is_refused_before_any_compute(change, said, monkeypatch):
    pipe, call = model("sd15")
    for part in (pipe.unet, pipe.text_encoder):
        monkeypatch.setattr(part, "forward", None)  # no call of it returns
    with pytest.raises(ValueError, match=said):
        found(twin_of(pipe), **change, **call)


def test_lists_with_a_tensor_for_each_prompt_may_be_of_other_lengths():
    pipe, call = model("z_image")
    twin = twin_of(pipe)
    given = embeddings("z_image", pipe, call)
    lengths = {len(each) for each in given["prompt_embeds"]}
    assert len(lengths) == 2
    call |= {"search": "ttsnap", "budget": "4images"}
    texts = found(twin, prompt=PROMPTS, negative_prompt=NEGATIVE, **call)
    embeds = found(twin, reward_prompts=PROMPTS, **given, **call)
    assert torch.allclose(embeds.images, texts.images, atol=1e-5)
