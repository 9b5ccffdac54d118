"""The recipe of a preference LoRA of the embedded model. None is packaged (docs/embedded_model.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ttsnap.files.settings import Bounds, Count, Natural, NotNegative, Positive, Settings
from ttsnap.scenes.training.base.recipe import NoiseLevels


@dataclass(frozen=True)
class PreferenceData(Settings):
    """Pictures to choose from.

    prompts: captions to train on, none of them held out.
    seeds: pictures of each; the best and the worst are a pair.
    margin: smallest difference of their rewards.
    validation: other captions, to stop by.
    """

    prompts: Count = 240
    seeds: Annotated[int, Bounds(2)] = 6
    margin: NotNegative = 0.05
    validation: Count = 48


@dataclass(frozen=True)
class Lora(Settings):
    """The adapter: its rank, its scale alpha / rank, and the layers of the transformer that get one."""

    rank: Count = 8
    alpha: Count = 8
    modules: tuple[str, ...] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )


@dataclass(frozen=True)
class Validation(Settings):
    """When to stop: every so many steps the captions' pictures are made again, from `seeds` seeds in `steps` steps.

    patience: checks without a better reward before training ends.
    """

    every: Count = 60
    seeds: Count = 2
    steps: Count = 10
    patience: Count = 3


@dataclass(frozen=True)
class PreferenceRecipe(Settings):
    """How the LoRA is trained.

    bf16: bfloat16 autocast, a third faster on CPUs that have it.
    beta: how strongly the frozen model anchors the tuned one.
    batch: pairs in a step.
    sigma: noise levels, as the base model was trained.
    """

    seed: Natural = 0
    bf16: bool = True
    data: PreferenceData = PreferenceData()
    lora: Lora = Lora()
    beta: Positive = 50.0
    lr: Positive = 1.5e-3
    weight_decay: NotNegative = 0.0
    batch: Count = 8
    steps: Count = 180
    warmup: Count = 20
    sigma: NoiseLevels = NoiseLevels()
    validation: Validation = Validation()
