"""Many callers at once, of which a third goes away: nobody's request is lost, mixed with another's, or left running."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.service.conftest import client_of
from tests.service.test_service import metric, until
from ttsnap.service.limits import ServiceLimits


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "service_load.py"
    spec = importlib.util.spec_from_file_location("service_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
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
        assert len(server.worker._searches) <= 4
