"""The same with actors that are processes of Ray: what travels, who dies, and what is left when the driver dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ttsnap import make_algorithm, search
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.cost import Cost
from ttsnap.core.results import Event

from . import tiny

PROMPTS = ["a", "b"]
ALGORITHM = make_algorithm("seed-pruning", n=12)


@pytest.fixture(scope="module")
def pool(ray_session: None) -> Iterator[Any]:
    from ray import cloudpickle

    from ttsnap.cluster.ray_pool import Hosts, RayPool

    cloudpickle.register_pickle_by_value(tiny)
    hosts = Hosts(2, gpu=False)
    yield RayPool.of_engines(tiny.Tiny().build, hosts)
    hosts.close()


def pids(pool: Any) -> list[int]:
    import ray

    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool.actors])


def test_two_processes_find_what_one_does_and_so_they_do_when_one_of_them_is_killed(pool: Any) -> None:
    alone = search(PROMPTS, ALGORITHM, tiny.Tiny().build())
    cluster = ClusterEngine(pool)
    together = search(PROMPTS, ALGORITHM, cluster)
    victim, ticks = pids(pool)[0], 0

    def kill(event: Event) -> None:
        nonlocal ticks
        ticks += event.kind == "tick"
        if ticks == 3:
            os.kill(victim, signal.SIGKILL)

    disturbed = search(PROMPTS, ALGORITHM, cluster, on_event=kill)
    for found in (together, disturbed):
        for a, b in zip(alone, found, strict=True):
            assert (a.best.uid, a.best.seed) == (b.best.uid, b.best.seed)
            torch.testing.assert_close(a.best.pixels, b.best.pixels, atol=1e-4, rtol=1e-4)
            assert a.spent.cost == b.spent.cost
    assert together[0].spent.lost == Cost()
    assert cluster.group.ran - disturbed[0].spent.lost == Cost().plus(*(result.spent.cost for result in disturbed))
    assert victim not in pids(pool)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["seed-pruning", "zero-order"])
def test_both_processes_are_killed_at_any_event_and_nothing_changes(pool: Any, name: str, seed: int) -> None:
    dice, algorithm, at = random.Random(seed), make_algorithm(name, n=8), 0
    alone = search(PROMPTS, algorithm, tiny.Tiny().build(), "60nfe")
    cluster, victims = ClusterEngine(pool), pids(pool)
    moments = dict(zip(dice.sample(range(1, 12), 2), victims, strict=True))

    def kill(event: Event) -> None:
        nonlocal at
        at += 1
        if at in moments:
            os.kill(moments[at], signal.SIGKILL)

    disturbed = search(PROMPTS, algorithm, cluster, "60nfe", on_event=kill)
    assert at >= max(moments)
    for a, b in zip(alone, disturbed, strict=True):
        assert [(c.uid, c.seed) for c in a.images] == [(c.uid, c.seed) for c in b.images]
        assert [c.reward for c in a.images] == pytest.approx([c.reward for c in b.images], abs=1e-4)
        assert a.spent.cost == b.spent.cost
    assert cluster.group.ran - disturbed[0].spent.lost == Cost().plus(*(result.spent.cost for result in disturbed))
    assert not set(victims) & set(pids(pool))


def test_what_an_actor_refuses_is_said_here_and_more_actors_than_there_is_room_for_are_refused(pool: Any) -> None:
    from ttsnap.cluster.ray_pool import Hosts

    with pytest.raises(ValueError, match="empty prompt cannot"):
        search(["a", ""], ALGORITHM, ClusterEngine(pool))
    with pytest.raises(ValueError, match="need 3 CPUs"):
        Hosts(3, gpu=False)
    with pytest.raises(ValueError, match="need 1 GPUs"):
        Hosts(1, gpu=True)


@pytest.mark.slow
def test_a_driver_that_dies_leaves_no_actor_running() -> None:
    code = """
        import os, signal, ray
        from tests.cluster.test_ray import pids
        from ttsnap.cluster.engine import ClusterEngine
        from ttsnap.cluster.ray_pool import Hosts, RayPool
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        from ttsnap.pipelines import defaults
        from ttsnap.pipelines.engine_factory import EngineBuilder
        from ttsnap.options.model import ModelOptions
        from ttsnap.request.request import EngineSpec
        spec = EngineSpec(ModelOptions(device="cpu", dtype="float32"), ("scenes",), call=defaults())
        pool = RayPool.of_engines(EngineBuilder(spec).build, Hosts(1, gpu=False))
        ClusterEngine(pool)
        print(*pids(pool), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    actors = [int(pid) for pid in ran.stdout.split()]
    assert actors, ran.stderr
    for _ in range(60):
        if not any(os.path.exists(f"/proc/{pid}") for pid in actors):
            return
        time.sleep(1)
    pytest.fail(f"{actors} run on")
