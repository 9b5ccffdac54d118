"""Training of a noise-aware reward: batches by the curriculum, AdamW, learning-rate schedules."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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
from ttsnap.distill.training import Loop, Weights
from ttsnap.files.settings import Json
from ttsnap.options.option import determining

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


def train(
    student: Student,
    frames: Frames,
    plan: Curriculum,
    config: DistillConfig,
    out: Path,
    member: Member = ALONE,
) -> None:
    """Train to the end, from the last checkpoint in out/checkpoints where there is one.

    The student then holds the averaged weights. On a CPU a resumed run ends with the same bits as
    an undisturbed one. ValueError for a checkpoint of another run, and for a loss that is not
    finite; OSError where the disk is full.
    """
    if config.groups % (config.accumulation * member.count):
        raise ValueError(
            f"groups ({config.groups}) must be a multiple of accumulation x processes "
            f"({config.accumulation} x {member.count})"
        )
    student.network.to(member.device)
    parameters = dict(student.trainable())
    if not parameters:
        raise ValueError("the student has nothing to train: its trainable() is empty")
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others},
    ]
    filled = [group for group in groups if group["params"]]
    rates = curriculum.per_level("lr", config.lr, len(plan.stages))
    optimizer = torch.optim.AdamW(filled, lr=rates[0], betas=(0.9, 0.999), weight_decay=0.0)
    weights = Weights(parameters)
    about: dict[str, Json] = {"config": determining(config), "data": frames.identity}
    loop = Loop(
        weights,
        optimizer,
        out,
        about,
        plan.steps,
        config.ema,
        config.clip,
        config.checkpoint_every,
        member,
        parts=config.accumulation,
        unused=True,
    )

    def begin_earlier(first: int) -> None:
        for stage in plan.stages:
            if stage.first < first and stage.at is not None:
                student.begin_stage(frames.levels[stage.at])

    first = loop.resume(begin_earlier)
    batches = Batches(frames, plan, config, member.rank, member.count)
    # A generator of its own: making an iterator draws a number, which must not depend on where a
    # run was resumed.
    parts = iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(first * config.accumulation, len(batches)),
            num_workers=config.workers,
            # forking a process that has threads, as numpy's, may hang
            multiprocessing_context="spawn" if config.workers else None,
            generator=torch.Generator().manual_seed(0),
            persistent_workers=False,
            worker_init_fn=_ignore_ctrl_c,
        )
    )
    began = time.perf_counter()

    def factor(step: int) -> float:
        stage = curriculum.stage_at(plan.stages, step)
        share = rates[plan.stages.index(stage)] / rates[0]
        at, of = (step - stage.first, stage.count) if config.span == "level" else (step, plan.steps)
        return share * scheduled(
            at, of, schedule=config.schedule, final=config.final_lr, warmup=config.warmup
        )

    def loss() -> Tensor:
        x, prompts, level, target = next(parts)
        x, level, target = (tensor.to(member.device) for tensor in (x, level, target))
        with torch.autocast(member.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prediction = student.predict(x, prompts, level).float().view_as(target) / plan.scale
            return group_loss(prediction, target / plan.scale, config.loss)

    def losses(step: int) -> list[Callable[[], Tensor]]:
        nonlocal began
        began = time.perf_counter()
        stage = curriculum.stage_at(plan.stages, step)
        if step == stage.first and stage.at is not None:
            _begin(student, frames.levels[stage.at], weights)
        # Dropout follows from the step, so that a resumed run draws the same without a stored
        # state.
        drawn = np.random.SeedSequence((config.seed, step, member.rank, 2)).generate_state(
            1, np.uint64
        )[0]
        torch.manual_seed(int(drawn >> np.uint64(1)))
        return [loss] * config.accumulation

    def measure(done: int, loss: float) -> dict[str, Json]:
        at = curriculum.stage_at(plan.stages, done - 1).at
        level = None if at is None else frames.levels[at]
        seconds = round(time.perf_counter() - began, 4)
        return {"level": level, "loss": loss, "lr": rates[0] * factor(done - 1), "seconds": seconds}

    loop.run(first, factor, losses, measure)


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; their owner ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "rex": lambda done: (1 - done) / (0.5 + 0.5 * (1 - done)),
}
"""The share of the learning rate that is left, given the share of the steps that is done.

rex: high for long, then steep, for fixed budgets (arXiv 2107.04197)."""


def scheduled(
    step: int, steps: int, *, schedule: str, final: float = 0.0, warmup: int = 0
) -> float:
    """The factor of step 0..steps-1: it rises over `warmup` steps, and falls from 1 to `final`
    after the last step."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (final + (1 - final) * SCHEDULES[schedule](step / steps))


@torch.no_grad()
def _begin(student: Student, level: float, weights: Weights) -> None:
    """The student's begin_stage; what it changes starts its average anew."""
    before = {name: p.detach().clone() for name, p in weights.parameter.items()}
    student.begin_stage(level)
    for name, p in weights.parameter.items():
        if not torch.equal(before[name], p):
            weights.average[name].copy_(p)
