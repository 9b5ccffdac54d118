"""Do caches between steps pay, as a look at a seed and as a cheaper way to finished images? On the
embedded model.

    python benchmarks/caches.py --json caches.json            # goes on where it was stopped

Every way takes the same noises of the same prompts to images and is held against the model's own
steps, all evaluated. FLOPs are those that ran, counted by torch, in evaluations (NFE): two passes
of the whole network.

- `rollout:M`: M steps in place of all, which needs no cache. The measure for what follows. `dpm:M`:
  by DPM-Solver++.
- `first-block:T`: First Block Cache. Blocks after the first are left out where the first changed
  its input by less than the share T otherwise than when all were last evaluated. Decided for each
  candidate, and for each of its passes.
- `first-block-shared:T`: the same, decided for a whole batch at once, as diffusers does it.
- `taylor:N:W`: TaylorSeer's lite mode. The output is extrapolated from the last two; every N-th
  step is evaluated after the first W. `reuse:N:W`: the last output, without extrapolation.
- `guidance:N:W`: FasterCache's reuse of the pass without the prompt. The difference of the passes
  is kept for N steps.
- `mag:T`: MagCache; `attention:N`: TaylorSeer of the attention alone; `pab:N`: Pyramid Attention
  Broadcast. These run diffusers' own hooks, with all rows of a batch at the same step.
- `draft:M`, `estimate:M`: the packaged drafter, and x0 estimates after M evaluations. No finished
  images, looks only.

1. Looks: rank correlation within prompts of the checker's soft score with that of the model's own
   image, paired with rollouts of equal FLOPs (between two rollouts, on the line).
2. Finished images: the soft score of one image, and of the best of those that a budget pays for,
   decodes included (its soft score, and how often it is strictly right).
3. Batches: how far images of a shared decision are from those of a candidate's own.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_dtype
from runs import read, write
from step_caches import Sampler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ttsnap.core.metrics import best_of_n, spearman
from ttsnap.files.writing import markdown
from ttsnap.sampling.rng import seeded
from ttsnap.scenes import check, parse, sample_prompts

OWN = "own"
WAYS = [
    *(f"rollout:{m}" for m in (4, 6, 8, 12, 3, 5, 10, 15)),
    *(
        "first-block:0.2",
        "taylor:5:3",
        "mag:0.06",
        "first-block:0.4",
        "guidance:2:3",
        "first-block-shared:0.2",
    ),
    *("mag:0.6", "first-block:0.1", "dpm:5", "dpm:8", "taylor:4:1", "reuse:5:3", "guidance:5:3"),
    *("pab:2", "attention:5"),
]
LOOKS = ["draft:1", "draft:2"]


# --- runs -----------------------------------------------------------------------------------------


class Bench:
    """All seeds of all prompts, in batches that hold several prompts."""

    def __init__(self, sampler: Sampler, prompts: list[str], seeds: int, size: int) -> None:
        self.sampler, self.prompts, self.seeds = sampler, prompts, seeds
        self.specs = [parse(prompt) for prompt in prompts]
        # neighbours are of different prompts
        rows = [(p, s) for s in range(seeds) for p in range(len(prompts))]
        self.batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        sampler.model.encode(prompts)
        with torch.no_grad():
            sampler.calibrate(*self._started(rows[: len(prompts)]))

    @torch.no_grad()
    def run(self, name: str) -> dict[str, Any]:
        """Scores (P, S) of images made in one way, the FLOPs of each, and small copies; of the own
        steps estimates."""
        found: dict[str, Any] = {
            "soft": self._grid(),
            "strict": self._grid(),
            "flops": 0.0,
            "small": {},
        }
        estimates: dict[int, np.ndarray] = {}
        for batch in self.batches:
            x, cond = self._started(batch)
            seen: list[Tensor] = []
            with FlopCounterMode(display=False) as counter:
                x0 = (
                    self.sampler.own(x, cond, seen)
                    if name == OWN
                    else self.sampler.way(name)(x, cond)
                )
            found["flops"] += counter.get_total_flops()
            images = self._judge(batch, x0, found["soft"], found["strict"])
            for (p, s), image in zip(batch, images, strict=True):
                found["small"][f"{p},{s}"] = (
                    (image[:, ::2, ::2] * 255).round().astype(int).ravel().tolist()
                )
            for k, estimate in enumerate(seen[:15]):
                self._judge(batch, estimate, estimates.setdefault(k, self._grid()))
        found["flops"] /= len(self.prompts) * self.seeds
        lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}
        return lists | {"estimates": {str(k): v.tolist() for k, v in estimates.items()}}

    @torch.no_grad()
    def flops_of(self, name: str) -> float:
        """FLOPs of the first seed by a way."""
        with FlopCounterMode(display=False) as counter:
            self.sampler.way(name)(*self._started([(0, 0)]))
        return float(counter.get_total_flops())

    def _started(self, rows: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        x = self.sampler.model.init_latents([seeded(1000 * p + s) for p, s in rows])
        return x, torch.tensor([p for p, _ in rows])

    def _grid(self) -> np.ndarray:
        return np.full((len(self.prompts), self.seeds), np.nan)

    def _judge(
        self, batch: list[tuple[int, int]], x0: Tensor, soft: np.ndarray, strict: Any = None
    ) -> np.ndarray:
        images = self.sampler.model.decode(x0).numpy()
        scores, right = check(images, [self.specs[p] for p, _ in batch])
        for (p, s), score, whole in zip(batch, scores, right, strict=True):
            soft[p, s] = score
            if strict is not None:
                strict[p, s] = whole
        return images


# --- tables ---------------------------------------------------------------------------------------


class Figures:
    """What the runs say, in evaluations of the model's own steps."""

    def __init__(self, runs: dict[str, Any], steps: int, decode: float, first: float) -> None:
        self.runs, self.nfe, self.steps, self.first = runs, runs[OWN]["flops"] / steps, steps, first
        self.decode, self.final = decode / self.nfe, np.array(runs[OWN]["soft"])
        self.names = sorted((name for name in runs if name != OWN), key=self.cost)
        self.rollouts = [name for name in self.names if name.startswith("rollout")]

    def cost(self, name: str) -> float:
        return float(self.runs[name]["flops"] / self.nfe)

    def whole(self, name: str) -> float:
        """Evaluations without those parts of first-block caches that reused passes ran: what a deep
        network takes."""
        first = self.first if name.startswith("first-block") else 0.0
        return (self.cost(name) - first * self.steps) / (1 - first)

    def soft(self, name: str) -> np.ndarray:
        return np.array(self.runs[name]["soft"])

    def ranks(self, name: str) -> np.ndarray:
        return np.ones(len(self.final)) if name == OWN else spearman(self.soft(name), self.final)

    def beside(self, cost: float, of: Callable[[str], np.ndarray]) -> np.ndarray | None:
        """What rollouts of this cost have, (P,), between two of them on the line; None below the
        cheapest."""
        known = [*self.rollouts, OWN]
        costs = [self.cost(name) for name in known]
        if not costs[0] - 0.01 <= cost <= costs[-1]:
            return None
        values = np.stack([of(name) for name in known])
        return np.array([np.interp(cost, costs, values[:, p]) for p in range(values.shape[1])])

    def ways(self) -> list[tuple[str, str, float]]:
        """(label, name, NFE) by cost; of first-block caches also as if reused passes cost
        nothing."""
        found = [(name, name, self.cost(name)) for name in self.names]
        blocks = [name for name in self.names if name.startswith("first-block:")]
        return sorted(
            [*found, *((f"{n}, reuse free", n, self.whole(n)) for n in blocks)],
            key=lambda way: way[2],
        )

    def above(self, name: str, cost: float, of: Callable[[str], np.ndarray]) -> str:
        """Paired with rollouts of this cost."""
        rollouts = None if name.startswith(("rollout", OWN)) else self.beside(cost, of)
        return "" if rollouts is None else mean(of(name) - rollouts, "+")

    def looks(self) -> str:
        rows = [
            (cost, [label, mean(self.ranks(n)), self.above(n, cost, self.ranks)])
            for label, n, cost in self.ways()
        ]
        for k, scores in self.runs[OWN]["estimates"].items():
            ranks = spearman(np.array(scores), self.final)
            against = self.beside(int(k) + 1, self.ranks)
            above = "" if against is None else mean(ranks - against, "+")
            rows.append((int(k) + 1.0, [f"estimate:{int(k) + 1}", mean(ranks), above]))
        shown = [
            [row[0], f"{cost:.1f}", *row[1:]] for cost, row in sorted(rows, key=lambda row: row[0])
        ]
        return markdown(["look", "NFE", "Spearman", "above rollouts of equal FLOPs"], shown)

    def images(self, budgets: list[int]) -> str:
        rows = []
        for label, name, cost in [*self.ways(), (OWN, OWN, float(self.steps))]:
            if name.startswith("draft"):
                continue
            soft, strict = self.soft(name), np.array(self.runs[name]["strict"])
            counts = [int(budget / (cost + self.decode)) for budget in budgets]
            found = [
                (
                    [best_of_n(soft, n, of).mean() for of in (soft, strict)]
                    if 1 <= n <= soft.shape[1]
                    else None
                )
                for n in counts
            ]
            rows.append(
                [
                    label,
                    f"{cost:.1f}",
                    mean(soft.mean(1)),
                    mean(soft.mean(1) - self.final.mean(1), "+"),
                    self.above(name, cost, lambda n: self.soft(n).mean(1)),
                    f"{self.distance(OWN, name):.3f}",
                    *("" if best is None else f"{best[0]:.3f}, {best[1]:.3f}" for best in found),
                ]
            )
        head = [
            "way",
            "NFE",
            "soft score",
            "above the own",
            "above rollouts of equal FLOPs",
            "distance from the own",
        ]
        return markdown([*head, *(f"best at {budget} NFE" for budget in budgets)], rows)

    def distance(self, first: str, second: str) -> float:
        """Between images of two ways, root mean square over pixels, in the mean over seeds."""
        a, b = (self.runs[name]["small"] for name in (first, second))
        return (
            float(np.mean([np.sqrt(np.mean((np.array(a[key]) - b[key]) ** 2.0)) for key in a]))
            / 255
        )

    def batches(self) -> str:
        """How images of first-block caches, shared by a batch, differ from those of a candidate's
        own."""
        rows = []
        for name in self.names:
            kind, _, threshold = name.partition(":")
            if kind == "first-block-shared" and (alone := f"first-block:{threshold}") in self.runs:
                changed = np.mean(np.array(self.runs[name]["strict"]) != self.runs[alone]["strict"])
                agree = mean(spearman(self.soft(name), self.soft(alone)))
                rows.append(
                    [threshold, f"{self.distance(name, alone):.3f}", f"{changed:.3f}", agree]
                )
        return markdown(
            ["threshold", "distance of images", "verdicts that change", "Spearman of their scores"],
            rows,
        )


def mean(values: np.ndarray, sign: str = "") -> str:
    """With the standard error over prompts."""
    kept = values[~np.isnan(values)]
    return f"{kept.mean():{sign}.3f} ± {kept.std(ddof=1) / len(kept) ** 0.5:.3f}"


def main() -> None:
    p = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=16)
    p.add_argument("--seeds", type=int, default=12, help="of every prompt")
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=15,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[25, 50],
        help="NFE, of part 2; what needs more seeds is left out",
    )
    p.add_argument("--ways", nargs="+", default=WAYS)
    add_dtype(p)
    p.add_argument("--json", type=Path, help="file to keep runs in, and to go on from")
    a = p.parse_args()
    settings = {
        k: getattr(a, k)
        for k in ("prompts", "seeds", "prompt_seed", "steps", "batch_size", "dtype")
    }
    runs = read(a.json, settings)
    sampler = Sampler(getattr(torch, a.dtype), a.steps)
    bench = Bench(sampler, sample_prompts(a.prompts, a.prompt_seed), a.seeds, a.batch_size)
    for name in [OWN, *LOOKS, *a.ways]:
        if name not in runs:
            runs[name] = bench.run(name)
            write(a.json, settings, runs)
            own = runs[OWN]["flops"] / a.steps
            print(
                f"{name}: {runs[name]['flops'] / own:.2f} NFE, soft"
                f" {np.mean(runs[name]['soft']):.3f}",
                flush=True,
            )
    first = (bench.flops_of(f"first-block:{np.inf}") / (runs[OWN]["flops"] / a.steps) - 1) / (
        a.steps - 1
    )
    print(f"A reused pass of a first-block cache takes {first:.3f} of a whole one.")
    figures = Figures(runs, a.steps, sampler.model.costs().decode, first)
    print(
        "\nAs looks:", figures.looks(), "\nAs finished images:", figures.images(a.budgets), sep="\n"
    )
    print("\nDecided for a batch in place of each candidate:", figures.batches(), sep="\n")


if __name__ == "__main__":
    main()
