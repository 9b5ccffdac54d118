"""Actors without processes: what a ClusterEngine does with them is the same, and takes no time to start."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.messages import Command, Tick, Turn
from ttsnap.cluster.pool import ActorDied
from ttsnap.engine.live import LiveEngine


class Made:
    """A recipe that makes what a function makes."""

    def __init__(self, make: Callable[[], LiveEngine]) -> None:
        self.make = make

    def build(self) -> LiveEngine:
        return self.make()


class LocalPool:
    """Runs what an actor is sent when somebody waits for it; of several that are ready, a random one is told first.

    kills: how often an actor dies, by chance (`often` of its calls), before or after it has carried out what it was
    sent, once ticks have begun; never three times in a row. All that travels is pickled, so that actors share nothing.
    """

    def __init__(self, recipe: Any, actors: int, *, seed: int = 0, kills: int = 0, often: float = 0.1) -> None:
        self.recipe, self.rng, self.kills, self.often = recipe, random.Random(seed), kills, often
        self.actors = [EngineActor(recipe) for _ in range(actors)]
        self.queues: list[list[tuple[int, bytes]]] = [[] for _ in range(actors)]
        self.answers: dict[int, Any] = {}
        self.dead: set[int] = set()
        self.hopeless = False
        """Whether actor 0 dies whatever it is sent."""
        self.row = [0] * actors
        """Deaths of each in a row."""
        self.count, self.deaths, self.ticks = 0, 0, 0

    def __len__(self) -> int:
        return len(self.actors)

    def send(self, actor: int, commands: Sequence[Command]) -> int:
        self.count += 1
        self.queues[actor].append((self.count, pickle.dumps(tuple(commands))))
        return self.count

    def _run(self, actor: int) -> None:
        ticket, data = self.queues[actor].pop(0)
        if actor in self.dead:
            self.answers[ticket] = ActorDied("it was killed")
            return
        commands = pickle.loads(data)
        self.ticks += any(isinstance(command, Tick) for command in commands)
        if self.hopeless and actor == 0:
            self._kill(actor, ticket)
            return
        doomed = self.kills and self.ticks > 2 and self.row[actor] < 2 and self.rng.random() < self.often
        if doomed and self.rng.random() < 0.5:
            self._kill(actor, ticket)
            return
        try:
            self.answers[ticket] = pickle.dumps(self.actors[actor].turn(commands))
        except Exception as error:
            self.answers[ticket] = error
        if doomed:
            self._kill(actor, ticket)
        else:
            self.row[actor] = 0

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
        turn: Turn = pickle.loads(answer)
        return turn

    def restart(self, actor: int) -> None:
        self.dead.discard(actor)
        self.queues[actor].clear()
        self.actors[actor] = EngineActor(self.recipe)

    def close(self) -> None:
        pass
