"""What the trainings of rewards and drafts share: averaged weights, and the loop of steps, checkpoints and metrics."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ttsnap.distill import checkpoints
from ttsnap.distill.processes import Member
from ttsnap.files.reading import parse_object
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import write_text

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


class Weights:
    """Parameters by name, their running average, and their optimizer with its moments.

    `average` begins as the parameters are now.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = parameters, optimizer
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the average towards the parameters; the share `decay` of it stays."""
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def use(self, values: Mapping[str, Tensor]) -> None:
        """Copy these values into the parameters."""
        for name, p in self.parameters.items():
            p.copy_(values[name])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in place of the parameters while this lasts."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.use(self.average)
        yield
        self.use(kept)

    def pack(self) -> dict[str, Tensor]:
        """What a run needs to resume, by name: parameters, average, AdamW's moments and step counts."""
        tensors: dict[str, Tensor] = {f"parameter/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, p in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(p, {}).items()}
        # Clones, since parameters may share memory, which safetensors refuses.
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}

    @torch.no_grad()
    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in place what `pack` returned. ValueError where names or shapes are those of another student."""
        wanted: dict[str, Tensor] = {f"parameter/{name}": p for name, p in self.parameters.items()}
        wanted |= {f"average/{name}": value for name, value in self.average.items()}
        for name, value in wanted.items():
            if name not in tensors or tensors[name].shape != value.shape:
                there = tuple(tensors[name].shape) if name in tensors else "missing"
                raise ValueError(
                    f"the checkpoint's {name} is {there}, the student's {tuple(value.shape)}; another student?"
                )
            value.copy_(tensors[name])
        for name, p in self.parameters.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors]
            state = {key: tensors[f"{key}/{name}"] for key in keys}
            if state:
                self.optimizer.state[p] = {
                    key: value.clone() if key == "step" else value.to(p.device, copy=True)
                    for key, value in state.items()
                }


@dataclass(frozen=True)
class Loop:
    """A run of optimiser steps, whose batches are divided between the processes."""

    weights: Weights
    out: Path
    """Folder of checkpoints and metrics."""
    about: Mapping[str, Json]
    """What must be the same to resume from a checkpoint, JSON-ready."""
    steps: int
    ema: float
    """Decay of the running average, smaller in the first steps; 0 for no average."""
    clip: float
    """The largest norm of the gradient; 0 for no limit."""
    checkpoint_every: int
    """Steps between checkpoints."""
    member: Member
    """This process; the first one writes."""
    prefix: str = ""
    """What goes before the names of settings in messages ("training.")."""

    def resume(self, before: Callable[[int], None] = lambda first: None) -> int:
        """The step to begin with: 0, or that of the last checkpoint, whose weights are put in place.

        before: called with the checkpoint's step before that. All processes get the weights of the first one, as
        devices may draw initial weights differently.
        """
        first = 0
        if (checkpoint := checkpoints.latest(self.out / CHECKPOINTS, self.about)) is not None:
            first, tensors = checkpoint
            before(first)
            self.weights.unpack(tensors)
        self.member.take_over([*self.weights.parameters.values(), *self.weights.average.values()])
        return first

    def run(
        self,
        first: int,
        factor: Callable[[int], float],
        losses: Callable[[int], Sequence[Callable[[], Tensor]]],
        measure: Callable[[int, float], Mapping[str, Json] | None],
    ) -> None:
        """Train from step `first` to the end, and put the averaged weights in place.

        factor: of the learning rates at a step. losses: of the parts of this process's share of a batch, computed one
        after the other to save memory. measure: figures to log after so many steps, given the last loss. ValueError for
        a loss that is not finite.
        """
        groups = self.weights.optimizer.param_groups
        rates, main = [group["lr"] for group in groups], self.member.is_main
        silent = not self.member.shown
        bar = tqdm(total=self.steps, initial=first, desc="train", unit="step", disable=silent, dynamic_ncols=True)
        with bar, Metrics(self.out / METRICS, first) if main else contextlib.nullcontext() as metrics:
            for step in range(first, self.steps):
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate * factor(step)
                loss, done = self.step(losses(step)), step + 1
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the loss is {loss} at step {done}: lower {self.prefix}lr (now {rates[0]:g}) or "
                        f"{self.prefix}clip, and start again in another folder"
                    )
                if self.ema:
                    self.weights.follow(min(self.ema, (1 + step) / (10 + step)))
                figures = measure(done, loss)
                numbers = {k: v for k, v in (figures or {"loss": loss}).items() if isinstance(v, float)}
                bar.set_postfix(numbers, refresh=False)
                bar.update()
                if metrics is None:
                    continue
                if figures is not None:
                    metrics.add({"step": done, **figures})
                if done % self.checkpoint_every == 0 or done == self.steps:
                    metrics.sync()
                    checkpoints.save(self.out / CHECKPOINTS, done, self.weights.pack(), self.about)
        if self.ema:
            self.weights.use(self.weights.average)

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimiser step of all processes together; its loss. A loss that is not finite changes nothing."""
        parameters = [*self.weights.parameters.values()]
        total = torch.zeros((), device=parameters[0].device)
        self.weights.optimizer.zero_grad(set_to_none=True)
        for part in losses:
            loss = part() / len(losses)
            loss.backward()
            total += loss.detach()
        if self.member.count > 1:
            self.member.average_gradients(parameters, total)
        if math.isfinite(total):
            if self.clip:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            self.weights.optimizer.step()
        return float(total)


class Metrics:
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

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Json]]:
    """The lines of a metrics file, without those that are no JSON objects, as one cut off by a crash."""
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(parse_object(line, path, nan=True))
    return lines
