"""Recordings by several workers: actors with an engine each, which make units.

Workers write images, so all machines must share the folder. Scores come back to this process, which
writes them. The files are those of a single process, in whatever order units are finished.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import ray

from ttsnap.cluster.actor import Actor
from ttsnap.cluster.actor_group import MOST_DEATHS, ActorGroup, Pool
from ttsnap.cluster.messages import Call
from ttsnap.cluster.ray_pool import Hosts, RayPool
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import EngineLost
from ttsnap.engine.live import LiveEngine
from ttsnap.files.settings import Json
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import begun_block, shard_path
from ttsnap.recordings.header import Unit
from ttsnap.recordings.record import Making, RecordedUnit, RecordingSetup, describe, keep, make_unit
from ttsnap.recordings.replay import Recording
from ttsnap.request.request import EngineSpec


class RecordingBuilder(Protocol):
    """Makes an engine, and tells what a recording says of it
    (ttsnap.pipelines.engine_factory.EngineBuilder)."""

    @property
    def spec(self) -> EngineSpec: ...

    def recording(self) -> tuple[LiveEngine, dict[str, Json]]: ...


class RecordingActor(Actor):
    """A worker. It loads the model at its first call."""

    def __init__(self, builder: RecordingBuilder, folder: Path) -> None:
        """folder: the one that file names start from."""
        self.builder = builder
        self.folder = folder

    def load(self) -> None:
        """Load the model. ValueError where something does not fit."""
        assert self._engine

    def describe(self, prompts: Sequence[Prompt], options: RecordOptions) -> RecordingSetup:
        """The recording that is to be made. ValueError where something does not fit."""
        engine, info = self._engine
        return describe(engine, prompts, options, info)

    def begin(self, setup: RecordingSetup) -> None:
        """Begin with the units of this recording."""
        self.setup = setup

    def make(self, unit: Unit, path: Path) -> RecordedUnit:
        """A unit, with its images at `path`."""
        return make_unit(self._engine[0], self.setup, unit, path, lambda nfe: None)

    @cached_property
    def _engine(self) -> tuple[LiveEngine, dict[str, Json]]:
        """The engine, and what a recording says of it."""
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} is no folder on the machine {os.uname().nodename}: work in one that"
                " all machines of the cluster share"
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
    """As `ttsnap.recordings.record.record`, by so many workers, in a session of Ray that has begun
    (`devices.connect`).

    A worker that is lost costs the unit that it was at, which its successor makes again. A
    recording that is resumed may have been begun with another number of workers, or with none.
    Raises ValueError, in addition to the reasons of that function, where a unit costs several
    workers.
    """
    gpu = on_gpus(builder.spec.model.device, workers)
    with closing(Hosts(workers, gpu=gpu)) as hosts:
        pool = RayPool(hosts, partial(RecordingActor, builder, Path.cwd()))
        setup, making = recorded_by(
            pool, [Prompt.of(prompt) for prompt in prompts], folder.resolve(), options
        )
        return keep(setup, folder.resolve(), making, progress_bar=progress_bar)


def recorded_by(
    pool: Pool, prompts: Sequence[Prompt], folder: Path, options: RecordOptions
) -> tuple[RecordingSetup, Making]:
    """The recording that is to be made, and how workers make its units. ValueError where something
    does not fit."""
    at_work: dict[int, Unit] = {}

    def revived(actor: int) -> None:
        if at_work:
            group.postpone([actor], Call(RecordingActor.begin, setup))

    def failed(error: Exception) -> None:
        raise error

    group = ActorGroup(pool, revived)
    for actor in range(len(group)):  # all load side by side
        group.post(actor, Call(RecordingActor.load))
    options = replace(options, block=options.block or begun_block(folder))
    try:
        setup = group.ask([0], Call(RecordingActor.describe, prompts, options))[0]
    except EngineLost:
        raise ValueError(
            f"{MOST_DEATHS} workers were lost while they loaded the model: killed, or out of memory"
        ) from None

    def making(
        units: list[Unit], on_nfe: Callable[[float], None], stopping: Callable[[], bool]
    ) -> Iterator[tuple[Unit, RecordedUnit]]:
        waiting = deque(units)
        done = deque[tuple[Unit, RecordedUnit]]()

        def next_unit(actor: int) -> None:
            at_work.pop(actor, None)
            if waiting and not stopping():
                at_work[actor] = unit = waiting.popleft()
                call = Call(RecordingActor.make, unit, shard_path(folder, unit))
                group.post(actor, call, partial(made, actor, unit), failed=failed)

        def made(actor: int, unit: Unit, made: RecordedUnit) -> None:
            done.append((unit, made))
            next_unit(actor)

        for actor in range(len(group)):
            group.postpone([actor], Call(RecordingActor.begin, setup))
            next_unit(actor)
        while at_work or done:
            try:
                group.listen(1.0)
            except EngineLost:
                unit = at_work[max(at_work, key=group.deaths.__getitem__)]
                raise ValueError(
                    f"unit {unit.index} was begun {MOST_DEATHS} times, and each time the worker"
                    " that had it was lost: killed, or out of memory. What is finished is kept"
                ) from None
            while done:
                unit, scores = done.popleft()
                on_nfe(len(unit.prompts) * len(unit.seeds) * setup.nfe)
                yield unit, scores

    return setup, making


def on_gpus(device: str, workers: int) -> bool:
    """Whether each worker takes a GPU: where there are any, unless it is to run on the CPU; else it
    takes a core.

    ValueError where there are not enough for so many workers, and for the name of a single device.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(
            f"every worker has a device of its own: give --device auto, cuda or cpu, got {device}"
        )
    has = ray.cluster_resources()
    kind = "GPU" if device != "cpu" and has.get("GPU", 0) else "CPU"
    if device == "cuda" and kind == "CPU":
        raise ValueError("no GPU is there for --device cuda")
    if has.get(kind, 0) < workers:
        raise ValueError(
            f"{workers} workers take a {kind} each, and there are {has.get(kind, 0):.0f}"
        )
    return kind == "GPU"
