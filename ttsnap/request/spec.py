"""What an engine is made for and from, without anything of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import Spec
from ttsnap.options.sampler import SamplerOptions


@dataclass(frozen=True)
class EngineSpec:
    """One engine. Searches of equal specs share its batches, whatever their prompts; other processes make it from this.

    Where the rewards are names it can be hashed, as keys of a table are.
    """

    model: ModelOptions | None
    """Which pipeline, on which device, in which dtype, with which LoRA; None: a pipeline that is there."""
    rewards: tuple[Spec, ...]
    """Names, as `--reward` takes them. A function or an object is sent whole, with its weights."""
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    batch: EngineOptions = field(default_factory=EngineOptions)
    call: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the pipeline's own call (steps, guidance, sizes), complete. Where engines are shared, they say of a
    prompt only that it has a negative one (""), and of what size its pictures are (Blank): latents of other shapes
    share no batch."""
    scheduler: Any = field(default=None, hash=False)
    """One that was put in place of the model's own, else None."""


def reward_tuple(rewards: Spec) -> tuple[Spec, ...]:
    """Rewards as users give them, one or several, as those of a spec."""
    return tuple(rewards) if isinstance(rewards, list | tuple) else (rewards,)
