"""The tree of looks of a search: which came from which, and where each is drawn, on contact sheets
and in the demo.

A look is a candidate at a step where it was scored. Its origin is the look before it, of the same
candidate or of the one that the candidate branched off. A look that several candidates descend from
is drawn once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class CandidateAtStep(NamedTuple):
    """A candidate (uid) scored at a step; step -1 is its seed, which has no picture."""

    uid: int
    step: int


SIBLINGS, NARROW, FILLED = 3, 12, 0.4
"""Limits of what a sheet shows: at most SIBLINGS continuations of one look that were dropped at
once, as tries of one step are; with more columns than NARROW, pictures in at least the share FILLED
of the sheet."""
PRUNED = 4
"""Where there is no room for all candidates, one in PRUNED was pruned."""
SPREAD = 3
"""The pruned candidates that are taken first are spread over SPREAD places of their ranking."""
Origins = dict[CandidateAtStep, CandidateAtStep | None]
"""The origin of every look; None for seeds."""


def origins(moves: Iterable[Mapping[str, Any]], looks: Collection[tuple[int, int]]) -> Origins:
    """The origins of these looks (uid, step) of a search with these moves, in the order in which
    they were made.

    A look whose origin would be at the same step or a later one has its seed as origin: its
    candidate was taken back to noisier steps, or started from noise near another's.
    """
    origin: Origins = {}
    last: dict[int, CandidateAtStep] = {}
    seed: dict[int, CandidateAtStep] = {}
    for move in moves:
        rows = list(zip(move["uids"], move["parents"], move["stop"], strict=True))
        for uid, parent, _ in rows:
            seed.setdefault(uid, seed.get(parent, CandidateAtStep(uid, -1)))
        # All rows of a move start from where their parents were before it.
        before = [last.get(uid, last.get(parent, seed[uid])) for uid, parent, _ in rows]
        for (uid, _, stop), source in zip(rows, before, strict=True):
            look = CandidateAtStep(uid, stop)
            last[uid] = look if look in looks else source
            if look in looks and look not in origin:
                origin.setdefault(seed[uid], None)
                origin[look] = source if source.step < stop else seed[uid]
    return origin


def chain(look: CandidateAtStep | None, origin: Origins) -> list[CandidateAtStep]:
    """A look and all its ancestors, itself first."""
    links = []
    while look is not None:
        links.append(look)
        look = origin[look]
    return links


def most_wanted(
    origin: Origins, kept: Sequence[int], value: Callable[[int], float]
) -> list[CandidateAtStep]:
    """The last look at each candidate: the kept ones first, then by step, then by score."""
    last = {look.uid: look for look in sorted(origin, key=lambda look: look.step)}
    rank = {uid: place for place, uid in enumerate(kept)}
    uids = sorted(
        last, key=lambda uid: (rank.get(uid, len(rank)), -last[uid].step, -value(uid), uid)
    )
    return [last[uid] for uid in uids]


def mixed(ends: Sequence[CandidateAtStep], kept: int, steps: int) -> list[CandidateAtStep]:
    """The last looks in the order in which they get a place: after every PRUNED - 1 finished ones,
    a pruned one.

    The pruned ones are from all over their ranking. kept: how many of `ends` go before all others.
    steps: the grid's.
    """
    finished = [look for look in ends[kept:] if look.step == steps]
    pruned = [look for look in ends[kept:] if look.step < steps]
    stride = max(1, len(pruned) // SPREAD)
    pruned = [look for first in range(stride) for look in pruned[first::stride]]
    order = list(ends[:kept])
    while finished or pruned:
        order += [*finished[: PRUNED - 1], *pruned[:1]]
        finished, pruned = finished[PRUNED - 1 :], pruned[1:]
    return order


def choose(ends: list[CandidateAtStep], origin: Origins, most: int) -> Origins:
    """As many looks as fit into `most` columns, with all their ancestors; `ends` has the most
    wanted first.

    Of dropped candidates there are no more than SIBLINGS and FILLED allow."""
    steps, made = (
        {look.step for look in origin if look.step >= 0},
        {look: i for i, look in enumerate(origin)},
    )
    shown: Origins = {}
    refused: Counter[int] = Counter()
    siblings: Counter[CandidateAtStep | None] = Counter()
    for end in ends:
        if end in shown or refused[end.step] > most:  # where so many found no room, others will not
            continue
        source = origin[end]
        given_up = end.step < max(steps, default=0)
        if given_up and siblings[source] >= SIBLINGS:
            continue
        wider = {*shown, *chain(end, origin)}
        tried = {look: origin[look] for look in sorted(wider, key=made.__getitem__)}
        columns = max(place(tried, ends).values()) + 1
        sparse = (
            columns > NARROW
            and sum(look.step >= 0 for look in tried) < FILLED * len(steps) * columns
        )
        if shown and (columns > most or sparse):
            refused[end.step] += 1
        else:
            shown = tried
            siblings[source] += given_up
    return shown


def place(origin: Origins, ends: list[CandidateAtStep]) -> dict[CandidateAtStep, int]:
    """A column for each look: below its origin where there is room, else to the right.

    The families of seeds are in the order of their first look among `ends`. A look's most wanted
    continuation is right below it.
    """
    rank = {look: len(ends) for look in origin}
    for position, end in enumerate(ends):
        for look in chain(end, origin) if end in origin else []:
            rank[look] = min(rank[look], position)
    below: dict[CandidateAtStep | None, list[CandidateAtStep]] = {}
    for look in sorted(origin, key=lambda look: rank[look]):
        below.setdefault(origin[look], []).append(look)
    steps = sorted({look.step for look in origin})
    line = {step: i for i, step in enumerate(steps)}
    columns: dict[CandidateAtStep, int] = {}
    taken: set[tuple[int, int]] = set()
    free = 0
    for root in below.get(None, []):
        stack = [(root, free)]
        while stack:
            look, column = stack.pop()
            top = line[look.step] if (source := origin[look]) is None else line[source.step] + 1
            rows = range(top, line[look.step] + 1)
            while any((row, column) in taken for row in rows):
                column += 1
            columns[look] = column
            taken |= {(row, column) for row in rows}
            stack += [(child, column) for child in below.get(look, [])[::-1]]
        free = max(columns.values()) + 1
    return columns


def hidden_below(
    origin: Origins, shown: Collection[CandidateAtStep]
) -> Mapping[CandidateAtStep, int]:
    """The number of candidates below each shown look that are not shown."""
    hidden: dict[CandidateAtStep, set[int]] = {}
    for look in origin:
        if look not in shown:
            nearest = next((source for source in chain(look, origin) if source in shown), None)
            if nearest is not None and (nearest.uid != look.uid or nearest.step < 0):
                hidden.setdefault(nearest, set()).add(look.uid)
    return Counter({look: len(uids) for look, uids in hidden.items()})
