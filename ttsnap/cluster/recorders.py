"""Recordings by several workers: each is an actor of Ray that has an engine of its own, and makes units with it.

Images are written where they are made, so all machines must see the folder; scores come back, and this process keeps
the journal. The files are those that a single process writes, in which order units may ever be finished.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

import ray
from ray.actor import ActorHandle, ActorProxy
from ray.exceptions import RayError, RayTaskError

from ttsnap.core.prompt import Prompt
from ttsnap.engine.live import LiveEngine
from ttsnap.files.settings import Json
from ttsnap.options.model import ModelOptions
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import shard_path
from ttsnap.recordings.header import Unit
from ttsnap.recordings.record import describe, keep
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.units import Described, Made, make_unit
from ttsnap.request.spec import EngineSpec

if TYPE_CHECKING:
    from ray import ObjectRef

Answer = TypeVar("Answer")
Work = TypeVar("Work")
Done = TypeVar("Done")
TRIES = 3
"""So many workers may be lost over one unit before it is given up: it is likely to be what ends them."""


class RecordingBuilder(Protocol):
    """Makes an engine, and tells what a recording says of it (ttsnap.pipelines.engine_factory.EngineBuilder)."""

    @property
    def spec(self) -> EngineSpec: ...

    def recording(self) -> tuple[LiveEngine, dict[str, Json]]: ...


class RecordingWorker:
    """A worker, in a process of its own. It loads the model at its first call, so that all workers load at once."""

    def __init__(self, builder: RecordingBuilder, folder: Path) -> None:
        """folder: the one that file names start from."""
        self.builder, self.folder = builder, folder

    @ray.method
    def ready(self) -> None:
        """Load the model. What is wrong with it is raised by the call that needs it: of this one nobody asks."""
        with suppress(Exception):
            assert self._engine

    @ray.method
    def describe(self, prompts: Sequence[Prompt], options: RecordOptions) -> Described:
        """What it is about to record. ValueError where something does not fit."""
        engine, info = self._engine
        return describe(engine, prompts, options, info)

    @ray.method
    def make(self, what: Described, unit: Unit, path: Path) -> Made:
        """A unit, with its images at `path`."""
        return make_unit(self._engine[0], what, unit, path, lambda nfe: None)

    @cached_property
    def _engine(self) -> tuple[LiveEngine, dict[str, Json]]:
        """The engine, and what a recording says of it."""
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} is no folder on the machine {os.uname().nodename}: work in one that all machines "
                "of the cluster share"
            )
        os.chdir(self.folder)
        return self.builder.recording()


def record(
    builder: RecordingBuilder,
    prompts: Sequence[str | Prompt],
    folder: Path,
    options: RecordOptions,
    *,
    workers: int,
    progress_bar: bool = False,
) -> Recording:
    """As `ttsnap.recordings.record.record`, by so many workers, in a session of Ray that has begun (`session.connect`).

    A worker that is lost costs the unit that it was at, which is made again by another one. What is gone on with may
    have been begun with another number of workers, or with none. Raises ValueError, beside the reasons there, where a
    unit costs several workers.
    """
    folder = folder.resolve()
    with _Recorders(builder, workers) as group:
        what = group.describe([Prompt.of(prompt) for prompt in prompts], options)

        def making(units: list[Unit], on_nfe: Callable[[float], None]) -> Iterator[tuple[Unit, Made]]:
            group.record_into(folder, what)
            for unit, made in dispatch(units, group, workers, lambda unit: f"unit {unit.index}"):
                on_nfe(len(unit.prompts) * len(unit.seeds) * what.nfe)
                yield unit, made

        return keep(what, folder, making, progress_bar=progress_bar)


class WorkerPool(ABC, Generic[Work, Done]):
    """Workers, by number from 0."""

    @abstractmethod
    def begin(self, worker: int, unit: Work) -> None:
        """Let a worker that is free do this unit; returns at once."""

    @abstractmethod
    def finished(self) -> tuple[int, Done | None]:
        """Wait for any of those at work: its number, and what it made, or None where it is lost."""

    @abstractmethod
    def replace(self, worker: int) -> None:
        """Put a new worker in the place of one that is lost; returns at once."""


def dispatch(
    units: Iterable[Work], pool: WorkerPool[Work, Done], workers: int, name: Callable[[Work], str]
) -> Iterator[tuple[Work, Done]]:
    """Each unit with what was made of it, in the order in which they are finished; they are begun in the given order.

    A unit whose worker is lost is begun again, before all that wait. Raises ValueError where that happens TRIES times
    to the same one, which `name` tells.
    """
    waiting, free, at_work, lost = deque(units), deque(range(workers)), dict[int, Work](), Counter[str]()
    while waiting or at_work:
        while waiting and free:
            worker = free.popleft()
            at_work[worker] = waiting.popleft()
            pool.begin(worker, at_work[worker])
        worker, done = pool.finished()
        unit = at_work.pop(worker)
        free.append(worker)
        if done is not None:
            yield unit, done
            continue
        lost[name(unit)] += 1
        if lost[name(unit)] == TRIES:
            raise ValueError(
                f"{name(unit)} was begun {TRIES} times, and each time the worker that had it was lost: killed, or out "
                "of memory. What is finished is kept"
            )
        waiting.appendleft(unit)
        pool.replace(worker)


class _Recorders(WorkerPool[Unit, Made], AbstractContextManager["_Recorders"]):
    """The workers, and what they are at; leaving the block ends them, whatever they are at."""

    def __init__(self, builder: RecordingBuilder, count: int) -> None:
        self.builder, self.resources = builder, resources_of((builder.spec.model or ModelOptions()).device, count)
        self.actors = [self._new() for _ in range(count)]
        self.at_work: dict[ObjectRef[Made], int] = {}

    def _new(self) -> ActorProxy[RecordingWorker]:
        actor = ray.remote(RecordingWorker).options(**self.resources).remote(self.builder, Path.cwd())
        actor.ready.remote()  # is not waited for
        return actor

    def describe(self, prompts: Sequence[Prompt], options: RecordOptions) -> Described:
        """By the first worker: models are loaded nowhere else. ValueError as the function of that name."""
        for _ in range(TRIES):
            if (what := _got(self.actors[0].describe.remote(list(prompts), options))) is not None:
                return what
            self.replace(0)
        raise ValueError(f"{TRIES} workers were lost while they loaded the model: killed, or out of memory")

    def record_into(self, folder: Path, what: Described) -> None:
        """What units belong to, before the first is begun."""
        self.folder, self.what = folder, ray.put(what)

    def begin(self, worker: int, unit: Unit) -> None:
        made = self.actors[worker].make.remote(self.what, unit, shard_path(self.folder, unit))
        self.at_work[made] = worker

    def finished(self) -> tuple[int, Made | None]:
        (made, *_), _ = ray.wait(list(self.at_work))
        return self.at_work.pop(made), _got(made)

    def replace(self, worker: int) -> None:
        _end(self.actors[worker])
        self.actors[worker] = self._new()

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            _end(actor)


def _end(actor: ActorProxy[RecordingWorker]) -> None:
    """At once, whatever it is at; nothing where it has ended."""
    ray.kill(cast("ActorHandle[RecordingWorker]", actor))


def _got(made: ObjectRef[Answer]) -> Answer | None:
    """What a worker made; None where it is lost. What it raised is raised here as it was, without what Ray adds."""
    try:
        return ray.get(made)
    except RayTaskError as error:
        raise error.cause from None
    except RayError:
        return None


def resources_of(device: str, workers: int) -> dict[str, float]:
    """What each worker takes: a GPU where there are any, unless it is to run on the CPU; else a core.

    ValueError where there are not enough for so many workers, and for the name of a single device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"every worker has a device of its own: give --device auto, cuda or cpu, got {device}")
    there = ray.cluster_resources()
    what, kind = ("GPU", "num_gpus") if device != "cpu" and there.get("GPU", 0) else ("CPU", "num_cpus")
    if device == "cuda" and what == "CPU":
        raise ValueError("no GPU is there for --device cuda")
    if there.get(what, 0) < workers:
        raise ValueError(f"{workers} workers take a {what} each, and there are {there.get(what, 0):.0f}")
    return {kind: 1}
