"""What a search returns, leaves behind and refuses where the stock call does so, too; and what to do with less."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch

from ttsnap import BestOfN
from ttsnap.pipelines import load, upgrade

from .tiny import FAMILIES, sd3, sd15, shared

CALL: dict[str, Any] = {**FAMILIES["sd3"].call, "num_inference_steps": 2, "output_type": "pt"}
PROMPTS = ["a cat", "two dogs"]


def bright(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


SEARCH: dict[str, Any] = {"search": BestOfN(2), "reward": bright, "seed": 0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return upgrade(shared("sd3"))


# --- fewer images than asked ---------------------------------------------------------------------------------------


def test_fewer_images_than_asked_come_with_a_warning(pipe: Any) -> None:
    call: dict[str, Any] = {**SEARCH, **CALL, "num_images_per_prompt": 3}
    with pytest.warns(UserWarning, match=r"2 of 2 prompts .* the 3 asked for \(2 of 'a cat'\)") as seen:
        out = pipe(PROMPTS, **call)
    assert seen[0].filename == __file__
    assert len(out.images) == 4
    rows = iter(out.images)
    for result in out.search:
        assert "2 of the 3 images" in result.warnings[-1]
        for candidate in result.images:
            assert torch.equal(next(rows), candidate.image)


def test_as_many_images_as_asked_come_without_one(pipe: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pipe(PROMPTS, **SEARCH, **CALL, num_images_per_prompt=2).images) == 4


# --- the precision of tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_keep_the_dtype_of_the_pipeline(dtype: torch.dtype) -> None:
    stock = sd3().to(dtype)
    out = upgrade(stock)("a cat", **{**SEARCH, "search": BestOfN(1)}, **CALL)
    expected = stock("a cat", generator=torch.Generator().manual_seed(0), **CALL).images
    assert out.images.dtype == expected.dtype == dtype
    assert torch.equal(out.images, expected)
    assert out.search[0].best.image.dtype == torch.float32  # for rewards, and unchanged by that


@pytest.mark.parametrize("output_type", ["pt", "np", "latent"])
def test_pruned_winners_have_that_dtype_too(output_type: str) -> None:
    """Winners share batches with estimates, which are wider."""
    stock = sd3().to(torch.bfloat16)
    call = {**CALL, "num_inference_steps": 4, "output_type": output_type}
    search = {
        "search": {"name": "seed-pruning", "n": 5, "keep": [0.4], "steps": [1]},
        "reward": bright,
        "batch_size": 2,
    }
    out = upgrade(stock)(PROMPTS, num_images_per_prompt=2, seed=0, **search, **call)
    seed = out.search[0].best.seed
    expected = stock("a cat", generator=torch.Generator().manual_seed(seed), **call).images
    assert out.images.dtype == expected.dtype
    assert out.images[0].shape == expected[0].shape


# --- what can be read on the pipeline ------------------------------------------------------------------------------


def readable(pipe: Any, stock: Any) -> dict[str, Any]:
    """What the stock class offers as properties, where it has a value."""
    names = [name for name, _ in inspect.getmembers(stock, lambda member: isinstance(member, property))]
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = getattr(pipe, name)
        except AttributeError:
            continue
    return {name: value for name, value in found.items() if name not in ("components", "device", "dtype")}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_search_leaves_what_the_stock_call_leaves(name: str) -> None:
    stock, call = FAMILIES[name].build(), {**FAMILIES[name].call, "num_inference_steps": 3}
    twin, other = upgrade(stock), upgrade(stock)
    during: list[Any] = []
    stock(prompt="a cat", **call)
    left = readable(stock, type(stock))
    twin(prompt="a cat", on_event=lambda _: during.append(readable(twin, type(stock))), **SEARCH, **call)
    after = readable(twin, type(stock))
    assert {name: after[name] or None for name in left} == {name: value or None for name, value in left.items()}
    assert left.get("num_timesteps", 3) >= 3
    assert all(seen.get("guidance_scale") == left.get("guidance_scale") for seen in during)
    if "guidance_scale" in left:  # a twin has its own
        assert "guidance_scale" not in readable(other, type(stock))


# --- arguments -----------------------------------------------------------------------------------------------------


def test_search_arguments_at_their_defaults_do_not_ask_for_a_search(pipe: Any) -> None:
    call = {**CALL, "generator": torch.Generator().manual_seed(3)}
    plain = shared("sd3")("a cat", **{**call, "generator": torch.Generator().manual_seed(3)}).images
    assert torch.equal(pipe("a cat", shared=False, kernel="pipeline", utility="mean", seed=None, **call).images, plain)
    for given in ({"shared": True}, {"seed": 0}, {"kernel": "ode"}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}.* given without search="):
            pipe("a cat", **given, **CALL)


@pytest.mark.parametrize("prompt", [3, {"a": 1}, b"a cat"], ids=str)
def test_what_is_no_prompt_is_refused_as_in_stock(pipe: Any, prompt: Any) -> None:
    with pytest.raises(ValueError, match="`prompt` has to be of type"):
        pipe(prompt, **CALL)
    with pytest.raises(ValueError, match="needs a prompt or a list of prompts"):
        pipe(prompt, **SEARCH, **CALL)


def test_models_with_a_vocabulary_refuse_it_so_too() -> None:
    embedded = load()
    with pytest.raises(ValueError, match="`prompt` has to be of type"):
        embedded(3)
    for prompt in (3, ["a red circle", 3]):
        with pytest.raises(ValueError, match="needs a prompt or a list of prompts"):
            embedded(prompt, **SEARCH)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("budgets", "budget"), ("num_inference_step", "num_inference_steps"), ("rewards", "reward"), ("decode_batch", "")],
)
def test_misspelt_arguments_are_recognised(pipe: Any, wrong: str, right: str) -> None:
    hint = f"; did you mean {right}\\?$" if right else ""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}'{hint}"):
        pipe("a cat", **{wrong: "100nfe"}, **SEARCH, **CALL)


def test_misspelt_arguments_of_calls_that_take_any_name_are_recognised() -> None:
    with pytest.raises(ValueError, match=r"\['budgets'\] cannot be used with search= .*; did you mean budget\?"):
        upgrade(sd15())("a cat", budgets="100nfe", num_inference_steps=2, **SEARCH)


def test_an_unknown_argument_of_a_denoiser_is_refused_with_those_that_it_takes(pipe: Any) -> None:
    with pytest.raises(TypeError, match=r"StableDiffusion3Denoiser takes no heigth; it takes height, width"):
        pipe.denoiser(heigth=64)


def test_an_empty_text_for_another_encoder_is_none(pipe: Any) -> None:
    call = {**CALL, "prompt_2": "", "prompt_3": ""}
    found = pipe("a cat", **{**SEARCH, "search": BestOfN(1), "seed": 3}, **call).images
    stock = shared("sd3")("a cat", generator=torch.Generator().manual_seed(3), **call).images
    torch.testing.assert_close(found, stock, atol=1e-5, rtol=0)
