"""Compiled denoisers: the same numbers, and no more compilations than batch buckets. Graphs are run eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ttsnap.engine.batch_sizes import bucket_of, buckets
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.memory.acceleration import RECOMPILE_LIMIT, compile_denoiser, network

from . import tiny

SCHEDULE = [12, 12, 11, 9, 7, 5, 4, 3, 2, 1]
"""Rows of one denoiser call after another while candidates are dropped."""
SHORT = [4, 3, 3, 2, 1]
"""The same with fewer buckets, each of which takes seconds to compile."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def sd3_call(pipe: Any, x: Tensor) -> Tensor:
    """One call of the network on N latents."""
    c, g, n = network(pipe).config, torch.Generator().manual_seed(1), len(x)
    text = torch.randn(1, 9, c.joint_attention_dim, generator=g).expand(n, -1, -1).contiguous()
    pooled = torch.randn(1, c.pooled_projection_dim, generator=g).expand(n, -1).contiguous()
    with torch.no_grad():
        out: Tensor = network(pipe)(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=torch.full((n,), 500.0),
            return_dict=False,
        )[0]  # fmt: skip
    return out


def padded(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([x, x[-1:].expand(bucket_of(len(x), sizes) - len(x), *x.shape[1:])])


def latents(pipe: Any, n: int) -> Tensor:
    return torch.randn(n, network(pipe).config.in_channels, 8, 8, generator=torch.Generator().manual_seed(2))


def test_pruning_compiles_once_per_bucket_and_changes_nothing() -> None:
    pipe, sizes = tiny.sd3(), buckets(max(SHORT))
    x = latents(pipe, max(SHORT))
    expected = [sd3_call(pipe, x[:n]) for n in SHORT]
    state = list(network(pipe).state_dict())
    assert not graphs()
    compile_denoiser(pipe, backend="eager")
    for n, before in zip(SHORT, expected, strict=True):
        torch.testing.assert_close(sd3_call(pipe, padded(x[:n], sizes))[:n], before, atol=1e-5, rtol=1e-4)
    assert graphs() == len({bucket_of(n, sizes) for n in SHORT}) == len(sizes) == 3
    assert not counters["graph_break"]
    assert list(network(pipe).state_dict()) == state


@pytest.mark.slow
def test_dynamic_graphs_take_any_size() -> None:
    pipe = tiny.sd3()
    x = latents(pipe, max(SCHEDULE))
    expected = [sd3_call(pipe, x[:n]) for n in SCHEDULE]
    compile_denoiser(pipe, dynamic=True, backend="eager")
    for n, before in zip(SCHEDULE, expected, strict=True):
        torch.testing.assert_close(sd3_call(pipe, x[:n]), before, atol=1e-5, rtol=1e-4)
    assert graphs() < len(buckets(max(SCHEDULE)))  # PyTorch treats a batch of one apart
    assert pipe._search_buckets is False


@pytest.mark.parametrize("family", ["flux", "sd15"])
def test_regions_are_compiled_where_diffusers_names_them(family: str) -> None:
    pipe = tiny.FAMILIES[family].build()
    call = {**tiny.FAMILIES[family].call, "num_inference_steps": 1, "output_type": "latent"}

    def run(n: int) -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(n)]
        out: Tensor = pipe(prompt="a cat", num_images_per_prompt=n, generator=generators, **call).images
        return out

    sizes = buckets(2)
    expected = {n: run(n) for n in sizes}
    compile_denoiser(pipe, backend="eager")
    assert network(pipe)._compiled_call_impl is None
    for n in (*sizes[::-1], *sizes):
        torch.testing.assert_close(run(n), expected[n], atol=1e-4, rtol=1e-3)
    modules = [m for m in network(pipe).modules() if m._compiled_call_impl is not None]
    assert {type(m).__name__ for m in modules} == set(network(pipe)._repeated_blocks)
    first = graphs()
    assert 0 < first <= RECOMPILE_LIMIT
    if family == "flux":
        assert first <= 2 * len(sizes)  # two kinds of blocks
    for n in sizes:
        run(n)
    assert graphs() == first


def test_the_engine_is_told_to_fill_batches_up() -> None:
    pipe = tiny.sd3()
    assert not hasattr(pipe, "_search_buckets")
    compile_denoiser(pipe, backend="eager")
    assert pipe._search_buckets is True
    assert upgrade(pipe)._search_buckets is True


@pytest.mark.usefixtures("real_flops")
def test_flops_are_counted_on_an_uncompiled_copy() -> None:
    call = {**tiny.FAMILIES["sd3"].call, "num_inference_steps": 2}
    expected = upgrade(tiny.sd3()).denoiser(**call).costs()
    pipe = upgrade(tiny.sd3())
    compile_denoiser(pipe, backend="eager")
    assert pipe.denoiser(**call).costs() == expected
    assert not graphs()


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_that_reuse_outputs_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="reuses the memory of outputs; choose 'max-autotune-no-cudagraphs'"):
        compile_denoiser(tiny.sd3(), mode=mode)
