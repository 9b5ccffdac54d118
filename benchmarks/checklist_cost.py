"""What a checklist costs against one question: FLOPs, tokens and seconds of a reward that answers.

    python benchmarks/checklist_cost.py --by vqascore:FOLDER
    python benchmarks/checklist_cost.py --by judge:yes:model=NAME,cache=none

The same random pictures are asked one question, all items at once, and all items one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.registry import make_reward

ITEMS = ("two dogs", "a red dog", "the red dog is left of the cat", "a cat", "a green meadow")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--by", required=True, help="a reward with answers, as vqascore")
    p.add_argument("--images", type=int, default=4)
    p.add_argument("--size", type=int, default=448, help="pixels a side")
    p.add_argument("--device", default="cpu")
    a = p.parse_args()
    reward = make_reward(a.by, device=a.device)
    shape = (a.images, 3, a.size, a.size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(a.device)
    five = [list(ITEMS)] * a.images
    ways: dict[str, Callable[[], object]] = {
        "one question": lambda: reward(images, [ITEMS[0]] * a.images),
        "five at once": lambda: reward.score_each(images, five),
        "five one by one": lambda: [reward(images, [item] * a.images) for item in ITEMS],
    }
    first: tuple[float, float] | None = None
    for name, ask in ways.items():
        flops = count_flops(ask)  # it warms up, too
        begin = time.process_time(), time.perf_counter()
        ask()
        cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
        first = first or (flops, cpu)
        ratio = f"{flops / first[0]:.2f} times the FLOPs, " if first[0] else ""
        tokens = f", {sum(reward.tokens_taken)} tokens in the last call"
        print(f"{name}: {ratio}{cpu:.3f} s of the CPU, {wall:.2f} s{tokens}")


if __name__ == "__main__":
    main()
