"""How often the embedded model that writes is right, by an OCR: one seed, best-of-N and seed pruning.

    pip install -e '.[ocr]'
    python benchmarks/signs.py --json signs.json

Words that training never saw are recorded, the kinds of ttsnap.signs in turn: every seed to the end, with the
similarity of what the reader sees with the word (`ocr:line`) at some steps, and whether the two are equal ("right").
Of these:

1. one seed: how often it is right, by kind, and the colours of the plate;
2. rank correlation (Spearman) within prompts of a step's x0 estimate with the finished image, by similarity;
3. best-of-N (exact) and seed pruning (searches of the recording), which choose by similarity, at each budget in NFE;
4. with --draft, how the drafter's guesses rank the same seeds, and pruning by them;
5. the searches again at equal FLOPs: those of as many evaluations, with which decodes are paid as well.

Means over prompts with their standard errors; differences between searches are paired by prompts.
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
from distilled_drafts import least, methods, with_looks
from embedded_curve import rows_of, table
from few_step import mean
from ttsnap.pipelines import defaults, load
from ttsnap.reward_models.ocr import OCR

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.signs import KINDS, RGB, parse, sample_prompts
from ttsnap.simulation.looks import ranked
from ttsnap.simulation.simulate import best_of_n_curve, curve

FIRST = weighted([1.0, 0.0, 0.0])
"""Searches choose by similarity."""


class PlateColour(RewardModel):
    """1 where the edge of the picture is in the plate's colour, rather than in another of the six, else 0."""

    name = "plate"

    def __call__(self, images: torch.Tensor, prompts: Any, level: Any = None) -> FloatArray:
        edges = torch.cat([images[:, :, 0], images[:, :, -1]], -1).median(-1).values.float().cpu().numpy() * 255
        known = np.array(list(RGB.values()))
        nearest = np.square(edges[:, None] - known).sum(-1).argmin(1)
        return np.array([list(RGB)[i] == parse(p).ground for i, p in zip(nearest, prompts, strict=True)], np.float32)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="signs", help="or a folder that scripts/train_worlds signs wrote")
    p.add_argument("--steps", type=int, help="the model's own by default")
    p.add_argument("--guidance", type=float, help="the model's own by default")
    p.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 100, 200], help="NFE per prompt")
    add_recording(p, prompts=48, seeds=16)
    p.add_argument("--score-steps", type=int, nargs="+", default=[2, 4, 6, 8, 11, 14], help="of the estimates")
    p.add_argument("--prompt-seed", type=int, default=0, help="another seed, other words of the same kinds")
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--draft", help="a drafter of the model, as pipe(draft=...) takes it")
    p.add_argument("--looks", nargs="+", default=["draft:1@0", "draft:2@0"], help="of the drafter")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    given = {"num_inference_steps": a.steps, "guidance_scale": a.guidance}
    call = defaults(a.model) | {name: value for name, value in given.items() if value is not None}
    pipe, rewards = load(a.model, dtype=getattr(torch, a.dtype)), [OCR("line"), PlateColour()]
    engine = pipe.engine(rewards, batch_size=a.batch_size, **call)
    if missing := {engine.grid.step_at(level) for level in SeedPruning().levels} - {*a.score_steps}:
        p.error(f"seed pruning looks at step {', '.join(map(str, missing))}, which --score-steps leaves out; add it")
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    with tempfile.TemporaryDirectory() as temporary:
        there = (a.recordings or Path(temporary)) / f"signs-{a.prompt_seed}"
        options = RecordOptions(a.seeds, seed=a.seed, steps=a.score_steps)
        recording = record(engine, prompts, there, options, info=call, progress_bar=True)
        if a.draft:
            drafted = pipe.engine(rewards, batch_size=a.batch_size, draft=a.draft, **call)
            recording = with_looks(recording, drafted, [EstimatorAt.read(look) for look in a.looks], a.seed)
        recording = replace(
            recording,
            scores=with_right(recording.scores),
            looks={seen: with_right(scores) for seen, scores in recording.looks.items()},
            reward_names=("similarity", "right", "plate"),
        )
        found = measured(recording, a)
    if a.json:
        setting = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"}
        a.json.write_text(json.dumps({"ttsnap": __version__, "setting": setting, **found}, indent=1))


def with_right(scores: FloatArray) -> FloatArray:
    """(..., 2) similarity and colour of the plate -> (..., 3), with whether the text is right between them."""
    return np.insert(scores.astype(np.float32), 1, scores[..., 0] == 1, axis=-1)


def measured(recording: Recording, a: argparse.Namespace) -> dict[str, Any]:
    """The figures, which are printed as well."""
    final = recording.final.mean(1)  # (prompts, rewards)
    kinds = np.array([parse(prompt).kind for prompt in recording.prompts])
    one = {}
    for kind in (*KINDS, "all"):
        rows = final[kinds == kind] if kind != "all" else final
        if len(rows) > 1:
            one[kind] = {name: mean(rows[:, i]) for i, name in enumerate(recording.reward_names)}
    print("\none seed\n\n" + markdown(("words", "right", "similarity", "colour of the plate"), [
        (kind, *(f"{m:.3f} ± {e:.3f}" for m, e in (row["right"], row["similarity"], row["plate"])))
        for kind, row in one.items()
    ]))  # fmt: skip
    ranks = [{"look": str(r.seen), "nfe": r.nfe, "spearman": r.mean, "se": r.error} for r in ranked(recording, FIRST)]
    print("\n" + markdown(("NFE", "look", "Spearman"), [
        (f"{r['nfe']:g}", r["look"], f"{r['spearman']:.3f} ± {r['se']:.3f}") for r in ranks
    ]))  # fmt: skip
    by_nfe = compared(recording, {b: Budget(nfe=b) for b in a.budgets}, a)
    print("\nat the FLOPs of so many evaluations, decodes included")
    worth = {b: b * recording.price.flops.nfe for b in a.budgets}
    caps = {b: Budget(flops=flops) for b, flops in worth.items() if flops > least(recording)}
    return {"one_seed": one, "ranks": ranks, **by_nfe, "equal_flops": compared(recording, caps, a)}


def compared(recording: Recording, caps: Mapping[int, Budget], a: argparse.Namespace) -> dict[str, Any]:
    """Rows of each search, and how much more of the winners are right than of best-of-N's and of plain pruning's.

    caps: by the numbers of evaluations that they are worth.
    """
    budgets = list(caps.values())
    curves = {"best-of-n": best_of_n_curve(recording, budgets, utility=FIRST)}
    for name, algorithm in {"seed-pruning": SeedPruning(draft_share=0), **methods(recording)}.items():
        curves[name] = curve(recording, algorithm, budgets, a.repeats, utility=FIRST)
    rows = [row | {"budget": n} for name, c in curves.items() for n, row in zip(caps, rows_of(name, c), strict=True)]
    print(f"\n{table(rows)}\n")
    more = [
        {"search": name, "than": other, "budget": n, "right": mean(c.scores[:, i, 1] - base.scores[:, i, 1])}
        for other, base in list(curves.items())[:2]
        for name, c in curves.items()
        if list(curves).index(name) > list(curves).index(other)
        for i, n in enumerate(caps)
    ]
    print(markdown(("search", "than", "budget", "right, paired"), [
        (row["search"], row["than"], row["budget"], f"{row['right'][0]:+.3f} ± {row['right'][1]:.3f}") for row in more
    ]))  # fmt: skip
    return {"rows": rows, "paired": more}


if __name__ == "__main__":
    main()
