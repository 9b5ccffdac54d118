"""A pot that a caller's requests share over time (`ttsnap serve --shared-pot`), against budgets of their own.

    python benchmarks/caller_pot.py --recordings pot

Held-out captions of the embedded world are recorded, easy and hard ones. A caller sends them in a random order, each
with the same budget: one after the other, or several at a time, of which the next is sent when one is done. What a
request leaves goes to later ones, up to three budgets for each. The searches run on the recording, by the loop and the
ledgers of the service. Where an image must be strictly right (`require`), a request without one goes on while it may
spend. Where all prompts are known at once, they share one pot (`--shared`). Rewards, strict accuracy and differences
are means over prompts, each of the mean over repeats, with standard errors over prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_recording
from embedded_curve import REWARDS, SOFT
from tqdm import tqdm

from ttsnap import __version__, make_algorithm
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core import utility as utilities
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Algorithm
from ttsnap.core.requirement import Gate, Requirement
from ttsnap.files.writing import markdown
from ttsnap.loop.budget import Budget
from ttsnap.loop.ledger import Ledger
from ttsnap.loop.request import RequestClock, RunningRequest, SearchSpec
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.scenes import KINDS, sample_prompts
from ttsnap.simulation.calibrate import calibrate, default_checks
from ttsnap.simulation.simulate import curve

SHARES = 3
GATE = Gate.of((Requirement.parse("scenes-strict>0.5"),), REWARDS, 1)


def sent(
    recording: Recording, algorithm: Algorithm, budget: int, at_once: int | None, gate: Gate | None, rng: Any
) -> np.ndarray:
    """(P, R + 1) scores of each prompt's winner, 0 where none meets the gate, and the evaluations that it took.

    at_once: requests that run at a time, which share a pot; None for budgets of their own.
    """
    order, seeds = rng.permutation(len(recording.prompts)), rng.permutation(recording.seeds)
    prompts = tuple(recording.prompts[i] for i in order)
    shuffled = replace(recording, prompts=prompts, scores=recording.scores[order][:, seeds])
    run, found = Run(ReplayEngine(shuffled)), np.zeros((len(order), len(recording.reward_names) + 1))
    utility, seed, later = SOFT if gate is None else utilities.mean, recording.first_seed, at_once is not None
    spec = SearchSpec(algorithm, Budget(nfe=budget), utility, seed, gate=gate, later=later)
    spec = prepared(spec, run.engine)
    pot, waiting, active = Ledger(Budget(), recording.price), deque(prompts), list[RunningRequest]()
    while waiting or active:
        while waiting and len(active) < (at_once or 1):
            request = run.add([Prompt(waiting.popleft())], spec, RequestClock(lambda: 0.0, 0.0))
            if at_once is not None:
                request.jobs[0].ledger.join(pot, budget, Budget(nfe=SHARES * budget))
            active.append(request)
        run.turn()
        for request in [request for request in active if request.done]:
            active.remove(request)
            (job,) = request.jobs
            scores = job.particles.scores[job.kept[0], -1] if job.kept else found[order[job.index], :-1]
            found[order[job.index]] = *scores, job.ledger.spent.nfe
            assert pot.spent.nfe <= (pot.budget.nfe or 0)
    return found


def cells(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--budgets", type=int, nargs="+", default=[30, 50, 100], help="NFE of a request")
    add_recording(p, prompts=98, seeds=40, steps=10)
    p.add_argument("--kinds", nargs="+", default=list(KINDS), help="of captions, in turn (ttsnap.scenes)")
    p.add_argument("--fit-prompts", type=int, default=24, help="to calibrate on")
    p.add_argument("--repeats", type=int, default=6, help="orders of the prompts and of their seeds")
    a = p.parse_args()
    call = {**defaults(), "num_inference_steps": a.steps}
    engine = load(dtype=getattr(torch, a.dtype)).engine(list(REWARDS), batch_size=a.batch_size, **call)
    options = RecordOptions(a.seeds, steps=default_checks(a.steps)[:-1])
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.recordings or Path(temporary)

        def recorded(name: str, prompts: Sequence[str]) -> Recording:
            return record(engine, prompts, folder / name, options, info=call, progress_bar=True)

        fit = recorded("fit", sample_prompts(a.fit_prompts, 1, a.kinds, held_out=False))
        test = recorded("test", sample_prompts(a.prompts, 0, a.kinds))
    rows = compared(fit, test, a.budgets, a.repeats)
    head = ["NFE", "", "reward", "strictly right", "to own budgets: reward", "strictly right", "NFE of a request"]
    print(markdown(head, rows))
    if a.json:
        a.json.write_text(json.dumps({"ttsnap": __version__, "setting": {k: str(v) for k, v in vars(a).items()},
                                      "rows": rows}, indent=1))  # fmt: skip


def compared(fit: Recording, test: Recording, budgets: Sequence[int], repeats: int) -> list[list[object]]:
    """A line for each way and budget; of price of compute where no other search is named."""
    priced = PriceOfCompute(calibrate(fit, utility=SOFT), n=test.seeds)
    pruning = make_algorithm("seed-pruning")
    rows: list[list[object]] = []
    bar = tqdm(total=len(budgets) * repeats * 6)
    for budget in budgets:
        ways: dict[str, np.ndarray] = {}
        for name, algorithm, at_once, gate in (
            ("seed pruning, own budgets", pruning, None, None),
            ("own budgets", priced, None, None),
            ("a pot, one at a time", priced, 1, None),
            ("a pot, eight at a time", priced, 8, None),
            ("own budgets, required", priced, None, GATE),
            ("a pot, one at a time, required", priced, 1, GATE),
        ):
            every = []
            for repeat in range(repeats):
                every.append(sent(test, algorithm, budget, at_once, gate, np.random.default_rng(repeat)))
                bar.update()
            ways[name] = np.mean(every, 0)
        whole = curve(test, priced, [Budget(nfe=budget)], repeats, shared=True, utility=SOFT)
        spent = np.full((len(test.prompts), 1), whole.spent[0])
        ways["all known at once"] = np.concatenate([whole.scores[:, 0], spent], 1)
        for name, found in ways.items():
            own = ways["own budgets, required" if "required" in name else "own budgets"]
            apart = [cells(found[:, i] - own[:, i]) if found is not own else "" for i in (0, 1)]
            rows.append([budget, name, cells(found[:, 0]), cells(found[:, 1]), *apart, f"{found[:, 2].mean():.1f}"])
    bar.close()
    return rows


if __name__ == "__main__":
    main()
