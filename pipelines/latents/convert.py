"""Another path between data and noise under a pretrained model, at equal signal-to-noise ratio
(arXiv 2503.19385, 4.2).

A network trained on one path serves any other. x on the new path, divided by a scale, is x on the
network's own path at another time. Its x0 and eps are the same. Stochastic kernels and particle
methods gain, since another path spends steps and noise at other levels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.pipelines.latents.schedule import FLOW_MAP, Schedule
from ttsnap.sampling.interpolants import Discrete, Interpolant, Linear, level, transfer
from ttsnap.sampling.kernels import Ode
from ttsnap.sampling.paths import make_path, times_on


def convert(
    schedule: Schedule, path: str | Interpolant | None = None, times: str | Tensor = "pipeline"
) -> Schedule:
    """The schedule of as many steps on `path` (None: the model's own), one evaluation a step.

    path, times: as of ttsnap.sampling.paths. Initial latents are standard normal noise. ValueError
    for unknown names and times that do not fall.
    """
    if type(schedule.scheduler).__name__.startswith(FLOW_MAP):
        raise ValueError(
            "a flow map predicts the way to the next step, by which its own scheduler alone steps;"
            " leave kernel, path and times out"
        )
    source = own_path(schedule)
    target = source if path is None else make_path(path)
    at = times_on(target, times, torch.tensor(schedule.grid.levels[:-1], dtype=torch.float64))
    t, scale = transfer(source, target, at[:-1])
    grid = Grid((*level(target, at[:-1]).tolist(), 0.0))
    return replace(
        schedule,
        scheduler=_unscaled(schedule),
        timesteps=(t * timestep_unit(schedule, source)).float(),
        alpha=target.alpha(at[:-1]).float(),
        sigma=target.sigma(at[:-1]).float(),
        scale=scale.float(),
        grid=grid,
        path=target,
        times=at,
        kernel=Ode(target, at),
        narrows=False,
    )


def own_path(schedule: Schedule) -> Interpolant:
    """The path that the model was trained on: Linear for flows, otherwise the scheduler's
    variance-preserving one. ValueError where that is not known."""
    if schedule.prediction == "flow":
        return Linear()
    if schedule.measured or not hasattr(schedule.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"the noise levels of this {type(schedule.scheduler).__name__} are on no path that is"
            " known; leave kernel, path and times out"
        )
    return Discrete(schedule.scheduler.alphas_cumprod)


def timestep_unit(schedule: Schedule, source: Interpolant) -> float:
    """The network's timestep at time 1; timesteps are proportional to time."""
    if isinstance(source, Discrete):
        return float(len(source.log_ratio) - 1)
    return float(schedule.scheduler.config.num_train_timesteps)


def _unscaled(schedule: Schedule) -> Any:
    """A scheduler whose initial noise is standard normal: the schedule's own, or DDIM of the same
    configuration."""
    scheduler = schedule.scheduler
    if schedule.prediction == "flow" or float(scheduler.init_noise_sigma) == 1.0:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config)
