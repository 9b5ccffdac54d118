"""What the core asks of an algorithm, an engine and a reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypedDict, runtime_checkable

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import Move
from ttsnap.core.needs import Gradient, Need, Needs
from ttsnap.core.outcome import Outcome
from ttsnap.core.particles import Particles
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt

if TYPE_CHECKING:  # the core runs without torch
    from torch import Tensor

Scores: TypeAlias = "Tensor | FloatArray | Sequence[float | Tensor]"
"""(N,) numbers, one of each image."""


AlgorithmState: TypeAlias = Any
"""What an algorithm knows of one search between two moves. Each has a type of its own for it, often
a NamedTuple, which nobody else looks into: the loop keeps what `init` or `step` gave, and hands it
to the next `step`."""


@runtime_checkable
class Algorithm(Protocol):
    """A search policy: a frozen dataclass of hyperparameters with two pure methods.

    `n` is the number of seeds; None asks for as many as the budget affords (see search.fit).
    `needs` declares what it asks of an engine (needs.py); the empty set, where it only starts seeds
    and takes them on. A move that does more than was declared is refused.
    """

    lockstep: ClassVar[bool]
    """Whether its moves have a shape that scores do not change, and it is written along the last
    axis."""

    @property
    def needs(self) -> Needs: ...

    @property
    def n(self) -> int | None: ...

    def init(self, task: Task) -> AlgorithmState:
        """State before the first move. Raises ValueError where the settings do not fit the task."""

    def step(
        self, state: AlgorithmState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, AlgorithmState]:
        """The next move, or None when done. Called only when every row of the last move has been
        carried out, as `particles.moved` tells."""


@runtime_checkable
class Adopting(Algorithm, Protocol):
    """An algorithm that can go on from what another one left alive, in place of seeds of its
    own."""

    def adopt(self, state: AlgorithmState, uids: IntArray, particles: Particles) -> AlgorithmState:
        """`state`, which `init` gave, such that the first move goes on from these living particles,
        best first."""


@runtime_checkable
class Refining(Adopting, Protocol):
    """One that improves what it adopts, for so many rounds; None for as many as the budget
    affords."""

    @property
    def rounds(self) -> int | None: ...


@runtime_checkable
class Widening(Algorithm, Protocol):
    """One that can start further seeds of which no more survive its first check."""

    def widened(self, more: int) -> Algorithm:
        """With `more` seeds than n, which is set. The first check ranks them all, and keeps as many
        as of n."""


@runtime_checkable
class Reward(Protocol):
    """Scores images. `name` labels it; higher is better.

    This is all that a reward needs. What it may have besides (`check`, `flops`, `differentiable`,
    `estimates` with `score_estimates`, ...) is what ttsnap.rewards.RewardModel has and explains;
    engines adapt what they are given.
    """

    name: str

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None) -> Scores:
        """images (N, 3, H, W) float in [0, 1], N prompts, level (N,) noise level of each estimate,
        None for finished images -> (N,) scores.

        Ordinary rewards ignore `level`; noise-aware ones do not. A NaN counts as a failed call on
        that image.
        """


class RunUsage(TypedDict, total=False):
    """What a run used besides evaluations, JSON-ready: None where it is unknown, no key where
    nothing is measured."""

    seconds: float
    peak_memory_bytes: int | None
    """The most memory that was held."""
    reserved_memory_bytes: int | None
    """The most that the allocator reserved."""
    memory_kind: str | None
    """Whose memory it is."""
    energy_joules: float | None
    energy_joules_per_image: float | None
    energy_kind: str | None
    """Where the joules come from."""


class UsageMeter(Protocol):
    """Tells what a run used besides evaluations, once its context is left
    (profiling.meter.Meter)."""

    def summary(self) -> RunUsage:
        """All that it knows."""


class EngineLost(RuntimeError):  # noqa: N818 (it is no mistake of the user)
    """An engine cannot go on; the message is a sentence that says why. What was found before can
    still be reported."""


class JobsLost(RuntimeError):  # noqa: N818 (it is no mistake of the user)
    """A part of an engine broke down with what it had: jobs can `begin_anew`."""


class Engine(ABC):
    """Carries plans out. Rows of several jobs (one job per prompt) share its batches.

    What is not abstract has a default, which is right for an engine that runs no model.
    """

    grid: Grid
    reward_names: tuple[str, ...]
    keep: tuple[str, ...] = ()
    """What it hands to listeners of each scored row beside the image: "latents"."""
    calibration_cost: Cost = Cost()
    """What it has spent before searches, on finding batch sizes and the like."""
    lost: Cost = Cost()
    """What it has computed in vain since `start`, because a part of it broke down; no ledger pays
    for it."""
    draft_calls: int = 0
    """Calls of its drafter in one draft, as its user wants it; 0 where it has no drafter."""

    @property
    @abstractmethod
    def offers(self) -> frozenset[Need]:
        """What algorithms may need of it: its sampler draws noise (BRANCH), has a path (RENOISE),
        ..."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Pending rows that keep it busy; with fewer, another prompt may be taken up."""

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Evaluations so far, for progress."""

    @property
    def ran(self) -> Cost:
        """All that it has run so far."""
        return Cost()

    @property
    @abstractmethod
    def price(self) -> Price:
        """The price of its work."""

    @property
    def room(self) -> int:
        """Places in its batches so far, taken or not, of which evaluations filled some; 0 where it
        has no batches."""
        return 0

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The sizes of its batches by name, on which the last digits of its results depend; none
        where they do not."""
        return {}

    @property
    def notices(self) -> tuple[str, ...]:
        """What results should say of how it computes."""
        return ()

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by phase since `start`; none where it does not take the time."""
        return {}

    def meter(self) -> AbstractContextManager[UsageMeter | None]:
        """Measures what runs inside it; gives None where nothing is measured."""
        return nullcontext()

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (to do nothing is a fine default)
        """ValueError for prompts that its rewards cannot score."""

    def calibrate(self) -> Cost:
        """Measure price.seconds; returns what that took."""
        return Cost()

    def differentiate(self, gradient: Gradient) -> None:  # noqa: B027
        """Get ready for rows that ASCEND along such gradients. ValueError where it cannot."""

    @abstractmethod
    def start(self) -> None:
        """Forget all jobs: those that are admitted from now on count from 0."""

    def begin_anew(self, paid: Cost) -> None:
        """Start again after JobsLost. paid: what of all that it ran jobs have paid for that are at
        their end."""
        self.start()

    def admit(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Get ready for these prompts beside those that there are: one job each, numbered on from
        the last one."""

    def release(self, job: int) -> None:  # noqa: B027
        """Forget all of this job, which has no row queued or under way."""

    def weigh(self, job: int, weight: float) -> None:  # noqa: B027
        """Let a job have so many turns in the batches where others have one, until it is released;
        nothing where jobs take no turns (EngineOptions.fair)."""

    @abstractmethod
    def submit(self, job: int, plan: Plan) -> None:
        """Queue the rows of a plan; row i takes on or makes particle plan.uid[i]."""

    @abstractmethod
    def pending(self) -> int:
        """Rows queued or under way, but for those that only wait for their scores."""

    @abstractmethod
    def tick(self) -> list[Outcome]:
        """One denoiser batch and whatever became ready for scoring; the rows that are now
        complete."""

    def arrived(self) -> list[Outcome]:
        """Rows that have become complete since the last `tick`, as by the time that a `cancel`
        takes effect; none where only `tick` completes rows. EngineLost where it cannot go on,
        JobsLost where it can begin anew; so may `tick` and `cancel`."""
        return []

    @abstractmethod
    def cancel(self, job: int) -> Outcome:
        """Take this job's rows off the queue; says how far each got."""

    def drop(self, job: int, uids: Sequence[int]) -> None:  # noqa: B027
        """Forget these particles' state."""
