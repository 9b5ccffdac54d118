"""One answer out of those of several actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ttsnap.cluster.messages import Description
from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.grid import Grid
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Rates


def agreed(told: Sequence[Description]) -> Description:
    """What the engines of a cluster have in common, with the seconds of the slowest. ValueError where they differ."""
    one = told[0]
    for number, other in enumerate(told):
        for name, mine, its in (
            ("noise levels", tuple(one.grid.levels), tuple(other.grid.levels)),
            ("rewards", one.reward_names, other.reward_names),
            ("needs that it offers", one.offers, other.offers),
            ("price", replace(one.price, seconds=None), replace(other.price, seconds=None)),
        ):
            if mine != its:
                raise ValueError(f"the engines of the devices differ: the {name} of actor 0 are {mine}, those of actor "
                                 f"{number} {its}; give all devices the same model and options")  # fmt: skip
    seconds = [d.price.seconds for d in told if d.price.seconds is not None]
    probed = Cost().plus(*(d.probed for d in told))
    return replace(one, price=replace(one.price, seconds=slowest(seconds) if seconds else None), probed=probed)


def slowest(rates: Sequence[Rates]) -> Rates:
    """By kind, the most seconds that any takes."""
    kinds = {name: max(rate.named()[name] for rate in rates) for name in NAMES}
    return Rates(**kinds, call=max(rate.call for rate in rates))


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by phase, on average over actors that have told any."""
    told = [part for part in parts if part]
    return {phase: sum(part[phase] for part in told) / len(told) for phase in (told[0] if told else ())}


def begun(plan: Plan, cancelled: Outcome, grid: Grid) -> Cost:
    """What rows of a plan took that were cancelled before they were done."""
    nfe = grid.calls[cancelled.step] - grid.calls[plan.rows.start] + cancelled.cached - plan.paid
    return cancelled.look_cost + Cost(int(np.clip(nfe, 0, plan.costs["nfe"]).sum()))


def merged(job: int, parts: Sequence[Outcome]) -> Outcome:
    """Of one job's cancelled rows on several actors."""
    return Outcome(
        job,
        uids=_ints([part.uids for part in parts]),
        step=_ints([part.step for part in parts]),
        cached=_flags([part.cached for part in parts]),
        look_cost=Cost().plus(*(part.look_cost for part in parts)),
        log_ratio=_floats([part.log_ratio for part in parts if part.log_ratio is not None]),
        has_gradient=_all_flags([part.has_gradient for part in parts if part.has_gradient is not None]),
    )


def _ints(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, int), *parts])


def _flags(parts: Sequence[BoolArray]) -> BoolArray:
    return np.concatenate([np.empty(0, bool), *parts])


def _floats(parts: Sequence[FloatArray]) -> FloatArray | None:
    return np.concatenate(parts) if parts else None


def _all_flags(parts: Sequence[BoolArray]) -> BoolArray | None:
    return np.concatenate(parts) if parts else None
