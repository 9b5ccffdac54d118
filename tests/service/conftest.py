"""One embedded model for all tests of the service, and servers over it."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from tests.shallow import shallow
from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.request.request import EngineSpec, ModelDefaults
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.keys import Keys
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

REWARDS = ("scenes", "brightness")
PROMPT = "two green crosses"
LARGE = {"prompt": PROMPT, "budget": "2000nfe", "search": "best-of-n", "steps": 4}


# --- what tests read and wait for -----------------------------------------------------------------------------------


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def metric(server: GenerationServer, name: str) -> float:
    """One line of /metrics; 0 where nothing was counted yet."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    return float(found[1]) if found else 0.0


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


# --- models, engines and servers ------------------------------------------------------------------------------------


def few_steps(model: str) -> ModelDefaults:
    """What it recommends, but for fewer steps."""
    known = recommended(model)
    return replace(known, call={**known.call, "num_inference_steps": 4})


EDITS = ServingCatalog("embedded", ("brightness",), few_steps, edits=True)


def one_device(pipe: Any, *rewards: str) -> OneDevice:
    """Of a model, with these rewards or brightness."""
    return OneDevice(pipe, {name: make_rewards(name)[0] for name in rewards or ("brightness",)})


def serve(
    engines: OneDevice | ManyDevices,
    offer: ServingCatalog,
    limits: ServiceLimits | None = None,
    keys: Keys | None = None,
    *,
    port: int = 0,
    **more: Any,
) -> GenerationServer:
    """A server that has not begun, at a free port unless one is given."""
    limits = limits or ServiceLimits(drain=0.1)
    return GenerationServer(engines, offer, limits, keys, ("127.0.0.1", port), **more)


class Slow(OneDevice):
    """Every batch takes a little longer. left: how many there are until one hangs, which ends when it may `go`."""

    left = 10**6

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe, {"brightness": make_rewards("brightness")[0]})
        self.go = threading.Event()

    @contextmanager
    def engine(self, spec: EngineSpec) -> Iterator[Any]:
        with super().engine(spec) as made:
            engine: Any = made
            tick = engine.tick

            def slow() -> Any:
                time.sleep(0.05)
                self.left -= 1
                assert self.left >= 0 or self.go.wait(60)
                return tick()

            engine.tick = slow
            yield engine


@pytest.fixture(scope="session")
def pipe() -> Any:
    with shallow():
        pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def editor() -> Any:
    """The embedded model, as one that redraws pictures."""
    with shallow():
        pipe = load(task="image-to-image")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def drawn() -> list[Image.Image]:
    """Pictures of two sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, width, 3), dtype=np.uint8)) for width in (32, 24) * 4]


@pytest.fixture(scope="session")
def offer() -> ServingCatalog:
    return ServingCatalog("embedded", REWARDS, recommended)


@pytest.fixture(scope="session")
def serving(pipe: Any, offer: ServingCatalog) -> Iterator[Callable[..., GenerationServer]]:
    """Starts servers with these limits and keys, which end with the session."""
    engines = one_device(pipe, *REWARDS)
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(serve(engines, offer, *given, **more))


@pytest.fixture(scope="session")
def server(serving: Callable[..., GenerationServer]) -> GenerationServer:
    return serving()


@pytest.fixture(scope="session")
def editing(editor: Any) -> Iterator[GenerationServer]:
    """A server of images and edits."""
    with serve(one_device(editor), EDITS, ServiceLimits(drain=0.1, side=64)) as server:
        yield server


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
