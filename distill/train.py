"""Training of a noise-aware reward: batches by the curriculum, AdamW under accelerate, learning-rate schedules."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from ttsnap.distill import curriculum
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.curriculum import Group, Stage
from ttsnap.distill.data import Frame, Frames
from ttsnap.distill.losses import Objective
from ttsnap.distill.processes import member_of
from ttsnap.distill.student import Student
from ttsnap.distill.training import Loop, Weights

from ttsnap.core.arrays import FloatArray
from ttsnap.files.settings import Json
from ttsnap.options.option import determining

if TYPE_CHECKING:  # it takes a second to import
    from accelerate import Accelerator

UNCERTAINTY_LR = 0.01
"""Of the log-variances, which move by about 1 where a network's weights move by 1e-3."""


@dataclass(frozen=True)
class Curriculum:
    """What is trained on: the stages, the prompts (by number), their targets (S,) and the targets' spread."""

    stages: tuple[Stage, ...]
    prompts: tuple[int, ...]
    targets: Sequence[FloatArray]
    scale: float

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.stages[-1].first + self.stages[-1].count


Part: TypeAlias = tuple[Tensor, list[str], Tensor, Tensor]
"""x (N, ...), N prompts, levels (N,), targets (P, G)."""


class Batches(Dataset[Part]):
    """Part number i of a run: (x, prompts, level (N,), target (P, G)) of this process's share of optimiser step
    i // accumulation."""

    def __init__(self, frames: Frames, plan: Curriculum, config: DistillConfig, rank: int = 0, world: int = 1) -> None:
        self._frames, self._plan, self._config = frames, plan, config
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._plan.steps * self._config.accumulation

    def groups(self, index: int) -> list[Group]:
        """The groups of a part."""
        c, plan = self._config, self._plan
        step, part = divmod(index, c.accumulation)
        stage = curriculum.stage_at(plan.stages, step)
        seeds = [len(plan.targets[p]) for p in plan.prompts]
        options = {"groups": c.groups, "group_size": c.group_size, "earlier": c.earlier, "seed": c.seed}
        groups = curriculum.draw(step, stage, plan.prompts, seeds, **options)  # type: ignore[arg-type]
        return groups[part * self._world + self._rank :: self._world * c.accumulation]

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], Tensor, Tensor]:
        groups = self.groups(index)
        entries = [Frame(g.prompt, s, g.step) for g in groups for s in g.seeds]
        x = self._frames.load(entries, self._config.student.space)
        level = torch.tensor([self._frames.levels[e.step] for e in entries], dtype=torch.float32)
        target = np.stack([self._plan.targets[g.prompt][list(g.seeds)] for g in groups])
        return x, [self._frames.prompts[e.prompt] for e in entries], level, torch.from_numpy(target).float()


def train(
    student: Student, frames: Frames, plan: Curriculum, config: DistillConfig, out: Path, accelerator: Accelerator, *,
    bar: bool = False,
) -> Objective:  # fmt: skip
    """Train to the end, from the last checkpoint in out/checkpoints where there is one; the student then holds the
    averaged weights. The objective holds the learned uncertainty.

    On a CPU a run that was resumed ends with the same bits as one that never stopped. Raises ValueError for a
    checkpoint of another run, and where the loss is no longer finite; OSError where the disk is full.
    """
    if config.groups % (config.accumulation * accelerator.num_processes):
        raise ValueError(
            f"groups ({config.groups}) must be a multiple of accumulation x processes "
            f"({config.accumulation} x {accelerator.num_processes})"
        )
    objective = Objective(student, plan.scale, config.loss).to(accelerator.device)
    parameters = dict(student.trainable())
    extra = {f"uncertainty.{n}": p for n, p in (objective.uncertainty or nn.Module()).named_parameters()}
    groups = _parameter_groups(parameters, list(extra.values()), config)
    adam = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999))
    weights = Weights({**parameters, **extra}, adam)
    about: dict[str, Json] = {"config": determining(config), "data": frames.identity}
    member = member_of(accelerator, bar=bar)
    loop = Loop(weights, out, about, plan.steps, config.ema, config.checkpoint_every, member)

    def hear(first: int) -> None:
        """Tell the student of the stages that lie behind."""
        for stage in plan.stages:
            if stage.first < first and stage.at is not None:
                student.begin_stage(frames.levels[stage.at])

    first = loop.resume(hear)
    model, optimizer = accelerator.prepare(objective, adam)
    batches = Batches(frames, plan, config, member.rank, member.count)
    parts = iter(_loader(batches, first * config.accumulation, config.workers))
    began = time.perf_counter()

    def factor(step: int) -> float:
        stage = curriculum.stage_at(plan.stages, step)
        at, of = (step - stage.first, stage.count) if config.span == "level" else (step, plan.steps)
        return scheduled(at, of, schedule=config.schedule, final=config.final_lr, warmup=config.warmup)

    def update(step: int) -> float:
        nonlocal began
        began, stage = time.perf_counter(), curriculum.stage_at(plan.stages, step)
        if step == stage.first and stage.at is not None:
            _begin(student, frames.levels[stage.at], weights)
        # Dropout and the like follow from the step, so that a resumed run draws the same without a stored state.
        torch.manual_seed(hash_of(config.seed, step, member.rank))
        return _optimise(model, optimizer, parts, weights.parameters.values(), config, accelerator)

    def measure(done: int, loss: float) -> dict[str, Json]:
        at = curriculum.stage_at(plan.stages, done - 1).at
        level = None if at is None else frames.levels[at]
        seconds = round(time.perf_counter() - began, 4)
        figures = {"level": level, "loss": loss, "lr": config.lr * factor(done - 1), "seconds": seconds}
        accelerator.log({key: value for key, value in figures.items() if value is not None}, step=done)
        return {**figures}

    loop.run(first, factor, update, measure)
    return objective


def _optimise(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Iterator[Part], parameters: Iterable[Tensor],
    config: DistillConfig, accelerator: Accelerator,
) -> float:  # fmt: skip
    """One optimiser step; the mean loss over its parts and the processes."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=accelerator.device)
    for part in range(config.accumulation):
        x, prompts, level, target = next(parts)
        last = part == config.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            where = accelerator.device
            loss = model(x.to(where), prompts, level.to(where), target.to(where)) / config.accumulation
            accelerator.backward(loss)
        total += loss.detach()
    mean = float(accelerator.reduce(total, reduction="mean"))
    if np.isfinite(mean):
        if config.clip:
            accelerator.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
    return mean


def _parameter_groups(
    parameters: dict[str, nn.Parameter], extra: list[nn.Parameter], config: DistillConfig
) -> list[dict[str, Any]]:
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": vectors, "lr": config.lr, "weight_decay": 0.0},
        {"params": extra, "lr": UNCERTAINTY_LR, "weight_decay": 0.0},
    ]
    if not matrices and not vectors:
        raise ValueError("the student has nothing to train: its trainable() is empty")
    return [group for group in groups if group["params"]]


def linear(progress: float) -> float:
    """1 - p."""
    return 1 - progress


def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2; arXiv 1608.03983 without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


def rex(progress: float) -> float:
    """(1 - p) / (1/2 + (1 - p)/2): high for long, then steep; for fixed budgets, arXiv 2107.04197."""
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": linear, "cosine": cosine, "rex": rex}


def scheduled(step: int, steps: int, *, schedule: str, final: float = 0.0, warmup: int = 0) -> float:
    """Of step 0..steps-1: rises over `warmup` steps, and falls from 1 towards `final` (reached after the last step)."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (final + (1 - final) * SCHEDULES[schedule](step / steps))


@torch.no_grad()
def _begin(student: Student, level: float, weights: Weights) -> None:
    """The student's begin_stage; what it changes starts its average anew."""
    before = {name: p.detach().clone() for name, p in weights.parameters.items()}
    student.begin_stage(level)
    for name, p in weights.parameters.items():
        if not torch.equal(before[name], p):
            weights.average[name].copy_(p)


def _loader(batches: Batches, first: int, workers: int) -> DataLoader[Part]:
    # Its own generator: making an iterator draws a number, which must not depend on where a run was resumed.
    return DataLoader(
        batches, batch_size=None, sampler=range(first, len(batches)), num_workers=workers,
        generator=torch.Generator().manual_seed(0), persistent_workers=False,
    )  # fmt: skip


def hash_of(seed: int, step: int, rank: int) -> int:
    """A torch seed that differs between steps and processes."""
    return int(np.random.SeedSequence((seed, step, rank, 2)).generate_state(1, np.uint64)[0] >> np.uint64(1))
