"""How well budgets in seconds are kept, on the embedded model, alone and beside two busy processes.

    python benchmarks/clock.py                                        # 20 runs of each of 3, 6 and 12 s; an hour
    python benchmarks/clock.py --algorithms best-of-n --seconds 3 --runs 5 --busy 2

Each run is a search with a prompt of its own, and measures the machine anew before its clock
starts. A row has the mean and the extremes of the time taken over the time given, the shares of
runs that were more than 10 % over and more than 15 % under, and the finished images against those
that the plan meant to finish. The load of the machine stands beside it: figures of a shared machine
say what happened there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ttsnap import Budget, make_algorithm
from ttsnap.files.writing import markdown
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.search import prepared, searched
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.scenes import sample_prompts

ALGORITHMS = (
    "best-of-n",
    "seed-pruning",
    "seed-pruning+drafts",
    "ttsnap",
    "evolution",
    "smc",
    "svdd",
    "rbf",
)
OVER, UNDER = 1.10, 0.85


def spin() -> None:
    while True:
        pass


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Runs so many busy processes."""
    processes = [
        multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(busy)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def runs(name: str, seconds: float, prompts: list[str]) -> list[dict[str, float]]:
    """What each search took and finished."""
    search, _, drafts = name.partition("+")
    pipe = load()
    found = []
    for seed, prompt in enumerate(prompts):
        kernel = "pipeline" if not make_algorithm(search).needs else "sde"
        engine = pipe.engine("scenes", kernel=kernel, **defaults("embedded"))
        if drafts:
            denoiser = engine.denoiser
            use_drafter(denoiser, "embedded")
            engine = type(engine)(denoiser, engine.rewards, kernel=engine.kernel)
        begin = time.perf_counter()
        spec = prepared(
            LoopSearch(make_algorithm(search), Budget(seconds=seconds), seed=1000 * seed), engine
        )
        ready = time.perf_counter() - begin
        (result,) = searched([prompt], spec, engine)
        meant = spec.plan[-1].rows if spec.plan else 1
        found.append(
            {
                "share": result.spent.seconds / seconds,
                "finished": result.spent.finished,
                "meant": meant,
                "seeds": result.spent.seeds,
                "warm_up": ready,
            }
        )
    return found


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    p.add_argument("--seconds", type=float, nargs="+", default=[3.0, 6.0, 12.0])
    p.add_argument("--runs", type=int, default=20)
    p.add_argument(
        "--busy", type=int, nargs="+", default=[0, 2], help="busy processes beside the search"
    )
    p.add_argument("--threads", type=int, help="of torch; its own choice by default")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    prompts = sample_prompts(a.runs, seed=11)
    rows, kept = [], []
    for busy in a.busy:
        with beside(busy):
            for name in a.algorithms:
                for seconds in a.seconds:
                    found = runs(name, seconds, prompts)
                    share = np.array([run["share"] for run in found])
                    short = np.array([run["meant"] - run["finished"] for run in found])
                    mean = {key: f"{np.mean([run[key] for run in found]):.1f}" for key in found[0]}
                    rows.append(
                        [
                            name,
                            f"{seconds:g}",
                            busy,
                            f"{os.getloadavg()[0]:.1f}",
                            f"{share.mean():.2f} ({share.min():.2f} to {share.max():.2f})",
                            f"{(share > OVER).mean():.0%}",
                            f"{(share < UNDER).mean():.0%}",
                            f"{mean['finished']} of {mean['meant']}",
                            f"{(short > 1).mean():.0%}",
                            mean["warm_up"],
                        ]
                    )
                    kept.append(
                        {"algorithm": name, "seconds": seconds, "busy": busy, "runs": found}
                    )
                    print(*rows[-1], sep="  ", flush=True)
    head = [
        "algorithm",
        "s",
        "busy",
        "load",
        "taken / given",
        "over",
        "under",
        "finished",
        "short by 2 or more",
        "warm-up s",
    ]
    print(f"\n{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores\n")
    print(markdown(head, rows))
    if a.json is not None:
        a.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
