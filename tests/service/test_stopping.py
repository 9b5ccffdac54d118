"""The end of a service under load: every request that it took has an answer, an image or one sentence."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.service.conftest import PROMPT, Slow, command, metric, serve, until
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engine_pool import PooledEngine
from ttsnap.service.engines import OneDevice
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

OWN = {"prompt": PROMPT, "budget": "2000nfe", "search": "best-of-n", "steps": 10}
CLIENTS, STREAMS = 24, 6


def ask(pool: ThreadPoolExecutor, url: str) -> list[Future[httpx.Response]]:
    """Many clients at once, of which the first few want streams."""
    bodies = [{**OWN, "stream": number < STREAMS, "seed": number} for number in range(CLIENTS)]
    return [pool.submit(httpx.post, f"{url}/v1/images/generations", json=body, timeout=90) for body in bodies]


def last_of(reply: httpx.Response) -> tuple[str, dict[str, Any]]:
    """How a request ended, and what it was told then: "image", or the code of an error in OpenAI's shape."""
    streamed = reply.headers["content-type"].startswith("text/event-stream")
    told = json.loads(reply.text.rpartition("data: ")[2] if streamed else reply.text)
    if "error" in told:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert streamed or (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert not streamed or told["type"] == "error"
        return told["error"]["code"], told
    image = told if streamed else told["data"][0]
    assert image["b64_json"]
    return "image", told


@contextmanager
def serving(engines: OneDevice, offer: ServingCatalog, drain: float) -> Iterator[GenerationServer]:
    limits, offer = ServiceLimits(drain=drain, per_key=99), replace(offer, rewards=("brightness",))
    with serve(engines, offer, limits) as server:
        yield server


def test_searches_wind_up_early_enough_to_finish_an_image_each(
    pipe: Any, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, drain, early, stop = Slow(pipe), 3, list[float](), PooledEngine.stop

    def watched(searches: PooledEngine) -> None:
        early.append(server.worker._deadline - time.monotonic())
        stop(searches)

    monkeypatch.setattr(PooledEngine, "stop", watched)
    with ThreadPoolExecutor(CLIENTS) as pool, serving(engines, offer, drain) as server:
        asked = ask(pool, server.url)
        until(lambda: metric(server, "ttsnap_active") == CLIENTS and metric(server, "ttsnap_nfe_total") > 0)
        server.__exit__()
        ends = [last_of(reply.result()) for reply in asked]
    assert early[0] > 0.5, "24 images of 10 steps, in batches of 16 that take 0.05 s at least"
    assert [end for end, _ in ends] == ["image"] * CLIENTS
    assert all("stopped early" in " ".join(told["warnings"]) for _, told in ends)


def test_who_comes_late_is_told_so_until_the_last_answer(pipe: Any, offer: ServingCatalog) -> None:
    engines = Slow(pipe)
    engines.left = 1
    with ThreadPoolExecutor(2) as pool, serving(engines, offer, 10) as server:
        url = f"{server.url}/v1/images/generations"
        first = pool.submit(httpx.post, url, json=OWN, timeout=60)
        until(lambda: engines.left < 0)
        ending = pool.submit(server.__exit__)
        until(lambda: server.worker.draining)
        time.sleep(0.5)
        late = httpx.post(url, json=OWN)
        assert last_of(late)[0] == "stopping"
        assert httpx.get(f"{server.url}/ready").json() == {"status": "stopping"}
        engines.left = 10**6
        engines.go.set()
        assert last_of(first.result())[0] == "image"
        ending.result(timeout=30)
        with pytest.raises(httpx.ConnectError):
            httpx.post(url, json=OWN)


def test_what_cannot_be_finished_is_told_so(pipe: Any, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttsnap.service.worker.LATE", 0.5)
    engines = Slow(pipe)
    with ThreadPoolExecutor(CLIENTS + 1) as pool, serving(engines, offer, 0.5) as server:
        asked = ask(pool, server.url)
        until(lambda: metric(server, "ttsnap_active") == CLIENTS)
        engines.left = 0
        ending = pool.submit(server.__exit__)
        ends = [last_of(reply.result(timeout=30))[0] for reply in asked]
        engines.go.set()
        ending.result(timeout=30)
    assert ends == ["stopping"] * CLIENTS


def test_where_time_is_short_the_oldest_finish_and_the_rest_is_told_so(
    pipe: Any, offer: ServingCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.service.worker.LATE", 5.0)
    engines = Slow(pipe)
    with ThreadPoolExecutor(CLIENTS + 1) as pool, serving(engines, offer, 0.01) as server:
        asked = ask(pool, server.url)
        until(lambda: metric(server, "ttsnap_active") == CLIENTS)
        engines.left = 15  # batches of 16 rows: the first 16 images of 10 steps take 11, all take 20
        ending = pool.submit(server.__exit__)
        ends = [last_of(reply.result(timeout=30))[0] for reply in asked]
        engines.go.set()
        ending.result(timeout=30)
    assert ends.count("image") >= 12
    assert ends.count("stopping") >= 2


@pytest.mark.slow
def test_sigterm_under_load() -> None:
    with command("embedded", "--drain", "4") as (process, url):
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = ask(pool, url)
            until(lambda: f"ttsnap_active {CLIENTS}.0" in httpx.get(f"{url}/metrics").text, 60)
            process.send_signal(signal.SIGTERM)
            ends = [last_of(reply.result(timeout=60))[0] for reply in asked]
        assert process.wait(30) == 0
    assert set(ends) <= {"image", "stopping"}
    assert ends.count("image") > CLIENTS // 2
