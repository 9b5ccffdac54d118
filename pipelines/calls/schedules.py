"""The schedule of a stock call, also under schedulers that no family knows: their formulas are tried before use."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.latents.schedule import SUPPORTED, WHY_NOT, Schedule, check_scheduler, laid_open
from ttsnap.sampling.rng import seeded

ESTIMATES = ("pred_original_sample", "denoised", "pred_x0")
"""What schedulers call the x0 estimate in what their step returns."""


def schedule_of(rehearsed: Rehearsal) -> Schedule:
    """The schedule of a rehearsed call. ValueError for schedulers whose noise levels or estimates are not known."""
    scheduler, name = rehearsed.scheduler, type(rehearsed.scheduler).__name__
    begin = len(scheduler.timesteps) - len(rehearsed.times)
    known = name in SUPPORTED | WHY_NOT.keys()
    if known:
        check_scheduler(scheduler)
    try:
        schedule = laid_open(scheduler, begin=begin, step_arguments=rehearsed.step_arguments)
        known = known or all(_agrees(schedule, rehearsed, at) for at in {0, len(rehearsed.times) // 2})
    except (AttributeError, TypeError, RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"search cannot use this call's {name} yet: {error}; set pipe.scheduler to another one"
        ) from error
    if not known:
        raise ValueError(f"search cannot use {name} yet: it makes other x0 estimates than its noise levels say; set "
                         "pipe.scheduler to another one")  # fmt: skip
    return schedule


def _agrees(schedule: Schedule, rehearsed: Rehearsal, at: int) -> bool:
    """Whether the scheduler's own x0 estimate at a position is that of its noise levels."""
    x = torch.randn(rehearsed.latents.shape, generator=seeded(0))
    out = torch.randn(rehearsed.latents.shape, generator=seeded(1))
    made = _estimate(copy.deepcopy(rehearsed.scheduler), x, out, at, rehearsed)
    return torch.allclose(schedule.x0(x, out, torch.tensor([at])), made.float(), rtol=1e-3, atol=1e-3)


def _estimate(scheduler: Any, x: Tensor, out: Tensor, at: int, rehearsed: Rehearsal) -> Tensor:
    """A scheduler's own x0 estimate. ValueError where it makes none."""
    begin = len(scheduler.timesteps) - len(rehearsed.times)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = begin + at
    made = scheduler.step(out, scheduler.timesteps[begin + at], x, **rehearsed.step_arguments)
    found = [getattr(made, name) for name in ESTIMATES if getattr(made, name, None) is not None]
    if not found:
        raise ValueError("its steps return no x0 estimate by which its formula could be tried")
    estimate: Tensor = found[0]
    return estimate
