"""Reward and strict accuracy against budget on the embedded model: best-of-N beside seed pruning.

    python benchmarks/embedded_curve.py --json curve.json --plot docs/embedded_curve.png

Held-out hard prompts (counts, pairs, relations, three and four objects); the checker's soft score is searched, its
strict verdict reported. Best-of-N at a small budget is read off the seeds of the largest one: every disjoint block
of N seeds is one such search, and their mean has less noise than a single one. Pruning runs live at every budget.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ttsnap.pipelines import defaults, load

from ttsnap import BestOfN, __version__, make_algorithm
from ttsnap.scenes import sample_prompts


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100, 200, 400, 800, 1600], help="NFE per prompt")
    p.add_argument("--prompts", type=int, default=60)
    p.add_argument("--prompt-seed", type=int, default=0, help="another seed, other held-out prompts of the same kinds")
    p.add_argument("--algorithms", nargs="*", default=["seed-pruning"], help="names or .json files, beside best-of-n")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="bfloat16", help="bfloat16 is twice as fast as float32 on CPUs that have it")
    p.add_argument("--json", type=Path)
    p.add_argument("--plot", type=Path)
    a = p.parse_args()

    prompts = sample_prompts(a.prompts, a.prompt_seed)
    pipe = load(dtype=getattr(torch, a.dtype))
    common = {
        **defaults(),
        "num_inference_steps": a.steps,
        "reward": "scenes",
        "report": "scenes-strict",
        "seed": a.seed,
        "batch_size": a.batch_size,
        "output_type": "pt",
    }
    rows = best_of_n(pipe, prompts, a.budgets, a.steps, common)
    for name in a.algorithms:
        for budget in a.budgets:
            found = pipe(prompts, search=make_algorithm(name), budget=f"{budget}nfe", **common).search
            reward = [r.best.reward for r in found]
            strict = [r.best.metrics["scenes-strict"] for r in found]
            nfe = float(np.mean([r.spent["nfe"] for r in found]))
            seeds = float(np.mean([r.spent["seeds"] for r in found]))
            rows.append(row(name, budget, nfe, seeds, reward, strict))
            print(line(rows[-1]), flush=True)
    print(table(rows))
    if a.json:
        setting = {k: v for k, v in vars(a).items() if k not in ("json", "plot")}
        a.json.write_text(json.dumps({"ttsnap": __version__, "setting": setting, "rows": rows}, indent=1))
    if a.plot:
        plot(rows, a.plot)


def best_of_n(
    pipe: Any, prompts: list[str], budgets: list[int], steps: int, common: dict[str, Any]
) -> list[dict[str, Any]]:
    most = max(budgets) // steps
    found = pipe(prompts, search=BestOfN(most), num_images_per_prompt=most, **common).search
    reward, strict = np.full((2, len(prompts), most), np.nan)
    for i, result in enumerate(found):
        for c in result.images:
            reward[i, c.seed - common["seed"]] = c.reward
            strict[i, c.seed - common["seed"]] = c.metrics["scenes-strict"]
    rows = []
    for budget in budgets:
        n = budget // steps
        blocks = most // n
        r, s = (v[:, : blocks * n].reshape(len(prompts), blocks, n) for v in (reward, strict))
        winner = r.argmax(-1)[..., None]
        picked = [np.take_along_axis(v, winner, -1)[..., 0].mean(1) for v in (r, s)]
        rows.append(row("best-of-n", budget, n * steps, n, *picked))
        print(line(rows[-1]), flush=True)
    return rows


def row(name: str, budget: int, nfe: float, seeds: float, reward: Any, strict: Any) -> dict[str, Any]:
    """Means over prompts with their standard errors."""
    out: dict[str, Any] = {"algorithm": name, "budget": budget, "nfe": nfe, "seeds": seeds}
    for key, values in (("reward", reward), ("strict", strict)):
        v = np.asarray(values, float)
        out[key], out[f"{key}_se"] = float(v.mean()), float(v.std(ddof=1) / len(v) ** 0.5)
    return out


def line(r: dict[str, Any]) -> str:
    scores = f"reward {r['reward']:.3f} ± {r['reward_se']:.3f}  strict {r['strict']:.3f} ± {r['strict_se']:.3f}"
    return (
        f"{r['algorithm']:14s} budget {r['budget']:5d} NFE (spent {r['nfe']:7.1f}, {r['seeds']:5.1f} seeds)  {scores}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a budget."""
    names = list(dict.fromkeys(r["algorithm"] for r in rows))
    head = "| NFE | " + " | ".join(f"{n} reward | {n} strict" for n in names) + " |"
    lines = [head, "|---" * (1 + 2 * len(names)) + "|"]
    for budget in sorted({r["budget"] for r in rows}):
        cells = []
        for name in names:
            r = next(r for r in rows if (r["algorithm"], r["budget"]) == (name, budget))
            cells += [f"{r[k]:.3f} ± {r[k + '_se']:.3f}" for k in ("reward", "strict")]
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, key, title in zip(axes, ("reward", "strict"), ("reward (soft checker)", "strictly right"), strict=True):
        for name, color in zip(
            dict.fromkeys(r["algorithm"] for r in rows), ("#777777", "#1a7f37", "#0969da"), strict=False
        ):
            mine = [r for r in rows if r["algorithm"] == name]
            x, y, e = (np.array([r[k] for r in mine]) for k in ("budget", key, f"{key}_se"))
            axis.plot(x, y, "o-", color=color, label=name, markersize=4)
            axis.fill_between(x, y - e, y + e, color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="denoiser evaluations per prompt (NFE)", title=title)
        axis.set_xticks([r["budget"] for r in mine], [str(r["budget"]) for r in mine])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
