"""Actors as processes of Ray, on this machine or on a cluster, in a session that has begun (`connect`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from ttsnap.cluster.actor import Builder, EngineActor
from ttsnap.cluster.messages import Command, Turn
from ttsnap.cluster.pool import ActorDied

if TYPE_CHECKING:
    from ray import ObjectRef


class LateActor:
    """Makes its engine when it is first told something, so that what is wrong with the recipe is told as an answer."""

    def __init__(self, recipe: Builder, threads: int | None) -> None:
        self._recipe, self._threads = recipe, threads
        self._actor: EngineActor | None = None

    @ray.method
    def turn(self, commands: Sequence[Command]) -> Turn:
        """As EngineActor.turn."""
        if self._actor is None:
            self._actor = EngineActor(self._recipe, self._threads)
        return self._actor.turn(commands)


@dataclass(frozen=True)
class Share:
    """What one actor has of a machine: whole GPUs, which are not overcommitted, or cores of the CPU."""

    gpus: int = 1
    cpus: int = 1


class RayPool:
    """So many actors, each from the recipe. They end with this process, however it ends: nothing of them is detached.

    ValueError where the cluster has less than they need, as Ray would wait for more without a word.
    """

    def __init__(self, recipe: Builder, actors: int, share: Share) -> None:
        has = ray.cluster_resources()
        for name, each in (("GPU", share.gpus), ("CPU", share.cpus)):
            if actors * each > has.get(name, 0):
                raise ValueError(f"{actors} actors need {actors * each} {name}s, and Ray has {has.get(name, 0):g}; ask "
                                 "for fewer devices, or add machines to the cluster")  # fmt: skip
        threads = None if share.gpus else share.cpus
        kind = ray.remote(LateActor).options(num_gpus=share.gpus, num_cpus=share.cpus, max_restarts=0)

        def make() -> ActorHandle[LateActor]:
            return cast("ActorHandle[LateActor]", kind.remote(recipe, threads))

        self._make = make
        self.actors = [make() for _ in range(actors)]

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, commands: Sequence[Command]) -> ObjectRef[Turn]:
        ticket: ObjectRef[Turn] = self.actors[actor].turn.remote(tuple(commands))
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
        ray.kill(self.actors[actor])  # one that is out of reach may live
        self.actors[actor] = self._make()

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
