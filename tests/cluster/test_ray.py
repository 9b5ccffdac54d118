"""The same with actors that are processes of Ray: what travels, who dies, and what is left when the
driver dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ttsnap import make_algorithm, search
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.cost import Cost
from ttsnap.core.results import Event

from .local import tiny

PROMPTS, ROOT = ["a", "b"], Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(hosts):
    from ttsnap.cluster.ray_pool import RayPool

    with closing(RayPool.of_engines(tiny, hosts)) as pool:
        yield pool


def pids(pool):
    import ray

    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool.actors])


@pytest.mark.parametrize(
    "name", ["seed-pruning", pytest.param("zero-order", marks=pytest.mark.slow)]
)
def test_two_processes_find_what_one_does_and_so_they_do_when_both_are_killed(pool, name):
    algorithm, cluster, events = make_algorithm(name, n=8), ClusterEngine(pool), list[Event]()
    alone = search(PROMPTS, algorithm, tiny(), "60nfe")
    moments = dict(zip(random.Random(0).sample(range(1, 12), 2), pids(pool), strict=True))

    def kill(event):
        events.append(event)
        if len(events) in moments:
            os.kill(moments[len(events)], signal.SIGKILL)

    for listener in (lambda event: None, kill):
        found = search(PROMPTS, algorithm, cluster, "60nfe", on_event=listener)
        for a, b in zip(alone, found, strict=True):
            assert [(c.uid, c.seed) for c in a.images] == [(c.uid, c.seed) for c in b.images]
            torch.testing.assert_close(a.best.pixels, b.best.pixels, atol=1e-4, rtol=1e-4)
            assert a.spent.cost == b.spent.cost
        lost = found[0].spent.lost
        assert cluster.group.ran - lost == Cost().plus(*(result.spent.cost for result in found))
        assert events or lost == Cost()
    assert len(events) >= max(moments)
    assert not set(moments.values()) & set(pids(pool))


def test_what_an_actor_refuses_is_said_here_and_more_actors_than_there_is_room_for_are_refused(
    pool,
):
    from ttsnap.cluster.ray_pool import Hosts

    with pytest.raises(ValueError, match="empty prompt"):
        search(["a", ""], make_algorithm("best-of-n"), ClusterEngine(pool), "60nfe")
    for number, gpu, needed in ((3, False, "3 CPUs"), (1, True, "1 GPUs")):
        with pytest.raises(ValueError, match=needed):
            Hosts(number, gpu=gpu)


def test_actors_that_do_not_start_are_waited_for_with_a_word_and_not_for_ever(
    ray_session, monkeypatch, capsys
):
    from ttsnap.cluster import ray_pool

    monkeypatch.setattr(ray_pool, "START_SECONDS", 0.0)
    with pytest.raises(ValueError, match="1 of 1 actors did not start within 0 s"):
        ray_pool.Hosts(1, gpu=False)
    assert "starting 1 actors" in capsys.readouterr().err


# --- what the documentation shows -----------------------------------------------------------------


def test_the_picture_of_a_cluster_is_what_its_script_draws():
    script = ROOT / "scripts" / "draw_cluster.py"
    checked = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_ray_accepts_the_cluster_of_the_how_to():
    yaml, ray, jsonschema = (pytest.importorskip(name) for name in ("yaml", "ray", "jsonschema"))
    text = (ROOT / "docs" / "howto" / "many_gpus.md").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    # Ray's own schema of such files, which `ray up` checks them by.
    schema = json.loads(
        (Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8")
    )
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
