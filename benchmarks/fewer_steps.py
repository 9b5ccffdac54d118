"""Fewer denoising steps under a budget: best-of-N and seed pruning with each number.

    python benchmarks/fewer_steps.py --json steps.json
    python benchmarks/fewer_steps.py --model signs --steps 6 10 20 --budgets 20 50 100 200

Prompts that training held out are recorded once for each number of steps, with the same seeds.
Searches choose by the checker's soft score, or by the similarity of what an OCR reads with the
word. Whether winners are strictly right is only reported. Differences are paired by prompts. All of
it follows again at equal FLOPs: those of as many evaluations, decodes and what the reward takes
included.
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

SCORED = {
    "embedded": {20: (2, 4, 5, 6, 7, 8, 9, 11, 14)},
    "signs": {6: (1, 2, 3, 4), 10: (2, 3, 4, 5), 20: (2, 4, 6, 8, 11, 14)},
}
"""Steps whose estimates are scored, by the number of steps; else every one is."""


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="embedded", choices=list(SCORED))
    p.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[4, 6, 8, 10, 20],
        help="rising; the last: the model's own",
    )
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[25, 50, 100, 200], help="NFE per prompt"
    )
    add_recording(p, prompts=60, seeds=64)
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=15,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        test = recorded(a, a.recordings or Path(temporary))
    found: dict[str, Any] = {}
    one = test[-1].price.flops.nfe
    for unit in ("nfe", "flops"):
        worth = {b: Budget(nfe=b) if unit == "nfe" else Budget(flops=b * one) for b in a.budgets}
        caps = {b: cap for b, cap in worth.items() if unit == "nfe" or b * one > least(test[-1])}
        print(f"\n## {'evaluations' if unit == 'nfe' else 'at the FLOPs of as many evaluations'}\n")
        found[unit] = compared(test, caps, a)
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"
        }
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting, **found}, indent=1)
        )


def recorded(a: argparse.Namespace, folder: Path) -> list[Recording]:
    """A recording for each number of steps."""
    pipe = load(a.model, dtype=getattr(torch, a.dtype))
    if a.model == "signs":
        prompts, rewards = signs.sample_prompts(a.prompts, a.prompt_seed), ["ocr:line"]
    else:
        prompts, rewards = (
            scenes.sample_prompts(a.prompts, a.prompt_seed),
            ["scenes", "scenes-strict"],
        )

    def made(steps: int) -> Recording:
        call = {**defaults(a.model), "num_inference_steps": steps}
        engine = pipe.engine(rewards, batch_size=a.batch_size, **call)
        scored = SCORED[a.model].get(steps)
        options = RecordOptions(a.seeds, seed=0, steps=None if scored is None else list(scored))
        made = record(
            engine,
            prompts,
            folder / str(steps) / f"test{a.prompt_seed}",
            options,
            info=call,
            progress_bar=True,
        )
        if a.model == "embedded":
            return made
        return with_right(made)

    return [made(steps) for steps in a.steps]


def with_right(recording: Recording) -> Recording:
    """The recording of an OCR's similarity, and whether the word is right. Both come of one
    reading."""
    flops = recording.price.flops
    price = replace(recording.price, flops=replace(flops, reward_calls=flops.reward_calls / 2))
    scores = np.concatenate([recording.scores, recording.scores == 1], -1)
    return replace(recording, scores=scores, reward_names=("similarity", "right"), price=price)


def compared(
    test: list[Recording], caps: Mapping[int, Budget], a: argparse.Namespace
) -> dict[str, Any]:
    """Rows of each search, and how much more of its winners are right than of best-of-N's with most
    steps. caps: by the numbers of evaluations that they are worth."""
    budgets, utility, curves = list(caps.values()), SOFT, dict[str, Curve]()
    for recording, steps in zip(test, a.steps, strict=True):
        curves[f"best-of-n, {steps}"] = best_of_n_curve(recording, budgets, utility=utility)
        curves[f"seed-pruning, {steps}"] = curve(
            recording, SeedPruning(), budgets, a.repeats, utility=utility
        )
    rows = [
        row | {"budget": n}
        for name, c in curves.items()
        for n, row in zip(caps, rows_of(name, c), strict=True)
    ]
    for key, title in (
        ("strict", "strictly right"),
        ("reward", "the score by which searches choose"),
    ):
        cells = [
            [f"{row[key]:.3f} ± {row[f'{key}_se']:.3f}" for row in rows if row["algorithm"] == n]
            for n in curves
        ]
        print(
            "\n"
            + markdown(
                [title, *map(str, caps)], [[n, *row] for n, row in zip(curves, cells, strict=True)]
            )
        )
    usual = f"best-of-n, {a.steps[-1]}"
    gains = {name: ahead(found, curves[usual]) for name, found in curves.items() if name != usual}
    lines = [[name, *(f"{g:+.3f} ± {e:.3f}" for g, e in gain)] for name, gain in gains.items()]
    print("\n" + markdown([f"strictly right, more than {usual}", *map(str, caps)], lines))
    more = [{"search": name, "than": usual, "right": gain} for name, gain in gains.items()]
    return {"rows": rows, "paired": more}


def ahead(mine: Curve, other: Curve) -> list[tuple[float, float]]:
    """By how much more winners are strictly right, paired by prompts, at each budget, with the
    error."""
    return [mean(mine.scores[:, i, 1] - other.scores[:, i, 1]) for i in range(len(mine.budgets))]


if __name__ == "__main__":
    main()
