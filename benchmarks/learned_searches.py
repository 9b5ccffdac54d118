"""A search that learns from its own searches, on paper: on published reward trajectories of FLUX
and SDXL.

    python benchmarks/learned_searches.py --data FOLDER --repeats 2 --json OUT

FOLDER is that of `reward_tensors.py`. Four fifths of the prompts are searched one after the other,
at --log TFLOPs each; a fifth is held out, five times over. Each search leaves the scores of its
seeds up to where they were dropped. Default seed pruning decides, with three more checks that drop
nothing, until `leads` trusts the forecast that `learn` fits to these scores (from --trust searches
on). Then price-of-compute does. One dropped seed in --audit is finished, or as many as --audit-cost
of the budget pays for. What is believed before the first search is of the other models' files.

Figures are omega on held-out prompts over budgets of 400 to 4000 TFLOPs, as in `reward_tensors.py`
with the honest ledger, and by how much they are above the default's, paired. Checks and audits are
paid from the budgets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from incomplete_logs import Prior, complete, learn
from tqdm import tqdm

from ttsnap import Budget, SeedPruning
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.looks import Estimator, estimates
from ttsnap.core.metrics import varied
from ttsnap.core.protocols import Algorithm
from ttsnap.files.writing import markdown
from ttsnap.recordings.folder import load_recording
from ttsnap.recordings.replay import PUBLISHED, Recording
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders, draw_orders
from ttsnap.simulation.simulate import Curve, best_of_n_curve, compare, curve, lead
from ttsnap.simulation.sizing import sized_for

STEPS = [3, 5, 8, 12, 20]
"""Where scores are taken; the default seed pruning takes them at 8 and 20."""
PRUNING = SeedPruning(None, (1.0, 1.0, 0.3, 1.0), steps=(3, 5, 8, 12))
BUDGETS = [Budget(flops=b * 1e12) for b in (400, 1300, 2200, 3100, 4000)]
SHOWN = (1, 3, 10, 20, 40, 80)


def moments(r: Recording) -> tuple[FloatArray, FloatArray, float]:
    """`sigma`, `between` and `spread` of a Prior, as a recording has them."""
    x = r.scores[:, :, STEPS, 0]
    means, spread, ok = x.mean(1), x[:, :, -1].std(1), varied(x[:, :, -1])
    z = (x - means[:, None])[ok] / spread[ok, None, None]
    log = 2 * np.log(spread[ok])
    sigma = np.einsum("psi,psj->ij", z, z) / (len(z) * r.seeds)
    return sigma, np.cov(means.T) / np.exp(log.mean()), float(log.var())


def shuffled(r: Recording, prompts: IntArray, rng: np.random.Generator) -> Recording:
    """These prompts in a random order, the seeds of each in one of its own."""
    prompts = rng.permutation(prompts)
    seeds = rng.random((len(prompts), r.seeds)).argsort(1)
    return dataclasses.replace(
        r, prompts=tuple(r.prompts[i] for i in prompts), scores=r.scores[prompts[:, None], seeds]
    )


class Logged:
    """Searches of the prompts of a recording, and what they leave: (n, d) scores at the checks, nan
    where none."""

    def __init__(
        self, r: Recording, algorithm: Algorithm, budget: Budget, rng: np.random.Generator
    ) -> None:
        task, sized = sized_for(r, algorithm, budget)
        orders = Orders.drawn(r, 1, rng)
        n = sized.n or 1
        look_up, self.seen = (
            orders.play(r, n),
            np.full((len(r.prompts), n, r.grid.steps + 1), np.nan),
        )

        def noting(
            rows: IntArray, candidates: IntArray, steps: IntArray, look: Estimator
        ) -> FloatArray:
            scores = look_up(rows, candidates, steps, look)
            self.seen[rows[:, None], candidates, steps] = scores[..., 0]
            return scores

        lockstep(sized, noting, len(r.prompts), task)
        every = np.arange(len(r.prompts))[:, None]
        self.truth = r.scores[every, orders.seeds[:, :n]][..., 0]
        self.allowance, self.nfe = task.allowance, r.grid.nfe
        self.last = np.where(np.isfinite(self.seen), np.arange(self.nfe + 1), -1).max(-1)

    def audited(
        self, one_in: int, most: float, rng: np.random.Generator
    ) -> tuple[list[FloatArray], float, list[bool]]:
        """Logs in which one dropped seed in `one_in` is finished, or as many as this share of the
        budgets pays for; which share that takes in the mean, and of each audit whether it was
        better than the winner."""
        dropped = (self.last >= 0) & (self.last < self.nfe)
        takes = ((self.nfe - self.last - 1) * dropped).sum() / (len(self.seen) * self.allowance)
        chance, better = min(1 / one_in, most / takes) if one_in else 0.0, list[bool]()
        for row, truth, out in zip(self.seen, self.truth, dropped, strict=True):
            best = np.nanmax(row[:, -1])
            for i in np.flatnonzero(out & (rng.random(len(out)) < chance)):
                better.append(bool(truth[i, -1] > best))
                row[i, STEPS] = truth[i, STEPS]
        logs = [row[np.isfinite(row).any(1)][:, STEPS] for row in self.seen]
        return logs, chance * takes, better


def found(
    test: Recording, algorithm: Algorithm, orders: list[Orders], repeats: int, kept: float = 1.0
) -> FloatArray:
    """(P, B) rewards on held-out prompts, with this share of the budgets."""
    points = []
    for budget, order in zip(BUDGETS, orders, strict=True):
        assert budget.flops is not None
        less = Budget(flops=max(budget.flops * kept, 1.01 * (20 * 9.9e12 + 1.2e12)))
        points.append(curve(test, algorithm, [less], repeats, orders=[order]).rewards[:, 0])
    return np.stack(points, 1)


def leads(
    logs: list[FloatArray],
    r: Recording,
    prior: Prior,
    a: argparse.Namespace,
    rng: np.random.Generator,
) -> bool:
    """Whether half of the searches teach to search better than the default does where the other
    half was.

    Both search trajectories made of the other half: its seeds, completed, at its prompts' means and
    spreads. That must lead by more than `--errors` standard errors over prompts, in units of their
    spreads."""
    budget = Budget(flops=a.log * 1e12)
    weak = dataclasses.replace(prior, seeds=5.0, prompts=1.0, scores=3.0)
    gains: list[FloatArray] = []
    for first in (0, 1):
        policy = PriceOfCompute(learn(logs[first::2], r.grid.levels, estimates(*STEPS), prior))
        c = complete(logs[1 - first :: 2], weak)
        drawn = c.z[rng.integers(len(c.z) - 200, size=(len(c.spread), 100))]
        scores = np.full((*drawn.shape[:2], r.grid.steps + 1, 1), np.nan)
        scores[:, :, STEPS, 0] = (drawn + c.means[:, None]) * c.spread[:, None, None]
        scored = tuple(step in STEPS for step in range(r.grid.steps + 1))
        texts = tuple(map(str, range(len(c.spread))))
        world = dataclasses.replace(r, prompts=texts, scores=scores, scored=scored)
        repeats = -(-100 // len(texts))
        orders = draw_orders(world, [budget], repeats, 0)
        found = [
            curve(world, one, [budget], repeats, orders=orders).rewards[:, 0]
            for one in (policy, SeedPruning())
        ]
        gains.append((found[0] - found[1]) / c.spread)
    gain = np.concatenate(gains)
    return bool(gain.mean() > a.errors * gain.std() / np.sqrt(len(gain)))


def study(
    r: Recording, prior: Prior, a: argparse.Namespace, fold: int, repeat: int
) -> dict[str, Any]:
    """Rewards (P, B) of each method on the held-out prompts of a fold, and the audits."""
    rng = np.random.default_rng([a.seed, fold, repeat])
    of = np.arange(len(r.prompts))
    held, others = of[of % 5 == fold], shuffled(r, of[of % 5 != fold], rng)
    test = dataclasses.replace(r, prompts=tuple(r.prompts[i] for i in held), scores=r.scores[held])
    orders, levels, checks = (
        draw_orders(test, BUDGETS, a.orders, a.seed + repeat),
        r.grid.levels,
        estimates(*STEPS),
    )
    few = others.select(slice(20), slice(40)).scores[..., 0]
    out: dict[str, Any] = {
        "default": found(test, SeedPruning(), orders, a.orders),
        "recording": found(test, PriceOfCompute(fit(few, levels, checks)), orders, a.orders),
    }
    logs: list[FloatArray] = []
    audits: list[bool] = []
    algorithm: Algorithm = PRUNING
    kept, done = 1.0, 0
    for until in SHOWN:
        searched = Logged(
            others.select(slice(done, until)), algorithm, Budget(flops=a.log * 1e12 * kept), rng
        )
        new, share, better = searched.audited(a.audit, a.audit_cost, rng)
        logs, audits, done = logs + new, audits + better, until
        forecast = learn(logs, levels, checks, prior)
        trusted = until >= a.trust and (a.count or leads(logs, r, prior, a, rng))
        algorithm = PriceOfCompute(forecast) if trusted else PRUNING
        out.setdefault("trusted", []).append(trusted)
        kept = 1 - share
        out.setdefault("shares", []).append(share)
        out[f"forecast of {until}"] = found(test, PriceOfCompute(forecast), orders, a.orders, kept)
        pruning = None if trusted else found(test, PRUNING, orders, a.orders, kept)
        out[f"after {until}"] = out[f"forecast of {until}"] if pruning is None else pruning
    return {**out, "audits": audits}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, help="folder of *.safetensors")
    p.add_argument(
        "--log", type=float, default=2000, help="TFLOPs of each search that is learned from"
    )
    p.add_argument("--trust", type=int, default=10, help="searches before the forecast decides")
    p.add_argument(
        "--count", action="store_true", help="trust by their number alone, whatever `leads` says"
    )
    p.add_argument(
        "--errors", type=float, default=1, help="by how many standard errors a forecast must lead"
    )
    p.add_argument(
        "--audit", type=int, default=20, help="one dropped seed in so many is finished; 0 for none"
    )
    p.add_argument(
        "--audit-cost", type=float, default=0.005, help="share of the budgets that audits may take"
    )
    p.add_argument(
        "--prior",
        type=float,
        nargs=3,
        default=[60, 3, 10],
        help="what it is worth: seeds, prompts, scores",
    )
    p.add_argument(
        "--repeats", type=int, default=2, help="orders of prompts and seeds that are learned from"
    )
    p.add_argument("--orders", type=int, default=4, help="searches of each held-out prompt")
    p.add_argument("--only", default="", help="settings whose name has this")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    files = sorted(a.data.glob("*.safetensors"))
    if len(files) < 2:
        raise SystemExit(
            f"need two *.safetensors in {a.data}: what is believed before is of another file"
        )
    recordings = {
        (path.stem, scores): load_recording(path, scores=scores, price=PUBLISHED)
        for path in files
        for scores in ("base", "noise_aware")
    }
    known = {name: moments(r) for name, r in recordings.items()}
    table: dict[str, dict[str, Any]] = {}
    for name, r in recordings.items():
        if a.only not in "/".join(name):
            continue
        others = [known[other] for other in known if other[0] != name[0]]
        prior = Prior(*(np.mean([each[i] for each in others], 0) for i in range(3)), *a.prior)  # type: ignore[arg-type]
        parts = [
            [study(r, prior, a, fold, repeat) for fold in range(5)]
            for repeat in tqdm(range(a.repeats), desc="/".join(name))
        ]
        of = np.arange(len(r.prompts))
        order = np.argsort(np.concatenate([of[of % 5 == fold] for fold in range(5)]))
        base = best_of_n_curve(r, BUDGETS)
        curves = {
            method: dataclasses.replace(
                base,
                rewards=np.mean(
                    [np.concatenate([part[method] for part in row]) for row in parts], 0
                )[order],
            )
            for method in parts[0][0]
            if method not in ("audits", "shares", "trusted")
        }
        audits = [one for row in parts for part in row for one in part["audits"]]
        shares = np.mean([part["shares"] for row in parts for part in row], 0)
        table["/".join(name)] = {
            "audits": [len(audits), int(sum(audits))],
            "shares": shares.tolist(),
            "trusted": np.mean([part["trusted"] for row in parts for part in row], 0).tolist(),
            **{method: row_of(one, curves["default"], base, r) for method, one in curves.items()},
        }
    show(table)
    if a.json:
        a.json.write_text(
            json.dumps({"setting": {k: str(v) for k, v in vars(a).items()}, "table": table})
        )


def row_of(method: Curve, default: Curve, base: Curve, r: Recording) -> list[float]:
    """omega and its error; what it is above the default's and the error of that."""
    versus = compare(method, base, r)
    return [versus.omega, versus.error, *lead(method, default, base)]


def show(table: dict[str, dict[str, Any]]) -> None:
    """omega of each method, then its lead over the default, and what became of forecasts and
    audits."""
    for name, row in table.items():
        done, better = row["audits"]
        trusted, shares = (
            " ".join(f"{one:.3g}" for one in row[which]) for which in ("trusted", "shares")
        )
        print(
            f"{name}: trusted {trusted}; audits {done}, better than the winner {better}, share of"
            f" budgets {shares}"
        )
    methods = [
        method
        for method in next(iter(table.values()))
        if method not in ("audits", "shares", "trusted")
    ]
    for at, title in ((0, "omega over best-of-N"), (2, "omega above the default seed pruning's")):
        rows = []
        for method in methods:
            cells = np.array([row[method][at : at + 2] for row in table.values()])
            mean = (
                f"{cells[:, 0].mean():.1f} ± {np.sqrt((cells[:, 1] ** 2).sum()) / len(cells):.1f}"
            )
            rows.append([method, *(f"{value:.1f} ± {error:.1f}" for value, error in cells), mean])
        print(f"\n{title}\n{markdown(['', *table, 'mean'], rows)}")


if __name__ == "__main__":
    main()
