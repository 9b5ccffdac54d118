"""The training loop: accelerate, AdamW, an average of the weights, checkpoints, metrics."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from ttsnap.distill import checkpoints, curriculum, schedules
from ttsnap.distill.config import DistillConfig
from ttsnap.distill.curriculum import Group, Stage
from ttsnap.distill.data import Frame, Frames
from ttsnap.distill.losses import Objective
from ttsnap.distill.scoring import progress
from ttsnap.distill.student import Student

from ttsnap.core.arrays import FloatArray
from ttsnap.files.reading import parse_object
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import write_text
from ttsnap.options.option import determining

if TYPE_CHECKING:  # it takes a second to import
    from accelerate import Accelerator

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
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

    On a CPU a run that was gone on with ends with the same bits as one that never stopped. Raises ValueError for a
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
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999))
    rates = [group["lr"] for group in groups]
    everything = {**parameters, **extra}
    average = {name: p.detach().clone() for name, p in everything.items()}

    about: dict[str, Json] = {"config": determining(config), "data": frames.identity}
    checkpoint = checkpoints.latest(out / CHECKPOINTS, about)
    first = 0
    if checkpoint is not None:
        first, tensors = checkpoint
        for stage in plan.stages:
            if stage.first < first and stage.at is not None:
                student.begin_stage(frames.levels[stage.at])
        checkpoints.unpack(tensors, everything, average, optimizer)

    model, optimizer = accelerator.prepare(objective, optimizer)
    raw = optimizer.optimizer
    batches = Batches(frames, plan, config, accelerator.process_index, accelerator.num_processes)
    loader = _loader(batches, first * config.accumulation, config.workers)
    log = _Log(out / METRICS, first, accelerator)

    def save(step: int) -> None:
        if accelerator.is_main_process:
            log.sync()
            checkpoints.save(out / CHECKPOINTS, step, checkpoints.pack(everything, average, raw), about)
        accelerator.wait_for_everyone()

    parts = iter(loader)
    with progress(plan.steps, "train", "step", bar and accelerator.is_main_process) as shown, log:
        shown.update(first)
        for step in range(first, plan.steps):
            began = time.perf_counter()
            stage = curriculum.stage_at(plan.stages, step)
            if step == stage.first and stage.at is not None:
                _begin(student, frames.levels[stage.at], everything, average)
            factor = _factor(step, stage, plan.steps, config)
            for group, rate in zip(raw.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            # Dropout and the like follow from the step, so that a resumed run draws the same without a stored state.
            torch.manual_seed(hash_of(config.seed, step, accelerator.process_index))
            loss = _optimise(model, optimizer, parts, everything.values(), config, accelerator)
            if not np.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at step {step + 1}: lower lr (now {config.lr * factor:.3g}) or clip, "
                    "and start again in another folder"
                )
            if config.ema:
                _average(average, everything, min(config.ema, (1 + step) / (10 + step)))
            level = None if stage.at is None else frames.levels[stage.at]
            log.add(step + 1, level, loss, config.lr * factor, time.perf_counter() - began)
            shown.set_postfix(loss=f"{loss:.4f}", level="all" if level is None else f"{level:.3f}", refresh=False)
            shown.update()
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == plan.steps:
                save(step + 1)
    if config.ema:
        with torch.no_grad():
            for name, p in everything.items():
                p.copy_(average[name])
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


def _factor(step: int, stage: Stage, steps: int, config: DistillConfig) -> float:
    at, of = (step - stage.first, stage.count) if config.span == "level" else (step, steps)
    return schedules.factor(at, of, schedule=config.schedule, final=config.final_lr, warmup=config.warmup)


@torch.no_grad()
def _begin(student: Student, level: float, parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
    """The student's begin_stage; what it changes starts its average anew."""
    before = {name: p.detach().clone() for name, p in parameters.items()}
    student.begin_stage(level)
    for name, p in parameters.items():
        if not torch.equal(before[name], p):
            average[name].copy_(p)


@torch.no_grad()
def _average(average: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), [parameters[name].detach() for name in average], 1 - decay)


def _loader(batches: Batches, first: int, workers: int) -> DataLoader[Part]:
    # Its own generator: making an iterator draws a number, which must not depend on where a run was gone on with.
    return DataLoader(
        batches, batch_size=None, sampler=range(first, len(batches)), num_workers=workers,
        generator=torch.Generator().manual_seed(0), persistent_workers=False,
    )  # fmt: skip


def hash_of(seed: int, step: int, rank: int) -> int:
    """A torch seed that differs between steps and processes."""
    return int(np.random.SeedSequence((seed, step, rank, 2)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Log:
    """metrics.jsonl, one line a step, each step there once; and the trackers."""

    def __init__(self, path: Path, first: int, accelerator: Accelerator) -> None:
        self._accelerator, self._file = accelerator, None
        if not accelerator.is_main_process:
            return
        kept = [line for line in _lines(path) if check("step", line["step"], int) <= first]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(path, text)
        self._file = path.open("a", encoding="utf-8")

    def add(self, step: int, level: float | None, loss: float, lr: float, seconds: float) -> None:
        values = {"level": level, "loss": loss, "lr": lr, "seconds": round(seconds, 4)}
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        self._accelerator.log({key: value for key, value in values.items() if value is not None}, step=step)

    def sync(self) -> None:
        """On the disk before the checkpoint that counts on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> list[dict[str, Json]]:
    """The records of a metrics file; lines that are no JSON objects, such as one cut off by a crash, are left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            records.append(parse_object(line, path, nan=True))
    return records
