"""One embedded model for all tests of the service, and servers over it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from tests.pipelines.modular.tiny import CASES, built
from tests.service.asking import Caller, png
from tests.shallow import shallow
from ttsnap.pipelines import load, recommended, upgrade
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import ModelDefaults
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import JobStore
from ttsnap.service.limits import Keys, ServiceLimits
from ttsnap.service.server import GenerationServer, offer_of

ALICE, BOB = "a" * 20, "b" * 20
REWARDS = ("scenes", "brightness")
CALL = {
    "num_inference_steps": 4,
    "height": 16,
    "width": 32,
    "num_frames": 5,
    "max_sequence_length": 16,
}
"""Of tiny models of videos."""


class Server(GenerationServer, Caller):
    """A server, and one who asks it without a key."""


Keeping = Callable[..., AbstractContextManager[Server]]


def client_of(server):
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def few_steps(model):
    """What it recommends, but for fewer steps."""
    known = recommended(model)
    return replace(known, call={**known.call, "num_inference_steps": 4})


EDITS = ServingCatalog("embedded", ("brightness",), few_steps, edits=True)


def one_device(pipe, *rewards, loras=()):
    """Of a model, with these rewards or brightness."""
    named = {name: make_rewards(name)[0] for name in rewards or ("brightness",)}
    return OneDevice(pipe, named, loras)


def serve(
    engines,
    offer,
    limits=None,
    keys=None,
    **more,
):
    """A server that has not begun, at a free port."""
    return Server(
        engines, offer, limits or ServiceLimits(drain=0.1), keys, ("127.0.0.1", 0), **more
    )


@contextmanager
def with_jobs(
    engines,
    limits=None,
    *,
    offer,
    folder,
    **more,
):
    """A server over the jobs in a folder, by what these engines score."""
    limits, offer = (
        limits or ServiceLimits(drain=0.1),
        replace(offer, rewards=tuple(engines.rewards)),
    )
    with (
        closing(JobStore(folder, limits)) as store,
        serve(engines, offer, limits, store=store, **more) as server,
    ):
        yield server


class Slow(OneDevice):
    """Every batch takes a little longer. left: how many there are until one hangs, which ends when
    it may `go`."""

    left = 10**6

    def __init__(self, pipe):
        super().__init__(pipe, {"brightness": make_rewards("brightness")[0]})
        self.go = threading.Event()

    @contextmanager
    def engine(self, spec):
        with super().engine(spec) as made:
            engine = made
            tick = engine.tick

            def slow():
                time.sleep(0.05)
                self.left -= 1
                assert self.left >= 0 or self.go.wait(60)
                return tick()

            engine.tick = slow
            yield engine


@pytest.fixture
def slow(pipe):
    return Slow(pipe)


@pytest.fixture(scope="package")
def quick(pipe):
    return one_device(pipe)


@pytest.fixture(scope="package")
def jobs(quick, offer, tmp_path_factory):
    """A server of images and of jobs."""
    with with_jobs(quick, offer=offer, folder=tmp_path_factory.mktemp("jobs")) as caller:
        yield caller


@pytest.fixture
def keeping(offer, tmp_path):
    """Begins servers of images over the jobs of this test, by what some engines score, within
    limits, with keys."""
    return partial(with_jobs, offer=offer, folder=tmp_path)


def opened(**more):
    with shallow():
        pipe = load(**more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="package")
def pipe():
    return opened()


@pytest.fixture(scope="package")
def editor():
    """The embedded model, as one that redraws pictures."""
    return opened(task="image-to-image")


@pytest.fixture(scope="package")
def drawn():
    """Pictures of two sizes."""
    rng = np.random.default_rng(0)
    return [
        png(Image.fromarray(rng.integers(0, 256, (32, width, 3), dtype=np.uint8)))
        for width in (32, 24) * 4
    ]


@pytest.fixture(scope="package")
def offer():
    return ServingCatalog("embedded", REWARDS, recommended)


@pytest.fixture(scope="package")
def serving(pipe, offer):
    """Starts servers with these limits and keys, which end with the session."""
    engines = one_device(pipe, *REWARDS)
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(serve(engines, offer, *given, **more))


@pytest.fixture(scope="package")
def caller(serving):
    return serving()


@pytest.fixture(scope="package")
def editing(editor):
    """A server of images and edits."""
    with serve(one_device(editor), EDITS, ServiceLimits(drain=0.1, side=64)) as server:
        yield server


@pytest.fixture
def two_keys(tmp_path):
    (tmp_path / "keys").write_text(f"alice {ALICE}\nbob {BOB}\n")
    return Keys.read(tmp_path / "keys")


def twin(name):
    """A tiny model of videos."""
    pipe = upgrade(built(CASES[name].pipeline, CASES[name].parts))
    pipe.set_progress_bar_config(disable=True)
    pipe.own_defaults = ModelDefaults(CALL)
    return pipe


def filming(engines, folder):
    """A server of videos."""
    offer = replace(
        offer_of("tiny", engines, "tiny", {}, "none"), defaults=lambda _: ModelDefaults(CALL)
    )
    limits = ServiceLimits(drain=0.1, side=16, video_side=64)
    return with_jobs(engines, limits, offer=offer, folder=folder)


@pytest.fixture(scope="package")
def wan():
    return twin("wan")


@pytest.fixture(scope="package")
def videos(wan, tmp_path_factory):
    with filming(one_device(wan), tmp_path_factory.mktemp("videos")) as caller:
        yield caller


@contextmanager
def command(*given):
    """`ttsnap serve` of a model with these arguments, at a free port: its process and its
    address."""
    words = [sys.executable, "-m", "ttsnap", "serve", *given, "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"at (http://\S+)/v1", process.stdout.readline())
            assert found is not None
            yield process, found[1]
        finally:
            process.kill()
