"""Attention backends: what is in force, what is refused, and that the numbers stay. xformers is a
stand-in."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers.models import attention_dispatch, attention_processor

from ttsnap.pipelines.memory import acceleration
from ttsnap.pipelines.memory.acceleration import use_attention

from . import tiny


@pytest.fixture
def calls(monkeypatch):
    """xformers seems to be installed and to run on this device; returns the shapes that it was
    called with."""
    shapes = []

    def memory_efficient_attention(
        q,
        k,
        v,
        attn_bias=None,
        p=0.0,
        scale=None,
        op=None,
    ):
        """As xformers': (B, L, heads, D) or (B * heads, L, D), and a bias that is added."""
        shapes.append(tuple(q.shape))
        assert attn_bias is None or attn_bias.dtype == q.dtype
        four = q.ndim == 4
        q, k, v = (t.transpose(1, 2) if four else t for t in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_bias, scale=scale
        )
        return out.transpose(1, 2) if four else out

    ops = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setattr(acceleration, "is_xformers_available", lambda: True)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops), raising=False)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(attention_dispatch, "xops", ops, raising=False)
    return shapes


@pytest.fixture(autouse=True)
def global_backend():
    """diffusers keeps the backend for the whole process: leave it as it was."""
    registry = attention_dispatch._AttentionBackendRegistry
    before, _ = registry.get_active_backend()
    yield
    registry.set_active_backend(before)


def sample(pipe, family):
    call = {**tiny.FAMILIES[family].call, "num_inference_steps": 2, "output_type": "latent"}
    latents = pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **call).images
    return latents


def stays(family, backend, why):
    """It is said why this backend is not used, and the images stay as they are to the bit."""
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    with pytest.warns(UserWarning, match=why):
        assert use_attention(pipe, backend) == "sdpa"
    assert torch.equal(sample(pipe, family), expected)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "pixart_sigma", "flux", "flux2_klein"])
def test_xformers_computes_the_same(family, calls):
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
        ("sana", "SanaAttnProcessor2_0, SanaLinearAttnProcessor2_0"),
        ("lumina2", "Lumina2AttnProcessor2_0"),
        # diffusers loses boolean masks there
        ("qwen_image", "masking the padding"),
        ("z_image", "masking the padding"),
    ],
)
@pytest.mark.usefixtures("calls")
def test_models_that_xformers_would_change_stay_with_sdpa(family, why):
    stays(family, "xformers", why)


@pytest.mark.parametrize("family", ["sd15", "sd3", "flux"])
@pytest.mark.usefixtures("calls")
def test_where_it_cannot_run_or_is_not_installed(family, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("No operator found\n with inputs: ...")

    for ops in (attention_processor.xformers.ops, attention_dispatch.xops):  # type: ignore[attr-defined]
        monkeypatch.setattr(ops, "memory_efficient_attention", refuse)
    stays(family, "xformers", "float32 on cpu: No operator found; move")
    monkeypatch.setattr(acceleration, "is_xformers_available", lambda: False)
    stays(family, "xformers", "pip install 'xformers>=")


@pytest.mark.parametrize("family", ["flux", "flux2_klein", "qwen_image", "z_image"])
def test_other_backends_where_diffusers_dispatches(family):
    pipe = tiny.FAMILIES[family].build()
    expected = sample(pipe, family)
    assert use_attention(pipe, "_native_math") == "_native_math"
    torch.testing.assert_close(sample(pipe, family), expected, atol=1e-4, rtol=1e-3)
    registry = attention_dispatch._AttentionBackendRegistry
    assert registry.get_active_backend()[0] == "_native_math"  # the whole process's
    with pytest.warns(UserWarning, match="flash cannot"):
        assert use_attention(pipe, "FLASH") == "sdpa"
    assert registry.get_active_backend()[0] == "native"
    assert torch.equal(sample(pipe, family), expected)


def test_where_diffusers_would_silently_do_nothing_it_says_so_and_bad_input_is_refused():
    with pytest.warns(UserWarning, match="SanaTransformer2DModel to sage"):
        assert use_attention(tiny.shared("sana"), "sage") == "sdpa"
    with pytest.raises(ValueError, match=r"'fast'.* flash"):
        use_attention(tiny.shared("sd3"), "fast")
    with pytest.raises(ValueError, match="transformer nor"):
        use_attention(SimpleNamespace())
