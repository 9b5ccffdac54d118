"""Noise-aware rewards on the embedded model: ranking by step, ablations, and search against
best-of-N and TTSp.

    python benchmarks/noise_aware.py --prompt-seed 0 --json noise_aware.json

The base is the embedded world's learned reward; the noise-aware one is the packaged one. Three
parts:

1. Ablations. Short trainings on one recording, each with one setting changed: the curriculum's
   order, the loss, how the level is told, LoRA, DoRA or all weights. Measured on prompts held out
   from training: rank correlation within a prompt with the base's final reward.
2. Rank correlation by step, on held-out captions that no part of the world was trained on.
3. Search on these: budgets in FLOPs, decodes and rewards included. TTSp prunes by the base, TTSnap
   by the noise-aware reward, both with default and with tuned schedules; the winner is chosen by
   the base's score of finished images, and the exact checker only reports. Schedules are tuned on
   prompts that are not held out.

Everything that is recorded or trained stays in --work, if given, and is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttsnap import Budget, __version__, make_algorithm
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Rates
from ttsnap.core.metrics import best_of_n, rank_correlation
from ttsnap.core.price import Price
from ttsnap.core.utility import weighted
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.run import distill
from ttsnap.files.settings import build
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import task_of
from ttsnap.options.record import RecordOptions, TuneOptions
from ttsnap.pipelines import load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import sample_prompts
from ttsnap.simulation.calibrate import Fit, calibrate, priced_task
from ttsnap.simulation.simulate import Curve, best_of_n_curve, compare, curve
from ttsnap.simulation.tune import tune

BASE, AWARE = "scenes-learned", "scenes-noise-aware"
CHOICE = weighted([1.0, 0.0, 0.0])
"""Of the columns of a searched recording: the reward decides, the checker's two verdicts report."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "reference (full, level embedding, clean to noisy, MSE)": {},
    "LoRA, level embedding": {"student": {"kind": "lora"}, "lr": 1e-3},
    "LoRA, level not told": {"student": {"kind": "lora", "level_embedding": False}, "lr": 1e-3},
    "LoRA per level, nearest": {"student": {"kind": "per-level"}, "lr": 1e-3, "earlier": 0.0},
    "DoRA, level embedding": {"student": {"kind": "dora"}, "lr": 1e-3},
    "full, level not told": {"student": {"kind": "full", "level_embedding": False}},
    "order: uniform": {"order": "uniform"},
    "order: noisy to clean": {"order": "noisy-to-clean"},
    "loss: pairwise": {"loss": {"name": "pairwise"}},
}
STEPS = [0, 1, 2, 3, 4, 5, 6, 8, 10]
SCORED = [*range(13), 14, 16]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        help="another seed, other held-out captions of the same kinds",
    )
    p.add_argument("--prompts", type=int, default=60, help="held-out captions to search")
    p.add_argument(
        "--seeds", type=int, default=50, help="recorded per caption; no search can start more"
    )
    p.add_argument(
        "--images",
        type=float,
        nargs="+",
        default=[2.5, 5, 10, 20, 40],
        help="budgets, in images' FLOPs",
    )
    p.add_argument("--repeats", type=int, default=40, help="searches per caption and budget")
    p.add_argument(
        "--train-prompts",
        type=int,
        default=160,
        help="of the ablations, a quarter of them held out",
    )
    p.add_argument(
        "--steps-per-level", type=int, default=30, help="of the ablations: short, to be compared"
    )
    p.add_argument("--no-ablations", action="store_true", help="skip part 1")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument(
        "--work", type=Path, help="folder to keep recordings and trainings in, and to go on from"
    )
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        ablations = {} if a.no_ablations else ablate(a, work)
        test, fit, prices = record_all(a, work)
    print(ablation_table(ablations))
    by_step = correlations(test)
    print(correlation_table(by_step))
    print(price_table(prices))
    curves, tuned = searches(a, test, fit, prices)
    print(curve_table(a.images, curves))
    parted = hacking(test)
    print(hacking_table(parted))
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"
        }
        found = {
            "ttsnap": __version__,
            "setting": setting,
            "ablations": ablations,
            "spearman": by_step,
            "prices": {n: dataclasses.asdict(price) for n, price in prices.items()},
            "curves": curves,
            "tuned": tuned,
            "hacking": parted,
        }
        a.json.write_text(json.dumps(found, indent=1))


# --- part 1 ---------------------------------------------------------------------------------------


def folder(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.split(" (")[0].lower())


def ablate(a: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train every variant; per variant the levels' Spearman of base and student on the held-out
    share. The student is what was trained, at every level, though the exported one leaves some of
    them to the base."""
    engine = load(dtype=torch.bfloat16).engine("scenes", batch_size=a.batch_size)
    prompts = sample_prompts(a.train_prompts, 77, held_out=False)
    options = RecordOptions(16, seed=5000, steps=[*STEPS, 20], images=True)
    record(engine, prompts, work / "train", options, progress_bar=True)
    found: dict[str, Any] = {}
    for name, change in ABLATIONS.items():
        setting = {
            "recordings": [str(work / "train")],
            "reward": BASE,
            "student": {"kind": "full"},
            "lr": 2e-4,
            "steps_per_level": a.steps_per_level,
            "precision": "bf16",
            "ema": 0.98,
            "validation": 0.25,
            "device": "cpu",
            "batch_size": 256,
            **change,
        }
        evaluation = distill(build(DistillConfig, setting), work / folder(name), bar=True)
        base, student = evaluation.names
        found[name] = {
            "levels": [row["level"] for row in evaluation.rows],
            "base": [row[base]["spearman"] for row in evaluation.rows],
            "student": [row.get("unused", row[student])["spearman"] for row in evaluation.rows],
            "r2": [row.get("unused", row[student])["r2"] for row in evaluation.rows],
            "prompts": evaluation.prompts,
        }
    return found


def ablation_table(found: dict[str, Any]) -> str:
    if not found:
        return ""
    levels = next(iter(found.values()))["levels"]
    early = [i for i, level in enumerate(levels) if level > 0.75]
    rows = {"base reward, untrained": next(iter(found.values()))["base"]} | {
        n: f["student"] for n, f in found.items()
    }
    lines = [
        [
            name,
            *(f"{v:.2f}" for v in r),
            f"{np.mean(r):.3f}",
            f"{np.mean([r[i] for i in early]):.3f}",
        ]
        for name, r in rows.items()
    ]
    prompts = next(iter(found.values()))["prompts"]
    table = markdown(["trained", *(f"{v:.2f}" for v in levels), "mean", "above .75"], lines)
    return f"\nSpearman by noise level on {prompts} prompts held out from training\n{table}"


# --- parts 2 and 3 --------------------------------------------------------------------------------


def record_all(a: argparse.Namespace, work: Path) -> tuple[Recording, Recording, dict[str, Price]]:
    """Held-out captions, others to tune on, scored by every reward at every step; and what each
    costs."""
    rewards = [
        make_reward(BASE),
        make_reward(AWARE),
        make_reward("scenes"),
        make_reward("scenes-strict"),
    ]
    engine = load(dtype=torch.bfloat16).engine(rewards, batch_size=a.batch_size)
    steps = [*SCORED, 20]
    held_out = sample_prompts(a.prompts, a.prompt_seed)
    test = record(
        engine,
        held_out,
        work / f"test{a.prompt_seed}",
        RecordOptions(a.seeds, steps=steps),
        progress_bar=True,
    )
    others = sample_prompts(20, 1, held_out=False)
    fit = record(engine, others, work / "fit", RecordOptions(40, steps=steps), progress_bar=True)
    flops = engine.price.flops
    prices = {
        r.name: Price(
            # the two reporting columns cost nothing
            Rates(flops.nfe, flops.decodes, float(r.flops) / 3),
            passes_per_nfe=2,
        )
        for r in rewards[:-2]
    }
    return test, fit, prices


def correlations(test: Recording) -> dict[str, list[float]]:
    """Per reward and step: Spearman of its estimate's score with the base's final one."""
    final = test.final[..., 0]
    return {
        name: [rank_correlation(test.scores[:, :, k, r], final) for k in SCORED]
        for r, name in enumerate(test.reward_names[:-1])
    }


def searched(recording: Recording, name: str, price: Price) -> Recording:
    """Columns: the estimates scored by `name`, finished images by the base; then the checker's
    verdicts."""
    column, soft, strict = (
        recording.reward_names.index(n) for n in (name, "scenes", "scenes-strict")
    )
    scores = recording.scores[..., [column, soft, strict]].copy()
    scores[:, :, -1, 0] = recording.final[..., 0]
    return dataclasses.replace(
        recording, scores=scores, reward_names=(name, "soft", "strict"), price=price
    )


def searches(
    a: argparse.Namespace, test: Recording, fit: Recording, prices: dict[str, Price]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each method's mean reward, soft and strict verdict at every budget, and omega against
    best-of-N."""
    base = searched(test, BASE, prices[BASE])
    one = prices[BASE].flops
    image = base.grid.steps * one.nfe + one.decodes + 3 * one.reward_calls
    budgets = [Budget(flops=n * image) for n in a.images]
    reference = best_of_n_curve(base, budgets, utility=CHOICE)
    curves: dict[str, Any] = {"best-of-N": row(reference, reference, base)}
    tuned: dict[str, Any] = {}
    labels = {BASE: "TTSp", AWARE: "TTSnap"}
    for name, label in labels.items():
        on, few = searched(test, name, prices[name]), searched(fit, name, prices[name])
        schedule = tune(
            few, budgets, TuneOptions(trials=200, holdout=0.0, checks=3), fit=Fit(utility=CHOICE)
        ).schedule
        tuned[label] = {"steps": schedule.steps, "keep": schedule.keep}
        methods = {
            "default schedule": make_algorithm("seed-pruning"),
            "early checks": make_algorithm("ttsnap"),
        }
        for what, algorithm in (methods | {"tuned": schedule}).items():
            found = curve(on, algorithm, budgets, a.repeats, utility=CHOICE)
            curves[f"{label}, {what}"] = row(found, reference, on)
    for name, label in labels.items():
        on, few = searched(test, name, prices[name]), searched(fit, name, prices[name])
        task = task_of(budgets[0], ReplayEngine(few))
        priced = PriceOfCompute(
            calibrate(
                few,
                costs=dataclasses.replace(
                    priced_task(few), score_cost=task.score_cost, check_cost=task.check_cost
                ),
                fit=Fit(utility=CHOICE),
            )
        )
        for shared in (False, True):
            found = curve(on, priced, budgets, a.repeats, shared=shared, utility=CHOICE)
            curves[f"{label}, price of compute{', shared' * shared}"] = row(found, reference, on)
    return curves, tuned


def hacking(test: Recording) -> dict[str, list[float]]:
    """Best of N by the base, and by the checker: what the base and the checker say of the winners,
    N = 1, 2, 4, ..."""
    base, soft, strict = (
        test.final[..., test.reward_names.index(n)] for n in (BASE, "scenes", "scenes-strict")
    )
    sizes = [n for n in 2 ** np.arange(12) if n <= test.seeds]
    out: dict[str, list[float]] = {"n": [int(n) for n in sizes]}
    for name, chosen in (("base", base), ("checker", soft)):
        for what, judged in (("base", base), ("soft", soft), ("strict", strict)):
            out[f"{what} of the {name}'s choice"] = [
                float(best_of_n(chosen, n, of=judged).mean()) for n in sizes
            ]
    return out


def hacking_table(found: dict[str, list[float]]) -> str:
    lines = [[k, *(f"{v:.3f}" for v in r)] for k, r in found.items() if k != "n"]
    table = markdown(["best of", *map(str, found["n"])], lines)
    return f"\nWhat the searched reward and the exact checker say\n{table}"


def row(found: Curve, reference: Curve, recording: Recording) -> dict[str, Any]:
    versus = compare(found, reference, recording, CHOICE)
    paired = found.scores - reference.scores
    return {
        "omega": versus.omega,
        "omega_se": versus.error,
        "mean": found.scores.mean(0).tolist(),
        "se": (found.scores.std(0, ddof=1) / len(found.scores) ** 0.5).tolist(),
        "gain": paired.mean(0).tolist(),
        "gain_se": (paired.std(0, ddof=1) / len(paired) ** 0.5).tolist(),
    }


def correlation_table(found: dict[str, list[float]]) -> str:
    lines = [[name, *(f"{v:.2f}" for v in r)] for name, r in found.items()]
    table = markdown(["step", *map(str, SCORED)], lines)
    return (
        "\nSpearman within a prompt of a score at a step with the base's final one, held-out"
        f" captions\n{table}"
    )


def price_table(prices: dict[str, Price]) -> str:
    lines = []
    for name, price in prices.items():
        decode = price.flops.decodes * (price.estimates == "decode")
        reward = 3 * price.flops.reward_calls
        both = f"{(decode + reward) / price.flops.nfe:.2f}"
        lines.append([name, f"{decode / 1e6:.0f}", f"{reward / 1e6:.0f}", both])
    return "\n" + markdown(
        ["", "MFLOPs per check: decode", "reward", "together, in evaluations"], lines
    )


def curve_table(images: list[float], curves: dict[str, Any]) -> str:
    lines = []
    for name, c in curves.items():
        cells = [", ".join(f"{v:.3f}" for v in c["mean"][i]) for i in range(len(images))]
        lines.append([name, f"{c['omega']:.1f} ± {c['omega_se']:.1f}", *cells])
    table = markdown(["", "omega", *(f"{n:g} images: reward, soft, strict" for n in images)], lines)
    return f"\nBudgets in images' worth of FLOPs\n{table}"


if __name__ == "__main__":
    main()
