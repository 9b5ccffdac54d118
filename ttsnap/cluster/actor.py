"""What runs on one device, a live engine here, and carries out the calls of a driver elsewhere. It
knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ttsnap.cluster import messages as m
from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.needs import Gradient
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.engine.live import LiveEngine
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
        self._counted = Cost()
        self._meter = Meter(self.engine.denoiser.device)
        self._begun = ExitStack()
        self._measures = False

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

    def start(self, gradient: Gradient | None = None) -> None:
        """Forget all jobs. gradient: the one that an algorithm needs on this cluster."""
        self.engine.start()
        self._counted = self._all()
        if gradient is not None:
            self.engine.differentiate(gradient)

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

    def admit(self, prompts: Sequence[Prompt]) -> m.Description:
        """New jobs."""
        self.engine.admit(prompts)
        return self.describe()

    def retract(self, following: int) -> None:
        """Forget the jobs from number `following` on, which is the next one: not all actors could
        admit them."""
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


def on_cpu(outcome: Outcome) -> Outcome:
    """The same with what listeners get of it where any process can read it."""
    return replace(
        outcome, kept=[{name: value.cpu() for name, value in one.items()} for one in outcome.kept]
    )
