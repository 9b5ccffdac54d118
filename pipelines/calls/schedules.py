"""The schedule of a stock call, also under schedulers that no list names.

What attributes say of noise levels and estimates is tried before use. Where a scheduler does
otherwise, as EDM's, both are measured: by the noise that it adds, and by what its steps make of
latents alone and of outputs alone.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.stepping import about_to_step
from ttsnap.pipelines.latents.schedule import (
    SUPPORTED,
    WHY_NOT,
    Schedule,
    check_scheduler,
    laid_open,
)
from ttsnap.sampling.rng import seeded

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
    name, begin = type(scheduler).__name__, rehearsed.begin
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
            estimate, own = schedule.x0(x, out, torch.tensor([at])), self.x0(schedule, x, out, at)
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
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)

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
    scheduler, times = copy.deepcopy(schedule.scheduler), schedule.timesteps
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        return schedule.alpha, schedule.sigma

    def noised(image: Tensor, noise: Tensor) -> Tensor:
        if hasattr(scheduler, "add_noise"):
            made: Tensor = scheduler.add_noise(image, noise, times)
        else:
            made = scheduler.scale_noise(image, times, noise)
        return made.float()

    one, zero = torch.ones(n), torch.zeros(n)
    return noised(one, zero), noised(zero, one)


def _levels(schedule: Schedule) -> list[float]:
    return [round(level, 3) for level in schedule.grid.levels]
