"""What the trainings of rewards and drafts share: averaged weights, and the loop of steps,
checkpoints and metrics."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ttsnap.distill import checkpoints
from ttsnap.distill.processes import Member
from ttsnap.files.reading import foreign, parse_object
from ttsnap.files.settings import Json, check
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import write_text

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


@dataclass
class Loop:
    """A run of optimiser steps, whose batches are divided between the processes."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    out: Path
    """Folder of checkpoints and metrics."""
    about: Mapping[str, Json]
    """What must be the same to resume from a checkpoint, JSON-ready."""
    steps: int
    ema: float
    """Decay of the running average, smaller in the first steps; 0 for no average."""
    clip: float
    """The largest norm of the gradient; 0 for no limit."""
    checkpoint_every: float
    """Seconds between checkpoints."""
    member: Member
    """This process; the first one writes."""
    parts: int = 1
    """Parts of a process's share of a batch, computed one after the other to save memory."""
    unused: bool = False
    """Whether a step may leave parameters unused, as those of other noise levels."""
    prefix: str = ""
    """What goes before the names of settings in messages ("training.")."""

    def __post_init__(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.accelerator = Accelerator(
            device_placement=False,
            cpu=self.member.device.type == "cpu",
            mixed_precision="no",  # losses choose it
            gradient_accumulation_steps=self.parts,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=self.unused)],
        )
        # a checkpoint's are those of its step
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # All processes get the weights of the first one, as devices may draw initial weights
        # differently.
        self.trained, self.optimizer = self.accelerator.prepare(self.weights, self.optimizer)
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

    def resume(self, before: Callable[[int], None] = lambda first: None) -> int:
        """The step to begin with: 0, or that of the last checkpoint, whose weights are put in
        place.

        before: called with the checkpoint's step before that. ValueError where the checkpoint is
            another student's.
        """
        if (checkpoint := checkpoints.latest(self.out / CHECKPOINTS, self.about)) is None:
            return 0
        first, folder = checkpoint
        before(first)
        with foreign(f"cannot resume from {folder}, perhaps that of another student"):
            self.accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
        return first

    def save(self, folder: Path) -> None:
        """Write the files of a checkpoint."""
        self.accelerator.save_state(str(folder))
        for states in folder.glob("random_states_*"):  # a step draws from its number alone
            states.unlink()

    def run(
        self,
        first: int,
        factor: Callable[[int], float],
        losses: Callable[[int], Sequence[Callable[[], Tensor]]],
        measure: Callable[[int, float], Mapping[str, Json] | None],
    ) -> None:
        """Train from step `first` to the end, and put the averaged weights in place.

        factor: of the learning rates at a step. losses: of the parts of this process's share of a
        batch. measure: figures to log after so many steps, given the last loss. ValueError for a
        loss that is not finite; KeyboardInterrupt, after a checkpoint, where a process got a
        signal.
        """
        rates = self.rates
        main = self.member.is_main
        silent = not self.member.shown
        saved = time.monotonic()
        bar = tqdm(
            total=self.steps,
            initial=first,
            desc="train",
            unit="step",
            disable=silent,
            dynamic_ncols=True,
        )
        logged = MetricsFile(self.out / METRICS, first) if main else contextlib.nullcontext()
        with bar, logged as metrics, Unbroken() as asked:
            for step in range(first, self.steps):
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor(step)
                loss = self.step(losses(step))
                done = step + 1
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the loss is {loss} at step {done}: lower {self.prefix}lr (now"
                        f" {rates[0]:g}) or {self.prefix}clip, and start again in another folder"
                    )
                if self.ema:
                    self.weights.follow(min(self.ema, (1 + step) / (10 + step)))
                figures = measure(done, loss)
                numbers = {
                    k: v for k, v in (figures or {"loss": loss}).items() if isinstance(v, float)
                }
                bar.set_postfix(numbers, refresh=False)
                bar.update()
                stopping = self.member.any(asked())
                if metrics is not None and figures is not None:
                    metrics.add({"step": done, **figures})
                due = (
                    stopping
                    or done == self.steps
                    or time.monotonic() - saved >= self.checkpoint_every
                )
                if metrics is not None and due:
                    metrics.sync()
                    checkpoints.save(self.out / CHECKPOINTS, done, self.save, self.about)
                    saved = time.monotonic()
                if stopping:
                    self.member.wait()  # for the checkpoint: a launcher ends all once one has ended
                    raise KeyboardInterrupt
        if self.ema:
            self.weights.use(self.weights.average.values())

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimiser step of all processes together; its loss. A loss that is not finite changes
        nothing."""
        total = torch.zeros((), device=next(self.weights.parameters()).device)
        for part in losses:
            with self.accelerator.accumulate(self.trained):
                loss = self.trained(part)
                self.accelerator.backward(loss)
                total += loss.detach() / self.parts
        mean = float(self.accelerator.reduce(total, "mean"))
        if math.isfinite(mean):
            if self.clip:
                self.accelerator.clip_grad_norm_(self.weights.parameter.values(), self.clip)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return mean


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
