"""The recipe of the packaged few-step model, scenes-turbo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ttsnap.files.settings import Bounds, Count, Decay, Natural, NotNegative, Positive, Settings, Share
from ttsnap.scenes.training.base.recipe import Call

Ascending = Annotated[tuple[int, ...], Bounds(0)]


@dataclass(frozen=True)
class PairsRecipe(Settings):
    """The teacher's trajectories: where each starts, and where the guided sampler ends from there.

    from_noise: those that start from pure noise.
    from_renders: those that start from a rendered picture with fresh noise.
    starts: grid steps of the teacher at which renders are put, drawn at random.
    skipped: grid steps at which the teacher is not called; it goes straight on there.
    shard: trajectories in a file.
    batch: trajectories at once.
    """

    from_noise: Natural = 15_616
    from_renders: Natural = 4096
    starts: Annotated[tuple[int, ...], Bounds(1)] = (2, 4, 6, 8, 10, 13, 16)
    skipped: Ascending = (11, 12, 14, 15, 17, 18, 19)
    shard: Count = 256
    batch: Count = 64
    seed: Natural = 0


@dataclass(frozen=True)
class TurboRecipe(Settings):
    """How the base model is distilled: guidance and steps at once, by rectified flow on the teacher's own pairs.

    teacher: the guided call whose results are learnt.
    defaults: the call that is recommended for the result; its scheduler ends at 1 / steps.
    at_start: share of rows that are at the start of their trajectory; the others are on the way.
    warmup: steps over which the learning rate rises.
    decay_steps: steps at the end over which it falls to 0.
    adam_lr, muon_lr: learning rates of AdamW, and of Muon for the matrices inside blocks; 0 for AdamW alone.
    zero_tokens: for how many zero tokens the last one may stand; drawn at random per sample.
    held: trajectories from noise that are not trained on, for the errors on the way.
    """

    seed: Natural = 0
    teacher: Call = Call()
    defaults: Call = Call(num_inference_steps=6, guidance_scale=1.0)
    pairs: PairsRecipe = PairsRecipe()
    at_start: Share = 0.45
    batch: Count = 48
    steps: Count = 2400
    warmup: Count = 50
    decay_steps: Natural = 900
    adam_lr: Positive = 5e-4
    muon_lr: NotNegative = 1e-3
    muon_ns_steps: Count = 3
    weight_decay: NotNegative = 0.0
    ema: Decay = 0.995
    zero_tokens: Annotated[tuple[int, ...], Bounds(1)] = (1, 1, 1, 1, 16, 77, 256)
    held: Count = 192
    save_every: Count = 100
    look_every: Count = 200
    final_per_kind: Natural = 64
    bf16: bool = True
    compile: bool = True
