"""Updates of networks whose running average is the result, and their state on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ttsnap.files.writing import write_whole


class Rates(Protocol):
    """What a recipe, a dataclass, says of its updates (see `GeneratorRecipe`)."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay_steps(self) -> int: ...
    @property
    def adam_lr(self) -> float: ...
    @property
    def muon_lr(self) -> float: ...
    @property
    def muon_ns_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema(self) -> float: ...


R = TypeVar("R", bound=Rates)
N = TypeVar("N", bound=nn.Module)


def learning_rate(step: int, recipe: Rates) -> float:
    """Warm-up, constant, linear decay to zero over the last `decay_steps`; a factor in (0, 1]."""
    warm = (step + 1) / recipe.warmup
    left = (recipe.steps - step) / max(1, recipe.decay_steps)
    return max(0.0, min(1.0, warm, left))


def optimizers_of(named: Iterable[tuple[str, nn.Parameter]], recipe: Rates) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in named:
        inner = p.ndim == 2 and ("transformer_blocks" in name or "layers" in name)
        (matrices if inner and "norm" not in name and recipe.muon_lr > 0 else rest).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=recipe.muon_lr,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
                ns_steps=recipe.muon_ns_steps,
            )
        )
    return optimizers


class Updates(Generic[N, R]):
    """A network in training and its running average, which can be saved and resumed at any step.

    Args:
        recipe: how it is trained.
        net: what is trained, on its device.
        heads: what is trained beside it, by name, and not averaged.
    """

    def __init__(self, recipe: R, net: N, heads: Mapping[str, nn.Module] | None = None) -> None:
        self.recipe, self.net, self.step = recipe, net, 0
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        self._parts: dict[str, nn.Module] = {"net": net, "ema": self.ema, **(heads or {})}
        trained = [part for name, part in self._parts.items() if name != "ema"]
        self.optimizers = optimizers_of([named for part in trained for named in part.named_parameters()], recipe)
        self._rates = [o.param_groups[0]["lr"] for o in self.optimizers]

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "steps": self.recipe.steps,
            "decay_steps": self.recipe.decay_steps,
            **{name: part.state_dict() for name, part in self._parts.items()},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        write_whole(path, lambda file: torch.save(self.state(), file))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, map_location=next(self.net.parameters()).device, weights_only=True)
        self.step = state["step"]
        self.recipe = replace(self.recipe, steps=state["steps"], decay_steps=state["decay_steps"])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def decay_from_here(self, steps: int) -> None:
        """Finish early: decay the learning rate over the next `steps` steps, then stop."""
        self.recipe = replace(self.recipe, steps=self.step + steps, decay_steps=steps)

    def update(self, loss: Tensor) -> None:
        """One step down this loss: gradients of a norm of at most 1, at this step's learning rate."""
        factor = learning_rate(self.step, self.recipe)
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        loss.backward()
        nn.utils.clip_grad_norm_([p for o in self.optimizers for p in o.param_groups[0]["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - keep)
        self.step += 1
