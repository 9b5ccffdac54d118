"""Engines whose suspended calls differ in their steps alone share a network."""

from __future__ import annotations

import gc
import random
import time
from typing import Any
from weakref import ref

import pytest
import torch

from tests.pipelines.tiny import FAMILIES, shared
from ttsnap import Budget, make_algorithm
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import search_class
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.sampling.denoiser import Capability

from .test_ledger import VAE, Seen, rows_of_a_call
from .tiny import call_of, stock

NAMES = ("sd15", "sdxl", "sd3", "flux", "z_image", "qwen_image")
STEPS = (4, 6)
PROMPTS = ("a fox", "a hen", "a boat on a lake", "a cup")
"""Two of one length, since networks may be called once for texts of each."""


def reward(images, prompts):
    return images.flatten(1)[:, ::3].mean(1)


def by_calls(name):
    """A pipeline over tiny parts whose stock calls are suspended, and a small call."""
    pipe = shared(name) if name in FAMILIES else stock(name)
    twin = copied(pipe, search_class(type(pipe)))
    return twin, dict(FAMILIES[name].call if name in FAMILIES else call_of(name))


def network_of(pipe, call, **sampler):
    return SharedDenoiser(
        pipe.sampling_denoiser(SamplerOptions(**sampler), **{**call, "num_inference_steps": 3})
    )


def engines_of(name, network, steps=STEPS):
    pipe, call = by_calls(name)
    one = network_of(pipe, call) if network else None
    return [
        pipe.engine(reward, network=one, batch_size=16, **{**call, "num_inference_steps": n})
        for n in steps
    ]


def added(
    run,
    prompts=PROMPTS[:1],
    budget="4images",
    seed=0,
    search="best-of-n",
):
    engine = run.engine
    spent = Budget.parse(budget).on(engine.grid, engine.price.start)
    spec = prepared(LoopSearch(make_algorithm(search), spent, seed=seed), engine)
    clock = RequestClock(time.monotonic, 0.0)
    return run.add([Prompt(text) for text in prompts], spec, clock)


def finished(runs):
    while any(run.busy for run in runs):
        for run in runs:
            if run.busy:
                run.turn()


def told(request, engine):
    return [
        (one.best.seed, pytest.approx(one.best.reward, abs=1e-5), one.spent.cost.nfe)
        for one in report(request, engine, RunUsage())
    ]


def searched(engines, prompts=PROMPTS[:2]):
    runs = [Run(engine) for engine in engines]
    requests = [added(run, prompts, seed=10 * i) for i, run in enumerate(runs)]
    finished(runs)
    return [told(*each) for each in zip(requests, engines, strict=True)]


def network_calls(denoiser):
    """Of its networks."""
    hub = denoiser.hub
    return sum(hub.calls[part] for part in hub.networks)


@pytest.mark.parametrize("name", NAMES)
def test_each_finds_what_it_finds_alone_and_evaluations_of_both_are_one_call(name):
    alone, together = engines_of(name, network=False), engines_of(name, network=True)
    expected = searched(alone)
    assert searched(together) == expected
    one = together[0].network.denoiser
    assert network_calls(one) < sum(network_calls(engine.denoiser) for engine in alone)
    assert [engine.nfe for engine in together] == [engine.nfe for engine in alone]
    before = network_calls(one)
    assert searched(together) == expected
    most = max(engine.grid.nfe for engine in together)
    assert sum(engine.stats["batches"] for engine in together) <= 2 * (most + 1)
    assert network_calls(one) - before <= (most + 1) * one.passes_per_nfe


@pytest.mark.parametrize("kernel", ["pipeline", "ode", "sde"])
def test_ledgers_of_random_searches_that_take_turns(kernel):
    name = "PixArtAlphaPipeline"
    rng = random.Random(kernel)
    pipe, call = by_calls(name)
    rows = rows_of_a_call(name, "DDIM")
    network = network_of(pipe, call, kernel=kernel)
    for _ in range(2):
        steps = [rng.randint(1, 5) for _ in range(3)]
        options = {"kernel": kernel, "batch_size": rng.randint(1, 9)}
        calls = [{**call, "num_inference_steps": n} for n in steps]
        alone = [pipe.engine(reward, **options, **each) for each in calls]
        together = [pipe.engine(reward, network=network, **options, **each) for each in calls]
        how = [
            {
                "prompts": PROMPTS[: rng.randint(1, 3)],
                "budget": f"{rng.randint(2, 5) * n}nfe",
                "seed": rng.randint(0, 99),
            }
            for n in steps
        ]
        late = rng.randrange(3)
        found, seen = [list[Any](), list[Any]()], Seen(network.denoiser)
        for engines, results in zip((alone, together), found, strict=True):
            runs = [Run(engine) for engine in engines]
            with seen.counting():
                seen.rows = dict.fromkeys(seen.rows, 0)
                requests = [None if i == late else added(runs[i], **how[i]) for i in range(3)]
                for _ in range(2):
                    for run in rng.sample(runs, 3):
                        if run.busy:
                            run.turn()
                requests[late] = added(runs[late], **how[late])
                finished(runs)
            pairs = zip(requests, engines, strict=True)
            results += [told(request, engine) for request, engine in pairs if request is not None]
            nfe, decodes = (sum(e.stats[kind] for e in engines) for kind in ("nfe", "decodes"))
            expected = {part: n * (decodes if part == VAE else nfe) for part, n in rows.items()}
            assert seen.rows == expected
        assert found[0] == found[1]


def test_an_engine_that_is_dropped_while_another_runs_goes_with_its_frames():
    engines = engines_of("sd15", network=True)
    runs = [Run(engine) for engine in engines]
    requests = [added(run, seed=10 * i) for i, run in enumerate(runs)]
    for run in runs:
        run.turn()
    gone = engines[0].denoiser
    frames = [ref(frame) for waiting in gone._frames._waiting.values() for frame in waiting]
    there = [ref(gone), ref(engines[0]), *frames]
    assert frames
    gc.collect()
    gc.disable()
    try:
        engines.pop(0).leave()
        del gone, runs[0], requests[0]
        assert not any(part() for part in there)
    finally:
        gc.enable()
    finished(runs)
    assert (
        told(requests[0], engines[0])
        == searched(engines_of("sd15", network=False, steps=STEPS), PROMPTS[:1])[1]
    )


def test_texts_are_encoded_once_for_all_calls():
    engines = engines_of("sdxl", network=True)
    one = engines[0].network.denoiser
    prompts = [Prompt(text) for text in PROMPTS[:2]]
    one.encode(prompts)
    starts = [engine.executor.peer.start for engine in engines]
    x = engines[0].denoiser.init_latents([torch.Generator().manual_seed(i) for i in range(4)])
    one.predict(x, torch.tensor([starts[0], starts[1]] * 2), torch.tensor([0, 0, 1, 1]))
    expected = one.hub.calls["text_encoder"]
    one.predict(x, torch.tensor([starts[1] + 1, starts[0] + 2] * 2), torch.tensor([0, 0, 1, 1]))
    assert one.hub.calls["text_encoder"] == expected <= 4


def test_calls_that_differ_in_more_than_steps_are_refused():
    pipe, call = by_calls("sd3")
    one = pipe.denoiser(**call)
    for more in ({"guidance_scale": 2.0}, {"height": 32}, {"negative_prompt": "a hen"}):
        with pytest.raises(ValueError, match="steps alone"):
            one.merge_schedule(pipe.denoiser(**{**call, **more}))
    for name in ("StableDiffusionPAGPipeline", "FluxInpaintPipeline"):
        pipe, call = by_calls(name)
        one = pipe.denoiser(**call)
        assert Capability.SHARE not in one.can
        with pytest.raises(ValueError, match="network of its own"):
            one.merge_schedule(pipe.denoiser(**call))
