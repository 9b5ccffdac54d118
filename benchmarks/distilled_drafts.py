"""Drafts on the embedded model: how they rank seeds, and what searches by them find at each budget.

    python benchmarks/distilled_drafts.py --draft embedded --prompt-seed 0 --json drafts.json

Held-out hard prompts (counts, pairs, relations, three and four objects) are recorded: every seed to
the end, the checker's soft score, by which searches choose (or the score of --reward), and its
strict verdict, which is only reported. Drafts of the same seeds are scored beside it, so that
several drafters are compared on one recording.

1. Rank correlation (Spearman) within prompts of each look with the finished image's score, by its
   cost.
2. Curves over NFE: searches of the recording with the objects that run live; best-of-N is exact.
   The policy that prices compute is calibrated on other prompts, which are not held out, and shares
   one pot among the prompts.
3. The same at equal FLOPs, decodes and the reward's calls included. Of several drafters,
   differences to the first one are paired over prompts.
4. After each table, strict accuracy over that of pruning with drafts of one call, with the paired
   error over prompts.
5. With --live N: the first drafter's pruning live. From the recorded seeds a search must find what
   its replay finds, row by row. N searches of each prompt from further seeds are compared with
   searches of the recorded ones.
6. With --kernels: how drafts rank seeds whose images are sampled with step noise, and how the
   images without noise do.

Recordings that are kept (--recordings) are shared with benchmarks/embedded_curve.py, and gone on
with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from arguments import add_recording
from embedded_curve import REWARDS, SOFT, plot, rows_of, table

from ttsnap import BestOfN, Budget, SeedPruning, __version__
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import Draft, EstimatorAt, read_look
from ttsnap.core.metrics import spearman
from ttsnap.core.moves import Move, fresh
from ttsnap.core.needs import Needs
from ttsnap.core.particles import Particles
from ttsnap.core.results import Event
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.files.writing import markdown
from ttsnap.loop.search import search
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.memory.acceleration import compile_denoiser
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.scenes import HARD_KINDS, sample_prompts
from ttsnap.simulation.calibrate import Fit, calibrate
from ttsnap.simulation.looks import drafts_against_estimates, ranked
from ttsnap.simulation.simulate import Curve, best_of_n_curve, curve


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--draft",
        nargs="+",
        default=["embedded"],
        help="drafters to compare, as pipe(draft=...) takes them",
    )
    p.add_argument(
        "--looks", nargs="+", default=["draft:1@0", "draft:2@0", "draft:1@2", "draft:1@4"]
    )
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[25, 50, 100, 200, 400], help="NFE per prompt"
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
    p.add_argument(
        "--fit-prompts",
        type=int,
        default=20,
        help="not held out, to calibrate the priced policy on; 0: without",
    )
    p.add_argument(
        "--reward", default=REWARDS[0], help="by which searches choose, as scenes-noise-aware"
    )
    p.add_argument("--fit-seeds", type=int, default=40)
    p.add_argument(
        "--score-steps",
        type=int,
        nargs="+",
        help="record the estimates of these steps only, which is faster",
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--compile", action="store_true", help="compile the network first: minutes, then faster"
    )
    p.add_argument(
        "--kernels",
        nargs="*",
        default=[],
        help="that draw noise, as sde, sde/vp (a path) or sde:square:3:0.7",
    )
    p.add_argument(
        "--live",
        type=int,
        default=0,
        help="live searches of each prompt and budget, from other seeds",
    )
    p.add_argument("--kernel-seeds", type=int, default=16, help="recorded for each of them")
    p.add_argument(
        "--plot", type=Path, help="the share of winners that are right, of the first drafter"
    )
    a = p.parse_args()

    call, rewards = {**defaults(), "num_inference_steps": a.steps}, [a.reward, REWARDS[1]]
    pipe = load(dtype=getattr(torch, a.dtype))
    if a.compile:
        compile_denoiser(pipe)
    prompts = sample_prompts(a.prompts, a.prompt_seed, a.kinds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (a.recordings or Path(temporary)) / f"test{a.prompt_seed}"
        plain = pipe.engine(rewards, batch_size=a.batch_size, **call)
        options = RecordOptions(a.seeds, seed=a.seed, steps=a.score_steps)
        test = record(plain, prompts, folder, options, info=call, progress_bar=True)
        fit: Recording | None = None
        if a.fit_prompts:
            others = sample_prompts(a.fit_prompts, 1, a.kinds, held_out=False)
            options = RecordOptions(a.fit_seeds, seed=a.seed, steps=a.score_steps)
            fit = record(
                plain, others, folder.parent / "fit", options, info=call, progress_bar=True
            )
        noisy: dict[str, FloatArray] = {}
        for spec in a.kernels:
            name, _, path = spec.partition("/")
            engine = pipe.engine(
                rewards, batch_size=a.batch_size, kernel=name, path=path or None, **call
            )
            there = folder.parent / f"{folder.name}-{spec.replace('/', '-').replace(':', '-')}"
            options = RecordOptions(a.kernel_seeds, seed=a.seed, steps=[a.steps])
            noisy[spec] = record(
                engine, prompts, there, options, info={**call, "kernel": spec}, progress_bar=True
            ).final
    setting = {
        k: str(v) if isinstance(v, Path) else v
        for k, v in vars(a).items()
        if k not in ("json", "plot")
    }
    found: dict[str, Any] = {"ttsnap": __version__, "setting": setting, "drafters": {}}
    budgets = [Budget(nfe=b) for b in a.budgets]
    known = [("best-of-n", best_of_n_curve(test, budgets, utility=SOFT))]
    known += [
        (
            "pruning, no drafts",
            curve(test, SeedPruning(draft_share=0), budgets, a.repeats, utility=SOFT),
        )
    ]
    shareable = [b for b in budgets if b.nfe and b.nfe > a.steps]
    if fit is not None:
        priced = PriceOfCompute(calibrate(fit, fit=Fit(utility=SOFT)))
        known += [
            ("pot, no drafts", curve(test, priced, shareable, a.repeats, shared=True, utility=SOFT))
        ]
    first: Found | None = None
    for name in a.draft:
        engine = pipe.engine(rewards, batch_size=a.batch_size, draft=name, **call)
        drafted = with_looks(test, engine, [EstimatorAt.read(text) for text in a.looks], a.seed)
        ranks, curves = ranked(drafted, SOFT), list(known)
        rows = [(f"{r.nfe:g}", r.seen, f"{r.mean:.3f} ± {r.error:.3f}") for r in ranks]
        print(f"\n## {name}\n\n{markdown(['NFE', 'look', 'Spearman'], rows)}")
        for label, algorithm in methods(drafted).items():
            curves.append((label, curve(drafted, algorithm, budgets, a.repeats, utility=SOFT)))
        if fit is not None:
            learned = with_looks(
                fit, engine, [seen for seen in drafted.looks if seen.step == 0][:1], a.seed
            )
            priced = PriceOfCompute(calibrate(learned, fit=Fit(utility=SOFT)))
            curves.append(
                ("pot", curve(drafted, priced, shareable, a.repeats, shared=True, utility=SOFT))
            )
        rows = [row for label, c in curves for row in rows_of(label, c)]
        print(f"\n{table(rows)}\n\n{gains_table(gains := gains_of(dict(curves)))}")
        if a.plot and name == a.draft[0]:
            plot(shown(rows), a.plot, {"strict": "share of winners that are right"})
        by_flops = equal_flops(drafted, a.budgets, a.repeats)
        equal = [
            row | {"budget": round((cap.flops or 0) / drafted.price.flops.nfe), "flops": cap.flops}
            for label, c in by_flops.items()
            for row, cap in zip(rows_of(label, c), c.budgets, strict=True)
        ]
        print(
            f"\nat the FLOPs of so many evaluations, decodes and rewards included\n\n{table(equal)}"
        )
        print(f"\n{gains_table(equal_gains := gains_of(by_flops))}")
        here = Found({str(r.seen): r.spearman for r in ranks}, dict(curves), by_flops)
        first = first or here
        if a.live and first is here:
            found["live"] = [
                against_live(drafted, engine, b, a.live, here.by_nfe[AGAINST]) for b in budgets
            ]
        if first is not here:
            print(f"\npaired with {a.draft[0]}\n\n{paired(here, first)}")
        found["drafters"][name] = {
            "ranks": [
                {"look": str(r.seen), "nfe": r.nfe, "spearman": r.mean, "se": r.error}
                for r in ranks
            ],
            "gains": [
                {
                    "look": str(x.draft.seen),
                    "over": str(x.rival.seen),
                    "gain": x.gain,
                    "se": x.error,
                }
                for x in drafts_against_estimates(ranks)
            ],
            "rows": rows,
            "paired": gains,
            "equal_flops": equal,
            "equal_flops_paired": equal_gains,
            "kernels": under_noise(drafted, noisy),
        }
        if a.json:
            a.json.write_text(json.dumps(found, indent=1))


APART = 10_000
"""Seeds between the first ones of two live searches: more than any search starts."""


def against_live(
    drafted: Recording, engine: LiveEngine, budget: Budget, n: int, played: Curve
) -> dict[str, Any]:
    """Pruning with drafts of one call: live and replayed from the recorded seeds, and live from n
    other first seeds.

    played: searches of the recorded seeds in random order."""
    algorithm, prompts, seed = SeedPruning(draft_calls=1), drafted.prompts, drafted.first_seed
    live = search(prompts, algorithm, engine, budget, selection=Selection(utility=SOFT), seed=seed)
    replayed = search(
        prompts,
        algorithm,
        ReplayEngine(drafted),
        budget,
        selection=Selection(utility=SOFT),
        seed=seed,
    )
    alike = [
        x.best.seed == y.best.seed
        and x.spent.cost == y.spent.cost
        and [(m["uids"], m["stop"]) for m in x.trace] == [(m["uids"], m["stop"]) for m in y.trace]
        for x, y in zip(live, replayed, strict=True)
    ]
    other = [
        search(
            prompts,
            algorithm,
            engine,
            budget,
            selection=Selection(utility=SOFT),
            seed=seed + (i + 1) * APART,
        )
        for i in range(n)
    ]
    right = np.array([[r.best.scores[REWARDS[1]] for r in found] for found in other])
    lead = right.mean(0) - played.scores[:, played.budgets.index(budget), 1]
    whole, error = right.mean(0), len(prompts) ** -0.5
    row = {
        "budget": str(budget),
        "alike": sum(alike),
        "prompts": len(prompts),
        "searches": n,
        "live": float(whole.mean()),
        "live_se": float(whole.std(ddof=1) * error),
        "chance": float((right.var(0, ddof=1).mean() / right.size) ** 0.5) if n > 1 else None,
        "lead": float(lead.mean()),
        "lead_se": float(lead.std(ddof=1) * error),
    }
    print(
        f"{budget}: {sum(alike)} of {len(alike)} live searches of recorded seeds are their replay,"
        f" row by row; {n} searches of each prompt from other seeds: {row['live']:.3f} ±"
        f" {row['live_se']:.3f} right, {row['lead']:+.3f} ± {row['lead_se']:.3f} over those of the"
        " recording",
        flush=True,
    )
    return row


SHOWN = {
    "best-of-n": "best-of-N",
    "pruning, no drafts": "seed pruning",
    "1 call, cut": "drafts, then pruning",
}
"""The rows that are plotted, and what their curves are called."""


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of SHOWN under their names there."""
    return [
        {**row, "algorithm": SHOWN[row["algorithm"]]} for row in rows if row["algorithm"] in SHOWN
    ]


def under_noise(drafted: Recording, noisy: dict[str, FloatArray]) -> list[dict[str, Any]]:
    """How drafts rank seeds where the kernel draws noise: (P, S, R) scores of the finished images,
    by kernel."""
    rows, known = [], {str(seen): scores for seen, scores in drafted.looks.items()}
    known["the image without noise"] = drafted.final
    for kernel, final in noisy.items():
        for name, scores in known.items():
            each = spearman(SOFT(scores[:, : final.shape[1]]), SOFT(final))
            each = each[np.isfinite(each)]
            rows.append(
                {
                    "kernel": kernel,
                    "look": name,
                    "spearman": float(each.mean()),
                    "se": float(each.std(ddof=1) / len(each) ** 0.5),
                }
            )
            print(f"{kernel}, {name}: Spearman {rows[-1]['spearman']:.3f} ± {rows[-1]['se']:.3f}")
    return rows


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found with one drafter."""

    ranks: dict[str, FloatArray]
    """Rank correlations (P,) by look."""
    by_nfe: dict[str, Curve]
    by_flops: dict[str, Curve]
    """Of the same methods, at the FLOPs of as many evaluations."""


def paired(mine: Found, first: Found) -> str:
    """Differences in rank correlation and in the share of right winners, in Markdown, with errors
    over prompts."""

    def told(differences: FloatArray) -> str:
        known = differences[np.isfinite(differences)]
        return f"{known.mean():+.3f} ± {known.std(ddof=1) / len(known) ** 0.5:.3f}"

    rows = [
        [look, told(ranks - first.ranks[look])]
        for look, ranks in mine.ranks.items()
        if look.startswith("draft")
    ]
    for unit, curves, before in (
        ("NFE", mine.by_nfe, first.by_nfe),
        ("FLOPs", mine.by_flops, first.by_flops),
    ):
        for label, c in curves.items():
            if "call" in label:
                each = [
                    told(c.scores[:, i, 1] - before[label].scores[:, i, 1])
                    for i in range(len(c.budgets))
                ]
                rows.append([f"{label}, by {unit}", ", ".join(each)])
    return markdown(["", "difference"], rows, left=(0, 1))


AGAINST = "1 call, cut"
"""Pruning with drafts of one call and its defaults, with which others are paired."""


def gains_of(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Strict accuracy of each method less that of AGAINST on the same prompts, with the error of
    the mean over them."""
    rows = []
    for name, c in curves.items():
        for i, budget in enumerate(c.budgets):
            j = curves[AGAINST].budgets.index(budget) if AGAINST in curves else -1
            if j < 0 or name == AGAINST:
                continue
            each = c.scores[:, i, 1] - curves[AGAINST].scores[:, j, 1]
            rows.append(
                {
                    "method": name,
                    "budget": str(budget),
                    "gain": float(each.mean()),
                    "se": float(each.std(ddof=1) / len(each) ** 0.5),
                }
            )
    return rows


def gains_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line a method."""
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = {
            row["budget"]: f"{row['gain']:+.3f} ± {row['se']:.3f}"
            for row in rows
            if row["method"] == name
        }
        lines.append([name, *(mine.get(budget, "") for budget in budgets)])
    return markdown([f"strict, over {AGAINST}", *budgets], lines)


def methods(recording: Recording) -> dict[str, SeedPruning]:
    """Searches by drafts of the initial noise, by name: with the later cut that is the default, and
    without one."""
    found = {}
    looks = {read_look(seen.look) for seen in recording.looks if seen.step == 0}
    for calls in sorted(look.calls for look in looks if isinstance(look, Draft)):
        found[f"{calls} call, cut"] = SeedPruning(draft_calls=calls)
        found[f"{calls} call, finish"] = SeedPruning(keep=(), levels=(), draft_calls=calls)
    return found


def equal_flops(recording: Recording, budgets: Sequence[int], repeats: int) -> dict[str, Curve]:
    """Best-of-N, pruning and drafts under caps in FLOPs: those of so many evaluations."""
    price = recording.price.flops
    caps = [Budget(flops=b * price.nfe) for b in budgets if b * price.nfe > least(recording)]
    algorithms = {"pruning, no drafts": SeedPruning(draft_share=0), **methods(recording)}
    curves = {"best-of-n": best_of_n_curve(recording, caps, utility=SOFT)}
    return curves | {
        name: curve(recording, m, caps, repeats, utility=SOFT) for name, m in algorithms.items()
    }


def least(recording: Recording) -> float:
    """FLOPs of one finished and scored image."""
    (one,) = search(
        [""],
        BestOfN(1),
        ReplayEngine(dataclasses.replace(recording.select(slice(1)), prompts=("",))),
        seed=recording.first_seed,
    )
    return one.spent.flops


@dataclasses.dataclass(frozen=True)
class LookOnce:
    """Look at n seeds once, and leave it at that."""

    n: int
    seen: EstimatorAt
    lockstep: ClassVar[bool] = False

    @property
    def needs(self) -> Needs:
        return read_look(self.seen.look).needs

    def init(self, task: Task) -> bool:
        """Whether it has looked."""
        return False

    def step(
        self, state: bool, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, bool]:
        return (
            None if state else fresh(self.n, self.seen.step, look=read_look(self.seen.look))
        ), True


def with_looks(
    recording: Recording, engine: LiveEngine, looks: Sequence[EstimatorAt], seed: int
) -> Recording:
    """The recording with the scores of further looks at its seeds, made now, and with the price of
    drafts."""
    found = {}
    for seen in looks:
        scores: FloatArray = np.full(
            (len(recording.prompts), recording.seeds, len(engine.reward_names)), np.nan
        )

        def listen(event: Event, scores: FloatArray = scores, seen: EstimatorAt = seen) -> None:
            if event.kind == "score" and event.look == seen.look:
                scores[event.job, event.uids[0]] = event.scores

        search(
            recording.prompts, LookOnce(recording.seeds, seen), engine, seed=seed, on_event=listen
        )
        found[seen] = scores
    return dataclasses.replace(
        recording, looks=found, price=dataclasses.replace(engine.price, seconds=None)
    )


if __name__ == "__main__":
    main()
