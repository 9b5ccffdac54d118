"""Actors as processes of Ray, on this machine or on a cluster, in a session that has begun
(`connect`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from ttsnap.cluster.actor import Actor, EngineActor
from ttsnap.cluster.actor_group import ActorDied
from ttsnap.cluster.messages import Call, Turn
from ttsnap.cluster.pictures import located, put_aside
from ttsnap.core.outcome import PictureLost
from ttsnap.engine.live import LiveEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ray import ObjectRef, ObjectRefGenerator

START_SECONDS = 300.0
"""Within which processes begin, or never will; that each imports torch takes most of it."""


@dataclass(frozen=True)
class InStore:
    """An image in Ray's object store, on the machine of the actor that made it.

    The driver owns the image: it outlives its actor, and is gone once the driver lets go of it.
    """

    ref: ObjectRef[NDArray[Any]]

    def fetch(self) -> torch.Tensor:
        """Raises PictureLost where the machine is gone."""
        try:
            return torch.tensor(ray.get(self.ref))
        except RayError as error:
            raise PictureLost(str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class TurnTicket:
    """An answer under way."""

    parts: ObjectRefGenerator
    """The images, then the turn."""
    whole: ObjectRef[Any]
    """Ready once all parts are there."""


class Host:
    """The process of one device, with an actor for each function that it was given to make one.

    An actor is made when it is first called, so that what is wrong is raised by that call.
    """

    def __init__(self, gpu: bool) -> None:
        if not gpu:
            torch.set_num_threads(1)
        self._makers: dict[int, Callable[[], Actor]] = {}
        self._actors: dict[int, Actor] = {}

    @ray.method
    def take(self, number: int, make: Callable[[], Actor]) -> int:
        """Be ready to make an actor of this number, which is returned."""
        self._makers[number] = make
        return number

    @ray.method(num_returns="streaming")
    def turn(self, number: int, calls: Sequence[Call[Any]]) -> Iterator[NDArray[Any] | Turn]:
        """As Actor.turn: first the images one by one, then the rest."""
        if number not in self._actors:
            self._actors[number] = self._makers[number]()
        turn, images = put_aside(self._actors[number].turn(calls))
        for image in images:
            yield image.numpy()
        yield turn

    @ray.method
    def forget(self, number: int) -> None:
        """Let go of the actor of this number."""
        del self._makers[number]
        self._actors.pop(number, None)


class Hosts:
    """So many processes, on a GPU or a core of the CPU each. They end with this process, however it
    ends: nothing of them is detached."""

    def __init__(self, actors: int, *, gpu: bool) -> None:
        """ValueError where the cluster has fewer devices, as Ray would wait for more without a
        word, and where they do not start."""
        has = ray.cluster_resources()
        for name in ("GPU", "CPU") if gpu else ("CPU",):  # GPUs are not overcommitted
            if actors > has.get(name, 0):
                raise ValueError(
                    f"{actors} actors need {actors} {name}s, and Ray has {has.get(name, 0):g}; ask "
                    "for fewer devices, or add machines to the cluster"
                )
        kind = ray.remote(Host).options(num_gpus=int(gpu), num_cpus=1, max_restarts=0)

        def make() -> ActorHandle[Host]:
            return cast("ActorHandle[Host]", kind.remote(gpu))

        self._make = make
        self.actors = [make() for _ in range(actors)]
        self.numbers = count()
        """Of the pools on these hosts."""
        self._wait()

    def _wait(self) -> None:
        """Wait until all have begun, and say so: it takes seconds, and on a busy machine
        minutes."""
        n = len(self.actors)
        print(f"starting {n} actors, each of which loads the model", flush=True, file=sys.stderr)
        begun: list[Any] = [actor.__ray_ready__.remote() for actor in self.actors]
        late = len(ray.wait(begun, num_returns=n, timeout=START_SECONDS)[1])
        if late:
            self.close()
            raise ValueError(
                f"{late} of {n} actors did not start within {START_SECONDS:g} s; where other"
                " programs keep the machine busy, end them or ask for fewer devices"
            )

    def restart(self, actor: int) -> None:
        """A new process in place of one that died."""
        ray.kill(self.actors[actor])  # one that is out of reach may live
        self.actors[actor] = self._make()

    def close(self) -> None:
        """End all processes."""
        for actor in self.actors:
            ray.kill(actor)


class RayPool:
    """An actor on each of these hosts, which may have actors of other pools as well."""

    def __init__(self, hosts: Hosts, make: Callable[[], Actor]) -> None:
        """make: makes each actor, on its host."""
        self.hosts = hosts
        self._number = next(hosts.numbers)
        self.actors = list(hosts.actors)
        self._make = make
        self._taken = [self._take(actor) for actor in range(len(self.actors))]

    @classmethod
    def of_engines(cls, make: Callable[[], LiveEngine], hosts: Hosts) -> RayPool:
        """An engine on each host."""
        return cls(hosts, partial(EngineActor, make))

    def _take(self, actor: int) -> ObjectRef[int]:
        taken: ObjectRef[int] = self.actors[actor].take.remote(self._number, self._make)
        return taken

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, calls: Sequence[Call[Any]]) -> TurnTicket:
        # `take` returns the number: where it failed, this call fails too, and says why.
        parts = cast(
            "ObjectRefGenerator", self.actors[actor].turn.remote(self._taken[actor], tuple(calls))
        )
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
        # else another pool on these hosts has restarted it
        if self.hosts.actors[actor] is self.actors[actor]:
            self.hosts.restart(actor)
        self.actors[actor] = self.hosts.actors[actor]
        self._taken[actor] = self._take(actor)

    def close(self) -> None:
        for actor in self.actors:
            actor.forget.remote(self._number)
