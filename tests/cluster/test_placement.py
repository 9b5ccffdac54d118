"""Where rows go, on random arrivals: none is lost, no device is idle while others queue, and few particles move."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ttsnap.cluster.colocation import ColocatedRows
from ttsnap.cluster.placement import AHEAD, Placement
from ttsnap.engine.fair import FairShare


class Devices:
    """Rows take a random number of ticks; a device runs one batch of those that it has. Copies take one tick."""

    def __init__(self, batches: list[int], seed: int) -> None:
        self.placement, self.rng = Placement(batches), random.Random(seed)
        self.running: list[list[list[int]]] = [[] for _ in batches]  # [uid, ticks left] by device
        self.copies: list[ColocatedRows] = []
        self.home: dict[int, int] = {}
        self.seen: Counter[int] = Counter()
        self.moves: Counter[int] = Counter()

    def submit(self, groups: list[ColocatedRows]) -> None:
        self.fetch(self.placement.add(groups))

    def fetch(self, moves: list[ColocatedRows]) -> None:
        for group in moves:
            assert group.target != group.home
            self.moves.update(group.uids)
            group.home = None
            self.copies.append(group)

    def go_on(self) -> None:
        sends, moves = self.placement.next()
        for device, group in sends:
            self.seen.update(group.uids)
            self.running[device] += [[uid, self.rng.randint(1, 5)] for uid in group.uids]
        self.fetch(moves)

    def tick(self) -> None:
        self.go_on()
        self.check()
        for group in self.copies:
            self.placement.arrived(group)
        self.copies = []
        for device, rows in enumerate(self.running):
            for row in rows[: self.placement.batches[device]]:
                row[1] -= 1
            done = [row for row in rows if not row[1]]
            self.home |= {row[0]: device for row in done}
            self.running[device] = [row for row in rows if row[1]]
            self.placement.done(device, len(done))

    def check(self) -> None:
        p = self.placement
        assert p.sent == [len(rows) for rows in self.running]
        waits = [len(rows) - batch + sum(b.size for b in queue)
                 for rows, batch, queue in zip(self.running, p.batches, p.queues, strict=True)]  # fmt: skip
        for device, rows in enumerate(self.running):
            if not rows and not p.coming[device]:
                assert not p.free
                assert all(wait <= p.batches[i] for i, wait in enumerate(waits))

    @property
    def busy(self) -> bool:
        p = self.placement
        return bool(any(self.running) or self.copies or p.free or any(p.queues))


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    plans=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
)
def test_no_device_waits_while_others_queue(batches: list[int], plans: list[int], seed: int) -> None:
    devices, made = Devices(batches, seed), 0
    for rows in plans:
        resting = sorted(devices.home)
        some = devices.rng.sample(resting, devices.rng.randint(0, len(resting)))
        homed = [ColocatedRows(0, (uid,), (uid,), devices.home.pop(uid)) for uid in some]
        before, moved = devices.seen.copy(), devices.moves.copy()
        fresh = list(range(made, made + rows))
        made += rows
        devices.submit(homed + [ColocatedRows(0, (uid,)) for uid in fresh])
        for _ in range(devices.rng.randint(0, 30)):
            devices.tick()
        while devices.busy:
            devices.tick()
        assert devices.seen - before == Counter([*some, *fresh])
        assert max((devices.moves - moved).values(), default=0) <= 1
    assert devices.placement.coming == [0] * len(batches)


def test_rows_spread_evenly_and_stay_where_their_particles_are() -> None:
    devices = Devices([16, 16], 0)
    devices.submit([ColocatedRows(0, (uid,)) for uid in range(32)])
    devices.go_on()
    assert devices.placement.sent == [16, 16]
    while devices.busy:
        devices.tick()
    assert not devices.moves
    # Half of them go on: 12 here and 4 there. What is gained by moving is more than the slack of 3 rows.
    here = [uid for uid, home in devices.home.items() if home == 0][:12]
    there = [uid for uid, home in devices.home.items() if home == 1][:4]
    devices.submit([ColocatedRows(0, (uid,), (uid,), devices.home[uid]) for uid in here + there])
    assert len(devices.moves) == 3
    assert [devices.placement.load(i) for i in (0, 1)] == [9, 7]


def test_rows_that_may_go_anywhere_even_out_a_device_that_is_fuller_so_that_none_moves() -> None:
    placement = Placement([4, 4])
    homed = [ColocatedRows(0, (uid,), (uid,), 0) for uid in range(4)]
    assert not placement.add([*homed, *(ColocatedRows(0, (uid,)) for uid in range(4, 10))])
    sends, moves = placement.next()
    assert not moves
    assert Counter(device for device, _ in sends) == {0: 5, 1: 5}


def test_a_device_is_sent_two_batches_at_most() -> None:
    placement = Placement([3])
    placement.add([ColocatedRows(0, (uid,)) for uid in range(20)])
    assert len(placement.next()[0]) == AHEAD * 3
    placement.done(0, 2)
    assert len(placement.next()[0]) == 2


def sent_by_job(placement: Placement, rounds: int) -> list[Counter[int]]:
    """Rows sent of each job in each round, in which every device completes one row."""
    found = []
    for _ in range(rounds):
        for device in range(len(placement.batches)):
            placement.done(device, 1)
        found.append(Counter(group.job for _, group in placement.next()[0]))
    return found


@given(rooted=st.booleans(), weight=st.sampled_from([1.0, 3.0]))
def test_where_jobs_take_turns_a_large_one_keeps_no_small_one_off_the_devices(rooted: bool, weight: float) -> None:
    def rows(job: int, count: int) -> list[ColocatedRows]:
        return [ColocatedRows(job, (uid,), *(((uid,), uid % 2) if rooted else ())) for uid in range(count)]

    placement = Placement([2, 2])
    placement.turns = FairShare()
    placement.add(rows(0, 400))
    placement.next()
    placement.weights[1] = weight
    placement.add(rows(1, 40))
    sent = sent_by_job(placement, 8)
    assert all(sum(counts.values()) == 2 for counts in sent)
    assert sent[0][1] >= 1, "it has a turn as soon as there is room"
    share = sum(counts[1] for counts in sent) / 16
    assert abs(share - weight / (weight + 1)) <= 2 / 16
    placement = Placement([2, 2])
    placement.add(rows(0, 400))
    placement.next()
    placement.add(rows(1, 40))
    assert not any(counts[1] for counts in sent_by_job(placement, 8)), "else rows go as they came"
