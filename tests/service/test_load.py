"""Many callers at once, of which a third goes away, and a kill: no request is lost, mixed with
another's, or left over.

The benchmarks do the work."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

import psutil
import pytest

from ttsnap.service.limits import ServiceLimits

from .asking import Caller, until

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_two_hundred_requests_by_fifty_clients():
    load = importlib.import_module("service_load")
    memory = psutil.Process().memory_info
    with load.server_of(ServiceLimits(per_key=100, queue=100, active=32, drain=0.5)) as server:
        asked, client = Caller(server.url), load.client_of(server.url)
        outcomes, found = load.rough(server.url)
        assert outcomes.total() == 200
        assert outcomes["done"] == len(found) > 50
        assert outcomes["left"] > 20
        assert outcomes["refused 400"] > 10
        until(lambda: asked.metric("active") == asked.metric("queue") == 0)
        for number in sorted(found)[:8]:  # alone, each finds what it found in the crowd
            image = load.generate(client, number)["data"][0]
            assert (image["seed"], round(image["reward"], 4)) == found[number]
        gc.collect()
        before = memory().rss
        load.rough(server.url, requests=60, seed=1)
        until(lambda: asked.metric("active") == asked.metric("queue") == 0)
        gc.collect()
        assert memory().rss < before + 100 * 2**20
        assert not server.worker._open
        assert len(server.worker._pool) <= 4


def test_nothing_is_lost_or_mixed_up_by_a_kill():
    soak = importlib.import_module("service_soak")
    run, about = soak.soak(minutes=0.5, clients=3, kills=1, different=4)
    assert not run.wrong
    assert about["kills"] == 1
    assert about["still there"] == {"active": 0.0, "queue": 0.0}
    assert run.outcomes["interrupted job done"] == 1
    assert run.outcomes["request done"] > 0
