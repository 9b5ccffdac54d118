"""Pruning policies on published reward trajectories of FLUX and SDXL, with an honest ledger and the published one.

    python benchmarks/reward_tensors.py --data FOLDER --fit-prompts 0:20 --fit-seeds 0:40 --test-prompts 50:100 \\
        --json OUT

FOLDER holds *.safetensors with float32 tensors `base` and `noise_aware` (prompts, seeds, 20): the reward of the x0
estimate after each denoiser call, the last column that of the finished image; nan in `noise_aware` means that there is
none (base is used). They were published with TTSnap (arXiv 2511.22242).

Figures are omega: percent of excess area of the reward-against-budget curve over best-of-N, which is computed exactly.
Honest ledger: a score at step s takes s + 1 calls, survivors are whole numbers. `--ledger published` bills as the
authors' notebooks do: s calls, 19 for a finished image, fractional survivors, 20 calls for best-of-N.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ttsnap import SeedPruning, __version__
from ttsnap.budget import Budget, Price, Rates
from ttsnap.metrics import best_of_n, omega
from ttsnap.replay import Recording, ReplayEngine
from ttsnap.search import fit
from ttsnap.simulate import lockstep
from ttsnap.types import Grid

STEPS = 20
GRID = Grid(tuple(np.linspace(1, 0, STEPS + 1)))
AUTHORS = {"keep": (0.4, 0.4, 0.5), "steps": (2, 6, 11)}


def read(path: Path) -> dict[str, np.ndarray]:
    """base, noise_aware (P, S, 21): index k < 20 the estimate after k + 1 calls, index 20 the finished image."""
    tensors = load_file(path)
    base = tensors["base"].astype(float)
    aware = np.where(np.isnan(tensors["noise_aware"]), base, tensors["noise_aware"])
    final = base[..., -1:]
    return {
        "base": np.concatenate([base, final], -1),
        "noise_aware": np.concatenate([aware[..., :-1], final, final], -1),
    }


def seeds_for(budget: float, algorithm: SeedPruning, a: argparse.Namespace, most: int) -> int:
    """The number of seeds that a budget buys."""
    if a.ledger == "published":
        share, billed, at = 1.0, 0.0, 0
        for keep, step in zip(algorithm.keep, algorithm.steps or (), strict=True):
            billed += share * ((step - at) * a.call_cost + a.score_cost)
            share, at = share * keep, step
        billed += share * ((STEPS - 1 - at) * a.call_cost + a.score_cost)
        return min(most, int(budget / billed))
    price = Price(Rates(nfe=a.call_cost, reward_call=a.score_cost))
    engine = ReplayEngine([Recording("", np.zeros((1, STEPS + 1, 1)), GRID, ("r",))], price)
    return min(most, fit(algorithm, engine, Budget(flops=budget), most=most + 1).n or 1)


def prune(scores: np.ndarray, algorithm: SeedPruning, n: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Final reward of the winner, (prompts, repeats): every repeat takes n of the seeds at random."""
    prompts, seeds, _ = scores.shape
    subset = rng.random((prompts * repeats, seeds)).argpartition(n - 1, axis=1)[:, :n] if n < seeds else None
    prompt = np.repeat(np.arange(prompts), repeats)[:, None]

    def lookup(rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        chosen = rows if subset is None else np.take_along_axis(subset, rows, -1)
        return scores[prompt, chosen, steps][..., None]

    sized = SeedPruning(n, algorithm.keep, algorithm.levels, algorithm.steps)
    winners, _ = lockstep(sized, lookup, prompts * repeats, GRID)
    return lookup(winners[:, None], np.full((len(winners), 1), STEPS))[:, 0, 0].reshape(prompts, repeats)


def bon_curve(final: np.ndarray, budgets: np.ndarray, a: argparse.Namespace) -> np.ndarray:
    """Exact best-of-N per prompt, (prompts, budgets)."""
    one = STEPS * a.call_cost + a.score_cost
    return np.stack([best_of_n(final, max(1, min(final.shape[1], int(b / one + 1e-9)))) for b in budgets], 1)


def curve(
    scores: np.ndarray,
    algorithm: SeedPruning,
    budgets: np.ndarray,
    repeats: int,
    a: argparse.Namespace,
) -> np.ndarray:
    """Mean reward of the winners, (prompts, budgets)."""
    rng = np.random.default_rng(a.seed)
    columns = []
    for budget in budgets:
        n = seeds_for(budget, algorithm, a, scores.shape[1])
        columns.append(prune(scores, algorithm, n, repeats, rng).mean(1))
    return np.stack(columns, 1)


def with_error(
    budgets: np.ndarray, method: np.ndarray, base: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """omega of the mean curves, and its standard error by bootstrap over prompts."""
    value = omega(budgets, method.mean(0), base.mean(0))
    draws = rng.integers(len(base), size=(200, len(base)))
    return value, float(np.std([omega(budgets, method[d].mean(0), base[d].mean(0)) for d in draws]))


def tune(scores: np.ndarray, budgets: np.ndarray, a: argparse.Namespace) -> SeedPruning:
    """One schedule for all budgets, by random search with the fit prompts and seeds."""
    rng = np.random.default_rng(a.seed)
    coarse = budgets[:: max(1, len(budgets) // 5)]
    base = bon_curve(scores[..., -1], coarse, a).mean(0)
    best, found = -math.inf, SeedPruning(None, **AUTHORS)
    for _ in range(a.trials):
        checks = int(rng.integers(1, 5))
        steps = tuple(sorted(rng.choice(np.arange(1, 16), checks, replace=False).tolist()))
        schedule = SeedPruning(None, tuple(rng.uniform(0.25, 0.8, checks).round(2).tolist()), steps=steps)
        reached = curve(scores, schedule, coarse, 30, a).mean(0)
        gain = float((reached - base).sum())
        if gain > best:
            best, found = gain, schedule
    return found


def span(text: str) -> slice:
    start, stop = (int(part) for part in text.split(":"))
    return slice(start, stop)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder of *.safetensors")
    p.add_argument("--fit-prompts", type=span, default=slice(0, 20))
    p.add_argument("--fit-seeds", type=span, default=slice(0, 40))
    p.add_argument("--test-prompts", type=span, default=slice(50, 100))
    p.add_argument("--budgets", default="400:4000:200", help="from:to:step, in TFLOPs, both ends included")
    p.add_argument("--repeats", type=int, default=60)
    p.add_argument("--trials", type=int, default=300, help="schedules tried when tuning")
    p.add_argument("--call-cost", type=float, default=9.9, help="TFLOPs of a denoiser call")
    p.add_argument("--score-cost", type=float, default=1.2, help="TFLOPs of a decode and reward")
    p.add_argument("--ledger", choices=["honest", "published"], default="honest")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    low, high, step = (float(x) for x in a.budgets.split(":"))
    budgets = np.arange(low, high + step / 2, step)
    files = sorted(a.data.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"no *.safetensors in {a.data}")
    table: dict[str, dict[str, Any]] = {}
    for path in files:
        data = read(path)
        test = {k: v[a.test_prompts] for k, v in data.items()}
        bon = bon_curve(test["base"][..., -1], budgets, a)
        authors = SeedPruning(None, **AUTHORS)
        tuned = tune(data["noise_aware"][a.fit_prompts, a.fit_seeds], budgets, a)
        rows = {
            "TTSp, authors' schedule": ("base", authors),
            "TTSnap, authors' schedule": ("noise_aware", authors),
            "TTSnap, tuned": ("noise_aware", tuned),
        }
        for name, (which, schedule) in rows.items():
            reached = curve(test[which], schedule, budgets, a.repeats, a)
            value, error = with_error(budgets, reached, bon, np.random.default_rng(1))
            table.setdefault(name, {})[path.stem] = {
                "omega": value,
                "se": error,
                "curve": reached.mean(0).tolist(),
                "schedule": {"keep": schedule.keep, "steps": schedule.steps},
            }
        table.setdefault("best-of-N", {})[path.stem] = {"omega": 0.0, "se": 0.0, "curve": bon.mean(0).tolist()}
    names = [path.stem for path in files]
    print(f"omega over best-of-N, {a.ledger} ledger, prompts {a.test_prompts.start}:{a.test_prompts.stop}")
    print("| | " + " | ".join(names) + " | mean |\n" + "|---" * (len(names) + 2) + "|")
    for name, row in table.items():
        cells = [f"{row[n]['omega']:.1f} ± {row[n]['se']:.1f}" for n in names]
        print(f"| {name} | " + " | ".join(cells) + f" | {np.mean([row[n]['omega'] for n in names]):.1f} |")
    if a.json:
        setting = {k: str(v) for k, v in vars(a).items()}
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting, "budgets": budgets.tolist(), "table": table})
        )


if __name__ == "__main__":
    main()
