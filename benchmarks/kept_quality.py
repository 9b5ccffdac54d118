"""Images per second of seed pruning against best-of-N, where both return images of the same
quality.

    python benchmarks/kept_quality.py --json kept_quality.json

The embedded model searches hard held-out prompts live, all in one call, for the checker's soft
score. Seed pruning gets --budget denoiser evaluations a prompt. Best-of-N runs with each number of
seeds in --images, which start from the same noises, so that its mean reward can only rise; the time
at which it equals pruning's is interpolated between them. An image counts as kept when it is
returned, one a prompt. Every run is timed whole: noise, decoding and rewards included.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import machine, timed

from ttsnap import BestOfN, SeedPruning, search
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.opening import placement
from ttsnap.reward_models.registry import make_rewards
from ttsnap.reward_models.scenes import ScenesStrict
from ttsnap.scenes import sample_prompts


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=32)
    p.add_argument("--prompt-seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--budget", default="100nfe", help="of seed pruning, a prompt")
    p.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[3, 5, 8, 12, 20],
        help="of best-of-N, a prompt; rising",
    )
    p.add_argument(
        "--repeats", type=int, default=2, help="searches of every prompt, from other seeds"
    )
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu")
    p.add_argument(
        "--dtype",
        default="auto",
        help=(
            "auto (bfloat16; float32 on a CPU without its instructions), float32, bfloat16, float16"
        ),
    )
    p.add_argument(
        "--json", type=Path, metavar="OUT", help="write all figures there, after every run"
    )
    return p.parse_args()


def runs(a: argparse.Namespace, device: Any, dtype: Any) -> Iterator[dict[str, Any]]:
    """A row for seed pruning, then one for every N of best-of-N: means over prompts, the seconds
    summed."""
    pipe = load(dtype=dtype).to(device)
    call = {**defaults(), "num_inference_steps": a.steps}
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    reward, strict = make_rewards("scenes"), ScenesStrict()

    def engine() -> LiveEngine:
        size = a.batch_size
        return LiveEngine(
            pipe.denoiser(**call), reward, EngineOptions(size, decode_batch_size=size)
        )

    search(prompts, BestOfN(2), engine())  # kernels are chosen, FLOPs counted
    for name, algorithm, budget in (
        ("seed-pruning", SeedPruning(), a.budget),
        *((f"best-of-{n}", BestOfN(n), None) for n in a.images),
    ):
        found: list[Any] = []
        seconds = 0.0
        for repeat in range(a.repeats):
            own, seed = engine(), 1000 * repeat

            def searched(own: Any = own, seed: int = seed) -> None:
                found.extend(search(prompts, algorithm, own, budget, seed=seed))  # noqa: B023

            seconds += timed(searched, device)
        right = strict(torch.stack([r.best.image for r in found]), [r.prompt for r in found])
        yield {
            "method": name,
            "seconds": seconds,
            "images_per_second": len(found) / seconds,
            "reward": float(np.mean([result.best.reward for result in found])),
            "strictly_right": float(right.mean()),
            "nfe": float(np.mean([result.spent.nfe for result in found])),
        }


def at_equal_quality(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Best-of-N's images per second at pruning's reward; None where the runs do not reach or start
    above it."""
    pruning, baseline = rows[0], rows[1:]
    rewards = [row["reward"] for row in baseline]
    if not baseline or not rewards[0] <= pruning["reward"] <= rewards[-1]:
        return {"reward": pruning["reward"], "best_of_n_images_per_second": None, "ratio": None}
    seconds = float(np.interp(pruning["reward"], rewards, [row["seconds"] for row in baseline]))
    images = pruning["images_per_second"] * pruning["seconds"]
    speed = images / seconds
    return {
        "reward": pruning["reward"],
        "best_of_n_images_per_second": speed,
        "ratio": pruning["images_per_second"] / speed,
    }


def main() -> None:
    a = arguments()
    device, dtype = placement(a.device, a.dtype)
    out: dict[str, Any] = {"machine": machine(device, dtype), "options": vars(a), "runs": []}
    print(", ".join(f"{name} {value}" for name, value in out["machine"].items()))
    print(f"{'method':<14} {'images/s':>9} {'reward':>8} {'strict':>7} {'NFE':>7}")
    for row in runs(a, device, dtype):
        out["runs"].append(row)
        out["at_equal_quality"] = at_equal_quality(out["runs"])
        cells = (row["images_per_second"], row["reward"], row["strictly_right"], row["nfe"])
        print(
            "{:<14} {:>9.2f} {:>8.4f} {:>7.3f} {:>7.1f}".format(row["method"], *cells), flush=True
        )
        if a.json:
            a.json.write_text(json.dumps(out, indent=1, default=str))
    ratio = out["at_equal_quality"]["ratio"]
    print(
        "best-of-N was not run at that quality"
        if ratio is None
        else f"pruning / best-of-N, images/s: {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
