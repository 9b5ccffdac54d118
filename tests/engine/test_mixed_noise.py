"""Initial noise, mixed with another: standard normal, and made again from seeds and keys."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap.core.prompt import Prompt
from ttsnap.engine.shared_denoiser import EncodedPrompts, InitialNoise
from ttsnap.engine.store import Node
from ttsnap.sampling.rng import seeded

shapes = st.sampled_from([(3,), (2, 8, 8), (1, 5, 7), (3, 2, 33), (4, 40, 1)])


def noise_of(shape: tuple[int, ...]) -> InitialNoise:
    """Initial noise of latents of this shape, float64."""
    denoiser: Any = SimpleNamespace(
        init_latents=lambda generators: torch.stack(
            [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators]
        ),
        encode=lambda prompts: None,
        conditions=lambda prompts, seeds: prompts,
        begin=lambda noise, cond: noise,
        drafts=None,
        groups=None,
    )
    kernel: Any = SimpleNamespace(init=lambda x, key, generator: None)
    prompts = EncodedPrompts(denoiser, lambda: None)
    prompts.admit([Prompt("")])
    prompts.place(0)
    return InitialNoise(denoiser, kernel, prompts)


def test_a_seeds_noise_depends_on_the_seed_alone() -> None:
    noise, shape, begun = noise_of((2, 3)), (2, 3), []
    noise.kernel.init = lambda x, key, generator: begun.append((key, torch.randn(3, generator=generator)))
    nodes = [Node(0, seed, 0) for seed in (17, 3, 8, 16)]
    noise.draw(nodes)
    for node, (key, next_drawn) in zip(nodes, begun, strict=True):
        expected = seeded(node.seed)
        torch.testing.assert_close(node.x, torch.randn(shape, generator=expected, dtype=torch.float64), rtol=0, atol=0)
        assert key == (node.seed, 0)
        assert torch.equal(next_drawn, torch.randn(3, generator=expected))  # what a sampler draws goes on from there
    torch.testing.assert_close(noise.of(nodes[2]), nodes[2].x, rtol=0, atol=0)


@given(
    shape=shapes,
    changes=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_mixed_noise_is_made_again(shape: tuple[int, ...], changes: list[float], seed: int) -> None:
    noise = noise_of(shape)
    node = Node(0, seed, 0)
    for i, share in enumerate(changes):
        node = noise.near(node, share, (seed, i + 1, 99))
    torch.testing.assert_close(noise.of(node), node.x, rtol=0, atol=0)
    torch.testing.assert_close(noise.of(Node(0, seed, 5, mixed_in=node.mixed_in)), node.x, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_it_is_standard_normal_and_correlated_as_said(share: float) -> None:
    n, shape = 3000, (2, 4, 4)
    noise = noise_of(shape)
    pairs = [(noise.of(node := Node(0, s, 0)), noise.near(node, share, (s, 1, 99)).x) for s in range(n)]
    parents, children = (torch.stack(x).flatten(1) for x in zip(*pairs, strict=True))
    for x in (parents, children):
        assert x.mean().abs() < 4 / math.sqrt(x.numel())
        covariance = x.T @ x / n
        assert (covariance - torch.eye(32, dtype=torch.float64)).abs().max() < 5.5 / math.sqrt(n)
    correlation = parents.T @ children / n
    assert (correlation - share * torch.eye(32, dtype=torch.float64)).abs().max() < 5.5 / math.sqrt(n)
