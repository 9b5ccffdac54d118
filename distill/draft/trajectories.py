"""Trajectories of the model: from noise along its deterministic sampler to the end, kept in shards on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from ttsnap.distill.draft import shards
from ttsnap.distill.draft.config import TrajectoryConfig
from ttsnap.distill.draft.prompts import Prompts
from ttsnap.distill.draft.sampler import begin, predict
from ttsnap.distill.draft.shards import TrajectoryShard
from ttsnap.distill.processes import ALONE, Member

from ttsnap.files.settings import Json
from ttsnap.options.option import determining
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.kernels import Ode


def settings_of(
    config: TrajectoryConfig, model: str, call: Mapping[str, Json], prompts: Prompts, dtype: torch.dtype
) -> dict[str, Json]:
    """All that trajectories depend on, JSON-ready. dtype: that of the model's weights."""
    about: dict[str, Json] = {"model": model, "call": dict(call), "prompts": prompts.identity}
    return {"trajectories": determining(config), **about, "dtype": str(dtype).removeprefix("torch.")}


def check_trajectories(denoiser: Denoiser, config: TrajectoryConfig) -> None:
    """ValueError where no draft can be made of this denoiser, or not with these settings."""
    grid, kernel = denoiser.grid, denoiser.kernel
    if kernel.stochastic:
        raise ValueError(
            f"the sampler ({type(kernel).__name__}) draws noise at every step, so that noise does not decide where a "
            "trajectory ends: a draft needs a deterministic one, as Euler, DDIM or DPM-Solver++"
        )
    if grid.nfe != grid.steps:
        raise ValueError("the sampler takes several evaluations in a step; choose one that takes one (Euler, DDIM)")
    if config.states > grid.steps:
        raise ValueError(f"trajectories.states is {config.states}, but there are {grid.steps} steps before the end")
    if config.skipped and config.skipped[-1] >= grid.steps:
        raise ValueError(f"trajectories.skipped must be below {grid.steps}, the end, got {list(config.skipped)}")
    if config.skipped and (kernel.keeps_history or not denoiser.has_path):
        raise ValueError(
            f"trajectories.skipped jumps along a straight line, and {type(kernel).__name__} goes otherwise: leave it "
            "out, or choose a flow model with the Euler scheduler"
        )


def make(
    denoiser: Denoiser, prompts: Prompts, config: TrajectoryConfig, settings: Mapping[str, Json], folder: Path,
    member: Member = ALONE,
) -> list[Path]:  # fmt: skip
    """Make the shards that are missing in `folder`, one after the other; the paths of all that `config` asks for.

    Of several processes each makes every so many, and waits for the others. Which process makes a shard is no matter
    for what is in it, so that a run may go on with another number of processes.

    A shard appears whole or not at all, so that a run that was killed goes on after its last shard, and ends with the
    same bytes where the network gives equal numbers for equal batches. ValueError for what `check_trajectories` refuses
    and for a shard that is damaged or was made with other settings. OSError where the disk is full.
    """
    check_trajectories(denoiser, config)
    folder.mkdir(parents=True, exist_ok=True)
    paths = expected(config, folder)
    there = [path for path in paths if path.exists()]
    for path in there[:1]:
        shards.read(path, settings)  # other settings are refused before hours are spent
    total, initial = len(paths) * config.shard, len(there) * config.shard
    with tqdm(total=total, initial=initial, desc="trajectories", unit="traj", disable=not member.shown) as shown:
        for number in range(member.rank, len(paths), member.count):
            if not paths[number].exists():
                texts = prompts.draw(number, config.shard)
                made = _shard(denoiser, texts, config.seed + number * config.shard, config)
                shards.write(paths[number], made, settings)
                # Those of the other processes count, too.
                shown.update(config.shard * sum(path.exists() for path in paths) - shown.n)
        member.wait()
        shown.update(total - shown.n)
    return paths


def expected(config: TrajectoryConfig, folder: Path) -> list[Path]:
    """The files of all trajectories that are asked for, in whole files."""
    return [shards.path_of(folder, i, config.shard) for i in range(math.ceil(config.count / config.shard))]


def evaluated(steps: int, skipped: Sequence[int]) -> list[int]:
    """The grid steps at which the network is evaluated, of 0..steps-1, and the end."""
    return [step for step in range(steps + 1) if step not in skipped]


def _shard(denoiser: Denoiser, texts: Sequence[str], first_seed: int, config: TrajectoryConfig) -> TrajectoryShard:
    parts = [
        trajectories(denoiser, texts[i : i + config.batch], first_seed + i, config)
        for i in range(0, len(texts), config.batch)
    ]
    states, ends = (torch.cat(column) for column in zip(*parts, strict=True))
    return TrajectoryShard(texts, first_seed, states, ends)


@torch.no_grad()
def trajectories(
    denoiser: Denoiser, texts: Sequence[str], first_seed: int, config: TrajectoryConfig
) -> tuple[Tensor, Tensor]:
    """States (N, S, ...) at grid steps 0..S-1 and ends (N, ...), float16 on the CPU, of N prompts and as many seeds.

    Initial noise is that of the seed, as stock diffusers draws it.
    """
    wanted = list(dict.fromkeys(texts))
    denoiser.forget_prompts()  # to the byte, whatever was encoded before
    denoiser.encode(wanted)
    cond = torch.tensor([wanted.index(text) for text in texts])
    seeds = range(first_seed, first_seed + len(texts))
    x, state = begin(denoiser, seeds)
    kernel, keys = denoiser.kernel, [(seed, 0, 0) for seed in seeds]
    kept, path = [], evaluated(denoiser.grid.steps, config.skipped)
    for now, after in pairwise(path):
        if now < config.states:
            kept.append(x.to("cpu", torch.float16))
        k, to = torch.full((len(texts),), now), torch.full((len(texts),), after)
        prediction = predict(denoiser, x, k, cond, config.precision)
        if after == now + 1:
            x, state = kernel.step(x, prediction, k, keys, state)
        else:
            x = Ode(denoiser.path, denoiser.times).jump(x, prediction, k, to)
    return torch.stack(kept, 1), x.to("cpu", torch.float16)
