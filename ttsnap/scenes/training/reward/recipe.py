"""The recipe of the packaged learned reward: its defaults made the weights that are shipped."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.files.settings import Count, Decay, Natural, NotNegative, Positive, Settings, Share
from ttsnap.scenes.reader import ReaderSize

_ALL_BUT_COMPARE = ("stem", "fine", "down", "coarse", "norm", "centres")
"""What reads pictures: frozen once it can, while relations are learned."""


@dataclass(frozen=True)
class RewardData(Settings):
    """Pictures to learn from, each with so many captions.

    renders: ground-truth pictures.
    prompts: the first so many of the recording.
    first_step: recorded estimates from this step on.
    """

    renders: Count = 120_000
    prompts: Count = 240
    first_step: Natural = 7
    captions: Count = 4


@dataclass(frozen=True)
class Phase(Settings):
    """A part of the training, which begins with the weights that the part before left.

    recorded: share of pictures that the generator made.
    relations: share of renders of relations, in addition.
    centres: weight of naming the object in each cell.
    ranking: weight of preferring the own caption to the first other one.
    compare: the rate of the part that compares places, as a multiple of the others'.
    frozen: parts of the network that stay as they are.
    """

    steps: Count
    lr: Positive
    recorded: Share
    relations: Share
    centres: NotNegative
    ranking: NotNegative
    compare: NotNegative
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class RewardRecipe(Settings):
    """How the reward is trained. batch: pictures in a step, each with all its captions."""

    seed: Natural = 0
    data: RewardData = RewardData()
    model: ReaderSize = ReaderSize()
    batch: Count = 64
    warmup: Count = 100
    weight_decay: NotNegative = 0.01
    ema: Decay = 0.998
    bf16: bool = True
    phases: tuple[Phase, ...] = (
        Phase(3000, 2e-3, recorded=0.4, relations=0.0, centres=0.3, ranking=0.0, compare=1.0, frozen=("compare",)),
        Phase(800, 1e-3, recorded=0.0, relations=1.0, centres=0.0, ranking=2.0, compare=4.0, frozen=_ALL_BUT_COMPARE),
        Phase(800, 5e-4, recorded=0.4, relations=0.3, centres=0.0, ranking=1.0, compare=1.0, frozen=_ALL_BUT_COMPARE),
    )
