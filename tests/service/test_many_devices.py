"""The service over several devices: its engines are clusters, and what callers get is the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.cluster.local import LocalPool
from tests.service.conftest import PROMPT, REWARDS, client_of, metric, one_device, serve, until
from ttsnap.core.protocols import EngineLost
from ttsnap.engine.live import LiveEngine
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines import load
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engines import ManyDevices, OneDevice
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

OWN: dict[str, object] = {"seed": 3, "budget": "24nfe", "search": "best-of-n", "steps": 4}
CPU = ModelOptions(device="cpu", dtype="float32")


def serving(pipe: Any, offer: ServingCatalog, pool: Any) -> GenerationServer:
    return server_of(ManyDevices(one_device(pipe, *REWARDS), CPU, {name: name for name in REWARDS}, pool), offer)


def server_of(engines: OneDevice | ManyDevices, offer: ServingCatalog) -> GenerationServer:
    return serve(engines, offer, ServiceLimits(drain=0.1, idle=1))


def asked(client: OpenAI, **own: object) -> tuple[Any, ...]:
    reply = client.images.generate(prompt=PROMPT, extra_body={**OWN, **own}).to_dict()
    image = reply["data"][0]
    return image["seed"], round(image["reward"], 3), reply["usage"]["nfe"]


@pytest.mark.usefixtures("shallow_model")
def test_several_devices_give_what_one_gives_and_are_measured(pipe: Any, offer: ServingCatalog, client: OpenAI) -> None:
    pools: list[LocalPool] = []

    def pool(make: Callable[[], LiveEngine]) -> LocalPool:
        pools.append(LocalPool(make, 2))
        return pools[-1]

    with serving(pipe, offer, pool) as server:
        mine = client_of(server)
        assert asked(mine) == asked(client)
        assert asked(mine, reward="brightness", report="scenes") == asked(client, reward="brightness", report="scenes")
        assert len(pools) == 3, "that of plain requests, which was made ready, and two others"
        networks = {id(actor.engine.denoiser.pipe.transformer) for pool in pools for actor in pool.actors}
        assert len(networks) == 1, "a process loads the model once"
        assert metric(server, "ttsnap_nfe_total") == 48
        assert 0 < metric(server, "ttsnap_batch_fill") <= 1
        assert metric(server, "ttsnap_batch_places_total") >= 48


@pytest.mark.usefixtures("shallow_model")
def test_devices_that_keep_failing_are_said_and_tried_anew(pipe: Any, offer: ServingCatalog) -> None:
    pools: list[LocalPool] = []

    def pool(make: Callable[[], LiveEngine]) -> LocalPool:
        pools.append(LocalPool(make, 2))
        pools[-1].hopeless = len(pools) <= 2  # what is made ready, and for the first request
        return pools[-1]

    with serving(pipe, offer, pool) as server:
        body = {"prompt": PROMPT, **OWN}
        reply = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
        assert "keep failing" in reply.json()["error"]["message"]
        assert httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).status_code == 200
        pools[-1].hopeless = True
        lost = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60)
        assert lost.status_code == 503
        until(lambda: metric(server, "ttsnap_configurations") == 0)
        assert httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60).status_code == 200


@pytest.mark.usefixtures("shallow_model")
def test_devices_that_fail_during_a_search_are_said_as_those_that_fail_before_it(
    pipe: Any, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(engine: LiveEngine) -> None:
        raise EngineLost("actor 1 of 2 died 3 times in a row")

    with server_of(one_device(pipe, *REWARDS), offer) as server:
        url, body = f"{server.url}/v1/images/generations", {"prompt": PROMPT, **OWN}
        with monkeypatch.context() as broken:
            broken.setattr(LiveEngine, "tick", tick)
            reply = httpx.post(url, json=body, timeout=60)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
        assert "keep failing" in reply.json()["error"]["message"]
        assert httpx.post(url, json=body, timeout=60).status_code == 200


@pytest.mark.slow
def test_configurations_share_processes_that_die(ray_session: None, offer: ServingCatalog) -> None:
    import ray

    from ttsnap.cluster.ray_pool import Hosts, RayPool

    whole = load()  # as Ray's processes load it
    with server_of(one_device(whole, *REWARDS), offer) as server:
        expected = [asked(client_of(server)), asked(client_of(server), reward="brightness")]
    hosts = Hosts(2, gpu=False)
    try:
        with serving(whole, offer, lambda make: RayPool.of_engines(make, hosts)) as server:
            mine = client_of(server).with_options(timeout=200)  # the processes load the model first
            assert [asked(mine), asked(mine, reward="brightness")] == expected
            pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in hosts.actors])
            os.kill(pids[0], signal.SIGKILL)
            assert [asked(mine), asked(mine, reward="brightness")] == expected
            assert [asked(mine, reward="brightness"), asked(mine)] == expected[::-1]
    finally:
        hosts.close()
