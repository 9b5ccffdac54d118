"""How the default pruning schedule was chosen: random search over schedules, on recordings of the embedded model.

    python benchmarks/tune_schedule.py --json schedules.json

Prompts of the hard kinds that are not held out are recorded (every seed to the end, every step scored), half of them
are fitted on, the other half tell how the winner does on prompts that it was not chosen on. Schedules are noise levels
and keep ratios, judged by their mean reward over the budgets, relative to best-of-N at the same budget.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ttsnap.pipelines import defaults, load

from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.replay import Recording, ReplayEngine
from ttsnap.scenes import sample_prompts
from ttsnap.search import fit
from ttsnap.types import Grid


def record(prompts: list[str], seeds: int, steps: int, batch_size: int, dtype: str) -> list[Recording]:
    pipe = load(dtype=getattr(torch, dtype))
    call = {**defaults(), "num_inference_steps": steps}
    found = pipe(prompts, search=KeepAll(seeds), reward="scenes", batch_size=batch_size, **call).search
    grid = pipe.denoiser(**call).grid
    return [Recording.from_result(r, grid, ("scenes",)) for r in found]


def mean_reward(recordings: list[Recording], algorithm: Any, budget: int, starts: list[int]) -> float:
    """Over prompts, and over searches that start at different recorded seeds."""
    found = []
    for start in starts:
        shifted = [Recording(r.prompt, r.scores[start:], r.grid, r.reward_names) for r in recordings]
        engine = ReplayEngine(shifted)
        sized = fit(algorithm, engine, Budget(nfe=budget), most=len(shifted[0].scores))
        found += search([r.prompt for r in shifted], sized, engine, f"{budget}nfe")
    return float(np.mean([r.best.reward for r in found]))


def draw(rng: np.random.Generator) -> SeedPruning:
    checks = int(rng.integers(1, 4))
    levels = np.sort(rng.choice(np.arange(0.25, 0.96, 0.05), checks, replace=False))[::-1]
    keep = rng.choice([0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7], checks)
    return SeedPruning(None, tuple(keep.round(2).tolist()), tuple(levels.round(2).tolist()))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=36)
    p.add_argument("--seeds", type=int, default=64)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--budgets", type=int, nargs="+", default=[100, 200, 400])
    p.add_argument("--trials", type=int, default=150)
    p.add_argument("--prompt-seed", type=int, default=1)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="bfloat16", help="bfloat16 is twice as fast as float32 on CPUs that have it")
    p.add_argument("--recordings", type=Path, help=".npz to keep the recordings in, or to take them from")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    prompts = sample_prompts(a.prompts, a.prompt_seed, held_out=False)
    if a.recordings is not None and a.recordings.exists():
        kept = np.load(a.recordings)
        grid = Grid(tuple(kept["levels"].tolist()))
        recordings = [Recording(p, s, grid, ("scenes",)) for p, s in zip(prompts, kept["scores"], strict=True)]
    else:
        recordings = record(prompts, a.seeds, a.steps, a.batch_size, a.dtype)
    if a.recordings is not None and not a.recordings.exists():
        np.savez(a.recordings, scores=[r.scores for r in recordings], levels=recordings[0].grid.levels)
    fitted, test = recordings[::2], recordings[1::2]
    starts = [0, 3]

    def judge(part: list[Recording], algorithm: Any) -> list[float]:
        return [mean_reward(part, algorithm, budget, starts) for budget in a.budgets]

    base = {"fit": judge(fitted, BestOfN()), "test": judge(test, BestOfN())}
    rng = np.random.default_rng(0)
    tried = []
    for schedule in [SeedPruning(), *(draw(rng) for _ in range(a.trials))]:
        scores = judge(fitted, schedule)
        tried.append((float(np.mean(np.subtract(scores, base["fit"]))), schedule, scores))
    tried.sort(key=lambda t: -t[0])
    print(f"best-of-n at {a.budgets} NFE: fit {np.round(base['fit'], 3)}, test {np.round(base['test'], 3)}")
    rows = []
    for gain, schedule, _ in tried[:10]:
        held = judge(test, schedule)
        test_gain = float(np.mean(np.subtract(held, base["test"])))
        rows.append({"keep": schedule.keep, "levels": schedule.levels, "fit": gain, "test": test_gain})
        print(f"levels {schedule.levels} keep {schedule.keep}: {gain:+.4f} fit, {test_gain:+.4f} test")
    if a.json:
        a.json.write_text(json.dumps({"best_of_n": base, "schedules": rows}, indent=1))


if __name__ == "__main__":
    main()
