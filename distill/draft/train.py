"""What a draft learns: where the sampler ends, from the noises of recorded trajectories and their
last latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import IntArray
from ttsnap.distill.config import DraftConfig
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.draft.student import DraftStudent
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.training import (
    METRICS,
    Lesson,
    Weights,
    autocast,
    check_shares,
    read_metrics,
    scheduled,
)
from ttsnap.files.settings import Json, check
from ttsnap.sampling.drafts import carried, guess
from ttsnap.sampling.interpolants import Interpolant, level, rows

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (N, ...), conditioning times (N,), indices of encoded prompts (N,)) -> x0 (N, ...)."""
CALLS = (1, 2)
"""Numbers of calls that are validated."""
MOST_VALIDATED = 192
"""Trajectories of held-out prompts."""
LATENTS = "latents"


class DraftLesson(Lesson):
    """A draft's training on the trajectories of prompts.

    prompts: by number, those to train on and those to validate on. ValueError for a batch that
    cannot be divided.
    """

    betas = (0.9, 0.99)

    def __init__(
        self,
        student: DraftStudent,
        frames: Frames,
        prompts: tuple[Sequence[int], Sequence[int]],
        config: DraftConfig,
        member: Member = ALONE,
    ) -> None:
        check_shares("batch", config.batch, config, member)
        self.student = student
        self.frames = frames
        self.config = config
        self.member = member
        self.parameters = student.parameters
        self.steps = config.updates
        self.identity: Json = frames.identity
        self.trained = self._ends(prompts[0])
        held_out = self._ends(prompts[1])
        spread = np.linspace(0, len(held_out) - 1, min(len(held_out), MOST_VALIDATED))
        self.held_out = [held_out[int(i)] for i in spread]

    def _ends(self, prompts: Sequence[int]) -> list[FrameAt]:
        """The ends of all their trajectories."""
        last = self.frames.last
        return [FrameAt(p, s, last) for p in prompts for s in range(self.frames.seeds[p])]

    def rate(self, step: int) -> float:
        return self.config.lr * scheduled(step, self.steps, self.config)

    def losses(self, step: int, weights: Weights) -> Sequence[Callable[[], Tensor]]:
        drawn = draw(step, len(self.trained), self.config)
        second = round(self.config.second * self.config.batch)
        every = self.config.accumulation * self.member.count
        firsts = range(self.member.rank, every, self.member.count)
        return [
            partial(self._loss, drawn[first::every], len(range(first, second, every)))
            for first in firsts
        ]

    def _loss(self, drawn: IntArray, second: int) -> Tensor:
        """Of these trajectories, by their places in `trained`, differentiable. The first `second`
        rows are second calls, which start from the network's own first guess."""
        student = self.student
        x, cond, end = self._batch([self.trained[int(i)] for i in drawn])
        time = torch.full((len(x),), student.time * student.first_time, dtype=torch.float64)
        with autocast(self.config, student.device):
            if second:
                half = second_calls(
                    student.path,
                    student.estimate,
                    x[:second],
                    cond[:second],
                    student.time,
                    student.first_time,
                )
                x = torch.cat([half, x[second:]])
                time[:second] = student.time / 2
            found = student.estimate(x, time, cond)
        return loss(student.path, found.float(), end, time, self.config.floor)

    def figures(self, done: int, weights: Weights) -> dict[str, Json]:
        if done % self.config.validate_every and done < self.steps:
            return {}
        with weights.averaged() if self.config.ema else nullcontext():
            return dict(self.validate(self.held_out))

    @torch.no_grad()
    def validate(self, entries: Sequence[FrameAt]) -> dict[str, float]:
        """Mean squared errors of guesses of the ends, in one call and in two."""
        student = self.student
        size = self.config.batch
        errors: dict[str, list[float]] = {}
        for first in range(0, len(entries), size):
            x, cond, end = self._batch(entries[first : first + size])
            time = torch.full((len(x),), student.time, dtype=torch.float64)
            estimate = partial(student.estimate, cond=cond)
            for calls in CALLS:
                with autocast(self.config, student.device):
                    found = guess(student.path, estimate, x, time, calls, student.first_time)
                error = (found.float() - end).pow(2).flatten(1).mean(1)
                errors.setdefault(f"calls {calls}", []).extend(error.tolist())
        return {name: round(float(np.mean(values)), 5) for name, values in errors.items()}

    def _batch(self, entries: Sequence[FrameAt]) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the path at the noises of these trajectories, indices of their prompts, which
        are encoded, and their ends."""
        student = self.student
        texts = [self.frames.prompts[entry.prompt] for entry in entries]
        wanted = list(dict.fromkeys(texts))
        student.encode(wanted)
        x = student.noise([self.frames.seed(entry) for entry in entries])
        end = self.frames.load(entries, LATENTS).to(student.device)
        return x, torch.tensor([wanted.index(text) for text in texts]), end


def draw(step: int, count: int, config: DraftConfig) -> IntArray:
    """The trajectories of optimiser step `step`, of `count`, by number; a function of seed and
    step.

    Every trajectory comes once before any comes again.
    """
    at = np.arange(step * config.batch, (step + 1) * config.batch)
    chosen = np.empty(config.batch, np.int64)
    for epoch in np.unique(at // count):
        order = np.random.default_rng((config.seed, 0, int(epoch))).permutation(count)
        chosen[at // count == epoch] = order[at[at // count == epoch] % count]
    return chosen


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


def last_validation(out: Path) -> dict[str, float]:
    """The errors that were logged last, by name; empty without any."""
    lines = read_metrics(out / METRICS)
    last = lines[-1] if lines else {}
    names = [f"calls {calls}" for calls in CALLS]
    return {name: check(name, last[name], float) for name in names if name in last}
