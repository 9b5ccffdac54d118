"""Many callers at once, of which a third goes away: nobody's request is lost, mixed with another's, or left running."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.service.conftest import client_of, metric, until
from ttsnap.service.limits import ServiceLimits


def benchmark(name: str = "service_load") -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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
