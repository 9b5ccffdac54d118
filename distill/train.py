"""What a noise-aware reward learns: batches by the curriculum, and their loss."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttsnap.core.arrays import FloatArray
from ttsnap.distill import curriculum
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.curriculum import ComparedSeeds, Stage
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.losses import group_loss
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.student import Student
from ttsnap.distill.training import Lesson, Weights, autocast, check_shares, scheduled
from ttsnap.files.settings import Json

Part: TypeAlias = tuple[Tensor, list[str], Tensor, Tensor]
"""x (N, ...), N prompts, noise levels (N,), targets (P, G) with P G = N."""


@dataclass(frozen=True)
class Curriculum:
    """What is trained on."""

    stages: tuple[Stage, ...]
    prompts: tuple[int, ...]
    """By number."""
    targets: Sequence[FloatArray]
    """Of every prompt's seeds, (S,)."""
    scale: float
    """Standard deviation of the targets within a prompt."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.stages[-1].first + self.stages[-1].count


class Batches(Dataset[Part]):
    """The parts of a run. Part i is this process's share of part i % accumulation of step i //
    accumulation."""

    def __init__(
        self, frames: Frames, plan: Curriculum, config: DistillConfig, rank: int = 0, world: int = 1
    ) -> None:
        self._frames = frames
        self._plan = plan
        self._config = config
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        return self._plan.steps * self._config.accumulation

    def groups(self, index: int) -> list[ComparedSeeds]:
        """The groups of a part."""
        c = self._config
        plan = self._plan
        step, part = divmod(index, c.accumulation)
        groups = curriculum.draw(
            step,
            curriculum.stage_at(plan.stages, step),
            plan.prompts,
            [len(plan.targets[p]) for p in plan.prompts],
            groups=c.groups,
            group_size=c.group_size,
            earlier=c.earlier,
            seed=c.seed,
        )
        return groups[part * self._world + self._rank :: self._world * c.accumulation]

    def __getitem__(self, index: int) -> Part:
        groups = self.groups(index)
        entries = [FrameAt(g.prompt, s, g.step) for g in groups for s in g.seeds]
        x = self._frames.load(entries, self._config.student.space)
        level = torch.tensor([self._frames.levels[e.step] for e in entries], dtype=torch.float32)
        target = np.stack([self._plan.targets[g.prompt][list(g.seeds)] for g in groups])
        return (
            x,
            [self._frames.prompts[e.prompt] for e in entries],
            level,
            torch.from_numpy(target).float(),
        )


class RewardLesson(Lesson):
    """A student's training by the curriculum. ValueError for a batch that cannot be divided, and
    for a student without parameters."""

    betas = (0.9, 0.999)
    unused = True

    def __init__(
        self,
        student: Student,
        frames: Frames,
        plan: Curriculum,
        config: DistillConfig,
        member: Member = ALONE,
    ) -> None:
        check_shares("groups", config.groups, config, member)
        student.network.to(member.device)
        self.parameters = dict(student.trainable())
        if not self.parameters:
            raise ValueError("the student has nothing to train: its trainable() is empty")
        self.student = student
        self.frames = frames
        self.plan = plan
        self.config = config
        self.member = member
        self.steps = plan.steps
        self.weight_decay = config.weight_decay
        self.identity: Json = frames.identity
        self._rates = curriculum.per_level("lr", config.lr, len(plan.stages))
        self._parts: Iterator[Part] = iter(())

    def begin(self, first: int) -> None:
        for stage in self.plan.stages:
            if stage.first < first and stage.at is not None:
                self.student.begin_stage(self.frames.levels[stage.at])
        batches = Batches(self.frames, self.plan, self.config, self.member.rank, self.member.count)
        # A generator of its own: making an iterator draws a number, which must not depend on where
        # a run was resumed.
        self._parts = iter(
            DataLoader(
                batches,
                batch_size=None,
                sampler=range(first * self.config.accumulation, len(batches)),
                num_workers=self.config.workers,
                # forking a process that has threads, as numpy's, may hang
                multiprocessing_context="spawn" if self.config.workers else None,
                generator=torch.Generator().manual_seed(0),
                worker_init_fn=_ignore_ctrl_c,
            )
        )

    def rate(self, step: int) -> float:
        stage = curriculum.stage_at(self.plan.stages, step)
        rate = self._rates[self.plan.stages.index(stage)]
        if self.config.span == "level":
            return rate * scheduled(step - stage.first, stage.count, self.config)
        return rate * scheduled(step, self.steps, self.config)

    def losses(self, step: int, weights: Weights) -> Sequence[Callable[[], Tensor]]:
        stage = curriculum.stage_at(self.plan.stages, step)
        if step == stage.first and stage.at is not None:
            _begin(self.student, self.frames.levels[stage.at], weights)
        # Dropout follows from the step, so that a resumed run draws the same without a stored
        # state.
        drawn = np.random.SeedSequence((self.config.seed, step, self.member.rank, 2))
        torch.manual_seed(int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return [self._loss] * self.config.accumulation

    def _loss(self) -> Tensor:
        device = self.member.device
        scale = self.plan.scale
        x, prompts, level, target = next(self._parts)
        target = target.to(device) / scale
        with autocast(self.config, device):
            prediction = self.student.predict(x.to(device), prompts, level.to(device))
            return group_loss(prediction.float().view_as(target) / scale, target, self.config.loss)

    def figures(self, done: int, weights: Weights) -> dict[str, Json]:
        at = curriculum.stage_at(self.plan.stages, done - 1).at
        return {"level": None if at is None else self.frames.levels[at]}


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; their owner ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@torch.no_grad()
def _begin(student: Student, level: float, weights: Weights) -> None:
    """The student's begin_stage; what it changes starts its average anew."""
    before = {name: p.detach().clone() for name, p in weights.parameter.items()}
    student.begin_stage(level)
    for name, p in weights.parameter.items():
        if not torch.equal(before[name], p):
            weights.average[name].copy_(p)
