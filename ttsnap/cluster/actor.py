"""What runs on one device, a live engine here, and carries out the calls of a driver elsewhere. It
knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ttsnap.cluster import messages as m
from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.needs import Gradient
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.rows import Row
from ttsnap.profiling.meter import Meter


class Actor:
    """What a process of a cluster has. Its public methods are those that `Call` names."""

    def turn(self, calls: Sequence[m.Call[Any]]) -> m.Turn:
        """Carry these out in order. What they raise, it raises."""
        answer = None
        for call in calls:
            answer = call.on(self)
        return self._turn(answer)

    def _turn(self, answer: object) -> m.Turn:
        """An answer, with what was counted."""
        return m.Turn(answer)


class EngineActor(Actor):
    """One engine on a device, whose memory and energy it measures."""

    def __init__(self, make: Callable[[], LiveEngine]) -> None:
        self.engine = make()
        self._counted, self._following = Cost(), 0
        self._meter, self._begun, self._measures = (
            Meter(self.engine.denoiser.device),
            ExitStack(),
            False,
        )

    def _turn(self, answer: object) -> m.Turn:
        engine = self.engine
        return m.Turn(
            answer,
            self._all() - self._counted,
            engine.nfe,
            engine.room,
            dict(engine.timings),
            engine.calibration_cost,
            engine.notices,
        )

    def _all(self) -> Cost:
        """All that the engine has ever counted."""
        return Cost(**{name: self.engine.stats[name] for name in NAMES})

    def start(
        self,
        prompts: Mapping[int, Prompt] | None = None,
        following: int = 0,
        gradient: Gradient | None = None,
        weights: Mapping[int, float] | None = None,
    ) -> None:
        """Forget all jobs, and continue with those of these prompts, by number.

        following: the number of the next job. gradient: the one that an algorithm needs on this
            cluster.
        weights: of the jobs that have one.
        """
        self.engine.start()
        self._counted, self._following = self._all(), following
        if gradient is not None:
            self.engine.differentiate(gradient)
        self.engine.resume(prompts or {}, following)
        for job, weight in (weights or {}).items():
            self.engine.weigh(job, weight)

    def describe(self) -> m.Description:
        """What the engine is."""
        e = self.engine
        sizes = e.batch_sizes if e.executor.prompts.living else {}  # which take a prompt to measure
        return m.Description(
            e.grid, e.reward_names, e.keep, e.draft_calls, e.offers, e.price, sizes
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """ValueError for prompts that the rewards cannot score."""
        self.engine.check(prompts)

    def begin_measuring(self) -> None:
        """Begin to measure memory and energy."""
        self._begun.pop_all().close()
        self._begun.enter_context(self._meter)
        self._measures = True

    def end_measuring(self) -> RunUsage | None:
        """What was used since; None where a predecessor of this actor began."""
        self._begun.pop_all().close()
        usage = self._meter.summary() if self._measures else None
        self._measures = False
        return usage

    def calibrate(self) -> tuple[Cost, m.Description]:
        """Measure price.seconds; what that took, and the engine with its price."""
        return self.engine.calibrate(), self.describe()

    def differentiate(self, gradient: Gradient) -> m.Description:
        """Get ready for rows that ASCEND."""
        self.engine.differentiate(gradient)
        return self.describe()

    def admit(self, first: int, prompts: Sequence[Prompt]) -> m.Description:
        """New jobs, numbered from `first` on. Jobs that `start` has made are left as they are."""
        new = prompts[self._following - first :]
        if new:
            self.engine.admit(new)
        self._following = first + len(prompts)
        return self.describe()

    def retract(self, following: int) -> None:
        """Forget the jobs from number `following` on, which is the next one: not all actors could
        admit them."""
        self._following = following
        self.engine.executor.prompts.retract(following)

    def weigh(self, job: int, weight: float) -> None:
        """Let a job have so many turns where others have one."""
        self.engine.weigh(job, weight)

    def release(self, job: int) -> None:
        """Forget a job."""
        self.engine.release(job)

    def drop(self, job: int, uids: Sequence[int]) -> None:
        """Forget particles."""
        self.engine.drop(job, uids)

    def tick(self) -> list[Outcome]:
        """Run one batch; the rows that are done."""
        return list(map(on_cpu, self.engine.tick()))

    def cancel(self, job: int) -> tuple[list[Outcome], Outcome]:
        """Take a job's rows off the queue: what is done by then, and how far each other row got."""
        rest = self.engine.cancel(job)
        return list(map(on_cpu, self.engine.arrived())), on_cpu(rest)

    def submit(self, job: int, plan: Plan) -> None:
        """Queue the rows of a part of a plan."""
        self.engine.submit(job, plan)

    # --- what a dead actor had --------------------------------------------------------------------

    @torch.no_grad()
    def remake(self, jobs: Sequence[m.Remake]) -> None:
        """Make the particles of these jobs again that a dead actor had, side by side: all is done
        again, scores included, so that nothing differs but what it took."""
        engine = self.engine
        again: list[Row] = []
        for at in range(max(len(job.plans) for job in jobs)):
            for job in jobs:
                if at < len(job.plans):
                    due = job.open if at == len(job.plans) - 1 else ()
                    again += self._begin_again(job.job, job.plans[at], due)
            while engine.pending() or engine.asked:
                engine.tick()
        engine.scheduler.add(again)

    def _begin_again(self, job: int, plan: Plan, due: Collection[int]) -> list[Row]:
        """Queue the rows of a plan, but for those of particles that are due, which are returned.
        All start from where particles were before the plan."""
        engine = self.engine
        engine.drop(job, plan.drop.tolist())
        rows = engine.row_builder.rows_of(job, plan)
        engine.stepper.mark(rows)
        engine.scheduler.add([row for row in rows if row.uid not in due])
        return [row for row in rows if row.uid in due]


def on_cpu(outcome: Outcome) -> Outcome:
    """The same with what listeners get of it where any process can read it."""
    return replace(
        outcome, kept=[{name: value.cpu() for name, value in one.items()} for one in outcome.kept]
    )
