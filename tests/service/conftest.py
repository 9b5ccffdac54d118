"""One embedded model for all tests of the service, and servers over it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from openai import OpenAI

from tests.shallow import shallow
from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import Offer
from ttsnap.request.request import ModelDefaults
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

REWARDS = ("scenes", "brightness")


@pytest.fixture(scope="session")
def pipe() -> Any:
    with shallow():
        pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def offer() -> Offer:
    return Offer("embedded", REWARDS, recommended)


def few_steps(model: str) -> ModelDefaults:
    """What it recommends, but for fewer steps."""
    known = recommended(model)
    return replace(known, call={**known.call, "num_inference_steps": 4})


@pytest.fixture(scope="session")
def serving(pipe: Any, offer: Offer) -> Iterator[Callable[..., GenerationServer]]:
    """Starts servers with these limits and keys, which end with the session."""
    rewards = {name: make_rewards(name)[0] for name in REWARDS}
    with ExitStack() as stack:

        def start(limits: ServiceLimits | None = None, keys: Keys | None = None, **more: Any) -> GenerationServer:
            limits = limits or ServiceLimits(drain=0.1)
            where, engines = ("127.0.0.1", 0), OneDevice(pipe, rewards)
            server = GenerationServer(engines, offer, limits, keys, where, **more)
            return stack.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def server(serving: Callable[..., GenerationServer]) -> GenerationServer:
    return serving()


@contextmanager
def command(*given: str, stderr: int = subprocess.DEVNULL) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ttsnap serve` of a model with these arguments, at a free port: its process and its address."""
    words = [sys.executable, "-m", "ttsnap", "serve", *given, "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"at (http://\S+)/v1", process.stdout.readline())
            assert found is not None
            yield process, found[1]
        finally:
            process.kill()


def client_of(server: GenerationServer, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def client(server: GenerationServer) -> OpenAI:
    return client_of(server)
