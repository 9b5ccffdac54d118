"""Which rows of a plan must stay together, and which may part from the particle that they start from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ttsnap.cluster.placement import Bundle
from ttsnap.core.moves import BRANCH, FRESH, MIX, NEAR, RENOISE
from ttsnap.core.plans import Plan


def bundles_of(job: int, plan: Plan, home: Mapping[int, int]) -> list[Bundle]:
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
    bundles: list[Bundle] = []
    for kind, parent, near, uid in zip(*columns, strict=True):
        if kind == FRESH:
            bundles.append(Bundle(job, (uid,)))
        else:
            rows[find(parent)].append((uid, parent, near))
    for group in rows.values():
        sources = dict.fromkeys(source for _, parent, near in group for source in (parent, near) if source >= 0)
        bundles.append(Bundle(job, tuple(uid for uid, _, _ in group), tuple(sources), home[group[0][1]]))
    return bundles


def parted(bundle: Bundle, plan: Plan, row: Mapping[int, int], most: int, *, guided: bool) -> list[Bundle]:
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
    return [Bundle(bundle.job, (uid,), _sources(plan, row[uid])) for uid in off]


def part(
    bundles: Sequence[Bundle], plan: Plan, row: Mapping[int, int], surplus: Sequence[int], *, guided: bool
) -> list[list[Bundle]]:
    """Take rows off the largest bundles, until no device has a surplus of rows, or none can part; by their sources."""
    left, groups = list(surplus), dict[tuple[int, ...], list[Bundle]]()
    for bundle in sorted(bundles, key=lambda bundle: -bundle.size):
        if bundle.home is not None and bundle.size > 1 and left[bundle.home] > 0:
            off = parted(bundle, plan, row, left[bundle.home], guided=guided)
            left[bundle.home] -= len(off)
            for one in off:
                groups.setdefault(one.sources, []).append(one)
    return list(groups.values())


def at_home(bundles: Iterable[Bundle], devices: int) -> list[int]:
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
