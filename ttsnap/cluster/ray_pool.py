"""Actors as processes of Ray, on this machine or on a cluster, in a session that has begun (`connect`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from ttsnap.cluster.actor import Builder, EngineActor
from ttsnap.cluster.messages import Command, Turn
from ttsnap.cluster.pool import ActorDied

if TYPE_CHECKING:
    from ray import ObjectRef


class Host:
    """The process of one device, with an engine for each recipe that it was given. It makes an engine when that is
    first told something, so that what is wrong with the recipe is told as an answer."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._recipes: dict[int, Builder] = {}
        self._actors: dict[int, EngineActor] = {}

    @ray.method
    def take(self, number: int, recipe: Builder) -> int:
        """Be ready for the engine of a recipe, under this number, which is returned."""
        self._recipes[number] = recipe
        return number

    @ray.method
    def turn(self, number: int, commands: Sequence[Command]) -> Turn:
        """As EngineActor.turn."""
        if number not in self._actors:
            self._actors[number] = EngineActor(self._recipes[number], self._threads)
        return self._actors[number].turn(commands)

    @ray.method
    def forget(self, number: int) -> None:
        """The engine of this number is not needed any more."""
        del self._recipes[number]
        self._actors.pop(number, None)


@dataclass(frozen=True)
class Share:
    """What one actor has of a machine: whole GPUs, which are not overcommitted, or cores of the CPU."""

    gpus: int = 1
    cpus: int = 1


class Hosts:
    """So many processes, a device each. They end with this process, however it ends: nothing of them is detached.

    ValueError where the cluster has less than they need, as Ray would wait for more without a word.
    """

    def __init__(self, actors: int, share: Share) -> None:
        has = ray.cluster_resources()
        for name, each in (("GPU", share.gpus), ("CPU", share.cpus)):
            if actors * each > has.get(name, 0):
                raise ValueError(f"{actors} actors need {actors * each} {name}s, and Ray has {has.get(name, 0):g}; ask "
                                 "for fewer devices, or add machines to the cluster")  # fmt: skip
        threads = None if share.gpus else share.cpus
        kind = ray.remote(Host).options(num_gpus=share.gpus, num_cpus=share.cpus, max_restarts=0)

        def make() -> ActorHandle[Host]:
            return cast("ActorHandle[Host]", kind.remote(threads))

        self._make = make
        self.actors = [make() for _ in range(actors)]
        self.numbers = count()
        """Of the recipes that they are given."""

    def restart(self, actor: int) -> None:
        """A new process in place of one that died."""
        ray.kill(self.actors[actor])  # one that is out of reach may live
        self.actors[actor] = self._make()

    def close(self) -> None:
        """End all processes."""
        for actor in self.actors:
            ray.kill(actor)


class RayPool:
    """The engines of one recipe, one on each of these hosts, which may have engines of other recipes beside them."""

    def __init__(self, recipe: Builder, hosts: Hosts) -> None:
        self.hosts, self._recipe, self._number = hosts, recipe, next(hosts.numbers)
        self.actors = list(hosts.actors)
        self._taken = [self._take(actor) for actor in self.actors]

    def _take(self, actor: ActorHandle[Host]) -> ObjectRef[int]:
        taken: ObjectRef[int] = actor.take.remote(self._number, self._recipe)
        return taken

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, commands: Sequence[Command]) -> ObjectRef[Turn]:
        # The number is what `take` returns: where that failed, so does this, and says why.
        ticket: ObjectRef[Turn] = self.actors[actor].turn.remote(self._taken[actor], tuple(commands))
        return ticket

    def ready(self, tickets: Sequence[ObjectRef[Turn]], seconds: float) -> list[ObjectRef[Turn]]:
        some = list(tickets)
        if seconds:
            ray.wait(some, num_returns=1, timeout=seconds)
        done: list[ObjectRef[Turn]] = ray.wait(some, num_returns=len(some), timeout=0)[0]
        return done

    def answer(self, ticket: ObjectRef[Turn]) -> Turn:
        try:
            turn: Turn = ray.get(ticket)
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except RayError as error:
            raise ActorDied(str(error).splitlines()[0]) from error
        return turn

    def restart(self, actor: int) -> None:
        if self.hosts.actors[actor] is self.actors[actor]:  # else another pool on these hosts was told first
            self.hosts.restart(actor)
        self.actors[actor] = self.hosts.actors[actor]
        self._taken[actor] = self._take(self.actors[actor])

    def close(self) -> None:
        for actor in self.actors:
            actor.forget.remote(self._number)
