"""How often the embedded model that writes is right, by an OCR: one seed, best-of-N and seed
pruning.

    pip install -e '.[ocr]'
    python benchmarks/signs.py --json signs.json

Words that training never saw are recorded, the kinds of ttsnap.signs in turn: every seed to the
end, with the similarity of what the reader sees with the word (`ocr:line`) at some steps, and
whether the two are equal ("right"). Of these:

1. one seed: how often it is right, by kind, and the colours of the plate;
2. rank correlation (Spearman) within prompts of a step's x0 estimate with the finished image, by
   similarity;
3. best-of-N (exact) and seed pruning (searches of the recording), which choose by similarity, at
   each budget in NFE;
4. with --draft, how the drafter's guesses rank the same seeds, and pruning by them;
5. the searches again at equal FLOPs: those of as many evaluations, with which decodes and readings
   are paid as well;
6. with --student, all of this with a noise-aware reward in the OCR's place for all that is
   unfinished (the recording keeps images and latents then, which the student reads), and the
   searches at equal seconds, at the rates of this machine, which are printed.

Means over prompts with their standard errors; differences between searches are paired by prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_recording
from distilled_drafts import least, methods, with_looks
from embedded_curve import rows_of, table
from few_step import mean

from ttsnap import Budget, SeedPruning, __version__, make_algorithm
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.prompt import Prompt
from ttsnap.core.utility import weighted
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.scoring import score_entries
from ttsnap.engine.live import LiveEngine
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.reward_models.ocr import OCR
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.rng import seeded
from ttsnap.signs import KINDS, RGB, parse, sample_prompts
from ttsnap.simulation.looks import ranked
from ttsnap.simulation.simulate import best_of_n_curve, curve

FIRST = weighted([1.0, 0.0, 0.0])
"""Searches choose by similarity."""


class PlateColour(RewardModel):
    """1 where the edge of the picture is in the plate's colour, rather than in another of the six,
    else 0."""

    name = "plate"

    def __call__(self, images: torch.Tensor, prompts: Any, level: Any = None) -> FloatArray:
        edges = (
            torch.cat([images[:, :, 0], images[:, :, -1]], -1)
            .median(-1)
            .values.float()
            .cpu()
            .numpy()
            * 255
        )
        known = np.array(list(RGB.values()))
        nearest = np.square(edges[:, None] - known).sum(-1).argmin(1)
        return np.array(
            [list(RGB)[i] == parse(p).ground for i, p in zip(nearest, prompts, strict=True)],
            np.float32,
        )


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--model", default="signs", help="or a folder that scripts/train_worlds signs wrote"
    )
    p.add_argument("--steps", type=int, help="the model's own by default")
    p.add_argument("--guidance", type=float, help="the model's own by default")
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[20, 50, 100, 200], help="NFE per prompt"
    )
    add_recording(p, prompts=48, seeds=16)
    p.add_argument(
        "--score-steps", type=int, nargs="+", default=[2, 4, 6, 8, 11, 14], help="of the estimates"
    )
    p.add_argument(
        "--prompt-seed", type=int, default=0, help="another seed, other words of the same kinds"
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--draft", help="a drafter of the model, as pipe(draft=...) takes it")
    p.add_argument("--looks", nargs="+", default=["draft:1@0", "draft:2@0"], help="of the drafter")
    p.add_argument(
        "--student", help="a noise-aware reward of the OCR, as --reward of ttsnap generate"
    )
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    given = {"num_inference_steps": a.steps, "guidance_scale": a.guidance}
    call = defaults(a.model) | {name: value for name, value in given.items() if value is not None}
    pipe, rewards = load(a.model, dtype=getattr(torch, a.dtype)), [OCR("line"), PlateColour()]
    kept = ("latents",) if a.student else ()
    engine = pipe.engine(rewards, batch_size=a.batch_size, keep=kept, **call)
    if missing := {engine.grid.step_at(level) for level in SeedPruning().settled().levels} - {
        *a.score_steps
    }:
        p.error(
            f"seed pruning looks at step {', '.join(map(str, missing))}, which --score-steps leaves"
            " out; add it"
        )
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    with tempfile.TemporaryDirectory() as temporary:
        there = (a.recordings or Path(temporary)) / f"signs-{a.prompt_seed}"
        options = RecordOptions(
            a.seeds,
            seed=a.seed,
            steps=a.score_steps,
            images=bool(a.student),
            latents=bool(a.student),
        )
        recording = record(engine, prompts, there, options, info=call, progress_bar=True)
        judges: dict[str, RewardModel] = {"OCR": rewards[0]}
        recordings = {"OCR": recording}
        if a.student:
            judges["student"] = make_reward(a.student)
            recordings["student"] = judged(recording, there, judges["student"])
        looks = [EstimatorAt.read(look) for look in a.looks] if a.draft else []
        similarity = replace(
            recording, scores=recording.scores[..., :1], reward_names=("similarity",)
        )
        for name, reward in judges.items():
            one = pipe.engine(reward, batch_size=a.batch_size, draft=a.draft, **call)
            looked = with_looks(similarity, one, looks, a.seed)
            recordings[name] = named(recordings[name], looked)
        seconds = seconds_of(engine, judges, prompts) if a.student else {}
        found = measured(recordings, seconds, a)
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"
        }
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting, **found}, indent=1)
        )


def judged(recording: Recording, folder: Path, reward: RewardModel) -> Recording:
    """The recording with its estimates scored by a noise-aware reward, from what was kept of
    them."""
    frames, steps = Frames([folder]), np.flatnonzero(recording.scored[:-1])
    cells = [
        (p, s, int(k))
        for p in range(len(frames.prompts))
        for s in range(frames.seeds[p])
        for k in steps
    ]
    score = reward if reward.estimates == "pixels" else reward.score_estimates
    found = score_entries(
        score, frames, [FrameAt(*cell) for cell in cells], reward.estimates, batch_size=64
    )
    scores = recording.scores.copy()
    scores[:, :, steps, 0] = found.reshape(len(frames.prompts), -1, len(steps))
    return replace(recording, scores=scores)


def named(recording: Recording, looked: Recording) -> Recording:
    """The recording with the looks and the price of another, and with what is right beside the
    similarity.

    The price is of one score by the reward that searches ask, and not of the columns that report.
    """
    flops = looked.price.flops
    price = replace(looked.price, flops=replace(flops, reward_calls=flops.reward_calls / 3))
    looks = {
        seen: np.pad(scores, ((0, 0), (0, 0), (0, 1))) for seen, scores in looked.looks.items()
    }
    return replace(
        recording,
        scores=with_right(recording.scores),
        looks={seen: with_right(scores) for seen, scores in looks.items()},
        reward_names=("similarity", "right", "plate"),
        price=price,
    )


def with_right(scores: FloatArray) -> FloatArray:
    """(..., 2) similarity and colour of the plate -> (..., 3), with whether the text is right
    between them."""
    return np.insert(scores.astype(np.float32), 1, scores[..., 0] == 1, axis=-1)


@torch.no_grad()
def seconds_of(
    engine: LiveEngine, judges: Mapping[str, RewardModel], prompts: list[str]
) -> dict[str, float]:
    """Processor seconds of one evaluation, one decode, and one score by each judge, in batches as
    of the engine.

    The OCR reads images, the student latents. The least of five measurements: other work on the
    machine adds to them.
    """
    model, n = engine.denoiser, engine.batch_size
    texts = (prompts * n)[:n]
    model.encode([Prompt(texts[0])])
    rows, noise = (
        torch.zeros(n, dtype=torch.long),
        model.init_latents([seeded(i) for i in range(n)]),
    )
    latents = model.predict(noise, rows, rows).x0
    images, level = model.decode(latents), torch.full((n,), 0.5)

    def timed(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(5):
            begin = time.process_time()
            call()
            taken.append((time.process_time() - begin) / n)
        return min(taken)

    found = {
        "evaluation": timed(lambda: model.predict(noise, rows, rows)),
        "decode": timed(lambda: model.decode(latents)),
        "OCR": timed(lambda: judges["OCR"](images, texts)),
    }
    if (student := judges.get("student")) is not None:
        of_pixels = student.estimates == "pixels"
        score, x = (student, images) if of_pixels else (student.score_estimates, latents)
        found["student"] = timed(lambda: score(x, texts, level))
    print(
        "\nmilliseconds of",
        ", ".join(f"one {name} {1000 * taken:.2f}" for name, taken in found.items()),
    )
    return found


def in_seconds(
    recordings: Mapping[str, Recording], seconds: Mapping[str, float]
) -> dict[str, Recording]:
    """The recordings with seconds (times 1e9) in the place of FLOPs, so that searches are planned
    and capped by them.

    The OCR takes its time for each finished image; for each estimate as well, unless the student
    looks at that.
    """
    found = {}
    for name, recording in recordings.items():
        flops, look = recording.price.flops, seconds.get(name, 0.0)
        base = seconds["OCR"] - look if recording.price.bases else 0.0
        draft = flops.draft_calls / flops.nfe * seconds["evaluation"]
        rates = Rates(
            seconds["evaluation"], seconds["decode"], look / 3, draft_calls=draft, base_calls=base
        )
        rates = Rates(*(1e9 * rate for rate in rates.amounts()))
        found[name] = replace(recording, price=replace(recording.price, flops=rates))
    return found


def measured(
    recordings: Mapping[str, Recording], seconds: Mapping[str, float], a: argparse.Namespace
) -> dict[str, Any]:
    """The figures, which are printed as well. recordings: by who judges what is unfinished."""
    recording = recordings["OCR"]
    final = recording.final.mean(1)  # (prompts, rewards)
    kinds = np.array([parse(prompt).kind for prompt in recording.prompts])
    one = {}
    for kind in (*KINDS, "all"):
        rows = final[kinds == kind] if kind != "all" else final
        if len(rows) > 1:
            one[kind] = {name: mean(rows[:, i]) for i, name in enumerate(recording.reward_names)}
    print(
        "\none seed\n\n"
        + markdown(
            ("words", "right", "similarity", "colour of the plate"),
            [
                (
                    kind,
                    *(
                        f"{m:.3f} ± {e:.3f}"
                        for m, e in (row["right"], row["similarity"], row["plate"])
                    ),
                )
                for kind, row in one.items()
            ],
        )
    )
    ranks = [
        {"judge": name, "look": str(r.seen), "nfe": r.nfe, "spearman": r.mean, "se": r.error}
        for name, judge in recordings.items()
        for r in ranked(judge, FIRST)
    ]
    print(
        "\n"
        + markdown(
            ("NFE", "look", "judge", "Spearman"),
            [
                (f"{r['nfe']:g}", r["look"], r["judge"], f"{r['spearman']:.3f} ± {r['se']:.3f}")
                for r in ranks
            ],
        )
    )
    found = compared(recordings, {b: Budget(nfe=b) for b in a.budgets}, a)
    print("\nat the FLOPs of so many evaluations, decodes and rewards included")
    by_flops = compared(recordings, affordable(recordings, a.budgets), a)
    rest: dict[str, Any] = {}
    if len(recordings) > 1:
        print("\nat the seconds of so many evaluations, the OCR included")
        timed = in_seconds(recordings, seconds)
        rest = {
            "seconds": dict(seconds),
            "equal_seconds": compared(timed, affordable(timed, a.budgets), a),
        }
    return {"one_seed": one, "ranks": ranks, **found, "equal_flops": by_flops, **rest}


def affordable(recordings: Mapping[str, Recording], budgets: list[int]) -> dict[int, Budget]:
    """Caps in FLOPs, those of so many evaluations, that pay for an image."""
    worth = {b: b * recordings["OCR"].price.flops.nfe for b in budgets}
    enough = max(map(least, recordings.values()))
    return {b: Budget(flops=flops) for b, flops in worth.items() if flops > enough}


def compared(
    recordings: Mapping[str, Recording], caps: Mapping[int, Budget], a: argparse.Namespace
) -> dict[str, Any]:
    """Rows of each search, and how much more of the winners are right than of best-of-N's and of
    the OCR's searches.

    caps: by the numbers of evaluations that they are worth.
    """
    budgets, ocr = list(caps.values()), recordings["OCR"]
    curves = {"best-of-n": best_of_n_curve(ocr, budgets, utility=FIRST)}
    for judge, recording in recordings.items():
        algorithms = {"seed-pruning": SeedPruning(draft_share=0), **methods(recording)}
        if len(recordings) > 1:
            algorithms["early checks"] = replace(make_algorithm("ttsnap"), draft_share=0.0)
        for name, algorithm in algorithms.items():
            label = name if judge == "OCR" else f"{name}, {judge}"
            curves[label] = curve(recording, algorithm, budgets, a.repeats, utility=FIRST)
    rows = [
        row | {"budget": n}
        for name, c in curves.items()
        for n, row in zip(caps, rows_of(name, c), strict=True)
    ]
    print(f"\n{table(rows)}\n")
    pairs = [
        (name, other) for other in ("best-of-n", "seed-pruning") for name in curves if name != other
    ]
    pairs += [
        (name, name.removesuffix(", student")) for name in curves if name.endswith(", student")
    ]
    more = [
        {
            "search": name,
            "than": other,
            "budget": n,
            "right": mean(curves[name].scores[:, i, 1] - base[:, i, 1]),
        }
        for name, other in dict.fromkeys(pairs)
        if (name, other) != ("best-of-n", "seed-pruning")
        for base in [curves[other].scores]
        for i, n in enumerate(caps)
    ]
    print(
        markdown(
            ("search", "than", "budget", "right, paired"),
            [
                (
                    row["search"],
                    row["than"],
                    row["budget"],
                    f"{row['right'][0]:+.3f} ± {row['right'][1]:.3f}",
                )
                for row in more
            ],
        )
    )
    return {"rows": rows, "paired": more}


if __name__ == "__main__":
    main()
