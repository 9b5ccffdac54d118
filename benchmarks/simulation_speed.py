"""How many searches a second run over recorded scores, in lockstep and one at a time.

    OMP_NUM_THREADS=1 python benchmarks/simulation_speed.py --json OUT

Synthetic trajectories of 20 steps that settle on the finished reward; every search sees the
recorded seeds in an order of its own, drawn beforehand. Drawing it is part of what is timed, as
`ttsnap simulate` does it for every search. Seed pruning is the authors' schedule (arXiv 2511.22242:
steps 2, 6, 11, keep .4, .4, .5). The best of the repeats counts: the others were disturbed. One
thread, where numpy is told so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ttsnap import SeedPruning, __version__, search
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.grid import Grid, Task
from ttsnap.core.looks import estimates
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.calibrate import default_checks
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders

GRID = Grid(tuple(np.linspace(1, 0, 21)))


def trajectories(prompts: int, seeds: int, seed: int) -> Recording:
    """Scores that settle on the finished one, step by step."""
    rng = np.random.default_rng(seed)
    known = np.linspace(0.1, 1, 21)
    final, noise = rng.normal(size=(prompts, seeds, 1)), rng.normal(size=(prompts, seeds, 21))
    scores = rng.normal(size=(prompts, 1, 1)) + known * final + np.sqrt(1 - known**2) * noise
    return Recording(
        tuple(f"prompt {i}" for i in range(prompts)), scores[..., None], GRID, ("reward",)
    )


def fastest(call: Callable[[], int], repeats: int) -> float:
    """Searches per second, in the best of the repeats."""
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        rates.append(call() / (time.perf_counter() - begin))
    return max(rates)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=100)
    p.add_argument("--recorded", type=int, default=200, help="seeds per prompt")
    p.add_argument("--searches", type=int, default=20, help="per prompt, in lockstep")
    p.add_argument(
        "--images", type=float, default=10.0, help="budget of price-of-compute, in whole images"
    )
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    recording = trajectories(a.prompts, a.recorded, 0)
    forecast = fit(
        trajectories(40, 40, 1).scores[..., 0], GRID.levels, estimates(*default_checks(20))
    )
    allowance = 20 * a.images
    cases: dict[str, tuple[Any, int | None, bool]] = {
        f"seed pruning, {n} seeds": (SeedPruning(n, (0.4, 0.4, 0.5), steps=(2, 6, 11)), None, False)
        for n in (38, 100)
    }
    priced = PriceOfCompute(forecast, price=0.01)
    cases[f"price of compute, {a.images:g} images, own budgets"] = (priced, None, False)
    cases[f"price of compute, {a.images:g} images, shared"] = (priced, a.prompts, True)
    table = {}
    for name, (algorithm, pot, shared) in cases.items():
        task = Task(GRID, 1, allowance if pot or algorithm is priced else np.inf, 0.0, shared)
        sized = (
            PriceOfCompute(forecast, n=a.recorded, price=0.01) if algorithm is priced else algorithm
        )

        def together(sized: Any = sized, task: Task = task, pot: int | None = pot) -> int:
            orders = Orders.drawn(recording, a.searches, np.random.default_rng(0))
            lockstep(sized, orders.play(recording, sized.n), len(orders), task, pot=pot)
            return len(orders)

        def alone(sized: Any = sized, algorithm: Any = algorithm, shared: bool = shared) -> int:
            budget = f"{int(allowance)}nfe" if algorithm is priced else None
            return len(
                search(recording.prompts, sized, ReplayEngine(recording), budget, shared=shared)
            )

        together()  # tables of reservation values are made once and kept
        table[name] = {"lockstep": fastest(together, a.repeats), "loop": fastest(alone, 1)}
        print(
            f"{name}: {table[name]['lockstep']:,.0f} searches/s in lockstep,"
            f" {table[name]['loop']:,.0f} one at a time"
        )
    if a.json:
        setting = {k: v if isinstance(v, int | float) else str(v) for k, v in vars(a).items()}
        a.json.write_text(
            json.dumps(
                {"ttsnap": __version__, "setting": setting, "searches_per_second": table}, indent=1
            )
        )


if __name__ == "__main__":
    main()
