"""Engines of the embedded model: rewards that read latents, and a network for several."""

from __future__ import annotations

import gc
import io
import tarfile
import time
from dataclasses import replace
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch

from tests.shallow import shallow
from ttsnap import Budget, SeedPruning, make_algorithm, search
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.needs import Gradient
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.core.results import Event
from ttsnap.engine import batch_sizes
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.run import Run
from ttsnap.loop.search import fit, prepared
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.folder import read_images
from ttsnap.recordings.record import record
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import RewardModel

CALL = {**defaults(), "num_inference_steps": 6}
PROMPTS = ["a red circle and a blue square", "three green crosses"]


class Peek:
    """Scores estimates by what it is given, finished images by their brightness, and remembers the
    shapes."""

    name = "peek"
    flops = 10.0

    def __init__(self, estimates="latents"):
        self.estimates, self.shapes, self.calls = estimates, set[tuple[int, ...]](), 0

    def score_estimates(self, x, prompts, level):
        assert len(x) == len(prompts) == len(level)
        assert bool((level > 0).all())
        self.shapes.add(tuple(x.shape[1:]))
        return x.float().mean((1, 2, 3))

    def __call__(self, images, prompts, level):
        self.calls += len(images)
        assert bool((level <= 0).all())
        return images.float().mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe():
    with shallow():
        return load()


def searched(engine, prompts=PROMPTS, **more):
    results = search(
        prompts, make_algorithm("seed-pruning"), engine, Budget(nfe=40), seed=3, **more
    )
    cost = Cost().plus(*(result.spent.cost for result in results))
    assert all(
        engine.stats[name] == getattr(cost, name) for name in ("nfe", "decodes", "reward_calls")
    )
    return results, cost


def test_no_decode_is_charged_or_made_for_estimates(pipe):
    reward, events = Peek(), list[Event]()
    engine = pipe.engine(reward, batch_size=8, **CALL)
    results, cost = searched(engine, on_event=events.append)
    assert reward.shapes == {(8, 8, 8)}
    assert (
        sum(r.spent.finished for r in results) == reward.calls == cost.decodes < cost.reward_calls
    )
    assert all((e.image is None) == (e.step < 6) for e in events if e.kind == "score")
    assert engine.price.estimates == "nothing"
    with pytest.raises(ValueError, match="known are pixels"):
        pipe.engine(Peek("features"), **CALL)
    with pytest.raises(ValueError, match="must be 'latents'"):
        pipe.engine(reward, keep=["features"], **CALL)


def test_beside_a_reward_of_pixels_estimates_are_decoded(pipe):
    engine = pipe.engine(
        [Peek(), lambda images, prompts: images.mean((1, 2, 3))], batch_size=8, **CALL
    )
    _, cost = searched(engine)
    assert (cost.decodes * 2, engine.price.estimates) == (cost.reward_calls, "decode")


def test_recordings_keep_the_latents_of_which_images_are_decoded(pipe, tmp_path):
    engine, latents = pipe.engine("scenes", batch_size=8, keep=["latents"], **CALL), {}
    record(
        engine,
        PROMPTS,
        tmp_path / "rec",
        RecordOptions(2, images=True, latents=True, steps=[1, 3, 6]),
    )
    for path in (tmp_path / "rec" / "images").glob("*.tar"):
        with tarfile.open(path) as tar:
            for entry in tar:
                name, _, kind = entry.name.partition(".")
                if kind == "latent.npy":
                    file = tar.extractfile(entry)
                    latents[tuple(map(int, name.split("-")))] = np.load(
                        io.BytesIO(file.read()), allow_pickle=False
                    )
    images = {image[:3]: image.pixels for image in read_images(tmp_path / "rec")}
    assert len(latents) == len(images) == 2 * 2 * 3  # prompts, seeds, steps
    x0 = np.stack([latents[at] for at in images])
    assert (x0.dtype.name, x0.shape[1:]) == ("float16", (8, 8, 8))
    decoded = engine.denoiser.decode(torch.from_numpy(x0).float()).detach().movedim(1, -1) * 255
    np.testing.assert_allclose(decoded, np.stack(list(images.values())), atol=2)
    with pytest.raises(ValueError, match="extras"):
        record(engine, PROMPTS, tmp_path / "rec", RecordOptions(2, images=True, steps=[1, 3, 6]))


@pytest.mark.parametrize("early", ["brightness", Peek()], ids=["pixels", "latents"])
def test_one_reward_prunes_and_another_decides(pipe, early):
    staged = Staged(make_reward(early), make_reward("scenes"))
    (result,), cost = searched(pipe.engine(staged, batch_size=8, **CALL), PROMPTS[:1])
    (expected,) = make_reward("scenes")(result.best.image[None], PROMPTS[:1], None)
    assert result.best.reward == pytest.approx(float(expected), abs=1e-6)
    assert not result.warnings
    assert cost.decodes == (cost.reward_calls if early == "brightness" else result.spent.finished)


class Weighed(RewardModel):
    """The mean of an image, at a price in FLOPs and by a clock. Its first call takes long, as to
    load weights."""

    name = "weighed"

    def __init__(self, flops, clock, seconds=1.0):
        self.flops, self._clock, self._seconds = flops, clock, [seconds, 100.0]

    def __call__(self, images, prompts, level=None):
        self._clock[0] += self._seconds.pop() if len(self._seconds) > 1 else self._seconds[0]
        return images.float().mean((1, 2, 3))


@pytest.mark.parametrize("early", [1e6, 1e9], ids=["cheap", "dear"])
def test_a_finished_image_is_priced_as_the_last_choice_and_a_look_as_the_pruning(pipe, early):
    engine = pipe.engine(Staged(Weighed(early, [0.0]), Weighed(1e8, [0.0])), batch_size=8, **CALL)
    (result,), cost = searched(engine, PROMPTS[:1])
    flops, finished = engine.price.flops, result.spent.finished
    assert cost.reward_calls > finished
    assert (
        flops.reward_calls * cost.reward_calls + flops.base_calls * cost.base_calls
        == pytest.approx(early * (cost.reward_calls - finished) + max(early, 1e8) * finished)
    )


def test_what_a_reward_takes_once_is_not_in_its_seconds(pipe, monkeypatch):
    clock = [0.0]

    def perf_counter():
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr(batch_sizes, "time", SimpleNamespace(perf_counter=perf_counter))
    engine = pipe.engine(
        Staged(Weighed(1.0, clock), Weighed(2.0, clock, 3.0)), batch_size=8, **CALL
    )
    spent = engine.calibrate()
    assert (spent.reward_calls, spent.base_calls) == (4, 2)
    seconds = engine.price.seconds
    assert (seconds.reward_calls, seconds.base_calls) == pytest.approx((1.0, 2.0), abs=0.01)


def test_checks_without_a_decode_leave_more_to_seeds(pipe):
    sizes = []
    for reward in ("scenes", Peek()):
        engine = pipe.engine(reward, **CALL)
        engine._price = replace(engine.price, flops=Rates(nfe=1.0, decodes=10.0))
        sizes.append(fit(SeedPruning(keep=(0.2,), steps=(2,)), engine, Budget(flops=400.0)).n)
    assert sizes[1] > 1.5 * sizes[0]


# --- engines that share a network -----------------------------------------------------------------


STEPS = (2, 4, 3)
SEARCHES = ("seed-pruning", "best-of-n", "best-of-n")
THREE = ("two green crosses", "a red circle", "a yellow triangle above a red square")
REWARDS = ("scenes", "brightness", "scenes")


def engines_of(pipe, *, shared, **options):
    """Of different steps and rewards, with a network each or one for all."""
    calls = [{**defaults(), "num_inference_steps": n} for n in (5, *STEPS)]
    network = (
        SharedDenoiser(pipe.sampling_denoiser(SamplerOptions(kernel="sde"), **calls[0]))
        if shared
        else None
    )
    how = {"network": network, "kernel": "sde", "batch_size": 16, "fair": True, **options}
    return [
        pipe.engine(reward, **how, **call) for reward, call in zip(REWARDS, calls[1:], strict=True)
    ]


def found(engines, turns=(0, 1, 2)):
    """Seed, reward and evaluations of what each engine finds, when they have their turns in this
    order."""
    runs = [Run(engine) for engine in engines]
    requests = []
    for i, (engine, run) in enumerate(zip(engines, runs, strict=True)):
        budget = Budget.parse("4images").on(engine.grid, engine.price.start)
        spec = prepared(LoopSearch(make_algorithm(SEARCHES[i]), budget, seed=10 * i), engine)
        requests.append(run.add([Prompt(THREE[i])], spec, RequestClock(time.monotonic, 0.0)))
    while any(run.busy for run in runs):
        for i in turns:
            if runs[i].busy:
                runs[i].turn()
    ended = [
        report(request, engine, RunUsage())[0]
        for request, engine in zip(requests, engines, strict=True)
    ]
    return [
        (one.best.seed, pytest.approx(one.best.reward, abs=1e-5), one.spent.nfe) for one in ended
    ]


def test_each_finds_what_it_finds_alone_in_fewer_calls_whoever_is_first(pipe):
    alone, together = engines_of(pipe, shared=False), engines_of(pipe, shared=True)
    expected = found(alone)
    assert found(together) == expected
    for one, other in zip(together, alone, strict=True):
        assert one.nfe == other.nfe, (
            "an evaluation counts where its row belongs, whoever's batch it was made in"
        )
    calls, before = (
        sum(engine.stats["batches"] for engine in engines) for engines in (together, alone)
    )
    assert calls < before * 2 / 3
    assert found(together, turns=(2, 0, 1, 1)) == expected
    network = together[0].network
    together[1].leave()
    assert list(network.peers) == [together[0].executor.peer, together[2].executor.peer]


def test_what_needs_a_network_of_its_own_is_refused(pipe):
    engine = engines_of(pipe, shared=True)[0]
    with pytest.raises(ValueError, match="follows no gradients"):
        engine.differentiate(Gradient())
    with pytest.raises(ValueError, match="nor follow gradients"):
        engines_of(pipe, shared=True, guide="tilted:0.4:x0")


@pytest.mark.parametrize("shared", [False, True])
def test_an_engine_that_is_dropped_goes_without_a_collection_of_garbage(pipe, shared):
    (engine,) = engines = engines_of(pipe, shared=shared)[:1]
    found(engines, turns=[0])
    drafting = pipe.sampling_denoiser(SamplerOptions(draft="embedded"), **defaults())
    gc.collect()
    gc.disable()
    try:
        there = [
            ref(part) for part in (engine, engine.denoiser, engine.network, engine.scorer, drafting)
        ]
        del engines, engine, drafting
        assert not any(part() for part in there)
    finally:
        gc.enable()
