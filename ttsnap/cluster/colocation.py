"""Rows of a plan that must run on one device, rows that may leave the particle that they start from, and copies of
particles for these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ttsnap.cluster.job_log import JobLog
from ttsnap.core.moves import BRANCH, FRESH, MIX, NEAR, RENOISE
from ttsnap.core.plans import Plan


@dataclass(eq=False)
class ColocatedRows:
    """Rows of one plan that must run on one device."""

    job: int
    uids: tuple[int, ...]
    """The particles that the rows make or take on."""
    sources: tuple[int, ...] = ()
    """The particles that the rows start from."""
    home: int | None = None
    """The device where `sources` are. None: the rows start anywhere, from fresh seeds or from `copies`."""
    copies: list[bytes] = field(default_factory=list)
    """Copies of the sources that are at hand."""
    awaits: int = 0
    """How many copies are still on their way."""
    target: int | None = None
    """The device that room is kept on."""

    @property
    def size(self) -> int:
        return len(self.uids)


def colocated(job: int, plan: Plan, home: Mapping[int, int]) -> list[ColocatedRows]:
    """Rows by the particles that they start from; each fresh seed by itself.

    Rows that continue one particle share its evaluation and its gradient, which one of them pays. home: of particles
    at rest. Rows live where their first source does.
    """
    columns = plan.rows.kind.tolist(), plan.rows.parent.tolist(), plan.near.tolist(), plan.uid.tolist()
    mine = set(columns[3])
    root: dict[int, int] = {}

    def find(uid: int) -> int:
        while root.setdefault(uid, uid) != uid:
            uid = root[uid]
        return uid

    for kind, parent, near, _ in zip(*columns, strict=True):
        # The sibling must not move before the row has read its noise.
        if kind == NEAR and near in mine:
            root[find(near)] = find(parent)
    by_root: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    groups: list[ColocatedRows] = []
    for kind, parent, near, uid in zip(*columns, strict=True):
        if kind == FRESH:
            groups.append(ColocatedRows(job, (uid,)))
        else:
            by_root[find(parent)].append((uid, parent, near))
    for rows in by_root.values():
        sources = dict.fromkeys(source for _, parent, near in rows for source in (parent, near) if source >= 0)
        groups.append(ColocatedRows(job, tuple(uid for uid, _, _ in rows), tuple(sources), home[rows[0][1]]))
    return groups


def split_off(
    groups: Sequence[ColocatedRows], plan: Plan, row: Mapping[int, int], surplus: Sequence[int], *, guided: bool
) -> list[list[ColocatedRows]]:
    """Take rows off the largest groups, the last ones first, until no device has a surplus of rows; by their sources.

    Taken off are rows that need only a copy of their source: its latent, and its evaluation where that is paid. Each
    may run anywhere. row: where in the plan the row of a particle is.
    """
    left, off = list(surplus), defaultdict[tuple[int, ...], list[ColocatedRows]](list)
    for rows in sorted(groups, key=lambda rows: -rows.size):
        for uid in reversed(rows.uids if rows.home is not None else ()):
            if rows.home is None or left[rows.home] <= 0 or rows.size == 1:
                break
            i, kind = row[uid], int(plan.rows.kind[row[uid]])
            shares = kind in (BRANCH, NEAR) and bool(plan.paid[i]) and not guided
            if kind in (MIX, RENOISE) or shares:
                rows.uids = tuple(other for other in rows.uids if other != uid)
                left[rows.home] -= 1
                sources = tuple(source for source in (int(plan.rows.parent[i]), int(plan.near[i])) if source >= 0)
                off[sources].append(ColocatedRows(rows.job, (uid,), sources))
    return list(off.values())


def at_home(groups: Iterable[ColocatedRows], devices: int) -> list[int]:
    """How many of these rows live on each device."""
    count = [0] * devices
    for rows in groups:
        if rows.home is not None:
            count[rows.home] += rows.size
    return count


def by_home(sources: Sequence[int], home: Mapping[int, int]) -> dict[int, list[int]]:
    """These particles by where they are."""
    by_device: dict[int, list[int]] = defaultdict(list)
    for uid in sources:
        by_device[home[uid]].append(uid)
    return by_device


@dataclass(eq=False)
class Copying:
    """A request to an actor for copies of particles of one job."""

    actor: int
    log: JobLog
    job: int
    uids: tuple[int, ...]
    drop: tuple[int, ...]
    """Those of the particles that leave the actor."""
    waiting: tuple[ColocatedRows, ...]
    """The rows that start from the copies."""
    once: bool
    """Whether the actor may move the particles once it has answered: the request cannot be repeated."""


class Copies:
    """Requests for copies that are under way."""

    def __init__(self, post: Callable[[Copying], None]) -> None:
        """post: sends a request at once."""
        self.post = post
        self._asked: list[Copying] = []

    def ask(self, log: JobLog, sources: Sequence[int], waiting: Sequence[ColocatedRows], *, once: bool = False) -> None:
        """Fetch particles at rest for rows of one job. Those that the rows take on leave their actor."""
        taken = {uid for rows in waiting for uid in rows.uids}
        for actor, uids in by_home(sources, log.home).items():
            drop = tuple(uid for uid in uids if uid in taken)
            copying = Copying(actor, log, waiting[0].job, tuple(uids), drop, tuple(waiting), once)
            self._asked.append(copying)
            for rows in waiting:
                rows.awaits += 1
            self.post(copying)

    def heard(self, copying: Copying, data: bytes) -> list[ColocatedRows]:
        """The answer to a request; returns the rows that wait for nothing more."""
        if copying not in self._asked:
            return []  # its rows run elsewhere
        self._asked.remove(copying)
        copying.log.drop(copying.drop)
        for rows in copying.waiting:
            rows.copies.append(data)
            rows.awaits -= 1
        return [rows for rows in copying.waiting if not rows.awaits]

    def awaited(self, job: int) -> bool:
        """Whether rows of a job wait."""
        return any(copying.job == job for copying in self._asked)

    def given_up(self, actor: int) -> list[ColocatedRows]:
        """Rows that wait for copies from an actor that died, where the request cannot be repeated.

        The rows no longer wait, as they are to run where their sources are made again.
        """
        lost = [rows for copying in self._asked if copying.actor == actor and copying.once for rows in copying.waiting]
        self._asked = [copying for copying in self._asked if not any(rows in lost for rows in copying.waiting)]
        return lost

    def ask_again(self, actor: int) -> None:
        """Repeat the requests to an actor that died, to its successor."""
        for copying in self._asked:
            if copying.actor == actor:
                self.post(copying)
