"""The schedule of a stock call, also under schedulers that no family knows.

What attributes say of noise levels and estimates is tried before use. Where a scheduler does otherwise, as EDM's, both
are measured: by the noise that it adds, and by what its steps make of latents alone and of outputs alone.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.latents.schedule import SUPPORTED, WHY_NOT, Schedule, check_scheduler, laid_open
from ttsnap.sampling.rng import seeded

ESTIMATES = ("pred_original_sample", "denoised", "pred_x0")
"""What schedulers call the x0 estimate in what their step returns."""


def schedule_of(rehearsed: Rehearsal) -> Schedule:
    """The schedule of a rehearsed call. ValueError for schedulers whose noise levels or estimates are not known, and
    for fields of a round whose noise levels differ."""
    schedule = _of(rehearsed.scheduler, rehearsed)
    if rehearsed.overwrites and getattr(schedule.kernel, "copied", False):
        raise ValueError(
            f"search cannot use this call's {type(schedule.scheduler).__name__} yet: it keeps latents that the call "
            "changes in place; set pipe.scheduler to one without a history"
        )
    for other in rehearsed.others:
        its = _of(other, rehearsed)
        if its.prediction != schedule.prediction or not torch.allclose(its.sigma, schedule.sigma, atol=1e-6):
            levels = [[round(level, 3) for level in each.grid.levels] for each in (schedule, its)]
            raise ValueError("search cannot use this call yet: a round steps schedulers of different noise levels, "
                             f"{levels[0]} and {levels[1]}")  # fmt: skip
    return schedule


def _of(scheduler: Any, rehearsed: Rehearsal) -> Schedule:
    """The schedule of one scheduler of a rehearsed call."""
    name, begin = type(scheduler).__name__, len(scheduler.timesteps) - len(rehearsed.times)
    known = name in SUPPORTED | WHY_NOT.keys()
    if known:
        check_scheduler(scheduler)
    try:
        schedule = laid_open(scheduler, begin=begin, step_arguments=rehearsed.step_arguments)
        if known or _agrees(schedule, rehearsed):
            return schedule
        measured = _measured(schedule, rehearsed)
        if _agrees(measured, rehearsed):
            return measured
    except (AttributeError, TypeError, RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"search cannot use this call's {name} yet: {error}; set pipe.scheduler to another one"
        ) from error
    raise ValueError(f"search cannot use {name} yet: its x0 estimates are no sum of latents and output; set "
                     "pipe.scheduler to another one")  # fmt: skip


def _agrees(schedule: Schedule, rehearsed: Rehearsal) -> bool:
    """Whether the scheduler's own x0 estimates are those of the schedule, at its begin and in its middle."""
    x, out = (torch.randn(rehearsed.latents.shape, generator=seeded(seed)) for seed in (0, 1))
    return all(
        torch.allclose(
            schedule.x0(x, out, torch.tensor([at])), _estimate(schedule, x, out, at, rehearsed), rtol=1e-3, atol=1e-3
        )
        for at in {0, len(rehearsed.times) // 2}
    )


def _measured(schedule: Schedule, rehearsed: Rehearsal) -> Schedule:
    """The schedule with the noise levels of the scheduler's own noise, and with the x0 estimates of its own steps."""
    n = len(rehearsed.times)
    alpha, sigma = _noised(schedule, n)
    levels = sigma.double() / (alpha.double() + sigma.double())
    grid = Grid((*levels.tolist(), 0.0))
    found = replace(schedule, alpha=alpha, sigma=sigma, grid=grid, prediction="measured", path=None, times=None)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    each = [
        torch.cat([_estimate(found, x, out, at, rehearsed).flatten() for at in range(n)])
        for x, out in ((one, zero), (zero, one))
    ]
    return replace(found, measured=(each[0], each[1]))


def _noised(schedule: Schedule, n: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma (n,) of what the scheduler makes of an image and of noise."""
    scheduler, times = copy.deepcopy(schedule.scheduler), schedule.timesteps
    one, zero = torch.ones(n), torch.zeros(n)
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(one, zero, times).float(), scheduler.add_noise(zero, one, times).float()
    return scheduler.scale_noise(one, times, zero).float(), scheduler.scale_noise(zero, times, one).float()


def _estimate(schedule: Schedule, x: Tensor, out: Tensor, at: int, rehearsed: Rehearsal) -> Tensor:
    """A scheduler's own x0 estimate at a position, or that of which its step is the deterministic one."""
    made, again = (_step(schedule, x, out, at, rehearsed, seed) for seed in (0, 1))
    found = [getattr(made, name) for name in ESTIMATES if getattr(made, name, None) is not None]
    if found:
        estimate: Tensor = found[0]
        return estimate.float()
    if not torch.equal(made.prev_sample, again.prev_sample):
        raise ValueError("its steps draw noise, and return no x0 estimate")
    # Of x0 and one noise consist both x and what the step makes of it.
    alpha, sigma = (torch.cat([values, values.new_tensor([last])])[at : at + 2].tolist()
                    for values, last in ((schedule.alpha, 1.0), (schedule.sigma, 0.0)))  # fmt: skip
    rest = sigma[1] / sigma[0]
    moved: Tensor = made.prev_sample.float()
    x0: Tensor = (moved - rest * x) / (alpha[1] - rest * alpha[0])
    return x0


def _step(schedule: Schedule, x: Tensor, out: Tensor, at: int, rehearsed: Rehearsal, seed: int) -> Any:
    """What the scheduler's step returns at a position, with noise of this seed."""
    scheduler, more = copy.deepcopy(schedule.scheduler), dict(rehearsed.step_arguments)
    at += len(scheduler.timesteps) - len(rehearsed.times)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = at
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    if "generator" in inspect.signature(scheduler.step).parameters:
        more["generator"] = seeded(seed)
    return scheduler.step(out, scheduler.timesteps[at], x, **more)
