"""The tree of looks of a search: which came from which, and in which column each is drawn.

A look is a candidate at a step where it was scored. Its origin is the look before it, of the same
candidate or of the one that the candidate branched off. A look that several candidates descend from
is drawn once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class CandidateAtStep(NamedTuple):
    """A candidate (uid) scored at a step; step -1 is its seed, which has no picture."""

    uid: int
    step: int


SIBLINGS, NARROW, FILLED = 3, 12, 0.4
"""Limits of what is shown: at most SIBLINGS continuations of one look that were dropped at once, as
tries of one step are; of a family with more columns than NARROW, pictures in at least the share
FILLED."""
PRUNED, SPREAD = 4, 3
"""Where there is no room for all candidates, one in PRUNED was given up; those are taken first that
are spread over SPREAD places of their ranking."""
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


class Family(NamedTuple):
    """The looks of one seed that are shown, side by side where they branch."""

    origin: Origins
    """Its looks, each with its origin; the seed's is None."""
    columns: dict[CandidateAtStep, int]
    """The column of each look, from 0."""

    @property
    def wide(self) -> int:
        """In columns."""
        return max(self.columns.values(), default=-1) + 1

    @property
    def pictures(self) -> int:
        return sum(look.step >= 0 for look in self.origin)


def mixed(
    ends: Sequence[CandidateAtStep], given_up: Collection[CandidateAtStep]
) -> list[CandidateAtStep]:
    """The last looks at candidates, best first, in the order in which they get a place: after every
    PRUNED - 1 of the others comes one that was given up."""
    going = [end for end in ends if end not in given_up]
    pruned = [end for end in ends if end in given_up]
    stride = max(1, len(pruned) // SPREAD)
    pruned = [end for first in range(stride) for end in pruned[first::stride]]
    order: list[CandidateAtStep] = []
    while going or pruned:
        order += [*going[: PRUNED - 1], *pruned[:1]]
        going, pruned = going[PRUNED - 1 :], pruned[1:]
    return order


def choose(
    ends: Sequence[CandidateAtStep],
    order: Sequence[CandidateAtStep],
    origin: Origins,
    across: int,
    most: int,
) -> list[Family]:
    """The families that are shown, best first: `most` columns in all, `across` in one.

    ends: the last look at each candidate, best first. In `order` they get a place, with all their
    ancestors. Of dropped candidates there are no more than SIBLINGS and FILLED allow.
    """
    made = {look: i for i, look in enumerate(origin)}
    rank: dict[CandidateAtStep, int] = {}
    for position, end in enumerate(ends):
        for look in chain(end, origin):
            rank.setdefault(look, position)
    rows = len({look.step for look in origin if look.step >= 0})
    last = max((look.step for look in origin), default=0)
    shown: dict[CandidateAtStep, Family] = {}
    taken = 0
    refused: Counter[int] = Counter()
    siblings: Counter[CandidateAtStep | None] = Counter()
    for end in order:
        line = chain(end, origin)
        before = shown.get(line[-1], Family({}, {}))
        # where so many found no room, others will not
        if end in before.origin or refused[end.step] > most:
            continue
        source, given_up = origin[end], end.step < last
        if given_up and siblings[source] >= SIBLINGS:
            continue
        looks = sorted({*before.origin, *line}, key=made.__getitem__)
        tried = place({look: origin[look] for look in looks}, rank)
        columns = taken - before.wide + tried.wide
        sparse = tried.wide > NARROW and tried.pictures < FILLED * rows * tried.wide
        if shown and (columns > most or tried.wide > across or sparse):
            refused[end.step] += 1
            continue
        shown[line[-1]], taken = tried, columns
        siblings[source] += given_up
    return [shown[root] for root in sorted(shown, key=rank.__getitem__)]


def place(origin: Origins, rank: Mapping[CandidateAtStep, int]) -> Family:
    """A column for each look of a family: below its origin where there is room, else to the right.

    rank: a look's most wanted continuation, that of the lowest rank, is right below it.
    """
    below: dict[CandidateAtStep | None, list[CandidateAtStep]] = {}
    for look in sorted(origin, key=rank.__getitem__):
        below.setdefault(origin[look], []).append(look)
    line = {step: i for i, step in enumerate(sorted({look.step for look in origin}))}
    columns: dict[CandidateAtStep, int] = {}
    taken: set[tuple[int, int]] = set()
    stack = [(root, 0) for root in below.get(None, [])]
    while stack:
        look, column = stack.pop()
        source = origin[look]
        top = line[look.step] if source is None else line[source.step] + 1
        rows = range(top, line[look.step] + 1)
        while any((row, column) in taken for row in rows):
            column += 1
        columns[look] = column
        taken |= {(row, column) for row in rows}
        stack += [(child, column) for child in below.get(look, [])[::-1]]
    return Family(origin, columns)


def in_bands(families: Sequence[Family], across: int) -> list[list[Family]]:
    """The families in bands of at most `across` columns, one band below the other."""
    bands: list[list[Family]] = []
    free = 0
    for family in families:
        if family.wide > free:
            bands.append([])
            free = across
        bands[-1].append(family)
        free -= family.wide
    return bands


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
