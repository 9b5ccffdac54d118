"""What a draft learns: rows of a step, their loss, and errors on held-back trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import IntArray
from ttsnap.distill.draft.config import TrainingConfig
from ttsnap.distill.draft.student import WEIGHTS, DraftStudent
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.training import METRICS, Weights, check_shares, read_metrics
from ttsnap.files.settings import Json, check
from ttsnap.options.option import determining
from ttsnap.sampling.drafts import carried, guess
from ttsnap.sampling.interpolants import Interpolant, level, rows

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (N, ...), conditioning times (N,), indices of encoded prompts (N,)) -> x0 (N, ...)."""
CALLS = (1, 2)
"""Numbers of calls from noise that are validated; later states are validated with one call."""


class DraftLesson:
    """A draft's training on trajectories, of which the first `validation` ones are held back."""

    betas = (0.9, 0.99)
    weight_decay = 0.0
    unused = False

    def __init__(
        self,
        student: DraftStudent,
        data: Trajectories,
        config: TrainingConfig,
        settings: Mapping[str, Json],
        member: Member = ALONE,
    ) -> None:
        """settings: what else the result depends on, JSON-ready. ValueError for what
        `check_training` refuses."""
        check_training(config, len(data), member)
        self.student = student
        self.held = data.part(0, config.validation)
        self.trained = data.part(config.validation, len(data))
        self.config = config
        self.member = member
        self.parameters = student.parameters
        self.steps = config.steps
        self.parts = config.parts
        self.about: Mapping[str, Json] = {
            "training": determining(config),
            "count": len(data),
            **settings,
        }

    def begin(self, first: int) -> None:
        pass

    def rate(self, step: int) -> float:
        return self.config.lr * factor(step, self.config)

    def losses(self, step: int, weights: Weights) -> Sequence[Callable[[], Tensor]]:
        data = self.trained
        drawn = draw(step, len(data), data.states.shape[1], self.config)
        count = self.member.count
        firsts = range(self.member.rank, self.parts * count, count)
        shares = [drawn.part(first, self.parts * count) for first in firsts]
        return [partial(rows_loss, self.student, data, share, self.config) for share in shares]

    def figures(self, done: int, weights: Weights) -> Mapping[str, Json]:
        if done % self.config.validate_every and done < self.steps:
            return {}
        with weights.averaged() if self.config.ema else nullcontext():
            return dict(validate(self.student, self.held, self.config))


def check_training(config: TrainingConfig, trajectories: int, member: Member) -> None:
    """ValueError where training cannot begin; called before hours go into the trajectories."""
    if trajectories <= config.validation:
        raise ValueError(
            f"training.validation is {config.validation}, but there are only {trajectories}"
            " trajectories: hold back fewer, or raise trajectories.count"
        )
    check_shares("training.batch", config.batch, config.parts, member)
    if config.start and not (Path(config.start) / WEIGHTS).is_file():
        raise ValueError(
            f"training.start {config.start} is no draft's folder: there is no {WEIGHTS} in it"
        )


def factor(step: int, config: TrainingConfig) -> float:
    """The factor of the learning rate: it rises, stays, and falls linearly over the last part of
    the steps."""
    rising = (step + 1) / config.warmup if config.warmup else 1.0
    falling = (1 - step / config.steps) / config.decay if config.decay else 1.0
    return min(1.0, rising, max(config.final_lr, falling))


@dataclass(frozen=True)
class DrawnRows:
    """B rows of a batch."""

    trajectories: IntArray
    """By number, (B,)."""
    steps: IntArray
    """Grid steps that they start from, (B,)."""
    second: int
    """The first so many rows are second calls, which start from the network's own first guess."""

    def part(self, index: int, parts: int) -> DrawnRows:
        """Every so many rows, from row `index` on."""
        chosen = slice(index, None, parts)
        return DrawnRows(
            self.trajectories[chosen], self.steps[chosen], len(range(index, self.second, parts))
        )


def draw(step: int, count: int, states: int, config: TrainingConfig) -> DrawnRows:
    """The rows of optimiser step `step`, from `count` trajectories with `states` states; a function
    of seed and step.

    Every trajectory comes once before any comes again. Each batch has as many rows of each kind.
    """
    first = step * config.batch
    at = np.arange(first, first + config.batch)
    chosen = np.empty(config.batch, np.int64)
    for epoch in np.unique(at // count):
        order = np.random.default_rng((config.seed, 0, int(epoch))).permutation(count)
        chosen[at // count == epoch] = order[at[at // count == epoch] % count]
    second = round(config.second * config.batch)
    noise = round(config.from_noise * config.batch)
    rng = np.random.default_rng((config.seed, 1, step))
    steps = (
        rng.integers(1, states, config.batch) if states > 1 else np.zeros(config.batch, np.int64)
    )
    steps[: second + noise] = 0
    return DrawnRows(chosen, steps, second)


class DraftBatch(NamedTuple):
    """N rows as the network takes them."""

    x: Tensor
    """Points of the path, (N, ...)."""
    time: Tensor
    """Conditioning times, (N,)."""
    cond: Tensor
    """Indices of encoded prompts, (N,)."""
    end: Tensor
    """Ends to guess, (N, ...)."""


def batch_of(
    student: DraftStudent, data: Trajectories, drawn: DrawnRows, config: TrainingConfig
) -> DraftBatch:
    """These rows, with the network's own first guesses where second calls begin."""
    at = torch.from_numpy(drawn.trajectories)
    k = torch.from_numpy(drawn.steps)
    n = drawn.second
    texts = [data.prompts[int(i)] for i in drawn.trajectories]
    wanted = list(dict.fromkeys(texts))
    student.encode(wanted)
    cond = torch.tensor([wanted.index(text) for text in texts])
    x = student.on_path(data.states[at, k].to(student.device, torch.float32), k)
    end = data.ends[at].to(student.device, torch.float32)
    time = student.times[k] * student.first_time
    if n:
        with _autocast(student, config):
            half = second_calls(
                student.path,
                student.estimate,
                x[:n],
                cond[:n],
                float(student.times[0]),
                student.first_time,
            )
        x = torch.cat([half, x[n:]])
        time = torch.cat([torch.full((n,), student.second_time).double(), time[n:]])
    return DraftBatch(x, time, cond, end)


def second_calls(
    path: Interpolant, estimate: Estimate, x: Tensor, cond: Tensor, t: float, first_time: float
) -> Tensor:
    """Points (N, ...) where second calls are made: half of the way from x (N, ...) at time t to the
    network's first guess, along the same noise."""
    times = torch.full((len(x),), t, dtype=torch.float64)
    with torch.no_grad():
        return carried(path, x, estimate(x, times * first_time, cond), times, times / 2)


def loss(path: Interpolant, guess: Tensor, end: Tensor, time: Tensor, floor: float) -> Tensor:
    """Mean squared error of guesses (N, ...) of ends (N, ...), each row's divided by its squared
    noise level.

    time: conditioning times (N,), which decide the level.

    An error of x0 is about the level times an error of the network's output. A level below `floor`
    counts as `floor`, so that second calls do not outweigh first ones.
    """
    weight = level(path, time).clamp(min=floor)
    return ((guess - end) / rows(weight, guess)).pow(2).flatten(1).mean(1).mean()


def rows_loss(
    student: DraftStudent, data: Trajectories, drawn: DrawnRows, config: TrainingConfig
) -> Tensor:
    """The loss of these rows, differentiable."""
    batch = batch_of(student, data, drawn, config)
    with _autocast(student, config):
        found = student.estimate(batch.x, batch.time, batch.cond)
    return loss(student.path, found.float(), batch.end, batch.time, config.floor)


@torch.no_grad()
def validate(student: DraftStudent, data: Trajectories, config: TrainingConfig) -> dict[str, float]:
    """Mean squared errors of guesses of the end: from noise in one call and in two, from later
    states in one."""
    later = [k for k in (2, 4) if k < data.states.shape[1]]
    cases = [(f"calls {calls}", 0, calls) for calls in CALLS] + [
        (f"state {k}", k, 1) for k in later
    ]
    errors: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    for i in range(0, len(data) - config.batch + 1, config.batch) or range(1):
        part = data.part(i, i + config.batch)
        student.encode(part.prompts)
        end = part.ends.to(student.device, torch.float32)
        estimate = partial(student.estimate, cond=torch.arange(len(part)))
        for name, k, calls in cases:
            at = torch.full((len(part),), k)
            x = student.on_path(part.states[:, k].to(student.device, torch.float32), at)
            with _autocast(student, config):
                found = guess(
                    student.path, estimate, x, student.times[at], calls, student.first_time
                )
            errors[name].append(float((found.float() - end).pow(2).mean()))
    return {name: round(float(np.mean(values)), 5) for name, values in errors.items()}


def _autocast(student: DraftStudent, config: TrainingConfig) -> torch.autocast:
    return torch.autocast(student.device.type, torch.bfloat16, enabled=config.precision == "bf16")


def last_validation(out: Path) -> dict[str, float]:
    """The errors that were logged last, by name; empty without any."""
    lines = read_metrics(out / METRICS)
    logged = {"step", "loss", "lr", "seconds"}
    errors = lines[-1].items() if lines else ()
    return {name: check(name, value, float) for name, value in errors if name not in logged}
