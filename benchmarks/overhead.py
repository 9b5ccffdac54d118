"""What the search loop costs beside the network, and what continuous batching saves.

    python benchmarks/overhead.py --json overhead.json

1. N unpruned candidates through our loop against the stock pipeline's own call at the same batch, alternately.
2. Many prompts with pruning: all at once (rows of different prompts and steps share batches) against one at a time,
   with the mean occupancy of the denoiser batch.

Ratios of one run on one machine; absolute times mean little elsewhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ttsnap.pipelines import defaults, load

from ttsnap import BestOfN, SeedPruning, __version__, search
from ttsnap.live import LiveEngine
from ttsnap.rewards import make_rewards
from ttsnap.scenes import sample_prompts


def nothing(images: Any, prompts: Any) -> Any:
    """A reward that takes no time, so that only the loop is measured."""
    return [0.0] * len(prompts)


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--candidates", type=int, nargs="+", default=[8, 32, 64], help="batch sizes of part 1")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--prompts", type=int, default=16, help="of part 2")
    p.add_argument("--seeds", type=int, default=24, help="per prompt, of part 2")
    p.add_argument("--batch-size", type=int, default=32, help="of part 2")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--prompt-seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    call = {**defaults(), "num_inference_steps": a.steps}
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    out = {"ttsnap": __version__, "threads": torch.get_num_threads(), "overhead": [], "batching": []}

    for n in a.candidates:

        def stock(n: int = n) -> None:
            generators = [torch.Generator().manual_seed(i) for i in range(n)]
            pipe(prompts[0], generator=generators, num_images_per_prompt=n, output_type="pt", **call)

        def ours(n: int = n) -> None:
            pipe(
                prompts[0],
                search=BestOfN(n),
                reward=nothing,
                num_images_per_prompt=n,
                output_type="pt",
                batch_size=n,
                **call,
            )

        stock(), ours()
        pairs = []
        for i in range(a.repeats):  # in turns, first and second alternating, so that drift cancels
            first, second = (stock, ours) if i % 2 else (ours, stock)
            times = timed(first), timed(second)
            pairs.append(times if i % 2 else times[::-1])
        ratios = [o / s for s, o in pairs]
        row = {
            "candidates": n,
            "stock_seconds": float(np.median([s for s, _ in pairs])),
            "ratio": float(np.median(ratios)),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
        out["overhead"].append(row)
        spread = f"{row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
        print(f"{n:3d} candidates: stock {row['stock_seconds']:.2f} s, ours / stock {row['ratio']:.3f} ({spread})")

    def engine() -> LiveEngine:
        return LiveEngine(pipe.denoiser(**call), make_rewards("scenes"), batch_size=a.batch_size)

    algorithm = SeedPruning(a.seeds)
    together, alone = engine(), engine()
    t_together = timed(lambda: search(prompts, algorithm, together))
    t_alone = timed(lambda: [search([prompt], algorithm, alone) for prompt in prompts])
    for name, e, seconds in (("all prompts at once", together, t_together), ("one at a time", alone, t_alone)):
        row = {"how": name, "seconds": seconds, "occupancy": e.occupancy, **dict(e.stats)}
        out["batching"].append(row)
        print(f"{name}: {seconds:.1f} s, {e.stats['batches']} batches, occupancy {e.occupancy:.0%}")
    print(f"one at a time / all at once: {t_alone / t_together:.2f}")
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
