"""Random searches: what they are charged, from threads, and where a part fails."""

from __future__ import annotations

import functools
import random
import threading
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers
import pytest
import torch

from tests.cover import each_once
from ttsnap import Budget, search
from ttsnap.algorithms import make_algorithm
from ttsnap.core.memory import NotEnoughMemoryError
from ttsnap.core.prompt import Prompt
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.calls.hub import Hub
from ttsnap.pipelines.calls.joining import PartArguments
from ttsnap.pipelines.suspended import NAME
from ttsnap.profiling.flops import count_flops
from ttsnap.sampling.rng import seeded

from .tiny import made

PROMPTS = ["a fox", "two red hens", "a boat"]
VAE = "vae"
NOISES = (
    "DDIM",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "DPMSolverMultistep",
    "UniPCMultistep",
    "DDPM",
)
FLOWS = ("FlowMatchEulerDiscrete",)
CLASSES = {
    "PixArtAlphaPipeline": NOISES,
    "StableDiffusionControlNetPipeline": NOISES,
    "FluxInpaintPipeline": FLOWS,
    "AnimateDiffPipeline": NOISES,
    "ChromaPipeline": FLOWS,
    "CogVideoXPipeline": ("DDIM", "DPMSolverMultistep"),
    "HunyuanVideoPipeline": FLOWS,
    "Krea2Pipeline": FLOWS,
    "StableDiffusionPAGPipeline": NOISES,
    "StableDiffusionXLInpaintPipeline": NOISES,
}
"""Ten, the quickest first, with the schedulers that their calls allow."""
QUICK, ALL = list(CLASSES)[:3], list(CLASSES)
ALGORITHMS = (
    {"search": "best-of-n"},
    {"search": "seed-pruning"},
    {"search": "ttsnap"},
    {"search": "zero-order"},
    {"search": "smc", "kernel": "sde"},
    {"search": "svdd", "kernel": "sde"},
    {"search": "rbf", "kernel": "sde"},
)
GRADIENTS = (
    {"search": "best-of-n", "kernel": "sde", "guide": "dps:2:1-0"},
    {"search": "svdd", "kernel": "sde", "guide": "tilted:0.4:x0:1-0"},
    {"search": "noise-ascent", "kernel": "ode"},
)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def reward(images, prompts):
    return images.flatten(1)[:, ::3].mean(1)


def threads_of_frames():
    return sum(thread.name == NAME for thread in threading.enumerate())


# Ledgers


class Drawn(NamedTuple):
    """A search."""

    how: dict[str, Any]
    nfe: int
    prompts: int
    seed: int


def drawn(rng, ways=ALGORITHMS):
    return Drawn(
        rng.choice(ways), nfe=rng.randint(6, 40), prompts=rng.randint(1, 3), seed=rng.randint(0, 99)
    )


class Seen:
    """What the real parts of a denoiser's pipeline are called for: rows by part, and FLOPs; trials
    of the hub aside."""

    def __init__(self, denoiser, *, flops=False):
        self.parts = {name: getattr(denoiser.pipe, name) for name in (*denoiser.hub.networks, VAE)}
        self.rows = dict.fromkeys(self.parts, 0)
        self.flops, self._counts_flops, self._tries = 0.0, flops, False

    @contextmanager
    def counting(self):
        alone = Hub._is_alone

        def tried(*args, **how):
            self._tries = True
            try:
                return alone(*args, **how)
            finally:
                self._tries = False

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Hub, "_is_alone", tried)
            for name, part in self.parts.items():
                method, kind = "decode" if name == VAE else "__call__", type(part)
                counted = self._counted(name, getattr(kind, method))
                patched.setattr(part, "__class__", type(kind.__name__, (kind,), {method: counted}))
            yield

    def _counted(self, name, method):
        @functools.wraps(method)
        def call(own, *args, **kwargs):
            if own is not self.parts[name] or self._tries:  # a copy without weights, or a trial
                return method(own, *args, **kwargs)
            self.rows[name] += PartArguments(args, kwargs).rows
            if not self._counts_flops:
                return method(own, *args, **kwargs)
            found = []
            self.flops += count_flops(lambda: found.append(method(own, *args, **kwargs)))
            return found[0]

        return call


def built(name, scheduler):
    """A search pipeline with this scheduler, over parts that others share, and the arguments of its
    call."""
    twin = upgrade(made(name).pipe)
    twin.scheduler = getattr(diffusers, f"{scheduler}Scheduler")(
        **({"shift": 3.0} if scheduler in FLOWS else BETAS)
    )
    return twin, {**made(name).call, "num_inference_steps": 3}


@functools.cache
def rows_of_a_call(name, scheduler):
    """What a stock call asks of its networks for a step, and of its decoder."""
    twin, call = built(name, scheduler)
    denoiser = twin.denoiser(**call)
    one, steps = Seen(denoiser), len(denoiser.schedule.timesteps)
    with one.counting(), torch.no_grad():
        type(made(name).pipe).__call__(
            denoiser.pipe, prompt=PROMPTS[0], generator=seeded(0), **call
        )
    return {part: rows if part == VAE else rows / steps for part, rows in one.rows.items()}


def engine_of(name, rng, **sampler):
    """An engine with a scheduler and batch sizes by chance, and the rows of its stock call."""
    scheduler = rng.choice(CLASSES[name])
    twin, call = built(name, scheduler)
    batches = {"batch_size": rng.randint(1, 7), "decode_batch_size": rng.randint(1, 5)}
    return twin.engine(reward, **batches, **sampler, **call), rows_of_a_call(name, scheduler)


def charged(engine, rows, asked, *, flops=False):
    """Compare the ledger of a search with what the parts saw. False where its call has no such
    search."""
    algorithm, one = make_algorithm(asked.how["search"]), Seen(engine.denoiser, flops=flops)
    try:
        with one.counting():
            results = search(
                PROMPTS[: asked.prompts], algorithm, engine, Budget(nfe=asked.nfe), seed=asked.seed
            )
    except ValueError:  # it needs what this call does not allow, as noise that is mixed
        assert sum(one.rows.values()) == 0
        return False
    nfe, decodes = (
        sum(getattr(each.spent.cost, kind) for each in results) for kind in ("nfe", "decodes")
    )
    assert one.rows == {part: n * (decodes if part == VAE else nfe) for part, n in rows.items()}, (
        asked
    )
    if flops:
        price = engine.price.flops
        assert one.flops == pytest.approx(nfe * price.nfe + decodes * price.decodes, rel=1e-6), (
            asked
        )
    return nfe > 0


@pytest.mark.parametrize("name", QUICK)
def test_ledgers_are_what_the_parts_were_called_for(name):
    rng = random.Random(0)
    engine, rows = engine_of(name, rng)
    assert sum(charged(engine, rows, drawn(rng, ALGORITHMS[:3])) for _ in range(2)) == 2


@pytest.mark.parametrize(("name", "how"), each_once(QUICK, GRADIENTS))
def test_ledgers_of_searches_that_follow_gradients(name, how):
    rng = random.Random(2)
    sampler = {option: value for option, value in how.items() if option != "search"}
    engine, rows = engine_of(name, rng, **sampler)
    engine.start()
    engine.admit([Prompt(PROMPTS[0])])  # where a row's memory is measured, in a trial
    ran = charged(engine, rows, drawn(rng, [how]))
    assert ran or name == "FluxInpaintPipeline"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_ledgers_of_300_random_searches():
    rng, ran = random.Random(1), 0
    for _ in range(36):
        for name in ALL:
            asked = drawn(rng)
            sampler = {option: value for option, value in asked.how.items() if option != "search"}
            try:
                engine, rows = engine_of(name, rng, **sampler)
            except ValueError:  # its call does not allow this scheduler
                continue
            ran += charged(engine, rows, asked, flops=True)
    assert ran >= 300


# Threads


def asked_of(seed):
    """A search by each algorithm in turn."""
    rng = random.Random(seed)
    ways = [how for how in ALGORITHMS if how["search"] != "zero-order"]
    return {
        **ways[seed % len(ways)],
        "budget": f"{rng.randint(6, 16)}nfe",
        "seed": rng.randint(0, 99),
        "batch_size": rng.randint(1, 4),
    }


def test_12_mixed_searches_from_4_threads_on_one_pipe_are_what_each_is_alone():
    name = "PixArtAlphaPipeline"
    pipe, call = upgrade(made(name).pipe), {**made(name).call, "num_inference_steps": 3}

    def run(seed):
        return pipe(PROMPTS[:2], reward=reward, output_type="pt", **asked_of(seed), **call)

    alone, together = {seed: run(seed) for seed in range(12)}, dict[int, Any]()
    workers = [
        threading.Thread(
            target=lambda first=first: together.update(
                {seed: run(seed) for seed in range(first, 12, 4)}
            ),
            daemon=True,
        )
        for first in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed, out in alone.items():
        ours = together[seed]
        assert [each.best.seed for each in ours.search] == [
            each.best.seed for each in out.search
        ], seed
        assert [each.spent.cost for each in ours.search] == [
            each.spent.cost for each in out.search
        ], seed
        assert torch.allclose(ours.images, out.images, atol=1e-5), seed
    assert threads_of_frames() == 0


# Failures


ERRORS = (RuntimeError("the part is broken"), torch.OutOfMemoryError("out of memory"))
PLACES = (
    ("transformer", "forward", 0),
    ("transformer", "forward", 3),
    (VAE, "decode", 3),
    (VAE, "decode", 0),
    (VAE, "encode", 3),
    ("text_encoder", "forward", 0),
)


@pytest.mark.parametrize(("place", "error"), each_once(PLACES, ERRORS))
def test_what_a_part_raises_ends_its_search_and_leaves_no_thread(place, error, monkeypatch):
    part, method, after = place
    pipe = upgrade(made("FluxInpaintPipeline").pipe)
    call = {**made("FluxInpaintPipeline").call, "num_inference_steps": 3}
    engine = pipe.engine(reward, batch_size=2, **call)
    real, calls = getattr(type(getattr(pipe, part)), method), list[int]()

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(type(getattr(pipe, part)), method, broken)
    with pytest.raises((RuntimeError, NotEnoughMemoryError), match=str(error)):
        search(PROMPTS[:2], make_algorithm("ttsnap"), engine, Budget(nfe=30), seed=0)
    assert threads_of_frames() == 0


def test_a_bad_argument_is_the_stock_calls_error():
    case = made("FluxInpaintPipeline")
    with pytest.raises(ValueError) as stocks:
        case.pipe(prompt=PROMPTS[0], **{**case.call, "max_sequence_length": 4096})
    with pytest.raises(ValueError) as ours:
        upgrade(case.pipe)(
            PROMPTS, reward=reward, search="ttsnap", **{**case.call, "max_sequence_length": 4096}
        )
    assert str(ours.value) == str(stocks.value)
    assert threads_of_frames() == 0
