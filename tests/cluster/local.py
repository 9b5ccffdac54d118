"""Actors without processes: what a ClusterEngine does with them is the same, and takes no time to start."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ttsnap import search
from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorDied
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.cluster.messages import Call, Turn
from ttsnap.cluster.pictures import located, put_aside
from ttsnap.core.cost import Cost
from ttsnap.core.outcome import PictureLost
from ttsnap.core.protocols import Algorithm
from ttsnap.core.results import Result
from ttsnap.loop.budget import Budget

from ..algorithms.test_contract import moves  # noqa: TID252


@dataclass(frozen=True)
class Shelf:
    """The place of an image in the store of a LocalPool, which outlives its actors. What is fetched is counted."""

    number: int
    images: ClassVar[dict[int, bytes]] = {}
    fetched: ClassVar[list[int]] = []
    """Bytes, each time."""

    @classmethod
    def clear(cls) -> None:
        """An empty store of which nothing was fetched yet."""
        cls.images.clear()
        cls.fetched.clear()

    @classmethod
    def put(cls, image: torch.Tensor) -> Shelf:
        cls.images[len(cls.images)] = pickle.dumps(image.numpy())
        return cls(len(cls.images) - 1)

    def fetch(self) -> torch.Tensor:
        data = self.images[self.number]
        if not data:
            raise PictureLost("its machine is gone")
        self.fetched.append(len(data))
        return torch.from_numpy(pickle.loads(data))


class LocalPool:
    """Runs what an actor is sent when somebody waits for it; of several that are ready, a random one is told first.

    kills: how often an actor dies, by chance (`often` of its calls), before or after it has carried out what it was
    sent, once ticks or units have begun; never three times in a row. All that travels is pickled: actors share nothing;
    `heard` counts the bytes of their answers, and Shelf those of images.
    """

    def __init__(self, make: Any, actors: int, *, seed: int = 0, kills: int = 0, often: float = 0.1) -> None:
        self.rng, self.kills, self.often = random.Random(seed), kills, often
        self.makers = [partial(EngineActor, make)] * actors
        self.actors: list[Any] = [make() for make in self.makers]
        self.queues: list[list[tuple[int, bytes]]] = [[] for _ in range(actors)]
        self.answers: dict[int, Any] = {}
        self.dead: set[int] = set()
        self.hopeless = False
        """Whether actor 0 dies whatever it is sent."""
        self.row = [0] * actors
        """Deaths of each in a row."""
        self.count, self.deaths, self.ticks, self.heard = 0, 0, 0, 0
        Shelf.clear()

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, calls: Sequence[Call[Any]]) -> int:
        self.count += 1
        self.queues[actor].append((self.count, pickle.dumps(tuple(calls))))
        return self.count

    def _run(self, actor: int) -> None:
        ticket, data = self.queues[actor].pop(0)
        if actor in self.dead:
            self.answers[ticket] = ActorDied("it was killed")
            return
        calls = pickle.loads(data)
        self.ticks += any(call.name in ("tick", "make") for call in calls)
        if self.hopeless and actor == 0:
            self._kill(actor, ticket)
            return
        doomed = self.kills and self.ticks > 2 and self.row[actor] < 2 and self.rng.random() < self.often
        if doomed and self.rng.random() < 0.5:
            self._kill(actor, ticket)
            return
        try:
            self.answers[ticket] = self._carried_out(actor, calls)
        except Exception as error:
            self.answers[ticket] = error
        if doomed:
            self._kill(actor, ticket)
        else:
            self.row[actor] = 0

    def _carried_out(self, actor: int, calls: Sequence[Call[Any]]) -> bytes:
        """The answer to these, whose images are on the shelf."""
        turn, images = put_aside(self.actors[actor].turn(calls))
        return pickle.dumps(located(turn, map(Shelf.put, images)))

    def _kill(self, actor: int, ticket: int) -> None:
        self.kills -= 1
        self.deaths += 1
        self.row[actor] += 1
        self.dead.add(actor)
        self.answers[ticket] = ActorDied("it was killed")

    def ready(self, tickets: Sequence[int], seconds: float) -> list[int]:
        for actor in self.rng.sample(range(len(self)), len(self)):
            while self.queues[actor] and self.rng.random() < 0.7:
                self._run(actor)
        done = [ticket for ticket in tickets if ticket in self.answers]
        if not done and seconds:
            return self.ready(tickets, seconds)
        return done

    def answer(self, ticket: int) -> Turn:
        answer = self.answers.pop(ticket)
        if isinstance(answer, Exception):
            raise answer
        self.heard += len(answer)
        turn: Turn = pickle.loads(answer)
        return turn

    def restart(self, actor: int) -> None:
        self.dead.discard(actor)
        self.queues[actor].clear()
        self.actors[actor] = self.makers[actor]()

    def close(self) -> None:
        pass


def same(one: list[Result], other: list[Result]) -> None:
    """The same moves, the same books, the same images."""
    for a, b in zip(one, other, strict=True):
        assert moves(a) == moves(b)
        assert a.spent.cost == b.spent.cost
        assert [(c.uid, c.seed) for c in a.images] == [(c.uid, c.seed) for c in b.images]
        for x, y in zip(a.images, b.images, strict=True):
            assert x.reward == pytest.approx(y.reward, abs=1e-6)
            torch.testing.assert_close(x.image, y.image, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(a.particles.scores, b.particles.scores, atol=1e-6)


def spent(results: list[Result]) -> Cost:
    return Cost().plus(*(result.spent.cost for result in results))


def search_again(alone: list[Result], algorithm: Algorithm, cluster: ClusterEngine, budget: Budget) -> list[Result]:
    """A search on a cluster for the best two images of each prompt, which must find what was found `alone` and pay for
    all that ran and was not lost."""
    found = search([result.prompt for result in alone], algorithm, cluster, budget, keep=2)
    same(alone, found)
    assert cluster.group.ran - cluster.lost == spent(found)
    return found


def stopped(prompts: list[str], algorithm: Algorithm, cluster: ClusterEngine, after: int) -> list[Result]:
    """A search that is stopped once the cluster has worked more than `after` times."""
    ticks: list[int] = []
    return search(
        prompts,
        algorithm,
        cluster,
        Budget(nfe=80),
        on_event=lambda event: ticks.append(1) if event.kind == "tick" else None,
        should_stop=lambda: len(ticks) > after,
    )
