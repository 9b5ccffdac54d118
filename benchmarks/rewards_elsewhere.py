"""How much faster is a search whose reward runs elsewhere, while the engine denoises other rows? On
the embedded model.

    python benchmarks/rewards_elsewhere.py

The reward sleeps for 50 ms a call, of one image, as if it asked a server, and then looks at the
brightness. It is asked in turn, and beside the network (`runs_on`), run by run; the winners are
compared. What can be won is the smaller of what network and reward take, which stand in the table,
of a run in turn; the others are medians. So steps are few: the network then takes about as long as
the reward. The last rows of one prompt before each of its choices have none beside them: where
there are more prompts, theirs are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ttsnap import make_algorithm
from ttsnap.core.results import Result
from ttsnap.files.writing import markdown
from ttsnap.loop.search import search
from ttsnap.pipelines import defaults, load
from ttsnap.rewards.reward_model import ELSEWHERE
from ttsnap.scenes import sample_prompts

SEARCHES = ("best-of-n", "seed-pruning")


class Server:
    """The brightness, after a while."""

    name = "server"

    def __init__(self, seconds: float, *, beside: bool) -> None:
        self.seconds, self.runs_on = seconds, ELSEWHERE if beside else None

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None) -> Tensor:
        time.sleep(self.seconds)
        return images.float().mean((1, 2, 3))


def found(results: Sequence[Result]) -> list[tuple[int, float, object]]:
    """Of each prompt: the winner, its score, and what the search spent."""
    return [(result.best.seed, result.best.reward, result.spent.cost) for result in results]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seeds", type=int, default=16)
    p.add_argument("--prompts", type=int, nargs="+", default=[1, 4])
    p.add_argument("--steps", type=int, nargs="+", default=[2, 4])
    p.add_argument("--batch-size", type=int, default=2)
    p.add_argument(
        "--decode-batch-size", type=int, default=1, help="images of a call of the reward"
    )
    p.add_argument("--seconds", type=float, default=0.05, help="that a call of the reward takes")
    p.add_argument("--runs", type=int, default=5, help="of each kind, alternated")
    a = p.parse_args()
    pipe, rows = load(dtype=torch.float32), []
    for steps in a.steps:
        for prompts in (sample_prompts(n, 5) for n in a.prompts):
            for name in SEARCHES:
                taken: dict[bool, list[float]] = {False: [], True: []}
                same: list[object] = []
                for run in range(2 * a.runs):
                    beside = bool(run % 2)
                    call = {**defaults("embedded"), "num_inference_steps": steps}
                    engine = pipe.engine(
                        Server(a.seconds, beside=beside),
                        batch_size=a.batch_size,
                        decode_batch_size=a.decode_batch_size,
                        **call,
                    )
                    begin = time.perf_counter()
                    results = search(prompts, make_algorithm(name, n=a.seeds), engine)
                    taken[beside].append(time.perf_counter() - begin)
                    same.append(found(results))
                    if not beside:
                        timings = engine.timings
                turn, both = (float(np.median(taken[beside])) for beside in (False, True))
                network = timings["denoise"] + timings["decode"]
                rows.append(
                    [
                        name,
                        len(prompts),
                        steps,
                        f"{network:.2f}",
                        f"{timings['reward']:.2f}",
                        f"{turn:.2f}",
                        f"{both:.2f}",
                        f"{turn / both:.2f}",
                        "same" if same == same[:1] * len(same) else "others",
                    ]
                )
                print(*rows[-1], sep="  ", flush=True)
    head = [
        "search",
        "prompts",
        "steps",
        "network s",
        "reward s",
        "in turn s",
        "beside s",
        "times faster",
        "winners",
    ]
    print(
        f"\n{torch.get_num_threads()} threads of torch, {a.seeds} seeds, batches of"
        f" {a.batch_size}\n"
    )
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
