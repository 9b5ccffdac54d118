"""Initial noise, mixed wholly or in its low frequencies: standard normal, and made again from seeds and keys."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor
from ttsnap.pipelines.packed import PackedDenoiser

from ttsnap.engine.initial_noise import InitialNoise
from ttsnap.engine.prompts import Prompts
from ttsnap.engine.store import Node
from ttsnap.sampling.frequencies import low_frequencies
from ttsnap.sampling.rng import seeded

shapes = st.sampled_from([(3,), (2, 8, 8), (1, 5, 7), (3, 2, 33), (4, 40, 1)])


def noise_of(shape: tuple[int, ...]) -> InitialNoise:
    """Initial noise of latents of this shape, float64."""
    denoiser: Any = SimpleNamespace(
        init_latents=lambda generators: torch.stack(
            [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators]
        ),
        low_frequencies=low_frequencies,
        encode=lambda prompts: None,
        conditions=lambda prompts, seeds: prompts,
        begin=lambda noise, cond: noise,
    )
    kernel: Any = SimpleNamespace(init=lambda key, generator: None)
    prompts = Prompts(denoiser, lambda: None)
    prompts.admit([""])
    prompts.place(0)
    return InitialNoise("independent", denoiser, kernel, prompts)


@given(shape=shapes, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_low_frequencies_are_those_of_scipys_cosine_transform(shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
    axes = tuple(range(-min(2, len(shape)), 0))
    waves = dctn(x.numpy(), axes=axes, norm="ortho")
    for axis in axes:
        kept = np.arange(shape[axis]) < max(2, shape[axis] // 16)
        waves *= kept.reshape([-1 if a == axis else 1 for a in range(-len(shape), 0)])
    low = low_frequencies(x)
    np.testing.assert_allclose(low, idctn(waves, axes=axes, norm="ortho"), atol=1e-12)
    torch.testing.assert_close(low_frequencies(low), low)
    assert abs(float((low * (x - low)).sum())) < 1e-10


@given(
    shape=shapes,
    changes=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_mixed_noise_is_made_again(shape: tuple[int, ...], changes: list[tuple[float, bool]], seed: int) -> None:
    noise = noise_of(shape)
    node = Node(0, seed, 0)
    for i, (share, low) in enumerate(changes):
        before = noise.of(node)
        node = noise.near(node, share, (seed, i + 1, 99), low=low)
        high = node.x - before - low_frequencies(node.x - before)
        assert not low or float(high.abs().max()) < 1e-12  # all other frequencies are the parent's
    torch.testing.assert_close(noise.of(node), node.x, rtol=0, atol=0)
    torch.testing.assert_close(noise.of(Node(0, seed, 5, mixed_in=node.mixed_in)), node.x, rtol=0, atol=0)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_it_is_standard_normal_and_correlated_as_said(low: bool, share: float) -> None:
    n, shape = 3000, (2, 4, 4)
    noise = noise_of(shape)
    pairs = [(noise.of(node := Node(0, s, 0)), noise.near(node, share, (s, 1, 99), low=low).x) for s in range(n)]
    parents, children = (torch.stack(x).flatten(1) for x in zip(*pairs, strict=True))
    for x in (parents, children):
        assert x.mean().abs() < 4 / math.sqrt(x.numel())
        covariance = x.T @ x / n
        assert (covariance - torch.eye(32, dtype=torch.float64)).abs().max() < 5.5 / math.sqrt(n)
    correlation = parents.T @ children / n
    rows = torch.eye(32, dtype=torch.float64)
    lows = torch.stack([low_frequencies(row.reshape(shape)).flatten() for row in rows])
    expected = rows - (1 - share) * (lows if low else rows)
    assert (correlation - expected).abs().max() < 5.5 / math.sqrt(n)


def test_packed_latents_are_pictures_of_tokens() -> None:
    denoiser = PackedDenoiser.__new__(PackedDenoiser)
    denoiser._tokens = (6, 9)
    tokens = torch.randn(54, 5, generator=seeded(0), dtype=torch.float64)
    picture: Tensor = tokens.reshape(6, 9, 5).permute(2, 0, 1)
    expected = low_frequencies(picture).permute(1, 2, 0).reshape(54, 5)
    torch.testing.assert_close(denoiser.low_frequencies(tokens), expected)
