"""One answer out of those of several actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorGroup
from ttsnap.cluster.messages import Call, Description
from ttsnap.core.cost import NAMES, Cost, Rates
from ttsnap.core.outcome import Outcome
from ttsnap.core.protocols import EngineLost, RunUsage


def agreed(engines: Sequence[Description]) -> Description:
    """What the engines of a cluster have in common, with the seconds of the slowest. ValueError
    where they differ."""
    one = engines[0]
    for number, other in enumerate(engines):
        for name, mine, its in (
            ("noise levels", tuple(one.grid.levels), tuple(other.grid.levels)),
            ("rewards", one.reward_names, other.reward_names),
            ("needs that it offers", one.offers, other.offers),
            ("price", replace(one.price, seconds=None), replace(other.price, seconds=None)),
        ):
            if mine != its:
                raise ValueError(
                    f"the engines of the devices differ: the {name} of actor 0 are {mine}, those of"
                    f" actor {number} {its}; give all devices the same model and options"
                )
    seconds = [d.price.seconds for d in engines if d.price.seconds is not None]
    price = replace(one.price, seconds=slowest(seconds) if seconds else None)
    return replace(one, price=price)


def slowest(rates: Sequence[Rates]) -> Rates:
    """By kind, the most seconds that any takes."""
    kinds = {name: max(rate.named()[name] for rate in rates) for name in NAMES}
    return Rates(**kinds, call=max(rate.call for rate in rates))


def averaged(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by phase, on average over actors that have any."""
    timed = [part for part in parts if part]
    return {
        phase: sum(part[phase] for part in timed) / len(timed)
        for phase in (timed[0] if timed else ())
    }


def merged(job: int, parts: Sequence[Outcome]) -> Outcome:
    """The outcome of one job's cancelled rows on several actors."""
    ratios = [part.log_ratio for part in parts if part.log_ratio is not None]
    gradients = [part.has_gradient for part in parts if part.has_gradient is not None]
    begun = [part.begun for part in parts if part.begun is not None]
    return Outcome(
        job,
        uids=np.concatenate([np.empty(0, int), *(part.uids for part in parts)]),
        step=np.concatenate([np.empty(0, int), *(part.step for part in parts)]),
        cached=np.concatenate([np.empty(0, bool), *(part.cached for part in parts)]),
        look_cost=Cost().plus(*(part.look_cost for part in parts)),
        log_ratio=np.concatenate(ratios) if ratios else None,
        has_gradient=np.concatenate(gradients) if gradients else None,
        begun=np.concatenate(begun) if begun else None,
    )


class ClusterMeter:
    """What all actors of a group use inside `with ClusterMeter(group) as meter:`."""

    def __init__(self, group: ActorGroup) -> None:
        self.group = group
        self.parts: list[RunUsage] = []

    def __enter__(self) -> ClusterMeter:
        self.group.ask(range(len(self.group)), Call(EngineActor.begin_measuring))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(EngineLost):
            usages = self.group.ask(range(len(self.group)), Call(EngineActor.end_measuring))
            self.parts += [usage for usage in usages if usage is not None]

    def summary(self) -> RunUsage:
        """The energy of all together, the memory of the one that held most."""
        if not self.parts:
            return RunUsage()
        most = max(self.parts, key=lambda part: part["peak_memory_bytes"] or 0)
        return RunUsage(
            **{**most, "energy_joules": _sum([part["energy_joules"] for part in self.parts])}
        )


def _sum(values: Sequence[float | None]) -> float | None:
    """None where any is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
