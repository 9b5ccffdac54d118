"""Do rollouts predict better than one-step estimates, and does pruning by them pay? On the embedded model.

    python benchmarks/rollouts.py --json rollouts.json

A rollout of m from step k is k evaluations along the path and m of a coarse one from there to the image, whose decode
is scored; a one-step estimate at step k is k evaluations and one more.

1. Spearman within prompts of the score with the finished image's, at equal cost in denoiser calls.
2. Seed pruning at equal denoiser calls: one cut by estimates, one by rollouts, and one by rollouts followed by one by
   estimates, for several places and shares. For each kind and budget the schedule that is best on other prompts is
   shown, beside best-of-N. Survivors go on from the state that they had, so a rollout's coarse calls are lost. Searches
   are simulated on the recorded scores (tests hold that to the live search).
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from arguments import add_dtype

from ttsnap import BestOfN, Budget, SeedPruning, __version__, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.grid import Task
from ttsnap.core.looks import look_of
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.moves import Move, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.pipelines import load
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import sample_prompts
from ttsnap.simulation.simulate import curve


@dataclass(frozen=True)
class Look:
    """Score n seeds once, at `stop` with a rollout, and leave it at that."""

    n: int
    stop: int
    rollout: int
    lockstep: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        return look_of(self.rollout).needs

    def init(self, task: Task) -> bool:
        return False

    def step(self, state: bool, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, bool]:
        return (None if state else fresh(self.n, self.stop, look=look_of(self.rollout))), True


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=30)
    p.add_argument("--fit-prompts", type=int, default=20)
    p.add_argument("--seeds", type=int, default=32, help="recorded per prompt")
    p.add_argument("--costs", type=int, nargs="+", default=[3, 4, 5, 6, 8])
    p.add_argument("--budgets", type=int, nargs="+", default=[60, 100, 160, 240], help="NFE, of part 2")
    p.add_argument("--repeats", type=int, default=100, help="simulated searches of a prompt, of part 2")
    p.add_argument("--reward", default="scenes")
    p.add_argument("--prompt-seed", type=int, default=0, help="another seed, other held-out prompts of the same kinds")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--batch-size", type=int, default=64)
    add_dtype(p)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    call = {"num_inference_steps": a.steps}
    engine = load(dtype=getattr(torch, a.dtype)).engine(a.reward, batch_size=a.batch_size, **call)
    test, fit = sample_prompts(a.prompts, a.prompt_seed), sample_prompts(a.fit_prompts, 1, held_out=False)
    out: dict[str, Any] = {"ttsnap": __version__, "setting": {k: str(v) for k, v in vars(a).items()}}

    final = scores(engine, test, BestOfN(a.seeds), a.steps)
    out["spearman"] = []
    for cost in a.costs:
        for k in range(cost):
            found = scores(engine, test, Look(a.seeds, k, cost - k), k)
            row = {"cost": cost, "path": k, "rollout": cost - k, "spearman": float(rank_correlation(found, final))}
            out["spearman"].append(row)
        mine = [r for r in out["spearman"] if r["cost"] == cost]
        shown = (f"{r['path']}+{r['rollout']} {r['spearman']:.2f}" for r in mine)
        print(f"{cost} calls: " + ", ".join(shown), flush=True)

    out["pruning"] = []
    looks = [(k, m) for k in places(a.steps) for m in CALLS]
    whole = {name: record_all(engine, prompts, a.seeds, looks) for name, prompts in (("test", test), ("fit", fit))}
    for budget, (kind, schedules) in itertools.product(a.budgets, kinds(a.steps).items()):
        tried = [simulated(whole["fit"], s, budget, a.repeats).mean() for s in schedules]
        best = schedules[int(np.argmax(tried))]
        values = simulated(whole["test"], best, budget, a.repeats)
        row = {"budget": budget, "kind": kind, "schedule": str(best), "reward": float(values.mean()),
               "error": float(values.std(ddof=1) / len(values) ** 0.5)}  # fmt: skip
        out["pruning"].append(row)
        print(f"{budget} NFE, {kind}: {row['reward']:.3f} ± {row['error']:.3f} ({best})", flush=True)
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))


CALLS = (2, 3, 4, 5)


def places(steps: int) -> list[int]:
    """Steps where a rollout may begin."""
    return sorted({0, steps // 20, steps // 10, 3 * steps // 20, steps // 5})


def kinds(steps: int) -> dict[str, list[Any]]:
    """Schedules to choose from, of each kind."""
    late, keep = [steps // 5, steps // 4, 3 * steps // 10, 2 * steps // 5], (0.1, 0.2, 0.35, 0.5)
    rollouts = [SeedPruning(keep=(s,), steps=(k,), rollout=m) for s in keep for k in places(steps) for m in CALLS]
    both = [
        SeedPruning(keep=(s, t), steps=(k, at), rollout=m)
        for s, t in itertools.product(keep, (0.3, 0.5))
        for k, at in itertools.product(places(steps)[:3], late)
        for m in CALLS
        if at > k
    ]
    return {
        "best-of-n": [BestOfN()],
        "estimates": [SeedPruning(keep=(s,), steps=(k,)) for s in keep for k in range(1, 2 * steps // 5 + 1)],
        "estimates twice": [
            SeedPruning(keep=(s, t), steps=(k, at))
            for s, t in itertools.product(keep, (0.3, 0.5))
            for k, at in itertools.product(range(1, steps // 5), late)
            if at > k
        ],
        "rollouts": rollouts,
        "rollouts, then estimates": both,
    }


def record_all(engine: Any, prompts: list[str], seeds: int, looks: list[tuple[int, int]]) -> dict[Any, Recording]:
    """Recordings of the same seeds: of estimates (None), and with the scores at step k replaced by rollouts (k, m)."""
    results = search(prompts, KeepAll(seeds), engine)
    plain = Recording.from_results(results, engine.grid, engine.reward_names, price=engine.price)
    made: dict[Any, Recording] = {None: plain}
    for k, m in looks:
        replaced = plain.scores.copy()
        replaced[:, :, k, 0] = scores(engine, prompts, Look(seeds, k, m), k)
        made[k, m] = replace(plain, scores=replaced)
    return made


def simulated(recordings: dict[Any, Recording], schedule: Any, budget: int, repeats: int) -> np.ndarray:
    """(P,) the winners' mean rewards in simulated searches."""
    rollout = schedule.rollout if isinstance(schedule, SeedPruning) else 1
    recording = recordings[None if rollout == 1 else (schedule.steps[0], rollout)]
    return curve(recording, schedule, [Budget(nfe=budget)], repeats).rewards[:, 0]


def scores(engine: Any, prompts: list[str], algorithm: Any, step: int) -> np.ndarray:
    """(P, S) at a step."""
    results = search(prompts, algorithm, engine)
    return np.stack([r.particles.scores[: algorithm.n, step, 0] for r in results])


if __name__ == "__main__":
    main()
