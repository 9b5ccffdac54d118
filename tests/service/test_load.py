"""Many callers at once, of which a third goes away: nobody's request is lost, mixed with another's, or left running."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.conftest import client_of, metric, until
from ttsnap.check import service
from ttsnap.check.service import Service
from ttsnap.check.verdict import GO, NO_GO, UNDECIDED, of_service
from ttsnap.core.prompt import Prompt
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer


def benchmark(name: str = "service_load") -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Own(Service):
    """A service that draws noise where several ask."""

    def _ask(self, client: httpx.Client, number: int) -> Any:
        seen = np.random.default_rng(number if len(self.images) < 2 else None)
        return seen.random((3, 8, 8))


def test_a_check_of_a_service_tells_its_rates_and_whether_images_are_those_of_one_alone(
    server: GenerationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ASKED", {**service.ASKED, "steps": 2})
    checked = Service(server.url, 0.0, lambda _: None)
    assert checked.model() == "embedded"
    found = checked.check([Prompt("two green crosses"), Prompt("a red circle")])
    assert found.figures["one alone against the same among 16"].high == 0
    fills = [found.figures[f"batches filled of {clients}"].value for clients in ("1 client", "16 clients")]
    assert fills == [pytest.approx(12.5), pytest.approx(100, abs=40)]  # two images in a batch of 16
    assert found.figures["latency of 4 clients"].value > 0
    assert of_service(found).word == GO
    wrong = Own(server.url, 0.0, lambda _: None)
    assert of_service(wrong.check([Prompt("a red circle")])).word == NO_GO


def test_a_check_of_a_service_that_refuses_callers_is_undecided(serving: Callable[..., GenerationServer]) -> None:
    server = serving(ServiceLimits(per_key=1, drain=0.1))
    found = Service(server.url, 0.0, lambda _: None).check([Prompt("a red circle")])
    assert "429" in found.missing["a request of 16 clients"]
    assert of_service(found).word == UNDECIDED
    with pytest.raises(ValueError, match="no service answers"):
        Service("http://127.0.0.1:9", 0.0).model()


@pytest.mark.parametrize("reply", [
    b"{}", b"[]", b"<html>", b"[" * 9999, b'{"data": [{"b64_json": null}]}', b'{"data": [{"b64_json": "aGVsbG8="}]}',
])  # fmt: skip
def test_a_check_of_something_else_than_a_service_says_what_came(reply: bytes) -> None:
    class Else(Service):
        def open(self) -> httpx.Client:
            answers = httpx.MockTransport(lambda _: httpx.Response(200, content=reply))
            return httpx.Client(base_url=self.url, transport=answers)

    found = Else("http://else", 0.0, lambda _: None).check([Prompt("a red circle")])
    assert found.missing["a request of 1 client"].startswith("it answered with no image")
    assert of_service(found).word == UNDECIDED


@pytest.mark.slow
def test_two_hundred_requests_by_fifty_clients() -> None:
    import psutil

    load = benchmark()
    memory = psutil.Process().memory_info
    with load.server_of(ServiceLimits(per_key=100, queue=100, active=32, drain=0.5)) as server:
        outcomes, found = load.rough(server.url)
        assert outcomes.total() == 200
        assert outcomes["done"] == len(found) > 50
        assert outcomes["left"] > 20
        assert outcomes["refused 400"] > 10
        until(lambda: metric(server, "ttsnap_active") == metric(server, "ttsnap_queue") == 0)
        client = client_of(server)
        for number in sorted(found)[:8]:  # alone, each finds what it found in the crowd
            image = load.generate(client, number)["data"][0]
            assert (image["seed"], round(image["reward"], 4)) == found[number]
        gc.collect()
        before = memory().rss
        load.rough(server.url, requests=60, seed=1)
        until(lambda: metric(server, "ttsnap_active") == metric(server, "ttsnap_queue") == 0)
        gc.collect()
        assert memory().rss < before + 100 * 2**20
        assert not server.worker._open
        assert len(server.worker._pool) <= 4


@pytest.mark.slow
def test_nothing_is_lost_or_mixed_up_by_a_kill() -> None:
    benchmark()  # the other one imports it
    run, about = benchmark("service_soak").soak(minutes=0.5, clients=3, kills=1, different=4)
    assert not run.wrong
    assert about["kills"] == 1
    assert about["still there"] == {"active": 0.0, "queue": 0.0}
    assert run.outcomes["interrupted job done"] == 1
    assert run.outcomes["request done"] > 0
