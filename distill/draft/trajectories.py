"""Trajectories of the model: from noise along its deterministic sampler to the end, in files on
disk.

A file holds some hundreds of trajectories as safetensors, with a digest of the settings that made
them.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ttsnap.core.prompt import Prompt
from ttsnap.distill import checkpoints
from ttsnap.distill.draft.config import TrajectoryConfig
from ttsnap.distill.draft.prompts import Prompts
from ttsnap.distill.processes import ALONE, Member
from ttsnap.files import reading as files
from ttsnap.files.run_folder import digest
from ttsnap.files.settings import Json, Settings, build, to_json
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import CHECKPOINT_SECONDS, write_bytes
from ttsnap.options.option import determining
from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Capability, Denoiser
from ttsnap.sampling.kernels import KernelState, Ode, Prediction

FORMAT: Literal[1] = 1
UNDER_WAY = "state.safetensors"
"""What a checkpoint holds of a shard."""


@dataclass(frozen=True)
class Trajectories:
    """T trajectories from consecutive seeds."""

    prompts: Sequence[str]
    """One for each trajectory."""
    first_seed: int
    states: Tensor
    """(T, S, ...) float16 at grid steps 0..S-1, in the sampler's own scaling."""
    ends: Tensor
    """(T, ...) float16."""

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def read(cls, paths: Sequence[Path], settings: Mapping[str, Json]) -> Trajectories:
        """All of several files, in order. ValueError for a file that is missing, damaged, or of
        other settings."""
        parts = [read_shard(path, settings) for path in paths]
        states = torch.cat([part.states for part in parts])
        ends = torch.cat([part.ends for part in parts])
        return cls(
            [text for part in parts for text in part.prompts], parts[0].first_seed, states, ends
        )

    def part(self, first: int, last: int) -> Trajectories:
        """Trajectories first..last - 1."""
        at = slice(first, last)
        return Trajectories(
            self.prompts[at], self.first_seed + first, self.states[at], self.ends[at]
        )


@dataclass(frozen=True)
class ShardInfo(Settings):
    """What a shard says of itself."""

    format: Literal[1]
    digest: str
    """Of the settings that made it."""
    first_seed: int
    prompts: tuple[str, ...]
    crc32: int
    """Of its numbers."""


def settings_of(
    config: TrajectoryConfig,
    model: str,
    call: Mapping[str, Json],
    prompts: Prompts,
    dtype: torch.dtype,
) -> dict[str, Json]:
    """All that trajectories depend on, JSON-ready. dtype: of the model's weights."""
    about: dict[str, Json] = {"model": model, "call": dict(call), "prompts": prompts.identity}
    return {
        "trajectories": determining(config),
        **about,
        "dtype": str(dtype).removeprefix("torch."),
    }


def check_trajectories(denoiser: Denoiser, config: TrajectoryConfig) -> None:
    """ValueError where no draft can be made of this denoiser, or not with these settings."""
    grid = denoiser.grid
    kernel = denoiser.kernel
    if kernel.stochastic:
        raise ValueError(
            f"the sampler ({type(kernel).__name__}) draws noise at every step, so that noise does"
            " not decide where a trajectory ends: a draft needs a deterministic one, as Euler,"
            " DDIM or DPM-Solver++"
        )
    if not denoiser.mixes_noise:
        raise ValueError(
            "what this call makes of a seed depends on more than its initial noise, which is all"
            " that a draft sees; give it no picture"
        )
    if grid.nfe != grid.steps:
        raise ValueError(
            "the sampler takes several evaluations in a step; choose one that takes one (Euler,"
            " DDIM)"
        )
    if config.states > grid.steps:
        raise ValueError(
            f"trajectories.states is {config.states}, but there are {grid.steps} steps before"
            " the end"
        )
    if config.skipped and config.skipped[-1] >= grid.steps:
        raise ValueError(
            f"trajectories.skipped must be below {grid.steps}, the end, got {list(config.skipped)}"
        )
    if config.skipped and (kernel.keeps_history or Capability.PATH not in denoiser.can):
        raise ValueError(
            f"trajectories.skipped jumps along a straight line, and {type(kernel).__name__} goes"
            " otherwise: leave it out, or choose a flow model with the Euler scheduler"
        )


def make(
    denoiser: Denoiser,
    prompts: Prompts,
    config: TrajectoryConfig,
    settings: Mapping[str, Json],
    folder: Path,
    member: Member = ALONE,
) -> list[Path]:
    """Make the shards that are missing in `folder`; the paths of all shards that `config` asks for.

    Processes divide the shards and wait for each other. A shard does not depend on the process that
    makes it, so that another number of processes may resume. It is written whole or not at all. A
    run that was killed resumes within the shard at hand, from a checkpoint every half a minute. The
    bytes are the same where the network gives equal numbers for equal batches.

    ValueError for what `check_trajectories` refuses, and for a shard that is damaged or of other
    settings. OSError where the disk is full. Ctrl-C and SIGTERM wait for a checkpoint.
    """
    check_trajectories(denoiser, config)
    folder.mkdir(parents=True, exist_ok=True)
    paths = expected(config, folder)
    there = [path for path in paths if path.exists()]
    for path in there[:1]:
        read_shard(path, settings)  # refuses other settings before hours are spent
    total = len(paths) * config.shard
    initial = len(there) * config.shard
    with tqdm(
        total=total, initial=initial, desc="trajectories", unit="traj", disable=not member.shown
    ) as shown:
        for number in range(member.rank, len(paths), member.count):
            begun = paths[number].with_suffix("")
            if not paths[number].exists():
                texts = prompts.draw(number, config.shard)
                seed = config.seed + number * config.shard
                with Unbroken() as stopping:
                    made = _shard(denoiser, texts, seed, config, begun, settings, stopping)
                    write_shard(paths[number], made, settings)
                # Shards of other processes count, too.
                shown.update(config.shard * sum(path.exists() for path in paths) - shown.n)
            shutil.rmtree(begun, ignore_errors=True)
        member.wait()
        shown.update(total - shown.n)
    return paths


def _keep(tensors: dict[str, Tensor], folder: Path) -> None:
    save_file(tensors, folder / UNDER_WAY)


def expected(config: TrajectoryConfig, folder: Path) -> list[Path]:
    """The files of all trajectories; a name has the numbers of the first and the last trajectory in
    the file."""
    firsts = range(0, config.count, config.shard)
    size = config.shard
    return [
        folder / f"trajectories-{first:07d}-{first + size - 1:07d}.safetensors" for first in firsts
    ]


def _shard(
    denoiser: Denoiser,
    texts: Sequence[str],
    first_seed: int,
    config: TrajectoryConfig,
    begun: Path,
    settings: Mapping[str, Json],
    stopping: Callable[[], bool],
) -> Trajectories:
    """A shard, batch by batch. What there is of it is kept in the folder `begun` from time to time,
    and where a signal comes."""
    steps = denoiser.grid.steps
    done, folder = checkpoints.latest(begun, settings) or (0, None)
    there = load_file(folder / UNDER_WAY) if folder is not None else {}
    first, step = divmod(done, steps)  # whole batches, then steps of the one under way
    under_way = (step, there["x"], there["kept"]) if step else None
    made = {name: [there[name]] if first else [] for name in ("states", "ends")}
    saved = time.monotonic()

    def pause(number: int, step: int, **more: Tensor) -> None:
        nonlocal saved
        if (stop := stopping()) or time.monotonic() - saved >= CHECKPOINT_SECONDS:
            whole = {name: torch.cat(parts) for name, parts in made.items() if parts}
            checkpoints.save(begun, number * steps + step, partial(_keep, whole | more), settings)
            saved = time.monotonic()
        if stop:
            raise KeyboardInterrupt

    for number in range(first, math.ceil(len(texts) / config.batch)):
        i = number * config.batch
        some = texts[i : i + config.batch]
        states, ends = trajectories(
            denoiser, some, first_seed + i, config, under_way, partial(pause, number)
        )
        made["states"].append(states)
        made["ends"].append(ends)
        under_way = None
        pause(number + 1, 0)
    return Trajectories(texts, first_seed, *map(torch.cat, made.values()))


@torch.no_grad()
def trajectories(
    denoiser: Denoiser,
    texts: Sequence[str],
    first_seed: int,
    config: TrajectoryConfig,
    under_way: tuple[int, Tensor, Tensor] | None = None,
    pause: Callable[..., None] = lambda step, **tensors: None,
) -> tuple[Tensor, Tensor]:
    """States (N, S, ...) at grid steps 0..S-1 and ends (N, ...) of N prompts and seeds, float16 on
    the CPU.

    pause: called with a step, x (N, ...) there and the states so far, from which they can be gone
    on with: `under_way`. Not where the kernel keeps a history."""
    wanted = list(dict.fromkeys(texts))
    denoiser.forget_prompts()  # so that bytes do not depend on what was encoded before
    denoiser.encode([Prompt(text) for text in wanted])
    cond = torch.tensor([wanted.index(text) for text in texts])
    seeds = range(first_seed, first_seed + len(texts))
    x, state = begin(denoiser, seeds)
    kernel = denoiser.kernel
    keys = [(seed, 0, 0) for seed in seeds]
    kept = list[Tensor]()
    last = denoiser.grid.steps
    begun = 0
    if under_way is not None:
        begun = under_way[0]
        x = under_way[1].to(x.device)
        kept = [*under_way[2].unbind(1)]
    for now, after in pairwise(
        step for step in range(begun, last + 1) if step not in config.skipped
    ):
        if now < config.states:
            kept.append(x.to("cpu", torch.float16))
        k = torch.full((len(texts),), now)
        to = torch.full((len(texts),), after)
        prediction = predict(denoiser, x, k, cond, config.precision)
        if after == now + 1:
            x, state = kernel.step(x, prediction, k, keys, state)
        else:
            x = Ode(denoiser.path, denoiser.times).jump(x, prediction, k, to)
        if after < last and not kernel.keeps_history:
            pause(after, x=x.cpu().contiguous(), kept=torch.stack(kept, 1))
    return torch.stack(kept, 1), x.to("cpu", torch.float16)


def begin(denoiser: Denoiser, seeds: Sequence[int]) -> tuple[Tensor, Sequence[KernelState]]:
    """Initial noise (N, ...) of N seeds, as stock diffusers draws it, and the sampler's states."""
    generators = [rng.seeded(seed) for seed in seeds]
    x = denoiser.init_latents(generators)
    return x, [
        denoiser.kernel.init(noise, (seed, 0), made)
        for noise, seed, made in zip(x, seeds, generators, strict=True)
    ]


def predict(
    denoiser: Denoiser, x: Tensor, step: Tensor, cond: Tensor, precision: str
) -> Prediction:
    """One evaluation, under autocast where precision is "bf16".

    The output is widened to the dtype of the latents, as a step would otherwise round the latents.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = denoiser.predict(x, step, cond)
    return found._replace(out=found.out.to(torch.promote_types(x.dtype, found.out.dtype)))


def write_shard(path: Path, shard: Trajectories, settings: Mapping[str, Json]) -> None:
    """Write a shard, whole or not at all. ValueError for numbers that are not finite in float16."""
    tensors = {"states": shard.states.contiguous(), "ends": shard.ends.contiguous()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(
            f"trajectories from seed {shard.first_seed} on have numbers that are not finite in"
            " float16; give the model another --dtype, as float32, or a lower guidance"
        )
    crc32 = _checksum(shard.states, shard.ends)
    about = ShardInfo(FORMAT, digest(settings), shard.first_seed, tuple(shard.prompts), crc32)
    write_bytes(path, save(tensors, {"trajectories": json.dumps(to_json(about))}))


def read_shard(path: Path, settings: Mapping[str, Json]) -> Trajectories:
    """Read a shard. ValueError for one that is missing, damaged, or of other settings."""
    tensors, metadata = files.read_tensors(path, "file of trajectories")
    header = files.parse_object(metadata.get("trajectories", ""), path)
    try:
        about = build(ShardInfo, header)
        if about.digest != digest(settings):
            raise ValueError(
                "it was made with other settings (model, dtype, call, prompts or trajectories.*);"
                " use the same to resume, or choose another folder"
            )
        states, ends = (_half(tensors, name) for name in ("states", "ends"))
        count = len(about.prompts)
        if len(states) != count or len(ends) != count or states.shape[2:] != ends.shape[1:]:
            raise ValueError(
                f"it holds states {tuple(states.shape)} and ends {tuple(ends.shape)} of {count}"
                " prompts"
            )
        if _checksum(states, ends) != about.crc32:
            raise ValueError("its numbers are not those that were written")
    except ValueError as error:
        raise ValueError(
            f"cannot use {path}: {error}. A file that is removed is made again"
        ) from None
    return Trajectories(about.prompts, about.first_seed, states, ends)


def _half(tensors: Mapping[str, files.Tensor], name: str) -> Tensor:
    array = tensors.get(name)
    if array is None:
        raise ValueError(f"it has no {name}")
    if array.dtype != np.float16 or array.ndim < 2 or not np.isfinite(array).all():
        raise ValueError(
            f"its {name} must be finite float16 numbers, got {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(np.array(array))


def _checksum(states: Tensor, ends: Tensor) -> int:
    return zlib.crc32(
        ends.contiguous().numpy().tobytes(), zlib.crc32(states.contiguous().numpy().tobytes())
    )
