"""What runs on one device, a live engine here, and carries out the commands of a driver elsewhere. It knows no Ray."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

import torch

from ttsnap.cluster import messages as m
from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.scheduler import Batch
from ttsnap.engine.store import Node, Particle
from ttsnap.profiling.meter import Meter


class Builder(Protocol):
    """What makes an engine, in the process that it was sent to (ttsnap.pipelines.engine_factory.EngineBuilder)."""

    def build(self) -> LiveEngine: ...


class Actor(ABC):
    """Of one device, whose memory and energy it measures."""

    def __init__(self, device: torch.device) -> None:
        self._meter, self._begun, self._measures = Meter(device), ExitStack(), False

    def turn(self, commands: Sequence[m.Command]) -> m.Turn:
        """Carry these out in order. What they raise, it raises."""
        turn = m.Turn()
        for command in commands:
            if isinstance(command, m.Measure):
                self._measure(turn, end=command.end)
            else:
                self._do(command, turn)
        self._tell(turn)
        return turn

    @abstractmethod
    def _do(self, command: m.Command, turn: m.Turn) -> None:
        """Carry a command out, and put what came of it into the answer. TypeError for one that is not for it."""

    @abstractmethod
    def _tell(self, turn: m.Turn) -> None:
        """Put into the answer what belongs into each."""

    def _measure(self, turn: m.Turn, *, end: bool) -> None:
        """Begin, or put into the answer what was used since; nothing where a predecessor of this actor began."""
        self._begun.pop_all().close()
        if not end:
            self._begun.enter_context(self._meter)
            self._measures = True
        elif self._measures:
            turn.usage, self._measures = self._meter.summary(), False


class EngineActor(Actor):
    """One engine."""

    def __init__(self, recipe: Builder) -> None:
        self.engine = recipe.build()
        self._counted = Cost()
        super().__init__(self.engine.denoiser.device)

    def _tell(self, turn: m.Turn) -> None:
        turn.ran, turn.nfe, turn.room = self._all() - self._counted, self.engine.nfe, self.engine.room
        turn.timings = dict(self.engine.timings)

    def _do(self, command: m.Command, turn: m.Turn) -> None:
        engine = self.engine
        match command:
            case m.Tick():
                turn.outcomes += map(on_cpu, engine.tick())
            case m.Submit(job, plan, copies):
                self._submit(job, plan, copies)
            case m.Copy(number, job, uids, drop):
                turn.copies[number] = packed({uid: engine.store[job, uid] for uid in uids})
                engine.drop(job, drop)
            case m.Drop(job, uids):
                engine.drop(job, uids)
            case m.Cancel(job):
                turn.cancelled.append(on_cpu(engine.cancel(job)))
            case m.CheckPrompts(prompts):
                engine.check(prompts)
            case m.Admit(prompts):
                engine.admit(prompts)
            case m.Retract(following):
                engine.executor.prompts.retract(following)
            case m.Weigh(job, weight):
                engine.weigh(job, weight)
            case m.Release(job):
                engine.release(job)
            case m.Start():
                self._start(command)
            case m.RemakeAll(jobs):
                self._remake(jobs)
            case m.Calibrate():
                turn.calibrated = engine.calibrate()
            case m.Differentiate(gradient):
                engine.differentiate(gradient)
            case m.Describe():
                turn.description = self._described()
            case _:
                raise TypeError(f"an actor with an engine knows no {type(command).__name__}")

    def _start(self, start: m.Start) -> None:
        self.engine.start()
        self._counted = self._all()
        if start.gradient is not None:
            self.engine.differentiate(start.gradient)
        self.engine.resume(start.prompts, start.following)
        for job, weight in start.weights.items():
            self.engine.weigh(job, weight)

    def _all(self) -> Cost:
        """All that the engine has ever counted."""
        return Cost(**{name: self.engine.stats[name] for name in NAMES})

    def _described(self) -> m.Description:
        e = self.engine
        sizes = e.batch_sizes if e.executor.prompts.living else {}  # measured with a prompt, where that is asked
        fair = e.scheduler.turns is not None
        return m.Description(
            e.grid, e.reward_names, e.keep, e.draft_calls, e.offers, e.price, e.calibration_cost, fair, sizes
        )

    def _submit(self, job: int, plan: Plan, copies: Iterable[bytes]) -> None:
        """Queue rows that may start from copies. One that is here by itself, too, has gone on since it was copied."""
        store, particles = self.engine.store, {k: v for data in copies for k, v in self._unpacked(data).items()}
        here = {uid: store.get((job, uid)) for uid in particles}
        for uid, particle in particles.items():
            store[job, uid] = particle
        self.engine.submit(job, plan)
        for uid in set(particles) - set(plan.uid.tolist()):
            own = here[uid]
            store.remove(job, [uid])
            if own is not None:
                store[job, uid] = own

    def _unpacked(self, data: bytes) -> dict[int, Particle]:
        """What `packed` wrote in another actor of this cluster, on this one's device."""
        particles: dict[int, Particle] = torch.load(
            io.BytesIO(data), map_location=self.engine.denoiser.device, weights_only=False
        )
        return particles

    # --- what a dead actor had --------------------------------------------------------------------------------

    @torch.no_grad()
    def _remake(self, jobs: Sequence[m.Remake]) -> None:
        engine, store = self.engine, self.engine.store
        for at in range(max((len(job.earlier) for job in jobs), default=0)):
            for job in jobs:
                if at < len(job.earlier):
                    engine.submit(job.job, job.earlier[at])
            self._drain()
        for job in jobs:
            self._complete([store[job.job, uid].node for uid in job.before])
            self._differentiated([store[job.job, uid].node for uid in job.gradients if (job.job, uid) in store])
        again = []
        for job in jobs:
            if job.plan is None:
                continue
            # All rows start from where particles were before the plan, so that they are made together.
            rows = engine.row_builder.rows_of(job.job, job.plan)
            engine.stepper.mark(rows)
            for row in rows:
                if row.uid in job.done:
                    engine.scheduler.add([row])
                else:
                    again.append(row)
        self._drain()
        for job in jobs:
            mine = [uid for of, uid in store if of == job.job]
            store.remove(job.job, set(mine) - job.keep)
            self._complete([store[job.job, uid].node for uid in job.after])
            self._differentiated([store[job.job, uid].node for uid in job.gradients if (job.job, uid) in store])
        engine.scheduler.add(again)

    def _drain(self) -> None:
        """Carry out what is queued, of which nothing is scored."""
        while self.engine.pending():
            self.engine.tick()

    def _complete(self, nodes: Iterable[Node]) -> None:
        """Evaluate those of these nodes that are not."""
        size = self.engine.batch_size
        while left := [node for node in nodes if node.prediction is None]:
            self.engine.executor.forward(Batch([], left[:size]), self.engine.stepper)

    def _differentiated(self, nodes: Sequence[Node]) -> None:
        """Give those of these nodes their gradients that have none."""
        with torch.enable_grad():
            left = [node for node in nodes if node.gradient is None]
            self.engine.executor.differentiate(left, self.engine.stepper)


def packed(particles: dict[int, Particle]) -> bytes:
    """Particles of one job by uid, as other actors of the same cluster read them."""
    data = io.BytesIO()
    torch.save(particles, data)
    return data.getvalue()


def on_cpu(outcome: Outcome) -> Outcome:
    """The same with what listeners get of it where any process can read it."""
    return replace(outcome, kept=[{name: value.cpu() for name, value in one.items()} for one in outcome.kept])
