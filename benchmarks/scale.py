"""How a search gets faster by more devices: measured here on CPU cores.

    python benchmarks/scale.py --json OUT  # two actors with a core each against one, and one against none

The embedded model, 16 prompts, and 1 prompt with 32 seeds, by seed pruning; the shortest of the
repeats. It takes two idle cores and about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def measured(repeats: int, steps: int) -> dict[str, Any]:
    """Seconds of each search on each number of actors (0: the plain engine in this process)."""
    import torch

    from ttsnap import make_algorithm, search
    from ttsnap.cluster.devices import connect
    from ttsnap.cluster.engine import ClusterEngine
    from ttsnap.cluster.ray_pool import Hosts, RayPool
    from ttsnap.options.engine import EngineOptions
    from ttsnap.options.model import ModelOptions
    from ttsnap.pipelines import defaults
    from ttsnap.pipelines.engine_factory import EngineBuilder
    from ttsnap.request.request import EngineSpec

    torch.set_num_threads(1)
    call = {**defaults(), "num_inference_steps": steps}
    spec = EngineSpec(ModelOptions(device="cpu"), ("scenes",), batch=EngineOptions(16), call=call)
    builder = EngineBuilder(spec)
    colours, shapes = ("red", "green", "blue", "yellow"), ("circle", "square", "cross", "triangle")
    many = [f"a {colour} {shape}" for colour in colours for shape in shapes]
    searches = {"16 prompts": (many, 8), "1 prompt, 32 seeds": (many[:1], 32)}
    found: dict[str, Any] = {name: {} for name in searches}

    def timed(engine: Any, actors: int) -> None:
        # the first calls of a process are slower
        search(many[:1], make_algorithm("best-of-n", n=2), engine)
        for name, (prompts, n) in searches.items():
            taken = []
            for _ in range(repeats):
                begin = time.monotonic()
                results = search(prompts, make_algorithm("seed-pruning", n=n), engine)
                taken.append(time.monotonic() - begin)
            nfe = sum(result.spent.nfe for result in results)
            print(
                f"{name} on {actors or 'no'} actors: {min(taken):.1f} s",
                file=sys.stderr,
                flush=True,
            )
            found[name][str(actors)] = {"seconds": min(taken), "nfe": nfe}

    timed(builder.build(), 0)
    connect(None, 2)
    for actors in (1, 2):
        hosts = Hosts(actors, gpu=False)
        try:
            timed(ClusterEngine(RayPool.of_engines(builder.build, hosts)), actors)
        finally:
            hosts.close()
    for by in found.values():
        by["speedup"] = by["1"]["seconds"] / by["2"]["seconds"]
        by["overhead"] = by["1"]["seconds"] / by["0"]["seconds"] - 1
    return found


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--json", type=Path, required=True)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--steps", type=int, default=16)
    a = p.parse_args()
    found = measured(a.repeats, a.steps)
    a.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
