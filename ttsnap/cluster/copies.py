"""Particles on their way from an actor to the driver, for bundles of rows that are to run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ttsnap.cluster.bundles import by_home
from ttsnap.cluster.journal import JobLog
from ttsnap.cluster.messages import Copy
from ttsnap.cluster.placement import Bundle


@dataclass(frozen=True)
class Copying:
    """What an actor was asked for, and the bundles that wait for it. parted: whether the actor may take these particles
    on as soon as it has answered, so that they cannot be asked for once more."""

    actor: int
    command: Copy
    bundles: tuple[Bundle, ...]
    parted: bool


class Copies:
    """Those that were asked for and are not here yet. post: how an actor is sent such a command, at once."""

    def __init__(self, post: Callable[[int, Copy], None]) -> None:
        self.post = post
        self._asked: dict[int, Copying] = {}
        self._number = 0

    def ask(self, log: JobLog, sources: Sequence[int], bundles: Sequence[Bundle], *, parted: bool = False) -> None:
        """Fetch particles at rest for bundles of one job. Those that a bundle takes on leave their actor."""
        taken = {uid for bundle in bundles for uid in bundle.uids}
        for actor, uids in by_home(sources, log.home).items():
            self._number += 1
            command = Copy(self._number, bundles[0].job, tuple(uids), tuple(uid for uid in uids if uid in taken))
            self._asked[self._number] = Copying(actor, command, tuple(bundles), parted)
            for bundle in bundles:
                bundle.awaits += 1
            self.post(actor, command)

    def heard(self, copies: Mapping[int, bytes], logs: Mapping[int, JobLog]) -> list[Bundle]:
        """What an actor has answered with; returns the bundles that wait for nothing more."""
        ready = []
        for number, data in copies.items():
            if (copying := self._asked.pop(number, None)) is None:
                continue  # those that asked for it run elsewhere
            logs[copying.command.job].drop(copying.command.drop)
            for bundle in copying.bundles:
                bundle.guests.append(data)
                bundle.awaits -= 1
                if not bundle.awaits:
                    ready.append(bundle)
        return ready

    def awaited(self, job: int) -> bool:
        """Whether some bundle of a job waits."""
        return any(copying.command.job == job for copying in self._asked.values())

    def given_up(self, actor: int) -> list[Bundle]:
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
