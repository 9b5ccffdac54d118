"""Reward and strict accuracy against budget on the embedded model: best-of-N, seed pruning, price
of compute.

    python benchmarks/embedded_curve.py --json curve.json --plot docs/embedded_curve.png

Held-out hard prompts (counts, pairs, relations, three and four objects) are recorded: every seed to
the end, the checker's soft score (searched) and its strict verdict (only reported) at every step.
The curves are searches of that recording with the objects that run live (tests hold replay to the
live search); best-of-N is exact. The policy that prices compute is calibrated on other prompts,
which are not held out, and shares one pot among the prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_recording

from ttsnap import Budget, __version__, make_algorithm
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import HARD_KINDS, sample_prompts
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.simulate import Curve, best_of_n_curve, curve

REWARDS = ("scenes", "scenes-strict")
SOFT = weighted([1.0, 0.0])


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[25, 50, 100, 200, 400, 800, 1600],
        help="NFE per prompt",
    )
    add_recording(p, prompts=60, seeds=100, steps=20)
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument(
        "--kinds", nargs="+", default=list(HARD_KINDS), help="of captions, in turn (ttsnap.scenes)"
    )
    p.add_argument("--fit-prompts", type=int, default=20, help="to calibrate the priced policy on")
    p.add_argument("--fit-seeds", type=int, default=40)
    p.add_argument(
        "--algorithms",
        nargs="*",
        default=["seed-pruning"],
        help="names or .json files, beside the others",
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--plot", type=Path)
    a = p.parse_args()

    call = {**defaults(), "num_inference_steps": a.steps}
    engine = load(dtype=getattr(torch, a.dtype)).engine(
        list(REWARDS), batch_size=a.batch_size, **call
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.recordings or Path(temporary)

        def recorded(name: str, prompts: list[str], seeds: int) -> Recording:
            return record(
                engine,
                prompts,
                folder / name,
                RecordOptions(seeds, seed=a.seed),
                info=call,
                progress_bar=True,
            )

        fit = recorded(
            "fit", sample_prompts(a.fit_prompts, 1, a.kinds, held_out=False), a.fit_seeds
        )
        test = recorded(
            f"test{a.prompt_seed}", sample_prompts(a.prompts, a.prompt_seed, a.kinds), a.seeds
        )
    budgets = [Budget(nfe=b) for b in a.budgets]
    curves = {"best-of-n": best_of_n_curve(test, budgets, utility=SOFT)}
    for name in a.algorithms:
        curves[Path(name).stem] = curve(
            test, make_algorithm(name), budgets, a.repeats, utility=SOFT
        )
    priced = PriceOfCompute(calibrate(fit, fit=Fit(utility=SOFT)))
    shareable = [b for b in budgets if b.nfe and b.nfe > a.steps]
    curves["price-of-compute, shared"] = curve(
        test, priced, shareable, a.repeats, shared=True, utility=SOFT
    )
    rows = [r for name, c in curves.items() for r in rows_of(name, c)]
    rank = [rank_correlation(test.scores[:, :, k, 0], test.final[..., 0]) for k in range(a.steps)]
    one = test.final.mean((0, 1))
    print(f"one seed: reward {one[0]:.3f}, strict {one[1]:.3f}")
    print(
        "Spearman of the estimate's score with the finished one, by step: "
        + " ".join(f"{r:.2f}" for r in rank)
    )
    print(table(rows))
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(a).items()
            if k not in ("json", "plot")
        }
        found = {
            "ttsnap": __version__,
            "setting": setting,
            "one_seed": one.tolist(),
            "spearman": rank,
            "rows": rows,
        }
        a.json.write_text(json.dumps(found, indent=1))
    if a.plot:
        plot(rows, a.plot)


def rows_of(name: str, c: Curve) -> list[dict[str, Any]]:
    """Means over prompts with their standard errors."""
    rows = []
    for i, budget in enumerate(c.budgets):
        row: dict[str, Any] = {"algorithm": name, "budget": budget.nfe, "nfe": float(c.spent[i])}
        for key, values in (("reward", c.scores[:, i, 0]), ("strict", c.scores[:, i, 1])):
            row[key], row[f"{key}_se"] = (
                float(values.mean()),
                float(values.std(ddof=1) / len(values) ** 0.5),
            )
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a budget."""
    names = list(dict.fromkeys(r["algorithm"] for r in rows))
    head = ["NFE", *(column for n in names for column in (f"{n}: reward", "strict"))]
    lines = []
    for budget in sorted({r["budget"] for r in rows}):
        cells = []
        for name in names:
            found = [r for r in rows if (r["algorithm"], r["budget"]) == (name, budget)]
            cells += [
                f"{found[0][k]:.3f} ± {found[0][k + '_se']:.3f}" if found else ""
                for k in ("reward", "strict")
            ]
        lines.append([budget, *cells])
    return markdown(head, lines)


PANELS = {"reward": "reward (soft checker)", "strict": "strictly right"}


def plot(rows: list[dict[str, Any]], path: Path, panels: dict[str, str] = PANELS) -> None:
    """Curves of the algorithms over budgets, with their standard errors; a panel for each of these
    keys of a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.2 + 3.9 * len(panels), 3.6),
        constrained_layout=True,
        squeeze=False,
    )
    names = list(dict.fromkeys(r["algorithm"] for r in rows))
    colors = ("#777777", "#1a7f37", "#0969da", "#bc4c00", "#8250df")
    for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
        for name, color in zip(names, colors, strict=False):
            mine = [r for r in rows if r["algorithm"] == name]
            x, y, e = (np.array([r[k] for r in mine]) for k in ("budget", key, f"{key}_se"))
            axis.plot(x, y, "o-", color=color, label=name, markersize=4)
            axis.fill_between(x, y - e, y + e, color=color, alpha=0.15, linewidth=0)
        ticks = sorted({r["budget"] for r in rows})
        axis.set(xscale="log", xlabel="denoiser evaluations per prompt (NFE)", title=title)
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
