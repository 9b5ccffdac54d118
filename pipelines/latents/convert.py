"""Another path between data and noise under a pretrained model, at equal signal-to-noise ratio (arXiv 2503.19385, 4.2).

A network trained on one path serves any other: x on the new path, divided by a scale, is x on the network's own path at
another time, with the same x0 and eps. Stochastic kernels and particle methods gain, since another path spends steps
and noise at other levels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from ttsnap.pipelines.latents.schedule import Schedule

from ttsnap.core.grid import Grid
from ttsnap.core.names import unknown
from ttsnap.sampling.interpolants import INTERPOLANTS, Discrete, Interpolant, Linear, level, transfer
from ttsnap.sampling.kernels import Ode

TIMES = ("pipeline", "uniform", "sqrt")


def convert(schedule: Schedule, path: str | Interpolant | None = None, times: str | Tensor = "pipeline") -> Schedule:
    """The schedule of as many steps on `path` (a name of INTERPOLANTS; None: the model's own), one evaluation a step.

    times: "pipeline", the points of the scheduler's own noise levels; "uniform", 1 - i/N; "sqrt", sqrt(1 - (i/N)^2),
    which stays near the noise, as RBF does with "vp"; or (K+1,) float64, falling from at most 1 to 0. Initial latents
    are standard normal noise. ValueError for unknown names and times that do not fall.
    """
    source = own_path(schedule)
    target = source if path is None else INTERPOLANTS.get(path) if isinstance(path, str) else path
    if target is None:
        raise ValueError(unknown("path", path, INTERPOLANTS))
    at = _times(times, target, schedule.grid)
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
    """The path that the model was trained on: Linear for flows, otherwise the scheduler's variance-preserving one."""
    return Linear() if schedule.prediction == "flow" else Discrete(schedule.scheduler.alphas_cumprod)


def timestep_unit(schedule: Schedule, source: Interpolant) -> float:
    """The network's timestep at time 1; timesteps are proportional to time."""
    if isinstance(source, Discrete):
        return float(len(source.log_ratio) - 1)
    return float(schedule.scheduler.config.num_train_timesteps)


def _times(times: str | Tensor, path: Interpolant, grid: Grid) -> Tensor:
    """Times (K+1,) float64 on `path`: where each of the K steps starts, then 0. `times`: see `convert`."""
    steps = torch.arange(grid.steps, dtype=torch.float64) / grid.steps
    if isinstance(times, Tensor):
        starts = times.double()[:-1]
        if float(times[-1]) != 0:
            raise ValueError(f"times must end with 0, got {times.tolist()}")
    elif times == "pipeline":
        levels = torch.tensor(grid.levels[:-1], dtype=torch.float64)
        starts = path.inverse_ratio(1 / levels - 1)
        # Where the path begins with less noise than the scheduler, early points are spread evenly before the next one.
        early = int((starts >= 1).sum())
        following = starts[early] if early < len(starts) else starts.new_zeros(())
        starts[:early] = 1 - (1 - following) * torch.arange(early) / max(1, early)
    elif times in TIMES:
        starts = 1 - steps if times == "uniform" else torch.sqrt(1 - steps**2)
    else:
        raise ValueError(unknown("times", times, TIMES))
    return torch.cat([starts, torch.zeros(1, dtype=torch.float64)])


def _unscaled(schedule: Schedule) -> Any:
    """A scheduler whose initial noise is standard normal: the schedule's own, or DDIM of the same configuration."""
    scheduler = schedule.scheduler
    if schedule.prediction == "flow" or float(scheduler.init_noise_sigma) == 1.0:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config)
