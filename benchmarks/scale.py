"""How a search gets faster by more devices: measured here on CPU cores, and simulated for more devices than there are.

    python benchmarks/scale.py --json OUT             # two actors with a core each against one, and one against none
    python benchmarks/scale.py --json OUT --simulate  # the placement of rows alone, for 8, 64 and 512 devices

Measured: the embedded model, 16 prompts, and 1 prompt with 32 seeds, by seed pruning; the shortest of the repeats. It
takes two idle cores and about ten minutes. Simulated: devices whose step takes `--step-ms` for a full batch and half of
that for the overhead of any, rows that stop at random, and latents that take `--copy-ms` to move.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from ttsnap.cluster.colocation import ColocatedRows
from ttsnap.cluster.placement import Placement


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
        search(many[:1], make_algorithm("best-of-n", n=2), engine)  # the first calls of a process are slower
        for name, (prompts, n) in searches.items():
            taken = []
            for _ in range(repeats):
                begin = time.monotonic()
                results = search(prompts, make_algorithm("seed-pruning", n=n), engine)
                taken.append(time.monotonic() - begin)
            nfe = sum(result.spent.nfe for result in results)
            moved = engine.placement.moved if actors else 0
            print(f"{name} on {actors or 'no'} actors: {min(taken):.1f} s", file=sys.stderr, flush=True)
            found[name][str(actors)] = {"seconds": min(taken), "nfe": nfe, "rows_moved": moved}

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


class Simulated:
    """Devices that take time, and rows that are pruned after a random number of steps of each move."""

    def __init__(self, devices: int, batch: int, step: float, copy: float, seed: int) -> None:
        self.placement, self.rng = Placement([batch] * devices), random.Random(seed)
        self.batch, self.step, self.copy = batch, step, copy
        self.rows: list[list[list[int]]] = [[] for _ in range(devices)]
        self.events: list[tuple[float, int, int, ColocatedRows | None]] = []
        self.at_work = [False] * devices
        self.time, self.count, self.busy = 0.0, 0, 0.0
        self.home: dict[int, int] = {}
        self.placing = 0.0

    def _later(self, seconds: float, device: int, waiting: ColocatedRows | None = None) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.time + seconds, self.count, device, waiting))

    def go_on(self, new: list[ColocatedRows]) -> None:
        begin = time.perf_counter()
        moves = self.placement.add(new)
        sends, more = self.placement.next()
        self.placing += time.perf_counter() - begin
        for waiting in [*moves, *more]:
            waiting.home = None
            self._later(self.copy, -1, waiting)
        for device, waiting in sends:
            self.rows[device] += [[uid, self.rng.randint(1, 8)] for uid in waiting.uids]
        for device, rows in enumerate(self.rows):
            if rows and not self.at_work[device]:
                took = self.step * (0.5 + 0.5 * min(len(rows), self.batch) / self.batch)
                self.at_work[device], self.busy = True, self.busy + took
                self._later(took, device)

    def run(self) -> None:
        """Until nothing is left."""
        while self.events:
            self.time, _, device, waiting = heapq.heappop(self.events)
            if waiting is not None:
                self.placement.arrived(waiting)
            else:
                self.at_work[device] = False
                for row in self.rows[device][: self.batch]:
                    row[1] -= 1
                done = [row for row in self.rows[device] if not row[1]]
                self.home |= {row[0]: device for row in done}
                self.rows[device] = [row for row in self.rows[device] if row[1]]
                self.placement.done(device, len(done))
            self.go_on([])


def simulated(devices: int, batch: int, step: float, copy: float, moves: int = 5) -> dict[str, float]:
    """One search that begins with eight batches of rows a device and halves them in each move."""
    world, rows = Simulated(devices, batch, step, copy, 0), 8 * batch * devices
    world.go_on([ColocatedRows(0, (uid,)) for uid in range(rows)])
    world.run()
    alive, carried = list(range(rows)), rows
    for _ in range(moves):
        alive = world.rng.sample(alive, len(alive) // 2)
        carried += len(alive)
        world.go_on([ColocatedRows(0, (uid,), (uid,), world.home[uid]) for uid in alive])
        world.run()
    return {
        "rows": carried,
        "busy": world.busy / (world.time * devices),
        "rows_moved": world.placement.moved,
        "placing_us_per_row": 1e6 * world.placing / carried,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, required=True)
    p.add_argument("--simulate", action="store_true")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--steps", type=int, default=16)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--step-ms", type=float, default=100.0)
    p.add_argument("--copy-ms", type=float, default=20.0)
    a = p.parse_args()
    run: Callable[[], dict[str, Any]] = lambda: measured(a.repeats, a.steps)  # noqa: E731
    if a.simulate:
        run = lambda: {str(n): simulated(n, a.batch, a.step_ms / 1e3, a.copy_ms / 1e3) for n in (8, 64, 512)}  # noqa: E731
    found = run()
    a.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
