"""How often the showcase of the demo goes as it is shown: best-of-N beside seed pruning, one prompt, one budget.

    python benchmarks/showcase.py --json showcase.json

Seeds of the prompt of ttsnap/scenes/showcase.py are recorded: every seed to the end, with the checker's soft score
(searched) and its strict verdict (only reported) at every step, and the scores of its draft. Then each search of ARMS
plays the recording again and again, each time with the recorded seeds in another random order, the same for all.
Printed are the shares of searches whose winner is strictly right, and how the winners of the demo's two searches
compare. The draws share one recording, so that more of them do not make the figures better than its seeds are: the
standard errors are over bootstraps of the recorded seeds. At last come the first seeds from which only the demo's
search finds a right image, and what the searches find from the showcase's own seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from ttsnap.pipelines import defaults, load

from ttsnap import BestOfN, Budget, SeedPruning, __version__
from ttsnap.core.grid import Task
from ttsnap.core.protocols import Algorithm
from ttsnap.core.utility import weighted
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import showcase
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.sizing import sized_for

REWARDS = ("scenes", "scenes-strict")
SOFT = weighted([1.0, 0.0])
ARMS: dict[str, Algorithm] = {
    "best-of-n": BestOfN(),
    "seed-pruning without drafts": SeedPruning(draft_share=0),
    "seed-pruning": SeedPruning(),
}
PLAIN, SHOWN = "best-of-n", "seed-pruning"
"""The two searches of `make demo`."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=1000, help="recorded, from seed 0 on")
    p.add_argument("--repeats", type=int, default=20_000, help="draws of seeds from the recording, for both algorithms")
    p.add_argument("--bootstraps", type=int, default=50, help="of the recorded seeds, for the standard errors")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="float32", help="as `make demo` runs it")
    p.add_argument("--recordings", type=Path, help="folder to keep the recording in, and to go on from")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    call = defaults()
    engine = load(dtype=getattr(torch, a.dtype)).engine(
        list(REWARDS), batch_size=a.batch_size, draft="embedded", **call
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (a.recordings or Path(temporary)) / "showcase"
        recording = record(engine, [showcase.PROMPT], folder, RecordOptions(a.seeds), info=call, progress_bar=True)
    sized = {name: sized_for(recording, algorithm, Budget.parse(showcase.BUDGET)) for name, algorithm in ARMS.items()}
    found = shares(recording, Orders.drawn(recording, a.repeats, np.random.default_rng(0)), sized)
    errors = standard_errors(recording, sized, a.repeats, a.bootstraps)
    print(f"{showcase.PROMPT!r}, {showcase.BUDGET}: {a.repeats} draws from {recording.seeds} recorded seeds")
    for name, share in found.items():
        print(f"{name:>44}: {100 * share:5.1f} ± {100 * errors[name]:.1f} %")
    each = [shares(recording, from_seed(recording, seed), sized) for seed in range(100)]
    told = [s for s, e in enumerate(each) if e[f"{SHOWN} strictly right"] > e[f"{PLAIN} strictly right"]]
    print(f"of the first seeds 0 to 99 the difference shows from {told}")
    shown = each[showcase.SEED]
    print(f"from seed {showcase.SEED}: {', '.join(name for name, share in shown.items() if share == 1)}")
    if a.json:
        settings = {"prompt": showcase.PROMPT, "budget": showcase.BUDGET, "seeds": a.seeds, "repeats": a.repeats,
                    "dtype": a.dtype, "call": call}  # fmt: skip
        noted = {"ttsnap": __version__, "settings": settings, "shares": found, "errors": errors, "from seed": shown}
        a.json.write_text(json.dumps(noted, indent=1))


def shares(recording: Recording, orders: Orders, sized: Mapping[str, tuple[Task, Algorithm]]) -> dict[str, float]:
    """Shares in [0, 1]: of the recorded seeds that are right, then of searches in these orders, by what holds of them.

    sized: each algorithm with the seeds that the budget affords, and its task.
    """
    soft, winner = {}, {}
    for name, (task, algorithm) in sized.items():
        assert algorithm.n is not None  # `sized_for` sets it
        lookup = orders.play(recording, algorithm.n)
        out = lockstep(algorithm, lookup, len(orders), task, rewards=len(recording.reward_names), utility=SOFT)
        soft[name] = out.reward
        winner[name] = np.take_along_axis(orders.seeds, out.winner[:, None], 1)[:, 0]
    strict = recording.final[0, :, 1] == 1
    return {
        "recorded seeds strictly right": float(strict.mean()),
        **{f"{name} strictly right": float(strict[winner[name]].mean()) for name in ARMS},
        f"lead of {SHOWN}": float(strict[winner[SHOWN]].mean() - strict[winner[PLAIN]].mean()),
        f"{SHOWN} of higher reward": float((soft[SHOWN] > soft[PLAIN]).mean()),
        f"{SHOWN} of lower reward": float((soft[SHOWN] < soft[PLAIN]).mean()),
        "same image": float((winner[SHOWN] == winner[PLAIN]).mean()),
    }


def standard_errors(
    recording: Recording, sized: Mapping[str, tuple[Task, Algorithm]], repeats: int, bootstraps: int
) -> dict[str, float]:
    """Of `shares`: their spread where the recorded seeds are resampled and other orders are drawn."""
    rng, found = np.random.default_rng(1), []
    for _ in range(bootstraps):
        rows = rng.integers(recording.seeds, size=recording.seeds)
        resampled = dataclasses.replace(
            recording,
            scores=recording.scores[:, rows],
            looks={seen: scores[:, rows] for seen, scores in recording.looks.items()},
        )
        found.append(shares(resampled, Orders.drawn(resampled, repeats, rng), sized))
    return {name: float(np.std([one[name] for one in found])) for name in found[0]}


def from_seed(recording: Recording, seed: int) -> Orders:
    """The order of a live search whose first seed is `seed`, as a single search."""
    return Orders(((np.arange(recording.seeds) - seed) % recording.seeds)[None].astype(float))


if __name__ == "__main__":
    main()
