"""What a requirement changes: winners of the embedded model that are right, wrong or missing, with
and without one.

    python benchmarks/requirements.py --budgets 50nfe 100nfe

Held-out hard captions are searched for by the checker's soft score. The requirement is its strict
verdict, which some right images reach with a lower soft score than a wrong one has. Errors are
standard errors over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from arguments import add_dtype

from ttsnap.core.results import Result
from ttsnap.files.writing import markdown
from ttsnap.pipelines import load
from ttsnap.scenes import sample_prompts

SEARCHES = ("best-of-n", "seed-pruning")


def shares(results: Sequence[Sequence[Result]]) -> list[str]:
    """The shares of right, wrong and missing images, with errors, and the mean evaluations of a
    search: cells of a row.
    results: by seed and prompt."""
    right = np.array(
        [[bool(r.images) and r.best.metrics["scenes-strict"] == 1 for r in row] for row in results]
    )
    missing = np.array([[not r.images for r in row] for row in results])
    each = [column.mean(0) for column in (right, ~right & ~missing, missing)]
    cells = [f"{one.mean():.2f} ± {one.std(ddof=1) / len(one) ** 0.5:.2f}" for one in each]
    return [*cells, f"{np.mean([[r.spent.nfe for r in row] for row in results]):.0f}"]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=30)
    p.add_argument("--seeds", type=int, default=2, help="searches of every prompt")
    p.add_argument("--prompt-seed", type=int, default=15)
    p.add_argument("--budgets", nargs="+", default=["50nfe"])
    add_dtype(p)
    a = p.parse_args()
    pipe = load().to(getattr(torch, a.dtype))
    pipe.set_progress_bar_config(disable=True)
    prompts, rows = sample_prompts(a.prompts, a.prompt_seed), []
    for budget in a.budgets:
        for search in SEARCHES:
            for require in (None, "scenes-strict"):
                found = [
                    pipe(
                        prompts,
                        search=search,
                        reward="scenes",
                        report="scenes-strict",
                        require=require,
                        budget=budget,
                        seed=10_000 * seed,
                    ).search
                    for seed in range(a.seeds)
                ]
                rows.append([budget, search, require or "", *shares(found)])
                print(rows[-1], flush=True)
    print(markdown(["budget", "search", "require", "right", "wrong", "none", "NFE"], rows))


if __name__ == "__main__":
    main()
