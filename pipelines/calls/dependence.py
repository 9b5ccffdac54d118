"""On what a stock call's questions depend beside the latents that a search puts in.

Runs of a rehearsal are compared that differ in one thing: the seed, the steps before the middle, or
the latents before it. Their marks are equal where nothing depends on that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch

from ttsnap.pipelines.calls.fields import Fields
from ttsnap.pipelines.calls.places import NOWHERE
from ttsnap.pipelines.calls.run import CallRun, Setting, run_of
from ttsnap.pipelines.calls.stock_call import StockCall


class Dependence(NamedTuple):
    """Of what a call asks of its networks, beside latents."""

    by_seed: bool
    """On the seed, or on first latents that differ from particle to particle."""
    remembers: bool
    """On the steps before, as with momentum."""


def dependence(stock: StockCall, networks: Collection[str], count: int) -> Dependence:
    """That of a call whose rounds have so many steps."""
    alone = Setting(asleep=networks, fills=_ramp)
    base = run_of(stock, alone)
    start = [step.sample for step in base.firsts]
    middle = count * (max(1, len(base.times) // (2 * count)) - 1) + 1

    def later(run: CallRun) -> object:
        return run.marks_from(middle + count)

    # Led to the middle by other latents and results, and from there on given the same.
    led = run_of(stock, replace(alone, start=start, from_index=middle))
    remembers = later(led) != later(base)
    if stock.places == NOWHERE or remembers:
        return Dependence(by_seed=True, remembers=remembers)
    # Begun with other latents besides: Kandinsky keeps its first ones for a mask.
    other = [0.5 * each + 0.25 for each in start]
    begun = run_of(stock, replace(alone, start=other, from_index=middle))
    if later(begun) != later(led):
        return Dependence(by_seed=True, remembers=False)
    seeded = run_of(stock, replace(alone, start=start, seed=1))
    return Dependence(by_seed=seeded.marks_from(0) != base.marks_from(0), remembers=False)


def reads_late(stock: StockCall, networks: Collection[str], fields: Fields) -> bool:
    """Whether nobody reads what the first steps of a round make before its last one."""

    def by_round(step: int) -> float:
        return _ramp(-(-step // fields.count))

    apart = run_of(stock, Setting(asleep=networks, fills=by_round))
    late = replace(stock, fields=replace(fields, late=True))
    together = run_of(late, Setting(asleep=networks, fills=_ramp))
    return torch.equal(torch.stack(apart.given), torch.stack(together.given))


def _ramp(index: int) -> float:
    """A number that differs from step to step."""
    return 0.25 + 0.125 * (index % 5)
