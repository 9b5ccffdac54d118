"""Compiled denoisers: the same numbers, and no more compilations than batch buckets. Graphs are run
eagerly."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from ttsnap import SeedPruning
from ttsnap.engine.batch_sizes import buckets
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.memory.acceleration import RECOMPILE_LIMIT, compile_denoiser, network

from . import tiny


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return int(counters["stats"]["unique_graphs"])


def test_pruning_compiles_once_per_batch_size_and_changes_nothing():
    """Of six seeds in batches of four and two, three are left, which are filled up to four."""
    pipe, call = (
        tiny.sd3(),
        {**tiny.FAMILIES["sd3"].call, "num_inference_steps": 2, "output_type": "pt"},
    )

    def found():
        how = {
            "search": SeedPruning(6, (0.5,), steps=(1,)),
            "reward": "brightness",
            "batch_size": 4,
            "seed": 0,
        }
        return upgrade(pipe)("a cat", **how, **call).images

    expected, state = found(), list(network(pipe).state_dict())
    assert (graphs(), hasattr(pipe, "_search_buckets")) == (0, False)
    compile_denoiser(pipe, dynamic=True, backend="eager")
    assert pipe._search_buckets is False  # graphs of any size need none
    compile_denoiser(pipe, backend="eager")
    assert pipe._search_buckets is upgrade(pipe)._search_buckets is True
    torch.testing.assert_close(found(), expected, atol=1e-4, rtol=1e-3)
    assert graphs() == 3  # one of a row alone, to try whether rows join
    assert not counters["graph_break"]
    assert list(network(pipe).state_dict()) == state


@pytest.mark.parametrize("family", ["flux", "sd15"])
def test_regions_are_compiled_where_diffusers_names_them(family):
    pipe = tiny.FAMILIES[family].build()
    call = {**tiny.FAMILIES[family].call, "num_inference_steps": 1, "output_type": "latent"}

    def run(n):
        generators = [torch.Generator().manual_seed(i) for i in range(n)]
        out = pipe(prompt="a cat", num_images_per_prompt=n, generator=generators, **call).images
        return out

    sizes = buckets(2)
    expected = {n: run(n) for n in sizes}
    compile_denoiser(pipe, backend="eager")
    assert network(pipe)._compiled_call_impl is None
    for n in (*sizes[::-1], *sizes):
        torch.testing.assert_close(run(n), expected[n], atol=1e-4, rtol=1e-3)
    modules = [m for m in network(pipe).modules() if m._compiled_call_impl is not None]
    assert {type(m).__name__ for m in modules} == set(network(pipe)._repeated_blocks)
    # flux has two kinds of blocks
    assert 0 < graphs() <= (2 * len(sizes) if family == "flux" else RECOMPILE_LIMIT)


def test_flops_are_counted_on_an_uncompiled_copy():
    call = {**tiny.FAMILIES["sd3"].call, "num_inference_steps": 2}
    expected = upgrade(tiny.sd3()).denoiser(**call).costs()
    pipe = upgrade(tiny.sd3())
    compile_denoiser(pipe, backend="eager")
    assert pipe.denoiser(**call).costs() == expected
    assert not graphs()


def test_modes_that_reuse_outputs_are_refused():
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(ValueError, match=f"mode '{mode}' reuses"):
            compile_denoiser(tiny.shared("sd3"), mode=mode)
