"""The training loop: updates, learning rate, running average, checkpoints, figures on the way."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from train_worlds.recipes import FlowRecipe, NoiseLevels
from ttsnap.files.writing import write_whole

N = TypeVar("N", bound=nn.Module)


class Trainer(ABC, Generic[N]):
    """A network in training and its running average. A subclass says what the loss of a step is.

    Where everything random in a step comes from a generator seeded with (seed, step), a resumed run
    repeats the undisturbed one exactly.

    Args:
        net: what is trained, on its device.
        optimizers: of its parameters; "rate" in a parameter group multiplies the group's learning
            rate.
        steps: when training ends.
        warmup: steps over which the learning rate rises.
        decay_steps: steps at the end over which it falls to `floor`, a share of the peak.
        ema: what the average keeps of itself in a step; None for no average, and `ema` is the
            network itself.
        heads: what is trained in addition, by name, and not averaged.
    """

    def __init__(
        self,
        net: N,
        optimizers: list[torch.optim.Optimizer],
        *,
        steps: int,
        warmup: int,
        decay_steps: float = 0,
        floor: float = 0.0,
        ema: float | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.net, self.optimizers, self.step = net, optimizers, 0
        self.steps, self.warmup, self.decay_steps, self.floor = steps, warmup, decay_steps, floor
        self.ema = net if ema is None else copy.deepcopy(net).eval().requires_grad_(False)
        self.figures: dict[str, float] = {}
        self._keep = ema
        self._parts: dict[str, nn.Module] = {"net": net, "ema": self.ema, **(heads or {})}
        self._peaks = [
            group["lr"] * group.get("rate", 1.0) for o in optimizers for group in o.param_groups
        ]

    @abstractmethod
    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of step number `step`, and scalars to show."""

    def learning_rate(self, peak: float) -> float:
        """Of step number `step`: warm-up, constant, linear decay."""
        warm = (self.step + 1) / self.warmup
        left = (self.steps - self.step) / max(1, self.decay_steps)
        return peak * min(1.0, warm, max(self.floor, left))

    def update(self) -> dict[str, float]:
        """One step: gradients of a norm of at most 1, at this step's learning rate. Returns the
        step's figures."""
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = self.learning_rate(peak)
        loss, figures = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._keep is not None:
            keep = min(self._keep, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.ema.parameters()), list(self.net.parameters()), 1 - keep
                )
        self.step += 1
        return {name: value.item() for name, value in figures.items()}

    def run(
        self,
        title: str,
        checkpoint: Path | None = None,
        save_every: int = 0,
        *,
        decay_now: int | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to the end, from the checkpoint where there is one.

        `figures` are running means of each step's. `look` is called after each step; it may shorten
        `steps`.
        decay_now: finish early: decay the learning rate over the next so many steps, then stop.
        """
        if checkpoint is not None and checkpoint.exists():
            self.load(checkpoint)
        if decay_now is not None:
            self.steps, self.decay_steps = self.step + decay_now, decay_now
        with tqdm(
            initial=self.step, total=self.steps, desc=title, unit="step", mininterval=1
        ) as bar:
            while self.step < self.steps:
                for name, value in self.update().items():
                    before = self.figures.get(name)
                    self.figures[name] = value if before is None else 0.98 * before + 0.02 * value
                bar.set_postfix({k: f"{v:.4f}" for k, v in self.figures.items()}, refresh=False)
                bar.update()
                look()
                if checkpoint is not None and (
                    self.step % save_every == 0 or self.step == self.steps
                ):
                    self.save(checkpoint)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "steps": self.steps,
            "decay_steps": self.decay_steps,
            **{name: part.state_dict() for name, part in self._parts.items()},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        write_whole(path, lambda file: torch.save(self.state(), file))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, map_location=next(self.net.parameters()).device, weights_only=True)
        self.step, self.steps, self.decay_steps = (
            state["step"],
            state["steps"],
            state["decay_steps"],
        )
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def muon_and_adam(
    named: Iterable[tuple[str, nn.Parameter]], recipe: FlowRecipe
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in named:
        inner = p.ndim == 2 and ("transformer_blocks" in name or "layers" in name)
        (matrices if inner and "norm" not in name and recipe.muon_lr > 0 else rest).append(p)
    adam = torch.optim.AdamW(
        rest, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    if not matrices:
        return [adam]
    muon = torch.optim.Muon(
        matrices,
        lr=recipe.muon_lr,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
        ns_steps=recipe.muon_ns_steps,
    )
    return [adam, muon]


def sample_sigma(n: int, levels: NoiseLevels, dice: torch.Generator) -> Tensor:
    """Noise levels (n,): logit-normal, with a uniform share."""
    z = torch.randn(n, generator=dice) * levels.std + levels.mean
    flat = torch.rand(n, generator=dice) < levels.uniform
    return torch.where(flat, torch.rand(n, generator=dice), torch.sigmoid(z))
