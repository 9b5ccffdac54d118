"""Engines whose suspended calls differ in their steps alone share a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.pipelines.tiny import FAMILIES, shared
from ttsnap import Budget, make_algorithm
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch, RunningRequest
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import search_class
from ttsnap.pipelines.pipeline_copy import copied

from .tiny import call_of, stock

NAMES = ("sd15", "sdxl", "sd3", "flux", "z_image", "qwen_image")
STEPS = (4, 6)
PROMPTS = ("a fox", "two red hens", "a boat on a lake", "a cup")


def reward(images: Any, prompts: Any) -> Any:
    return images.flatten(1)[:, ::3].mean(1)


def by_calls(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline over tiny parts whose stock calls are suspended, and a small call."""
    pipe = shared(name) if name in FAMILIES else stock(name)
    twin = copied(pipe, search_class(type(pipe)))
    return twin, dict(FAMILIES[name].call if name in FAMILIES else call_of(name))


def network_of(pipe: Any, call: dict[str, Any], **sampler: Any) -> SharedDenoiser:
    return SharedDenoiser(
        pipe.sampling_denoiser(SamplerOptions(**sampler), **{**call, "num_inference_steps": 3})
    )


def engines_of(name: str, network: bool, steps: Sequence[int] = STEPS) -> list[LiveEngine]:
    pipe, call = by_calls(name)
    one = network_of(pipe, call) if network else None
    return [
        pipe.engine(reward, network=one, batch_size=16, **{**call, "num_inference_steps": n})
        for n in steps
    ]


def added(
    run: Run,
    prompts: Sequence[str] = PROMPTS[:1],
    budget: str = "4images",
    seed: int = 0,
    search: str = "best-of-n",
) -> RunningRequest:
    engine = run.engine
    spent = Budget.parse(budget).on(engine.grid, engine.price.start)
    spec = prepared(LoopSearch(make_algorithm(search), spent, seed=seed), engine)
    clock = RequestClock(time.monotonic, 0.0)
    return run.add([Prompt(text) for text in prompts], spec, clock)


def finished(runs: Sequence[Run]) -> None:
    while any(run.busy for run in runs):
        for run in runs:
            if run.busy:
                run.turn()


def told(request: RunningRequest, engine: Any) -> list[Any]:
    return [
        (one.best.seed, pytest.approx(one.best.reward, abs=1e-5), one.spent.cost.nfe)
        for one in report(request, engine, RunUsage())
    ]


def searched(engines: Sequence[LiveEngine], prompts: Sequence[str] = PROMPTS[:2]) -> list[Any]:
    runs = [Run(engine) for engine in engines]
    requests = [added(run, prompts, seed=10 * i) for i, run in enumerate(runs)]
    finished(runs)
    return [told(*each) for each in zip(requests, engines, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_each_finds_what_it_finds_alone_and_evaluations_of_both_are_one_call(name: str) -> None:
    alone, together = engines_of(name, network=False), engines_of(name, network=True)
    expected = searched(alone)
    assert searched(together) == expected
    hub = together[0].network.denoiser.hub  # type: ignore[attr-defined]
    before = sum(sum(engine.denoiser.hub.calls.values()) for engine in alone)  # type: ignore[attr-defined]
    before_nets = sum(
        engine.denoiser.hub.calls[hub_net]  # type: ignore[attr-defined]
        for engine in alone
        for hub_net in hub.networks
    )
    calls = sum(hub.calls[net] for net in hub.networks)
    print(name, dict(hub.calls), [dict(e.denoiser.hub.calls) for e in alone], before)
    assert calls < before_nets
    assert [engine.nfe for engine in together] == [engine.nfe for engine in alone]
