"""A shared pot that is divided by how hard each prompt is, told by a few drafts, against the rungs
of price of compute.

    python benchmarks/prompt_difficulty.py --prompt-seed 15 --recordings FOLDER --json difficulty.json

The embedded model, held-out hard prompts, seeds drafted by one call (half an evaluation each): the
recordings of benchmarks/distilled_drafts.py, and gone on with. What is divided is searched by seed
pruning with drafts, each prompt on its own share. Shares are those that promise most in all: a
forecast of the reward at each share follows, by linear regression on the prompts that were fitted,
from the mean and the spread of a prompt's first drafts. The rows:

- equal shares; divided by 4 or 8 drafts, which cost 2 or 4 evaluations a prompt, and are of seeds
  that are searched;
- divided by the true mean and spread of a prompt's rewards, the regression being fitted to the
  searched prompts;
- divided in hindsight: by the rewards that these very searches found at each share, which nobody
  knows;
- the pot: rungs of one price (price of compute); with 4 drafts of every prompt before any other
  move; paced by the shares by drafts in place of equal ones; and told the true mean and spread of
  every prompt before it begins.

Each search of a prompt sees its recorded seeds in the same order in every row. Differences to the
pot are paired, and their errors are over prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from distilled_drafts import with_looks
from embedded_curve import REWARDS, SOFT

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute, PriceOfComputeState
from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.looks import ESTIMATE, EstimatorAt
from ttsnap.core.protocols import Algorithm
from ttsnap.loop.search import dry_costs
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.scenes import HARD_KINDS, sample_prompts
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.sizing import sized_for

DRAFT = EstimatorAt.read("draft:1@0")


class Found(NamedTuple):
    """What searches found and took, (..., searches): soft reward, strict verdict, evaluations with
    those of drafts."""

    soft: FloatArray
    strict: FloatArray
    spent: FloatArray


def main() -> None:
    a = arguments(__doc__)
    test, fit = recordings(a)
    prompts, largest = len(test.prompts), 3 * max(a.budgets)
    allowances = np.array(
        [b for b in (*range(21, 60), *range(60, 120, 3), *range(120, 1200, 15)) if b <= largest]
    )
    orders = Orders.drawn(test, a.repeats, np.random.default_rng(a.seed))
    others = Orders.drawn(fit, a.repeats, np.random.default_rng(a.seed + 1))
    pruning = SeedPruning(draft_calls=1)
    table = Found(*np.stack([run(test, pruning, b, orders) for b in allowances], 1))
    learned = np.stack([run(fit, pruning, b, others).soft for b in allowances])
    forecast = calibrate(fit, fit=Fit(utility=SOFT))
    truth = np.stack([SOFT(test.final).mean(1), SOFT(test.final).std(1)], 1)
    rows = []
    for total in a.budgets:

        def shares(
            features: FloatArray, known: FloatArray, rewards: FloatArray, total: int = total
        ) -> FloatArray:
            """Of all searches, by features (searches, F) of them, and what searches with `known`
            ones found."""
            weights, *_ = np.linalg.lstsq(with_one(known), rewards.T)
            return divided(with_one(features) @ weights, allowances, total, prompts)

        by_drafts = {
            k: shares(drafts(test, orders, k), drafts(fit, others, k), learned) for k in (4, 8)
        }
        true = np.tile(truth, (a.repeats, 1))
        # (prompts, allowances)
        own = table.soft.reshape(len(allowances), a.repeats, prompts).mean(1).T
        drafted = type("Drafted", (DraftsFirst,), {"count": 4})
        paced = {
            k: type("PacedByDrafts", (Paced,), {"count": k, "share": by_drafts[k] / total})
            for k in by_drafts
        }
        told = type("ToldOfPrompts", (Told,), {"recording": test})
        methods = {
            "pot": run(test, PriceOfCompute(forecast), total, orders, shared=True),
            "equal shares": at_shares(table, allowances, np.full(len(orders), float(total))),
            **{
                f"divided by {k} drafts": at_shares(table, allowances, by_drafts[k])
                for k in by_drafts
            },
            "divided by true mean and spread": at_shares(
                table, allowances, shares(true, true, table.soft)
            ),
            "divided in hindsight": at_shares(
                table, allowances, np.tile(divided(own, allowances, total, prompts), a.repeats)
            ),
            "pot, 4 drafts of each prompt first": run(
                test, drafted(forecast), total, orders, shared=True
            ),
            **{
                f"pot, paced by {k} drafts": run(
                    test, paced[k](forecast), total, orders, shared=True
                )
                for k in paced
            },
            "pot, told true mean and spread": run(test, told(forecast), total, orders, shared=True),
        }
        rows += compared(methods, "pot", total, prompts)
    if a.json:
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting(a), "rows": rows}, indent=1)
        )


def arguments(text: str | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[25, 50, 100, 200], help="NFE per prompt"
    )
    p.add_argument("--prompts", type=int, default=60)
    p.add_argument(
        "--seeds", type=int, default=100, help="recorded per prompt; no search can start more"
    )
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=15,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument(
        "--kinds", nargs="+", default=list(HARD_KINDS), help="of captions, in turn (ttsnap.scenes)"
    )
    p.add_argument("--fit-prompts", type=int, default=20)
    p.add_argument("--fit-seeds", type=int, default=40)
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument(
        "--recordings",
        type=Path,
        default=Path("recordings"),
        help="folder to keep recordings in, and to go on from",
    )
    p.add_argument(
        "--data", type=Path, help="folder of published trajectories, where the script reads such"
    )
    p.add_argument("--json", type=Path)
    return p.parse_args()


def setting(a: argparse.Namespace) -> dict[str, object]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"}


def recordings(a: argparse.Namespace) -> tuple[Recording, Recording]:
    """Of the held-out prompts, and of those to fit to, with drafts by one call of the packaged
    drafter."""
    call, pipe = defaults(), load(dtype=torch.bfloat16)
    plain = pipe.engine(list(REWARDS), batch_size=a.batch_size, **call)
    drafter = pipe.engine(list(REWARDS), batch_size=a.batch_size, draft="embedded", **call)

    def made(name: str, prompts: list[str], seeds: int) -> Recording:
        options = RecordOptions(seeds, seed=a.seed)
        known = record(plain, prompts, a.recordings / name, options, info=call, progress_bar=True)
        return with_looks(known, drafter, [DRAFT], a.seed)

    test = made(f"test{a.prompt_seed}", sample_prompts(a.prompts, a.prompt_seed, a.kinds), a.seeds)
    others = sample_prompts(a.fit_prompts, 1, a.kinds, held_out=False)
    return test, made("fit", others, a.fit_seeds)


def run(
    recording: Recording, algorithm: Algorithm, nfe: int, orders: Orders, *, shared: bool = False
) -> Found:
    """Every search of `orders` under so many evaluations a prompt."""
    costs = (
        None
        if isinstance(algorithm, PriceOfCompute)
        else dry_costs(algorithm, ReplayEngine(recording))
    )
    task, sized = sized_for(recording, algorithm, Budget(nfe=int(nfe)), shared=shared, costs=costs)
    lookup = orders.play(recording, sized.n or 1)
    pot = len(recording.prompts) if shared else None
    out = lockstep(sized, lookup, len(orders), task, rewards=len(REWARDS), utility=SOFT, pot=pot)
    end = np.full((len(orders), 1), recording.grid.steps)
    won = lookup(np.arange(len(orders)), out.winner[:, None], end, ESTIMATE)[:, 0]
    return Found(won[:, 0], won[:, 1], out.paid.spent(task))


def drafts(recording: Recording, orders: Orders, count: int) -> FloatArray:
    """(searches, 2) mean and spread of the scores of the first drafts of each search."""
    prompt = np.arange(len(orders)) % len(recording.prompts)
    scores = SOFT(recording.looks[DRAFT])[prompt[:, None], orders.seeds[:, :count]]
    return np.stack([scores.mean(1), scores.std(1, ddof=1)], 1)


def with_one(features: FloatArray) -> FloatArray:
    """With a column of ones before them, for the constant of a regression."""
    return np.column_stack([np.ones(len(features)), features])


def divided(rewards: FloatArray, allowances: IntArray, total: float, size: int) -> FloatArray:
    """Shares (n,) that promise most in all, for each pot of `size` neighbours, of `total` a search.

    rewards (n, A): promised at each allowance. The steepest pieces of their concave hulls are
    bought first; what is left where nothing more is promised, or the next piece is too large, goes
    to all alike.
    """
    shares = np.full(len(rewards), float(allowances[0]))
    for first in range(0, len(rewards), size):
        members = range(first, first + size)
        pieces = sorted(piece for i in members for piece in rising_hull(rewards[i], allowances, i))
        left = size * (total - float(allowances[0]))
        for _, search, start, stop in pieces:
            if stop - start > left:
                break
            shares[search], left = stop, left - (stop - start)
        shares[first : first + size] += left / size
    return shares


def rising_hull(
    rewards: FloatArray, allowances: IntArray, search: int
) -> list[tuple[float, int, int, int]]:
    """The rising pieces of the concave hull of rewards (A,): (-slope, search, from allowance, to
    allowance)."""
    pieces, at = [], 0
    while at < len(allowances) - 1:
        slopes = (rewards[at + 1 :] - rewards[at]) / (allowances[at + 1 :] - allowances[at])
        best = int(slopes.argmax())
        if slopes[best] <= 0:
            break
        pieces.append(
            (-float(slopes[best]), search, int(allowances[at]), int(allowances[at + 1 + best]))
        )
        at += 1 + best
    return pieces


def at_shares(table: Found, allowances: IntArray, shares: FloatArray) -> Found:
    """Of a table by allowance, what each search finds with its share (searches,): that of the next
    lower allowance."""
    row = np.searchsorted(allowances, shares + 1e-9, side="right") - 1
    return Found(*(column[row, np.arange(len(shares))] for column in table))


def compared(
    methods: dict[str, Found], base: str, total: int, prompts: int
) -> list[dict[str, object]]:
    """A printed table of the methods, and its rows: means over prompts, and differences to `base`
    with their errors."""
    print(
        f"\n| {total} NFE per prompt | soft | strict | spent | soft, to {base} | strict, to"
        f" {base} |\n" + "|---" * 6 + "|"
    )
    rows: list[dict[str, object]] = []
    for name, found in methods.items():
        row: dict[str, object] = {"nfe": total, "method": name, "spent": float(found.spent.mean())}
        for column in ("soft", "strict"):
            value, known = (
                getattr(f, column).reshape(-1, prompts).mean(0) for f in (found, methods[base])
            )
            gain = value - known
            row |= {
                column: float(value.mean()),
                f"{column} gain": float(gain.mean()),
                f"{column} gain se": float(gain.std(ddof=1) / prompts**0.5),
            }
        rows.append(row)
        gains = " | ".join(
            f"{row[f'{c} gain']:+.4f} ± {row[f'{c} gain se']:.4f}" for c in ("soft", "strict")
        )
        print(
            f"| {name} | {row['soft']:.3f} | {row['strict']:.3f} | {row['spent']:.1f} | {gains} |",
            flush=True,
        )
    return rows


class Told(PriceOfCompute):
    """Knows the mean and the spread of every prompt of `recording` before it begins, and learns no
    others."""

    recording: Recording

    def _begin(self, state: PriceOfComputeState, shape: tuple[int, ...]) -> PriceOfComputeState:
        s, sure = super()._begin(state, shape), 1e9
        mean = np.stack(
            [SOFT(self.recording.seen(*check)).mean(1) for check in self.forecast.checks], 1
        )
        prompt = np.arange(shape[0]) % len(mean)
        squares = sure * SOFT(self.recording.final).var(1)[prompt]
        return s._replace(
            mean=mean[prompt], cov=s.cov / sure, squares=squares, seen=np.full(shape[0], sure)
        )


class DraftsFirst(PriceOfCompute):
    """Drafts `count` seeds of every prompt before anything is priced."""

    count: int

    def _choose(
        self, state: PriceOfComputeState
    ) -> tuple[IntArray, IntArray, FloatArray, PriceOfComputeState]:
        uid, stop, value, paid = super()._choose(state)
        drafted = (state.stage != 0).sum(-1)
        first = drafted < self.count
        held = {
            name: np.where(first, old, new)
            for name, old, new in (
                ("rung", state.rung, paid.rung),
                ("lower", state.lower, paid.lower),
            )
        }
        start = np.where(first, state.tariff.price, value)
        return np.where(first, drafted, uid), np.where(first, 0, stop), start, paid._replace(**held)


PacedState = NamedTuple(
    "PacedState", [*PriceOfComputeState.__annotations__.items(), ("share", FloatArray)]
)
"""The same beliefs, and each search's share of the pot, in equal ones."""


class Paced(DraftsFirst):
    """Prices rise with what was spent of a share (searches,) of each search's own, in place of an
    equal one."""

    share: FloatArray

    def _begin(self, state: PriceOfComputeState, shape: tuple[int, ...]) -> PriceOfComputeState:
        return PacedState(*super()._begin(state, shape), self.share.copy())

    def _level(self, s: PriceOfComputeState, spread: FloatArray) -> FloatArray:
        return super()._level(s._replace(spent=s.spent / s.share), spread)

    def _fall(self, s: PriceOfComputeState, limit: FloatArray) -> tuple[FloatArray, FloatArray]:
        return super()._fall(s._replace(spent=s.spent / s.share), limit)


if __name__ == "__main__":
    main()
