"""Price of compute that learns, while it searches, how far it may trust a prompt's early looks.

    python benchmarks/live_trust.py --prompt-seed 15 --recordings FOLDER --json trust.json
    python benchmarks/live_trust.py --data FOLDER

The forecast's regression of each check on the ones before it is scaled by a trust of its own, 1 on
average. A prompt's trust t_j at check j is Gaussian about 1, with the variance that the prompts
fitted to show between them (moments, as in a meta-analysis), and every score of a candidate that
was looked at before is an observation of it: an exact conjugate update, given the prompt's mean and
spread. Which candidates go on to check j depends on earlier checks only, so that choosing them does
not bias t_j, as it would bias a correlation with the images that were finished. The forecast of the
finished reward follows from the scaled regressions; reservation values stay those of the fitted
forecast.

Rows: the policy as it is; learning trust; told the trust that each prompt's recorded seeds show
(shrunk alike), which nobody knows; and, with own budgets, a forecast of its own for each prompt,
fitted to the very seeds that it searches. With --recordings the embedded model with drafts, as
benchmarks/prompt_difficulty.py records it; with --data the published trajectories, as
benchmarks/reward_tensors.py splits them. Differences are paired, errors over prompts.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from embedded_curve import SOFT
from prompt_difficulty import Found, arguments, compared, recordings, run, setting

from ttsnap import Budget, __version__
from ttsnap.algorithms.pricing.fitting import regressions
from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute, PriceOfComputeState
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.particles import Particles
from ttsnap.core.price import Price
from ttsnap.core.utility import Utility
from ttsnap.loop.budget import task_of
from ttsnap.recordings.folder import load_recording
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.calibrate import Fit, calibrate, priced_task
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.simulate import best_of_n_curve, compare, curve, lead

TrustState = NamedTuple(
    "TrustState",
    [*PriceOfComputeState.__annotations__.items(), ("worth", FloatArray), ("pull", FloatArray)],
)
"""The same beliefs, and of each trust (B, d): its precision, and precision times how far it is from
1."""
SURE = 1e12


class Trusting(PriceOfCompute):
    """variance (d,) of each trust between prompts; known (P, d): what to take each prompt's for,
    None to learn it."""

    variance: FloatArray
    known: FloatArray | None = None

    def _begin(self, state: PriceOfComputeState, shape: tuple[int, ...]) -> PriceOfComputeState:
        wide = (shape[0], len(self.variance))
        worth, pull = np.broadcast_to(1 / self.variance, wide).copy(), np.zeros(wide)
        if self.known is not None:
            worth, pull = (
                np.full(wide, SURE),
                SURE * (self.known[np.arange(shape[0]) % len(self.known)] - 1),
            )
        return TrustState(*super()._begin(state, shape), worth, pull)

    def _learn(self, state: PriceOfComputeState, particles: Particles) -> PriceOfComputeState:
        f, rows = self.forecast, np.arange(len(state.stage))
        uid = particles.moved[:, 0]
        j = np.clip(state.stage[rows, uid], 0, len(f.checks) - 1)
        # (B, n, d), nan where not looked at
        x = particles.selection.values(particles.scores[:, :, f.steps])
        after = super()._learn(state, particles)
        if self.known is None:
            seen = np.nan_to_num(x[rows, uid] - after.mean)
            said = (f.beta[j] * seen).sum(1)  # what the looks so far say of this one, at trust 1
            noise = f.residual[j] * self._variance(after.mean, after.squares, after.seen)
            new = (uid >= 0) & (j > 0) & (particles.scored[rows, uid] == f.steps[j])
            after.worth[rows, j] += np.where(new, said**2 / noise, 0.0)
            after.pull[rows, j] += np.where(new, said * (seen[rows, j] - said) / noise, 0.0)
        gammas = forecasts(f.beta, 1 + after.pull / after.worth)
        last = np.clip(after.stage - 1, 0, len(f.checks) - 1)
        known = np.where(
            np.arange(len(f.checks)) <= last[..., None], np.nan_to_num(x - after.mean[:, None]), 0.0
        )
        told = (gammas[rows[:, None], last] * known).sum(-1)
        # which the policy takes off again
        fitted = np.einsum("bnk,bk->bn", f.gamma[last], after.mean)
        return after._replace(evidence=np.where(after.stage > 0, told + fitted, -np.inf))


def forecasts(beta: FloatArray, trust: FloatArray) -> FloatArray:
    """(B, d, d) rows forecast z_d from z_<=j, where each regression beta_j (d,) is scaled by its
    trust (B, d)."""
    b, d = trust.shape
    gammas, row = np.zeros((b, d, d)), np.tile(np.eye(d)[-1], (b, 1))
    gammas[:, -1] = row
    for j in range(d - 1, 0, -1):
        row = row + (row[:, j] * trust[:, j])[:, None] * beta[j]
        row[:, j] = 0.0
        gammas[:, j - 1] = row
    return gammas


def trusts(recording: Recording, f: Forecast, utility: Utility) -> tuple[FloatArray, FloatArray]:
    """(P, d) the trust in each check that a prompt's seeds show, 1 where nothing varies, and its
    standard error."""
    x = deviations(recording, f, utility)
    said = np.einsum("jk,psk->psj", f.beta, x)
    power = (said**2).sum(1)
    flat = power < 1e-9
    slope = np.where(flat, 1.0, (said * x).sum(1) / np.where(flat, 1.0, power))
    rest = ((x - slope[:, None] * said) ** 2).sum(1) / (x.shape[1] - 2)
    return slope, np.where(flat, np.inf, np.sqrt(rest / np.where(flat, 1.0, power)))


def deviations(recording: Recording, f: Forecast, utility: Utility) -> FloatArray:
    """(P, S, d) scores at the checks, from each prompt's mean."""
    x = np.stack([utility(recording.seen(*check)) for check in f.checks], -1)
    return np.asarray(x - x.mean(1, keepdims=True))


def between(slope: FloatArray, error: FloatArray) -> FloatArray:
    """(d,) variance of trust between prompts, by moments (DerSimonian and Laird 1986); at least
    1e-4."""
    weight = 1 / (error**2 + 0.02)
    total = weight.sum(0)
    total = np.where(total > 0, total, 1.0)
    mean = (weight * slope).sum(0) / total
    noise = np.where(np.isfinite(error), error, 0.0) ** 2
    spread = (
        (weight * (slope - mean) ** 2).sum(0)
        - (weight * noise).sum(0)
        + (weight**2 * noise).sum(0) / total
    )
    scale = total - (weight**2).sum(0) / total
    return np.asarray(
        np.where(scale > 0, np.maximum(spread / np.where(scale > 0, scale, 1.0), 1e-4), 1e-4)
    )


def variants(
    test: Recording, fit: Recording, f: Forecast, utility: Utility
) -> dict[str, PriceOfCompute]:
    """The policies that are compared, by name."""
    slope, error = trusts(test, f, utility)
    there = between(slope, error)
    shrunk = 1 + (slope - 1) * there / (there + error**2)
    learning = {"variance": between(*trusts(fit, f, utility))}
    named = zip((f"{check}" for check in f.checks), learning["variance"], there, strict=True)
    print(
        "variance of trust, fit and test: " + ", ".join(f"{c} {v:.3f} {t:.3f}" for c, v, t in named)
    )
    return {
        "as it is": PriceOfCompute(f),
        "learns trust": type("Learning", (Trusting,), learning)(f),
        "told trust": type("Told", (Trusting,), {**learning, "known": shrunk})(f),
    }


def own_forecasts(test: Recording, f: Forecast, nfe: int, orders: Orders) -> Found:
    """Searches with own budgets, each prompt by a forecast that was fitted to its own recorded
    seeds."""
    x = deviations(test, f, SOFT)
    found = []
    for p in range(len(x)):
        spread = x[p, :, -1].std() or 1.0
        beta, residual, gamma = regressions(x[p : p + 1] / spread)
        own = dataclasses.replace(
            f, beta=beta, residual=residual, gamma=gamma, paths=x[p] @ gamma.T / spread
        )
        mine = Orders(orders.draws[p :: len(x)])
        found.append(np.stack(run(test.select(slice(p, p + 1)), PriceOfCompute(own), nfe, mine)))
    return Found(*np.stack(found, -1).reshape(3, -1))


def published(folder: Path, repeats: int, seed: int) -> list[dict[str, object]]:
    """Omega of the policies on published trajectories, and their lead over the policy as it is."""
    price = Price(Rates(nfe=9.9e12, reward_calls=1.2e12))
    budgets, rows = [Budget(flops=b * 1e12) for b in range(400, 4001, 600)], []
    for path in sorted(folder.glob("*.safetensors")):
        recording = load_recording(path, scores="noise_aware", price=price)
        few, test = recording.select(slice(20), slice(40)), recording.select(slice(50, 100))
        score_cost = task_of(budgets[0], ReplayEngine(few)).score_cost
        f = calibrate(few, costs=priced_task(few, score_cost))
        best = best_of_n_curve(test, budgets)
        for shared in (False, True):
            curves = {
                name: curve(test, algorithm, budgets, repeats, shared=shared, seed=seed + 1)
                for name, algorithm in variants(test, few, f, utilities.mean).items()
            }
            for name, found in curves.items():
                omega, (gain, error) = (
                    compare(found, best, test).omega,
                    lead(found, curves["as it is"], best),
                )
                row = {
                    "file": path.stem,
                    "shared": shared,
                    "method": name,
                    "omega": omega,
                    "lead": gain,
                    "se": error,
                }
                rows.append(row)
                budget = "shared" if shared else "own"
                print(
                    f"| {path.stem}, {budget} | {name} | {omega:.1f} | {gain:+.1f} ± {error:.1f} |",
                    flush=True,
                )
    return rows


def main() -> None:
    a = arguments(__doc__)
    if a.data is not None:
        rows = published(a.data, a.repeats, a.seed)
    else:
        test, fit = recordings(a)
        orders = Orders.drawn(test, a.repeats, np.random.default_rng(a.seed))
        f = calibrate(fit, fit=Fit(utility=SOFT))
        policies, rows = variants(test, fit, f, SOFT), []
        for total in a.budgets:
            for shared in (False, True):
                found = {
                    n: run(test, policy, total, orders, shared=shared)
                    for n, policy in policies.items()
                }
                if not shared:
                    found["a forecast of its own"] = own_forecasts(test, f, total, orders)
                print("\na shared pot" if shared else "\nown budgets")
                rows += [
                    row | {"shared": shared}
                    for row in compared(found, "as it is", total, len(test.prompts))
                ]
    if a.json:
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting(a), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
