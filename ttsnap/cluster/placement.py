"""Placement of rows on devices, without torch and plans: groups of rows that stay together go to one device.

A device is sent two batches of rows at most: one runs, and one waits, so that the device never does. Other rows wait
here, where they can still move. Rows that start from a particle go to its device, unless that is fuller than another.
Then the rows move with their particle, once in a plan.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from ttsnap.cluster.colocation import ColocatedRows
from ttsnap.engine.fair import FairShare

AHEAD = 2
"""Batches of rows that a device is sent at most: one runs, one waits."""


class Placement:
    """The rows of one cluster, by device."""

    def __init__(self, batches: Sequence[int]) -> None:
        """batches: the batch size of each device."""
        self.batches = list(batches)
        self.sent = [0] * len(batches)
        """Rows on each device."""
        self.coming = [0] * len(batches)
        """Rows on their way, for which each device keeps room."""
        self.queues: list[deque[ColocatedRows]] = [deque() for _ in batches]
        self.queued = [0] * len(batches)
        """Rows in each queue."""
        self.free: deque[ColocatedRows] = deque()
        """Rows that may run anywhere."""
        self.moved = 0
        """Rows that have moved."""
        self.turns: FairShare[int] | None = None
        """Turns of jobs, one a row that is sent. None: rows are sent in the order of their plans."""
        self.weights: dict[int, float] = {}
        """Turns that jobs have where others have one."""

    def load(self, device: int) -> int:
        """Rows that are there, go there, or wait to."""
        return self.sent[device] + self.coming[device] + self.queued[device]

    def slack(self, device: int) -> int:
        """By how many rows another may be fuller than this device before rows move."""
        return 1 + self.batches[device] // 8

    def surplus(self, homed: Sequence[int], more: int) -> list[int]:
        """By how many rows each device would exceed its share, with new rows.

        homed: new rows that live on each device. more: new rows that may run anywhere.
        """
        loads = [self.load(i) + homed[i] for i in range(len(homed))]
        free = more + sum(rows.size for rows in self.free)
        room = sum(self.batches)
        share = [(sum(loads) + free) * batch / room for batch in self.batches]
        return [max(0, int(load - share[i]) - self.slack(i)) for i, load in enumerate(loads)]

    def add(self, groups: Iterable[ColocatedRows]) -> list[ColocatedRows]:
        """Rows of a new plan. Returns those that move: to `target`, from `home`."""
        if not (groups := list(groups)):
            return []
        new: list[list[ColocatedRows]] = [[] for _ in self.batches]
        for rows in groups:
            if rows.home is None:
                self.free.append(rows)
            else:
                self._wait(rows.home, rows)
                new[rows.home].append(rows)
        loads = [self.load(i) for i in range(len(self.batches))]
        free, moves = sum(rows.size for rows in self.free), []
        while any(new):
            full = max((i for i in range(len(loads)) if new[i]), key=lambda i: loads[i])
            least = min(range(len(loads)), key=loads.__getitem__)
            rows, gap = new[full].pop(), loads[full] - loads[least] - free
            if gap <= self.slack(least):
                break
            if 2 * rows.size <= gap:
                self._move(rows, least)
                loads[full] -= rows.size
                loads[least] += rows.size
                moves.append(rows)
        return moves

    def _move(self, rows: ColocatedRows, to: int) -> None:
        if rows.home is not None:
            self.queues[rows.home].remove(rows)
            self.queued[rows.home] -= rows.size
        rows.target = to
        self.coming[to] += rows.size
        self.moved += rows.size

    def _wait(self, device: int, rows: ColocatedRows) -> None:
        self.queues[device].append(rows)
        self.queued[device] += rows.size

    def arrived(self, rows: ColocatedRows) -> None:
        """Queue rows whose sources are at hand, or at home."""
        if rows.target is not None:
            self.coming[rows.target] -= rows.size
            rows.target = None
        if rows.home is not None:
            self._wait(rows.home, rows)
        else:
            self.free.appendleft(rows)

    def next(self) -> tuple[list[tuple[int, ColocatedRows]], list[ColocatedRows]]:
        """Rows to send now, each with its device; and rows that move from a full device to one that would wait."""
        out: list[tuple[int, ColocatedRows]] = []
        if self.turns is not None:
            self.turns.wait(sorted({rows.job for queue in (*self.queues, self.free) for rows in queue}))
        for i, queue in enumerate(self.queues):
            while queue and self.sent[i] < AHEAD * self.batches[i]:
                rows = self._take(queue)
                self.queued[i] -= rows.size
                out.append(self._send(i, rows))
        loads = [self.load(i) for i in range(len(self.batches))]
        emptiest = [(loads[i] / batch, i) for i, batch in enumerate(self.batches)] if self.free else []
        heapq.heapify(emptiest)
        while self.free and emptiest[0][0] < AHEAD:
            rows, least = self._take(self.free), emptiest[0][1]
            loads[least] += rows.size
            heapq.heapreplace(emptiest, (loads[least] / self.batches[least], least))
            out.append(self._send(least, rows))
        if not any(self.queues):
            return out, []
        moves = []
        for i, batch in enumerate(self.batches):
            while loads[i] < batch and (last := self._last_of_longest()) is not None and last.home != i:
                self._move(last, i)
                loads[i] += last.size
                moves.append(last)
        return out, moves

    def _take(self, queue: deque[ColocatedRows]) -> ColocatedRows:
        """The next rows off a queue: its first, or the first of the job whose turn it is."""
        if self.turns is None:
            return queue.popleft()
        firsts: dict[int, ColocatedRows] = {}
        for rows in queue:
            firsts.setdefault(rows.job, rows)
        job = self.turns.first(firsts)
        self.turns.serve(job, firsts[job].size / self.weights.get(job, 1.0))
        queue.remove(firsts[job])
        return firsts[job]

    def _last_of_longest(self) -> ColocatedRows | None:
        """The last rows of the longest queue."""
        longest = max(self.queues, key=len)
        return longest[-1] if longest else None

    def _send(self, device: int, rows: ColocatedRows) -> tuple[int, ColocatedRows]:
        self.sent[device] += rows.size
        return device, rows

    def done(self, device: int, rows: int) -> None:
        """Rows of a device are complete, or were cancelled."""
        self.sent[device] -= rows

    def recall(self, job: int) -> list[tuple[int, ColocatedRows]]:
        """All waiting rows of a job, sent at once, whether there is room or not."""
        out = []
        for i, queue in enumerate([*self.queues, self.free]):
            mine = [rows for rows in queue if rows.job == job]
            for rows in mine:
                queue.remove(rows)
                if i < len(self.queues):
                    self.queued[i] -= rows.size
                device = i if i < len(self.queues) else min(range(len(self.sent)), key=self.sent.__getitem__)
                out.append(self._send(device, rows))
        return out
