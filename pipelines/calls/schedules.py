"""The schedule of a stock call: noise levels, x0 estimates and steps, also under schedulers that no list
names; and when its frames step.

What attributes say of noise levels and estimates is tried before use. Where a scheduler does
otherwise, as EDM's, both are measured: by the noise that it adds, and by what its steps make of
latents alone and of outputs alone."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.stepping import about_to_step
from ttsnap.pipelines.calls.stock_call import StockCall, Told
from ttsnap.pipelines.latents.convert import own_path, timestep_unit
from ttsnap.pipelines.latents.schedule import (
    SUPPORTED,
    WHY_NOT,
    Schedule,
    check_scheduler,
    laid_open,
)
from ttsnap.sampling.rng import seeded

# --- When the frames of a call step: its schedule from the first step on, and what frames are told
# A search may begin later than the call, with finished drafts, so that its positions are not those of
# frames. A call that was converted to another path steps at times of that path.


@dataclass(frozen=True)
class FrameTimes:
    """Of one call."""

    whole: Schedule
    """From its first step on."""
    converted: bool = False
    """Whether frames are told other timesteps than their scheduler's, and given latents in the
    network's scale."""

    @property
    def last(self) -> int:
        """The index of finished latents."""
        return len(self.whole.timesteps)

    def before(self, schedule: Schedule) -> int:
        """Evaluations before the first position of a schedule, which ends as the whole one."""
        return self.last - len(schedule.timesteps)

    @property
    def known_path(self) -> bool:
        """Whether it is known on which path between data and noise the model was trained."""
        try:
            own_path(self.whole)
        except ValueError:
            return False
        return True

    def telling(self, call: StockCall) -> StockCall:
        """A call whose frames step at these times."""
        if self.converted:
            return replace(call, told=self._told(), scaled=unscaled)
        if self.whole.scale is None:
            return call
        return replace(call, scaled=functools.partial(_scaled, self.whole))

    def told_at(
        self, scheduler: Any, index: int, timestep: float, *, begin: int, arrives: bool
    ) -> Told:
        """What a frame's scheduler says that evaluates at an index, but is told this timestep.

        scheduler: the call's own. begin: its position at the call's first step. arrives: whether
        the step is to arrive at the end.
        """
        own = self._told() if self.converted else Told.of(scheduler)
        position = index if self.converted else begin + index
        told = own.at(position, timestep)
        return told.arriving(position) if arrives else told._replace(sigmas=None)

    def _told(self) -> Told:
        """What frames are told of a call that was converted."""
        whole = self.whole
        times = self.whole.timesteps.float()
        if whole.prediction != "flow":
            return Told(times)
        levels = times / timestep_unit(whole, own_path(whole))
        return Told(times, torch.cat([levels, torch.zeros(1)]))


def unscaled(x: Tensor, index: int) -> Tensor:
    """The network's input of latents that were scaled before they were put in."""
    return x


def _scaled(schedule: Schedule, x: Tensor, index: int) -> Tensor:
    """The network's input of latents (n, ...), or of one number, at an index."""
    rows = x if x.ndim else x[None]
    made = schedule.scaled(rows, torch.full([len(rows)], index))
    return made if x.ndim else made[0]


# --- The schedule of a stock call, also under schedulers that no list names -----------------------
# What attributes say of noise levels and estimates is tried before use. Where a scheduler does
# otherwise, as EDM's, both are measured: by the noise that it adds, and by what its steps make of
# latents alone and of outputs alone.

ESTIMATES = ("pred_original_sample", "denoised", "pred_x0")
"""What schedulers call the x0 estimate in what their step returns."""
UNKNOWN = (AttributeError, TypeError, RuntimeError, IndexError, ValueError)
"""What schedulers raise that are laid open and are not built as others."""


def schedule_of(rehearsed: Rehearsal) -> Schedule:
    """The schedule of a rehearsed call.

    ValueError for schedulers whose noise levels or estimates are not known, and for fields of a
    round whose noise levels differ.
    """
    schedule = _of(rehearsed.scheduler, rehearsed)
    if rehearsed.overwrites and getattr(schedule.kernel, "copied", False):
        schedule = _overwritten(schedule, rehearsed)
    for scheduler in rehearsed.others:
        other = _of(scheduler, rehearsed)
        alike = torch.allclose(other.sigma, schedule.sigma, atol=1e-6)
        if not alike or other.prediction != schedule.prediction:
            raise ValueError(
                "search cannot use this call yet: a round steps schedulers of different noise "
                f"levels, {_levels(schedule)} and {_levels(other)}"
            )
    return schedule


def _overwritten(schedule: Schedule, rehearsed: Rehearsal) -> Schedule:
    """The schedule of a call that writes into latents which its scheduler keeps.

    ValueError unless it is known what it writes.
    """
    if not rehearsed.writes_steps:
        raise ValueError(
            f"search cannot use this call's {type(schedule.scheduler).__name__} yet: it keeps "
            "latents that the call changes in place; set pipe.scheduler to one without a history"
        )
    kernel: Any = schedule.kernel
    return replace(schedule, kernel=replace(kernel, overwritten=True))


def _of(scheduler: Any, rehearsed: Rehearsal) -> Schedule:
    """The schedule of one scheduler of a rehearsed call."""
    name = type(scheduler).__name__
    begin = rehearsed.begin
    known = name in SUPPORTED | WHY_NOT.keys()
    if known:
        check_scheduler(scheduler)
    steps = _Steps(scheduler, begin, rehearsed)
    try:
        arguments = rehearsed.step_arguments
        count = len(rehearsed.times)
        schedule = laid_open(scheduler, begin=begin, count=count, step_arguments=arguments)
        if known or steps.agree_with(schedule):
            return schedule
        measured = steps.measured(schedule)
        if steps.agree_with(measured):
            return measured
    except UNKNOWN as error:
        raise ValueError(
            f"search cannot use this call's {name} yet: {error}; set pipe.scheduler to another one"
        ) from error
    raise ValueError(
        f"search cannot use {name} yet: its x0 estimates are no sum of latents and output; set "
        "pipe.scheduler to another one"
    )


@dataclass(frozen=True)
class _Steps:
    """The steps of one scheduler of a rehearsed call, by positions of the call."""

    scheduler: Any
    begin: int
    """Steps of the scheduler before the call's first."""
    rehearsed: Rehearsal

    def agree_with(self, schedule: Schedule) -> bool:
        """Whether its x0 estimates are those of a schedule, at its begin and in its middle."""
        shape = self.rehearsed.latents.shape
        x, out = (torch.randn(shape, generator=seeded(seed)) for seed in (0, 1))
        for at in {0, len(self.rehearsed.times) // 2}:
            estimate = schedule.x0(x, out, torch.tensor([at]))
            own = self.x0(schedule, x, out, at)
            if not torch.allclose(estimate, own, rtol=1e-3, atol=1e-3):
                return False
        return True

    def measured(self, schedule: Schedule) -> Schedule:
        """A schedule with noise levels of the noise that it adds, and its steps' x0 estimates."""
        n = len(self.rehearsed.times)
        alpha, sigma = _noised(schedule, n)
        levels = sigma.double() / (alpha.double() + sigma.double())
        grid = Grid((*levels.tolist(), 0.0))
        found = replace(schedule, alpha=alpha, sigma=sigma, grid=grid)
        found = replace(found, prediction="measured", path=None, times=None)
        one = torch.ones(1, 1, 1, 1)
        zero = torch.zeros(1, 1, 1, 1)

        def each(x: Tensor, out: Tensor) -> Tensor:
            return torch.cat([self.x0(found, x, out, at).flatten() for at in range(n)])

        return replace(found, measured=(each(one, zero), each(zero, one)))

    def x0(self, schedule: Schedule, x: Tensor, out: Tensor, at: int) -> Tensor:
        """Its own x0 estimate, or that of which its step is the deterministic one.

        schedule: whose noise levels are those of its steps.
        """
        made, again = (self.step(x, out, at, seed) for seed in (0, 1))
        for name in ESTIMATES:
            estimate: Tensor | None = getattr(made, name, None)
            if estimate is not None:
                return estimate.float()
        if not torch.equal(made.prev_sample, again.prev_sample):
            raise ValueError("its steps draw noise, and return no x0 estimate")
        # Of x0 and one noise consist both x and what the step makes of it.
        alpha, next_alpha = _pair(schedule.alpha, at, last=1.0)
        sigma, next_sigma = _pair(schedule.sigma, at, last=0.0)
        rest = next_sigma / sigma
        moved: Tensor = made.prev_sample.float()
        x0: Tensor = (moved - rest * x) / (next_alpha - rest * alpha)
        return x0

    def step(self, x: Tensor, out: Tensor, at: int, seed: int) -> Any:
        """What the scheduler returns, with noise of this seed."""
        position = at + self.begin
        scheduler = about_to_step(self.scheduler, position)
        more = dict(self.rehearsed.step_arguments)
        if "generator" in inspect.signature(scheduler.step).parameters:
            more["generator"] = seeded(seed)
        return scheduler.step(out, scheduler.timesteps[position], x, **more)


def _pair(values: Tensor, at: int, last: float) -> list[float]:
    """The numbers at a position and after it."""
    whole = torch.cat([values, values.new_tensor([last])])
    found: list[float] = whole[at : at + 2].tolist()
    return found


def _noised(schedule: Schedule, n: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma (n,) of what the scheduler makes of an image and of noise, or is known to."""
    scheduler = copy.deepcopy(schedule.scheduler)
    times = schedule.timesteps
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        return schedule.alpha, schedule.sigma

    def noised(image: Tensor, noise: Tensor) -> Tensor:
        if hasattr(scheduler, "add_noise"):
            made: Tensor = scheduler.add_noise(image, noise, times)
        else:
            made = scheduler.scale_noise(image, times, noise)
        return made.float()

    one = torch.ones(n)
    zero = torch.zeros(n)
    return noised(one, zero), noised(zero, one)


def _levels(schedule: Schedule) -> list[float]:
    return [round(level, 3) for level in schedule.grid.levels]
