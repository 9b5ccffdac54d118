"""Which rows of a plan must run on one device, which may part from the particle that they start from, and the copies of
particles that these need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ttsnap.cluster.journal import JobLog
from ttsnap.cluster.messages import Copy
from ttsnap.core.moves import BRANCH, FRESH, MIX, NEAR, RENOISE
from ttsnap.core.plans import Plan


@dataclass(eq=False)
class ColocatedRows:
    """Rows of one plan that must run on one device, by the particles that they make or take on.

    sources: the particles that they start from. home: the device where those are; None for rows that start anywhere:
    from fresh seeds, or from `copies` of the sources that are at hand. awaits: copies still on their way.
    """

    job: int
    uids: tuple[int, ...]
    sources: tuple[int, ...] = ()
    home: int | None = None
    copies: list[bytes] = field(default_factory=list)
    awaits: int = 0
    target: int | None = None
    """The device that room is kept on for it."""

    @property
    def size(self) -> int:
        return len(self.uids)


def colocated(job: int, plan: Plan, home: Mapping[int, int]) -> list[ColocatedRows]:
    """Rows by the particles that they start from; each fresh seed by itself.

    Rows that go on from one particle share an evaluation, and a gradient, that one of them pays. home: of particles
    at rest. A bundle's home is that of its first source.
    """
    columns = plan.rows.kind.tolist(), plan.rows.parent.tolist(), plan.near.tolist(), plan.uid.tolist()
    mine = set(columns[3])
    root: dict[int, int] = {}

    def find(uid: int) -> int:
        while root.setdefault(uid, uid) != uid:
            uid = root[uid]
        return uid

    for kind, parent, near, _ in zip(*columns, strict=True):
        # The sibling must not go on before the row has read its noise.
        if kind == NEAR and near in mine:
            root[find(near)] = find(parent)
    rows: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    bundles: list[ColocatedRows] = []
    for kind, parent, near, uid in zip(*columns, strict=True):
        if kind == FRESH:
            bundles.append(ColocatedRows(job, (uid,)))
        else:
            rows[find(parent)].append((uid, parent, near))
    for group in rows.values():
        sources = dict.fromkeys(source for _, parent, near in group for source in (parent, near) if source >= 0)
        bundles.append(ColocatedRows(job, tuple(uid for uid, _, _ in group), tuple(sources), home[group[0][1]]))
    return bundles


def parted(
    bundle: ColocatedRows, plan: Plan, row: Mapping[int, int], most: int, *, guided: bool
) -> list[ColocatedRows]:
    """Take up to so many rows off a bundle, the last ones first, and make bundles of them that may run anywhere.

    Those that need nothing but a copy of what they start from: its latent, and its evaluation, where that is paid.
    """
    rows = plan.rows
    off: list[int] = []
    for uid in reversed(bundle.uids):
        if len(off) == min(most, bundle.size - 1):
            break
        i, kind = row[uid], int(rows.kind[row[uid]])
        shares = kind in (BRANCH, NEAR) and bool(plan.paid[i]) and not guided
        if kind in (MIX, RENOISE) or shares:
            off.append(uid)
    bundle.uids = tuple(uid for uid in bundle.uids if uid not in off)
    return [ColocatedRows(bundle.job, (uid,), _sources(plan, row[uid])) for uid in off]


def part(
    bundles: Sequence[ColocatedRows], plan: Plan, row: Mapping[int, int], surplus: Sequence[int], *, guided: bool
) -> list[list[ColocatedRows]]:
    """Take rows off the largest bundles, until no device has a surplus of rows, or none can part; by their sources."""
    left, groups = list(surplus), dict[tuple[int, ...], list[ColocatedRows]]()
    for bundle in sorted(bundles, key=lambda bundle: -bundle.size):
        if bundle.home is not None and bundle.size > 1 and left[bundle.home] > 0:
            off = parted(bundle, plan, row, left[bundle.home], guided=guided)
            left[bundle.home] -= len(off)
            for one in off:
                groups.setdefault(one.sources, []).append(one)
    return list(groups.values())


def at_home(bundles: Iterable[ColocatedRows], devices: int) -> list[int]:
    """How many rows of these bundles live on each device."""
    rows = [0] * devices
    for bundle in bundles:
        if bundle.home is not None:
            rows[bundle.home] += bundle.size
    return rows


def _sources(plan: Plan, i: int) -> tuple[int, ...]:
    near = int(plan.near[i])
    return (int(plan.rows.parent[i]),) if near < 0 else (int(plan.rows.parent[i]), near)


def by_home(sources: Sequence[int], home: Mapping[int, int]) -> dict[int, list[int]]:
    """These particles by where they are."""
    there: dict[int, list[int]] = defaultdict(list)
    for uid in sources:
        there[home[uid]].append(uid)
    return there


@dataclass(frozen=True)
class Copying:
    """What an actor was asked for, and the bundles that wait for it. parted: whether the actor may take these particles
    on as soon as it has answered, so that they cannot be asked for once more."""

    actor: int
    command: Copy
    bundles: tuple[ColocatedRows, ...]
    parted: bool


class Copies:
    """Those that were asked for and are not here yet. post: how an actor is sent such a command, at once."""

    def __init__(self, post: Callable[[int, Copy], None]) -> None:
        self.post = post
        self._asked: dict[int, Copying] = {}
        self._number = 0

    def ask(
        self, log: JobLog, sources: Sequence[int], bundles: Sequence[ColocatedRows], *, parted: bool = False
    ) -> None:
        """Fetch particles at rest for bundles of one job. Those that a bundle takes on leave their actor."""
        taken = {uid for bundle in bundles for uid in bundle.uids}
        for actor, uids in by_home(sources, log.home).items():
            self._number += 1
            command = Copy(self._number, bundles[0].job, tuple(uids), tuple(uid for uid in uids if uid in taken))
            self._asked[self._number] = Copying(actor, command, tuple(bundles), parted)
            for bundle in bundles:
                bundle.awaits += 1
            self.post(actor, command)

    def heard(self, copies: Mapping[int, bytes], logs: Mapping[int, JobLog]) -> list[ColocatedRows]:
        """What an actor has answered with; returns the bundles that wait for nothing more."""
        ready = []
        for number, data in copies.items():
            if (copying := self._asked.pop(number, None)) is None:
                continue  # those that asked for it run elsewhere
            logs[copying.command.job].drop(copying.command.drop)
            for bundle in copying.bundles:
                bundle.copies.append(data)
                bundle.awaits -= 1
                if not bundle.awaits:
                    ready.append(bundle)
        return ready

    def awaited(self, job: int) -> bool:
        """Whether some bundle of a job waits."""
        return any(copying.command.job == job for copying in self._asked.values())

    def given_up(self, actor: int) -> list[ColocatedRows]:
        """Bundles that wait for what an actor that died was asked for and cannot be asked for again. They no longer
        wait, as they are to run where their sources are made again."""
        lost = [bundle for copying in self._asked.values() if copying.actor == actor and copying.parted
                for bundle in copying.bundles]  # fmt: skip
        self._asked = {number: copying for number, copying in self._asked.items()
                       if not any(bundle in lost for bundle in copying.bundles)}  # fmt: skip
        return lost

    def ask_again(self, actor: int) -> None:
        """Ask the successor of an actor that died."""
        for copying in self._asked.values():
            if copying.actor == actor:
                self.post(actor, copying.command)
