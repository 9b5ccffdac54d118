"""At which guidance x0 estimates rank seeds best, while the sampler keeps its own. On the embedded model.

    python benchmarks/estimate_guidance.py --scales 1 2 3 --json guidance.json

With classifier-free guidance both passes of an evaluation are there, so that the estimate that is scored can be made
at any scale at no cost. Held-out hard prompts are recorded, every seed to the end; then the same seeds are denoised as
far as their estimates are to be scored at each of the scales, since the finished images do not change. Shown are the
rank correlation (Spearman) within prompts with the finished image's soft score, by step, its difference to the
estimates of the sampler's own scale (paired, over prompts), and what pruning by one check finds, at each step, by NFE.
With --trials, what seed pruning finds on the second half of the prompts by a schedule that `tune` fits to the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from arguments import add_recording
from embedded_curve import REWARDS, SOFT, rows_of, table

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.metrics import spearman
from ttsnap.core.moves import Move, advance, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.results import Event
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.search import search
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import HARD_KINDS, sample_prompts
from ttsnap.simulation.simulate import curve
from ttsnap.simulation.tune import tune


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="beside the sampler's own")
    p.add_argument("--score-steps", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5, 6, 8, 10])
    p.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200], help="NFE per prompt")
    add_recording(p, prompts=40, seeds=32)
    p.add_argument("--prompt-seed", type=int, default=0, help="another seed, other held-out prompts of the same kinds")
    p.add_argument("--keep", type=float, default=0.3, help="share of the seeds that the one check keeps")
    p.add_argument("--trials", type=int, default=0, help="schedules that `tune` tries; 0: without")
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    a = p.parse_args()

    pipe, call = load(dtype=getattr(torch, a.dtype)), {**defaults()}
    prompts = sample_prompts(a.prompts, a.prompt_seed, HARD_KINDS)
    own = f"the sampler's own ({call['guidance_scale']:g})"

    def engine(scale: float | None) -> LiveEngine:
        return pipe.engine(list(REWARDS), batch_size=a.batch_size, estimate_guidance=scale, **call)

    with tempfile.TemporaryDirectory() as temporary:
        folder = (a.recordings or Path(temporary)) / f"guidance{a.prompt_seed}"
        options = RecordOptions(a.seeds, steps=a.score_steps)
        whole = record(engine(None), prompts, folder, options, info=call, progress_bar=True)
    recordings = {own: whole}
    for scale in a.scales:
        recordings[f"guidance {scale:g}"] = scored_anew(whole, engine(scale))
    out: dict[str, Any] = {"ttsnap": __version__, "prompts": a.prompts, "spearman": {}, "gain": {}, "rows": []}
    known = np.ptp(SOFT(whole.final), axis=1) > 0  # prompts whose images differ in score
    for title, key in (("Spearman", "spearman"), ("difference to the sampler's own", "gain")):
        print(f"\n{title}\n\n| step | " + " | ".join(recordings) + " |\n" + "|---" * (1 + len(recordings)) + "|")
        for k in a.score_steps:
            cells, base = [], ranks(recordings[own], k)
            for name, r in recordings.items():
                each = (ranks(r, k) - (base if key == "gain" else 0))[known]
                mean, error = float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)
                out[key].setdefault(name, {})[k] = [mean, error]
                cells.append(f"{mean:.3f} ± {error:.3f}")
            print(f"| {k} | " + " | ".join(cells) + " |", flush=True)
    budgets = [Budget(nfe=b) for b in a.budgets]
    for k in a.score_steps:
        schedule, base = SeedPruning(None, (a.keep,), steps=(k,)), None
        for name, r in recordings.items():
            found = curve(r, schedule, budgets, a.repeats, utility=SOFT)
            base = base or found
            gains = SOFT(found.scores - base.scores)  # (P, budgets)
            for row, gain in zip(rows_of(f"{name}, step {k}", found), gains.T, strict=True):
                row |= {"gain": float(gain.mean()), "gain_se": float(gain.std(ddof=1) / len(gain) ** 0.5)}
                out["rows"].append(row)
    if a.trials:
        half = slice(a.prompts // 2, None)
        for name, r in recordings.items():
            fitted = tune(r.select(slice(half.start)), budgets, trials=a.trials, holdout=0, utility=SOFT).schedule
            found = curve(r.select(half), fitted, budgets, a.repeats, utility=SOFT)
            out["rows"] += rows_of(f"{name}, tuned", found)
            print(f"{name}: tuned to {fitted}", flush=True)
    print(f"\n{table(out['rows'])}\n\nreward, over that of the sampler's own scale\n")
    for row in (row for row in out["rows"] if "gain" in row and not row["algorithm"].startswith(own)):
        print(f"{row['algorithm']}, {row['budget']} NFE: {row['gain']:+.3f} ± {row['gain_se']:.3f}")
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))


def ranks(recording: Recording, step: int) -> FloatArray:
    """(P,) Spearman correlation of the estimates at a step with the finished images, by the soft score; 0 where all
    estimates score the same."""
    return np.nan_to_num(spearman(SOFT(recording.scores[:, :, step]), SOFT(recording.final)))


@dataclass(frozen=True)
class Estimates:
    """Score n seeds at these steps, and leave it at that."""

    n: int
    steps: tuple[int, ...]
    lockstep: ClassVar[bool] = False
    needs: ClassVar[Needs] = frozenset()

    def init(self, task: Task) -> tuple[int, ...]:
        """The steps to come."""
        return self.steps

    def step(
        self, state: tuple[int, ...], particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, tuple[int, ...]]:
        if not state:
            return None, state
        if not len(particles):
            return fresh(self.n, state[0]), state[1:]
        return advance(particles, np.flatnonzero(particles.alive), state[0]), state[1:]


def scored_anew(recording: Recording, engine: LiveEngine) -> Recording:
    """The recording with its estimates as this engine scores them."""
    scores, end = np.full_like(recording.scores, np.nan), recording.grid.steps
    scores[:, :, end] = recording.final

    def listen(event: Event) -> None:
        if event.kind == "score" and event.step < end:
            scores[event.job, event.uids[0], event.step] = event.scores

    steps = tuple(k for k in range(end) if recording.scored[k])
    search(recording.prompts, Estimates(recording.seeds, steps), engine, seed=recording.first_seed, on_event=listen)
    return dataclasses.replace(recording, scores=scores)


if __name__ == "__main__":
    main()
