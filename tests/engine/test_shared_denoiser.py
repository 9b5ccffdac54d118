"""Engines that share a network: what each finds is what it finds alone, in fewer calls of the denoiser."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any
from weakref import ref

import pytest

from ttsnap import Budget, make_algorithm
from ttsnap.core.needs import Gradient
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load

STEPS = (2, 4, 3)
SEARCHES = ("seed-pruning", "best-of-n", "best-of-n")
PROMPTS = ("two green crosses", "a red circle", "a yellow triangle above a red square")
REWARDS = ("scenes", "brightness", "scenes")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load()


def engines_of(pipe: Any, *, shared: bool, **options: Any) -> list[LiveEngine]:
    """Of different steps and rewards, with a network each or one for all."""
    call = {name: value for name, value in defaults().items() if name != "num_inference_steps"}
    sampler = SamplerOptions(kernel="sde")
    network = SharedDenoiser(pipe.sampling_denoiser(sampler, **call, num_inference_steps=5)) if shared else None
    return [
        pipe.engine(
            reward, network=network, kernel="sde", batch_size=16, fair=True, num_inference_steps=n, **call, **options
        )
        for n, reward in zip(STEPS, REWARDS, strict=True)
    ]


def searched(engines: Sequence[LiveEngine], turns: Sequence[int] = (0, 1, 2)) -> list[Any]:
    """Seed, reward and evaluations of what each engine finds, when they have their turns in this order."""
    runs = [Run(engine) for engine in engines]
    requests = []
    for i, (engine, run) in enumerate(zip(engines, runs, strict=True)):
        budget = Budget.parse("4images").on(engine.grid)
        spec = prepared(LoopSearch(make_algorithm(SEARCHES[i]), budget, seed=10 * i), engine)
        requests.append(run.add([Prompt(PROMPTS[i])], spec, RequestClock(time.monotonic, 0.0)))
    while any(run.busy for run in runs):
        for i in turns:
            if runs[i].busy:
                runs[i].turn()
    found = [report(request, engine, RunUsage())[0] for request, engine in zip(requests, engines, strict=True)]
    return [(one.best.seed, pytest.approx(one.best.reward, abs=1e-5), one.spent.nfe) for one in found]


def test_each_finds_what_it_finds_alone_in_fewer_calls_whoever_is_first(pipe: Any) -> None:
    alone, together = engines_of(pipe, shared=False), engines_of(pipe, shared=True)
    expected = searched(alone)
    assert searched(together) == expected
    for one, other in zip(together, alone, strict=True):
        assert one.nfe == other.nfe, "an evaluation counts where its row belongs, whoever's batch it was made in"
    calls, before = (sum(engine.stats["batches"] for engine in engines) for engines in (together, alone))
    assert calls < before * 2 / 3
    assert searched(together, turns=(2, 0, 1, 1)) == expected
    network = together[0].network
    together[1].leave()
    assert list(network.peers) == [together[0].executor.peer, together[2].executor.peer]


def test_what_needs_a_network_of_its_own_is_refused(pipe: Any) -> None:
    engine = engines_of(pipe, shared=True)[0]
    with pytest.raises(ValueError, match="follows no gradients"):
        engine.differentiate(Gradient())
    with pytest.raises(ValueError, match="nor follow gradients"):
        engines_of(pipe, shared=True, guide="tilted:0.4:x0")


@pytest.mark.parametrize("shared", [False, True])
def test_an_engine_that_is_dropped_goes_without_a_collection_of_garbage(pipe: Any, shared: bool) -> None:
    (engine,) = engines = engines_of(pipe, shared=shared)[:1]
    searched(engines, turns=[0])
    drafting = pipe.sampling_denoiser(SamplerOptions(draft="embedded"), **defaults())
    gc.collect()
    gc.disable()
    try:
        there = [ref(part) for part in (engine, engine.denoiser, engine.network, engine.scorer, drafting)]
        del engines, engine, drafting
        assert not any(part() for part in there)
    finally:
        gc.enable()
