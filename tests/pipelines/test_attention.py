"""Attention backends: what is in force, what is refused, and that the numbers stay. xformers is a stand-in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch, attention_processor
from torch import Tensor

from ttsnap.pipelines.memory import acceleration
from ttsnap.pipelines.memory.acceleration import dispatches, network, use_attention

from . import tiny

SAME = ["sd15", "sdxl", "sd3", "pixart_sigma", "flux", "flux2_klein"]
"""Families that xformers serves."""
DISPATCHED = ["flux", "flux2_klein", "qwen_image", "z_image"]


def memory_efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, p: float = 0.0, scale: Any = None, op: Any = None
) -> Tensor:
    """As xformers': (B, L, heads, D) or (B * heads, L, D), and a bias that is added."""
    assert attn_bias is None or attn_bias.dtype == q.dtype
    four = q.ndim == 4
    q, k, v = (t.transpose(1, 2) if four else t for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)
    return out.transpose(1, 2) if four else out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """xformers seems to be installed and to run on this device; returns the shapes that it was called with."""
    shapes: list[tuple[int, ...]] = []

    def counted(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(q.shape))
        return memory_efficient_attention(q, *args, **kwargs)

    ops = SimpleNamespace(memory_efficient_attention=counted)
    monkeypatch.setattr(acceleration, "is_xformers_available", lambda: True)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops), raising=False)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(attention_dispatch, "xops", ops, raising=False)
    return shapes


@pytest.fixture(autouse=True)
def global_backend() -> Iterator[None]:
    """diffusers keeps the backend for the whole process: leave it as it was."""
    registry: Any = attention_dispatch._AttentionBackendRegistry
    before, _ = registry.get_active_backend()
    yield
    registry.set_active_backend(before)


def sample(pipe: Any, family: str) -> Tensor:
    call = {**tiny.FAMILIES[family].call, "num_inference_steps": 2, "output_type": "latent"}
    latents: Tensor = pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **call).images
    return latents


@pytest.mark.parametrize("family", SAME)
def test_xformers_computes_the_same(family: str, calls: list[tuple[int, ...]]) -> None:
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_attention(pipe, "xformers") == "xformers"
    calls.clear()
    torch.testing.assert_close(sample(pipe, family), expected, atol=1e-4, rtol=1e-3)
    assert calls
    assert use_attention(pipe) == "sdpa"
    calls.clear()
    assert torch.equal(sample(pipe, family), expected)
    assert not calls


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("sana", "no counterpart of SanaAttnProcessor2_0, SanaLinearAttnProcessor2_0"),
        ("lumina2", "no counterpart of Lumina2AttnProcessor2_0"),
        ("qwen_image", "masking the padding"),
        ("z_image", "masking the padding"),
    ],
)
def test_models_that_xformers_would_change_stay_with_sdpa(family: str, why: str, calls: list[tuple[int, ...]]) -> None:
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    with pytest.warns(UserWarning, match=why):
        assert use_attention(pipe, "xformers") == "sdpa"
    calls.clear()
    assert torch.equal(sample(pipe, family), expected)
    assert not calls


def test_diffusers_loses_boolean_masks_under_xformers(calls: list[tuple[int, ...]]) -> None:
    """The reason for the refusal above. Should this fail, diffusers has mended it, and Qwen-Image and Z-Image pass."""
    q = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False, False, False]])
    assert acceleration._error(acceleration._dispatched("native")(q, q, q, mask), q, q, q, mask) < 1e-6
    assert acceleration._error(acceleration._dispatched("xformers")(q, q, q, mask), q, q, q, mask) > 0.3


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_without_the_package_it_says_what_to_install(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "is_xformers_available", lambda: False)
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    with pytest.warns(UserWarning, match=r"stays with PyTorch's SDPA: .*pip install 'xformers>="):
        assert use_attention(pipe, "xformers") == "sdpa"
    assert torch.equal(sample(pipe, family), expected)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_device_or_dtype_that_it_cannot_run_on(
    family: str, calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\n with inputs: ...")

    for ops in (attention_processor.xformers.ops, attention_dispatch.xops):  # type: ignore[attr-defined]
        monkeypatch.setattr(ops, "memory_efficient_attention", refuse)
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    with pytest.warns(UserWarning, match="float32 on cpu: No operator found .*to a CUDA device first"):
        assert use_attention(pipe, "xformers") == "sdpa"
    assert torch.equal(sample(pipe, family), expected)


@pytest.mark.parametrize("family", DISPATCHED)
def test_other_backends_where_diffusers_dispatches(family: str) -> None:
    pipe = tiny.FAMILIES[family].build()
    assert dispatches(network(pipe))
    expected = sample(pipe, family)
    assert use_attention(pipe, "_native_math") == "_native_math"
    torch.testing.assert_close(sample(pipe, family), expected, atol=1e-4, rtol=1e-3)
    registry: Any = attention_dispatch._AttentionBackendRegistry
    assert registry.get_active_backend()[0] == "_native_math"  # the whole process's
    with pytest.warns(UserWarning, match="flash cannot be used"):
        assert use_attention(pipe, "FLASH") == "sdpa"
    assert registry.get_active_backend()[0] == "native"
    assert torch.equal(sample(pipe, family), expected)


@pytest.mark.parametrize("family", ["sd15", "sd3", "sana"])
def test_where_diffusers_would_silently_do_nothing_it_says_so(family: str) -> None:
    pipe = tiny.FAMILIES[family].build()
    assert not dispatches(network(pipe))
    with pytest.warns(UserWarning, match=f"cannot switch the attention of {type(network(pipe)).__name__} to sage"):
        assert use_attention(pipe, "sage") == "sdpa"


def test_sdpa_mends_a_network_that_was_switched_by_hand(calls: list[tuple[int, ...]]) -> None:
    pipe = tiny.sd3()
    expected = sample(pipe, "sd3")
    for module in acceleration._attention(network(pipe)):
        module.set_processor(attention_processor.XFormersJointAttnProcessor())
    assert use_attention(pipe, "sdpa") == "sdpa"
    assert torch.equal(sample(pipe, "sd3"), expected)


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"unknown attention backend 'fast'; did you mean flash\? Choose one of sdpa, "
    ):
        use_attention(tiny.sd3(), "fast")
    with pytest.raises(ValueError, match="neither a transformer nor a unet"):
        use_attention(SimpleNamespace())
