"""The training of rewards and drafts: AdamW, averaged weights, checkpoints and metrics. What is
learnt is a `Lesson`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ttsnap.distill import checkpoints
from ttsnap.distill.config import RunConfig
from ttsnap.distill.processes import ALONE, Member
from ttsnap.files.reading import foreign, parse_object
from ttsnap.files.settings import Json, check
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import write_text
from ttsnap.options.option import determining

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class Weights(nn.Module):
    """Parameters by name, and their running average, which begins as they are now: all that
    checkpoints hold.

    Called with a function that computes a loss, as accelerate averages the gradients of what a
    module is called with.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # Names of a module hold no dots.
        named = [(name.replace(".", "/"), p) for name, p in parameters.items()]
        self.parameter = nn.ParameterDict(named)
        self.average = nn.ParameterDict(
            [(name, nn.Parameter(p.detach().clone(), False)) for name, p in named]
        )

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the parameters; the share `decay` of it stays."""
        torch._foreach_lerp_([*self.average.values()], [*self.parameter.values()], 1 - decay)

    @torch.no_grad()
    def use(self, values: Iterable[Tensor]) -> None:
        """Copy these values into the parameters."""
        for p, value in zip(self.parameter.values(), values, strict=True):
            p.copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in place of the parameters while this lasts."""
        kept = [p.detach().clone() for p in self.parameter.values()]
        self.use(self.average.values())
        yield
        self.use(kept)


class Lesson(Protocol):
    """What is trained, and on what."""

    parameters: dict[str, nn.Parameter]
    """Those that are trained, by names that stay the same."""
    steps: int
    """Optimiser steps."""
    betas: tuple[float, float]
    """AdamW's."""
    weight_decay: float = 0.0
    """AdamW's, of matrices; vectors are not decayed."""
    unused: bool = False
    """Whether a step may leave parameters unused, as those of other noise levels."""
    identity: Json
    """What distinguishes the data from others."""

    def begin(self, first: int) -> None:
        """Be ready for step `first`, before the weights of its checkpoint are put in place."""
        return

    def rate(self, step: int) -> float:
        """The learning rate at a step."""

    def losses(self, step: int, weights: Weights) -> Sequence[Callable[[], Tensor]]:
        """Of the parts of this process's share of a batch, one for each of `accumulation`. They
        depend on the seed and the step alone, so that a run resumes without other state."""

    def figures(self, done: int, weights: Weights) -> Mapping[str, Json]:
        """What to log after so many steps beside the loss; in the first process only."""


class Training:
    """A run of optimiser steps, whose batches are divided between the processes.

    out: folder of checkpoints and metrics. member: this process; the first one writes.
    """

    def __init__(
        self, lesson: Lesson, config: RunConfig, out: Path, member: Member = ALONE
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.lesson = lesson
        self.config = config
        self.out = out
        self.member = member
        self.weights = Weights(lesson.parameters)
        # What must be the same to resume from a checkpoint.
        self.about: dict[str, Json] = {"config": determining(config), "data": lesson.identity}
        matrices = [p for p in lesson.parameters.values() if p.ndim > 1]
        vectors = [p for p in lesson.parameters.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": lesson.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW([group for group in groups if group["params"]], betas=lesson.betas)
        self.accelerator = Accelerator(
            device_placement=False,
            cpu=member.device.type == "cpu",
            mixed_precision="no",  # losses choose it
            gradient_accumulation_steps=config.accumulation,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=lesson.unused)],
        )
        # All processes get the weights of the first one, as devices may draw initial weights
        # differently.
        self.trained, self.optimizer = self.accelerator.prepare(self.weights, adam)
        self.accelerator.register_save_state_pre_hook(self._save_alike)
        self.accelerator.register_load_state_pre_hook(self._load_alike)

    def _save_alike(
        self, models: list[nn.Module], states: list[dict[str, Tensor]], folder: str
    ) -> None:
        """Save by the names that parameters have in one process, so that any number of processes
        may resume."""
        states[:] = [self.weights.state_dict()]

    def _load_alike(self, models: list[nn.Module], folder: str) -> None:
        models[:] = [self.weights]

    def save(self, folder: Path) -> None:
        """Write the files of a checkpoint."""
        self.accelerator.save_state(str(folder))
        for states in folder.glob("random_states_*"):  # a step draws from its number alone
            states.unlink()

    def resume(self) -> int:
        """The step to begin with: 0, or that of the last checkpoint, whose weights are put in
        place."""
        checkpoint = checkpoints.latest(self.out / CHECKPOINTS, self.about)
        first = checkpoint[0] if checkpoint else 0
        self.lesson.begin(first)
        if checkpoint:
            folder = checkpoint[1]
            with foreign(f"cannot resume from {folder}, perhaps that of another student"):
                self.accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
        return first

    def run(self) -> None:
        """Train to the end, from the last checkpoint where there is one, and put the averaged
        weights in place.

        On a CPU a run that is resumed by as many processes ends with the same bits as an
        undisturbed one; another number of processes differs by rounding only. ValueError for a
        checkpoint of another run, and for a loss that is not finite; OSError where the disk is
        full; KeyboardInterrupt, after a checkpoint, where a process got a signal.
        """
        first = self.resume()
        last = self.lesson.steps
        main = self.member.is_main
        saved = time.monotonic()
        bar = tqdm(
            total=last,
            initial=first,
            desc="train",
            unit="step",
            disable=not self.member.shown,
            dynamic_ncols=True,
        )
        logged = MetricsFile(self.out / METRICS, first) if main else contextlib.nullcontext()
        with bar, logged as metrics, Unbroken() as signalled:
            for done in range(first + 1, last + 1):
                line = self._line(done)
                bar.set_postfix(loss=line["loss"], refresh=False)
                bar.update()
                stopping = self.member.any(signalled())
                if metrics is not None:
                    metrics.add({**line, **self.lesson.figures(done, self.weights)})
                    waited = time.monotonic() - saved
                    if stopping or done == last or waited >= self.config.checkpoint_every:
                        metrics.sync()
                        checkpoints.save(self.out / CHECKPOINTS, done, self.save, self.about)
                        saved = time.monotonic()
                if stopping:
                    self.member.wait()  # for the checkpoint: a launcher ends all once one has ended
                    raise KeyboardInterrupt
        if self.config.ema:
            self.weights.use(self.weights.average.values())

    def _line(self, done: int) -> dict[str, Json]:
        """Take one step, the `done`th; what to log of it."""
        began = time.perf_counter()
        rate = self.lesson.rate(done - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.step(self.lesson.losses(done - 1, self.weights))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {done}: lower lr (now {rate:g}) or clip, and start"
                " again in another folder"
            )
        if self.config.ema:
            self.weights.follow(min(self.config.ema, done / (9 + done)))
        seconds = round(time.perf_counter() - began, 4)
        return {"step": done, "loss": loss, "lr": rate, "seconds": seconds}

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimiser step of all processes together; its loss. A loss that is not finite changes
        nothing."""
        total = torch.zeros((), device=next(self.weights.parameters()).device)
        for part in losses:
            with self.accelerator.accumulate(self.trained):
                loss = self.trained(part)
                self.accelerator.backward(loss)
                total += loss.detach() / len(losses)
        mean = float(self.accelerator.reduce(total, "mean"))
        if math.isfinite(mean):
            if self.config.clip:
                self.accelerator.clip_grad_norm_(self.weights.parameter.values(), self.config.clip)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return mean


def check_shares(name: str, count: int, config: RunConfig, member: Member) -> None:
    """ValueError unless so many of a batch can be divided into the parts of all processes."""
    if count % (config.accumulation * member.count):
        raise ValueError(
            f"{name} ({count}) must be a multiple of accumulation x processes"
            f" ({config.accumulation} x {member.count})"
        )


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """In which a loss is computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "rex": lambda done: (1 - done) / (0.5 + 0.5 * (1 - done)),
    "late": lambda done: min(1.0, (1 - done) / 0.4),
}
"""The share of the learning rate that is left, given the share of the steps that is done.

rex: high for long, then steep, for fixed budgets (arXiv 2107.04197)."""


def scheduled(step: int, steps: int, config: RunConfig) -> float:
    """The factor of step 0..steps-1: it rises over `warmup` steps, and falls from 1 to `final_lr`
    after the last step."""
    rising = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    left = SCHEDULES[config.schedule](step / steps)
    return rising * (config.final_lr + (1 - config.final_lr) * left)


class MetricsFile:
    """metrics.jsonl: one line a step, in order. Lines after step `first` are removed."""

    def __init__(self, path: Path, first: int) -> None:
        kept = [line for line in read_metrics(path) if check("step", line["step"], int) <= first]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: Mapping[str, Json]) -> None:
        """Append it."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Write to the disk, before a checkpoint that counts on these lines."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Json]]:
    """The lines of a metrics file, without those that are no JSON objects, as one cut off by a
    crash."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(parse_object(line, path, nan=True))
    return lines
