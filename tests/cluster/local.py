"""Actors without processes: what a ClusterEngine does with them is the same, and takes no time to
start. And engines that load in no time, for those with processes."""

from __future__ import annotations

import os
import pickle
import random
import signal
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from ttsnap.cluster.actor import EngineActor
from ttsnap.cluster.actor_group import ActorDied
from ttsnap.cluster.pictures import located, put_aside
from ttsnap.core.outcome import PictureLost
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.request.request import EngineSpec
from ttsnap.sampling.kernels import KERNELS
from ttsnap.sampling.mixture import MixtureDenoiser


@dataclass(frozen=True)
class Shelf:
    """The place of an image in the store of a LocalPool, which outlives its actors. What is fetched
    is counted."""

    number: int
    images: ClassVar[dict[int, bytes]] = {}
    fetched: ClassVar[list[int]] = []
    """Bytes, each time."""

    @classmethod
    def put(cls, image):
        cls.images[len(cls.images)] = pickle.dumps(image.numpy())
        return cls(len(cls.images) - 1)

    def fetch(self):
        data = self.images[self.number]
        if not data:
            raise PictureLost("its machine is gone")
        self.fetched.append(len(data))
        return torch.from_numpy(pickle.loads(data))


class LocalPool:
    """Runs what an actor is sent when somebody waits for it; of several that are ready, a random
    one is told first.

    actor: makes one of `make`. kills: how often one dies, by chance (`often` of its calls), before
    or after it has carried out what it was sent, once ticks or units have begun; never three times
    in a row. All that travels is pickled: actors share nothing; `heard` counts the bytes of their
    answers, and Shelf those of images.
    """

    def __init__(
        self,
        make,
        actors,
        *,
        seed=0,
        kills=0,
        often=0.1,
        actor=EngineActor,
    ):
        self.rng, self.kills, self.often = random.Random(seed), kills, often
        self.make = partial(actor, make)
        self.actors: list[Any] = [self.make() for _ in range(actors)]
        self.queues: list[list[tuple[int, bytes]]] = [[] for _ in range(actors)]
        self.answers: dict[int, Any] = {}
        self.dead: set[int] = set()
        self.hopeless = False
        """Whether actor 0 dies whatever it is sent."""
        self.row = [0] * actors
        """Deaths of each in a row."""
        self.count, self.deaths, self.ticks, self.heard = 0, 0, 0, 0
        Shelf.images.clear()
        Shelf.fetched.clear()

    def __len__(self):
        return len(self.actors)

    def send(self, actor, calls):
        self.count += 1
        self.queues[actor].append((self.count, pickle.dumps(tuple(calls))))
        return self.count

    def _run(self, actor):
        ticket, data = self.queues[actor].pop(0)
        if actor in self.dead:
            self.answers[ticket] = ActorDied("it was killed")
            return
        calls = pickle.loads(data)
        self.ticks += any(call.name in ("tick", "make") for call in calls)
        doomed = (
            self.kills and self.ticks > 2 and self.row[actor] < 2 and self.rng.random() < self.often
        )
        if (self.hopeless and actor == 0) or (doomed and self.rng.random() < 0.5):
            self._kill(actor, ticket)
            return
        try:
            turn, images = put_aside(self.actors[actor].turn(calls))
            self.answers[ticket] = pickle.dumps(located(turn, map(Shelf.put, images)))
        except Exception as error:
            self.answers[ticket] = error
        if doomed:
            self._kill(actor, ticket)
        else:
            self.row[actor] = 0

    def _kill(self, actor, ticket):
        self.kills -= 1
        self.deaths += 1
        self.row[actor] += 1
        self.dead.add(actor)
        self.answers[ticket] = ActorDied("it was killed")

    def ready(self, tickets, seconds):
        for actor in self.rng.sample(range(len(self)), len(self)):
            while self.queues[actor] and self.rng.random() < 0.7:
                self._run(actor)
        done = [ticket for ticket in tickets if ticket in self.answers]
        if not done and seconds:
            return self.ready(tickets, seconds)
        return done

    def answer(self, ticket):
        answer = self.answers.pop(ticket)
        if isinstance(answer, Exception):
            raise answer
        self.heard += len(answer)
        turn = pickle.loads(answer)
        return turn

    def restart(self, actor):
        self.dead.discard(actor)
        self.queues[actor].clear()
        self.actors[actor] = self.make()

    def close(self):
        pass


class Deadly:
    """Mean pixel values. Where `folder` holds a file `deadly` it takes it away and kills the
    process, at its tenth call; where it holds `interrupt`, that call is interrupted as by
    Ctrl-C."""

    name = "deadly"

    def __init__(self, folder):
        self.folder, self.calls = folder, 0

    def __call__(self, images, prompts, level):
        self.calls += 1
        if self.calls == 10 and self._told("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == 10 and self._told("interrupt"):
            raise KeyboardInterrupt
        return images.double().mean((1, 2, 3))

    def _told(self, what):
        """Whether the file is there, which is then gone: one process alone is told."""
        try:
            (self.folder / what).unlink()
        except FileNotFoundError:
            return False
        return True


class Brightest:
    """Mean of rounded pixels, in which the last digits decide nothing."""

    name = "brightest"

    def __call__(self, images, prompts, level):
        return ((images * 2**12).round() / 2**12).double().mean((1, 2, 3))

    def check(self, prompts):
        if "" in prompts:
            raise ValueError("an empty prompt cannot be scored")


def mixture(steps):
    means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return MixtureDenoiser(means, torch.full((4,), 0.3), torch.ones(4), steps=steps)


def tiny():
    """An engine that takes milliseconds, with a kernel that draws noise."""
    denoiser = mixture(8)
    return LiveEngine(denoiser, [Brightest()], EngineOptions(3), kernel=KERNELS["sde"](denoiser))


@dataclass(frozen=True)
class ToyBuilder:
    """A Gaussian mixture in place of a pipeline; the reward is the folder of a Deadly one. Of what
    loads pipelines it imports nothing, which would take workers seconds."""

    spec: EngineSpec

    def recording(self):
        torch.set_num_threads(1)
        reward = Deadly(self.spec.rewards[0])
        return LiveEngine(mixture(4), [reward], EngineOptions(2)), {"device": "cpu"}
