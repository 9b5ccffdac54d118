"""The recipes: frozen dataclasses whose defaults made what is packaged, and their reading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Interval

from ttsnap.files.plain_yaml import read_yaml
from ttsnap.files.settings import (
    Count,
    Decay,
    Natural,
    NotNegative,
    Positive,
    Settings,
    Share,
    build,
)

Naturals = tuple[Natural, ...]
Counts = tuple[Count, ...]
R = TypeVar("R", bound=Any)


def read(kind: type[R], path: Path | None, seed: int | None) -> R:
    """The recipe of a YAML file, or the packaged one; seed: in place of the recipe's."""
    recipe: R = kind() if path is None else build(kind, read_yaml(path, "recipe"))
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    return recipe


@dataclass(frozen=True)
class Call(Settings):
    """Arguments of the pipeline call; those of a recipe are recommended in the folder's
    ttsnap.json.

    max_sequence_length: zero tokens that the stock call appends to the text, 1 to 256.
    """

    num_inference_steps: Count = 20
    guidance_scale: float = 4.0
    max_sequence_length: Annotated[int, Interval(ge=1, le=256)] = 1


@dataclass(frozen=True)
class NoiseLevels(Settings):
    """Which noise levels training sees: the sigmoid of a normal variable, and a uniform share
    besides.

    A mean above 0 leans to high noise, where the layout of a picture is decided.
    """

    mean: float = 0.5
    std: Positive = 1.1
    uniform: Share = 0.2


@dataclass(frozen=True)
class FlowRecipe(Settings):
    """How an SD3 transformer is trained.

    batch: rows in a step.
    warmup: steps over which the learning rate rises.
    decay_steps: steps at the end over which it falls to 0.
    adam_lr, muon_lr: learning rates of AdamW, and of Muon for the matrices inside blocks; 0 for
        AdamW alone.
    muon_ns_steps: Newton-Schulz iterations in a step of Muon.
    ema: what the running average keeps of itself in a step.
    zero_tokens: for how many zero tokens the last one may stand; drawn at random per row.
    bf16: bfloat16 autocast.
    compile: whether the transformer's blocks are compiled.
    """

    batch: Count = 32
    steps: Count = 2700
    warmup: Count = 100
    decay_steps: Natural = 700
    adam_lr: Positive = 1e-3
    muon_lr: NotNegative = 2e-3
    muon_ns_steps: Count = 3
    weight_decay: NotNegative = 0.01
    ema: Decay = 0.998
    zero_tokens: Counts = (1, 1, 1, 1, 16, 77, 256, 256, 256)
    bf16: bool = True
    compile: bool = True

    def loop(self) -> dict[str, Any]:
        """Keywords of `training.Trainer`."""
        return {name: getattr(self, name) for name in ("steps", "warmup", "decay_steps", "ema")}
