"""Actors as processes of Ray, on this machine or on a cluster, in a session that has begun (`connect`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from ttsnap.cluster.actor import Actor, Builder, EngineActor
from ttsnap.cluster.actor_group import ActorDied
from ttsnap.cluster.messages import Command, Turn
from ttsnap.cluster.pictures import located, put_aside
from ttsnap.cluster.reward_actor import RewardActor, RewardBuilder
from ttsnap.core.outcome import PictureLost

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ray import ObjectRef, ObjectRefGenerator


@dataclass(frozen=True)
class InStore:
    """An image in Ray's object store, on the machine of the actor that made it. The driver owns it, so that it outlives
    that actor, and is gone once the driver wants it no more."""

    ref: ObjectRef[NDArray[Any]]

    def fetch(self) -> torch.Tensor:
        """Raises PictureLost where the machine is gone."""
        try:
            return torch.tensor(ray.get(self.ref))
        except RayError as error:
            raise PictureLost(str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class TurnTicket:
    """An answer on its way. parts: what an actor hands out, its images first; whole: ready once all of it is there."""

    parts: ObjectRefGenerator
    whole: ObjectRef[Any]


Maker = Callable[[], Actor]
"""What makes an actor: of an engine, or of rewards."""


class Host:
    """The process of one device, with an actor for each maker that it was given. It makes an actor when that is first
    told something, so that what is wrong with its recipe is told as an answer. threads: of the CPU that it may use,
    None for all."""

    def __init__(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._makers: dict[int, Maker] = {}
        self._actors: dict[int, Actor] = {}

    @ray.method
    def take(self, number: int, maker: Maker) -> int:
        """Be ready for an actor, under this number, which is returned."""
        self._makers[number] = maker
        return number

    @ray.method(num_returns="streaming")
    def turn(self, number: int, commands: Sequence[Command]) -> Iterator[NDArray[Any] | Turn]:
        """As Actor.turn: first its images one by one, then the rest."""
        if number not in self._actors:
            self._actors[number] = self._makers[number]()
        turn = self._actors[number].turn(commands)
        for image in put_aside(turn):
            yield image.numpy()
        yield turn

    @ray.method
    def forget(self, number: int) -> None:
        """The actor of this number is not needed any more."""
        del self._makers[number]
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
    """The engines of one recipe, one on each of these hosts, which may have engines of other recipes beside them.
    rewards: instead of engines, the last `apart` hosts have these rewards."""

    def __init__(self, recipe: Builder, hosts: Hosts, rewards: RewardBuilder | None = None, apart: int = 0) -> None:
        self.hosts, self._number = hosts, next(hosts.numbers)
        self.actors = list(hosts.actors)
        engines = len(self.actors) - (apart if rewards is not None else 0)
        self._makers: list[Maker] = [partial(EngineActor, recipe)] * engines
        if rewards is not None:
            self._makers += [partial(RewardActor, rewards)] * apart
        self._taken = [self._take(actor) for actor in range(len(self.actors))]

    def _take(self, actor: int) -> ObjectRef[int]:
        taken: ObjectRef[int] = self.actors[actor].take.remote(self._number, self._makers[actor])
        return taken

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, commands: Sequence[Command]) -> TurnTicket:
        # The number is what `take` returns: where that failed, so does this, and says why.
        parts = cast("ObjectRefGenerator", self.actors[actor].turn.remote(self._taken[actor], tuple(commands)))
        return TurnTicket(parts, parts.completed())

    def ready(self, tickets: Sequence[TurnTicket], seconds: float) -> list[TurnTicket]:
        by_ref = {ticket.whole: ticket for ticket in tickets}
        if seconds:
            ray.wait(list(by_ref), num_returns=1, timeout=seconds)
        done = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)[0]
        return [by_ref[ref] for ref in done]

    def answer(self, ticket: TurnTicket) -> Turn:
        try:
            ray.get(ticket.whole)
            *images, last = ticket.parts
            turn: Turn = ray.get(last)
            return located(turn, map(InStore, images))
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except RayError as error:
            raise ActorDied(str(error).splitlines()[0]) from error

    def restart(self, actor: int) -> None:
        if self.hosts.actors[actor] is self.actors[actor]:  # else another pool on these hosts was told first
            self.hosts.restart(actor)
        self.actors[actor] = self.hosts.actors[actor]
        self._taken[actor] = self._take(actor)

    def close(self) -> None:
        for actor in self.actors:
            actor.forget.remote(self._number)
