"""Fewer denoising steps under a budget: best-of-N and seed pruning with each number, and what `ttsnap tune` chooses.

    python benchmarks/fewer_steps.py --json steps.json
    python benchmarks/fewer_steps.py --model signs --steps 6 10 20 --fit-prompts 0 --budgets 20 50 100 200

Prompts that training held out are recorded once for each number of steps, with the same seeds. Searches choose by the
checker's soft score, or by the similarity of what an OCR reads with the word. Whether winners are strictly right is
only reported. "tuned" is `ttsnap tune` for the one budget, over the recordings of other prompts with all numbers of
steps, and with the last number alone. Differences are paired by prompts. All of it follows again at equal FLOPs: those
of as many evaluations, decodes and what the reward takes included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_recording
from distilled_drafts import least
from embedded_curve import SOFT, rows_of
from few_step import mean

from ttsnap import Budget, SeedPruning, __version__, scenes, signs
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.simulation.simulate import Curve, best_of_n_curve, curve
from ttsnap.simulation.tune import tune

SCORED = {
    "embedded": {20: (2, 4, 5, 6, 7, 8, 9, 11, 14)},
    "signs": {6: (1, 2, 3, 4), 10: (2, 3, 4, 5), 20: (2, 4, 6, 8, 11, 14)},
}
"""Steps whose estimates are scored, by the number of steps; else every one is."""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded", choices=list(SCORED))
    p.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 10, 20], help="rising; the last: the model's own")
    p.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100, 200], help="NFE per prompt")
    add_recording(p, prompts=60, seeds=64)
    p.add_argument("--prompt-seed", type=int, default=15, help="another seed, other held-out prompts of the same kinds")
    p.add_argument("--fit-prompts", type=int, default=36, help="others, to tune on; 0: nothing is tuned")
    p.add_argument("--fit-seeds", type=int, default=24)
    p.add_argument("--trials", type=int, default=300, help="schedules that are tried for each budget")
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fit, test = recorded(a, a.recordings or Path(temporary))
    found: dict[str, Any] = {}
    one = test[-1].price.flops.nfe
    for unit in ("nfe", "flops"):
        worth = {b: Budget(nfe=b) if unit == "nfe" else Budget(flops=b * one) for b in a.budgets}
        caps = {b: cap for b, cap in worth.items() if unit == "nfe" or b * one > least(test[-1])}
        print(f"\n## {'evaluations' if unit == 'nfe' else 'at the FLOPs of as many evaluations'}\n")
        found[unit] = compared(fit, test, caps, a)
    if a.json:
        setting = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"}
        a.json.write_text(json.dumps({"ttsnap": __version__, "setting": setting, **found}, indent=1))


def recorded(a: argparse.Namespace, folder: Path) -> tuple[list[Recording], list[Recording]]:
    """Recordings to tune on, and to compare on: one for each number of steps."""
    pipe = load(a.model, dtype=getattr(torch, a.dtype))
    if a.model == "signs":
        prompts, rewards = signs.sample_prompts(a.prompts, a.prompt_seed), ["ocr:line"]
        words = {signs.parse(prompt).word for prompt in prompts}
        others = signs.sample_prompts(a.fit_prompts + a.prompts, a.prompt_seed + 1)
        others = [prompt for prompt in others if signs.parse(prompt).word not in words][: a.fit_prompts]
    else:
        prompts, rewards = scenes.sample_prompts(a.prompts, a.prompt_seed), ["scenes", "scenes-strict"]
        others = scenes.sample_prompts(a.fit_prompts, 1, held_out=False)

    def made(steps: int, name: str, prompts: list[str], seeds: int) -> Recording:
        call = {**defaults(a.model), "num_inference_steps": steps}
        engine = pipe.engine(rewards, batch_size=a.batch_size, **call)
        scored = SCORED[a.model].get(steps)
        options = RecordOptions(seeds, seed=0, steps=None if scored is None else list(scored))
        made = record(engine, prompts, folder / str(steps) / name, options, info=call, progress_bar=True)
        if a.model == "embedded":
            return made
        return with_right(made)

    fit = [made(steps, "fit", others, a.fit_seeds) for steps in a.steps if others]
    return fit, [made(steps, f"test{a.prompt_seed}", prompts, a.seeds) for steps in a.steps]


def with_right(recording: Recording) -> Recording:
    """The recording of an OCR's similarity, and whether the word is right. Both come of one reading."""
    flops = recording.price.flops
    price = replace(recording.price, flops=replace(flops, reward_calls=flops.reward_calls / 2))
    scores = np.concatenate([recording.scores, recording.scores == 1], -1)
    return replace(recording, scores=scores, reward_names=("similarity", "right"), price=price)


def compared(
    fit: list[Recording], test: list[Recording], caps: Mapping[int, Budget], a: argparse.Namespace
) -> dict[str, Any]:
    """Rows of each search, and how much more of the winners of a tuned one are right than of others. caps: by the
    numbers of evaluations that they are worth."""
    budgets, utility = list(caps.values()), SOFT
    curves, chosen = {}, {}
    for recording, steps in zip(test, a.steps, strict=True):
        curves[f"best-of-n, {steps}"] = best_of_n_curve(recording, budgets, utility=utility)
        curves[f"seed-pruning, {steps}"] = curve(recording, SeedPruning(), budgets, a.repeats, utility=utility)
    for name, few in {"tuned": fit, f"tuned, {a.steps[-1]}": fit[-1:]}.items() if fit else ():
        points = []
        for n, cap in caps.items():
            best = tune(few, [cap], trials=a.trials, holdout=0.0, utility=utility).schedule
            chosen[f"{name}, {n}"] = {"steps": best.denoising_steps, "checks": best.steps, "keep": best.keep}
            print(
                f"{name} for {n}: {best.denoising_steps} steps, checks at {best.steps}, keeping {best.keep}", flush=True
            )
            there = next(r for r in test if r.denoising_steps == best.denoising_steps)
            points.append(curve(there, best, [cap], a.repeats, utility=utility))
        curves[name] = Curve.joined(points)
    rows = [row | {"budget": n} for name, c in curves.items() for n, row in zip(caps, rows_of(name, c), strict=True)]
    for key, title in (("strict", "strictly right"), ("reward", "the score by which searches choose")):
        cells = [[f"{row[key]:.3f} ± {row[f'{key}_se']:.3f}" for row in rows if row["algorithm"] == n] for n in curves]
        print("\n" + markdown([title, *map(str, caps)], [[n, *row] for n, row in zip(curves, cells, strict=True)]))
    usual, more = f"best-of-n, {a.steps[-1]}", []
    pairs = {usual: [(name, usual) for name in curves], "another": [("tuned", name) for name in curves if fit]}
    for than, those in pairs.items():
        gains = {pair: ahead(*(curves[name] for name in pair)) for pair in those if len(set(pair)) > 1}
        more += [{"search": name, "than": other, "right": gain} for (name, other), gain in gains.items()]
        lines = [
            [f"{name}, over {other}", *(f"{g:+.3f} ± {e:.3f}" for g, e in gain)]
            for (name, other), gain in gains.items()
        ]
        if lines:
            print("\n" + markdown([f"strictly right, more than {than}", *map(str, caps)], lines))
    return {"rows": rows, "paired": more, "chosen": chosen}


def ahead(mine: Curve, other: Curve) -> list[tuple[float, float]]:
    """By how much more winners are strictly right, paired by prompts, at each budget, with the error."""
    return [mean(mine.scores[:, i, 1] - other.scores[:, i, 1]) for i in range(len(mine.budgets))]


if __name__ == "__main__":
    main()
