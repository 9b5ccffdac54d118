"""The card of a draft: what it was trained for and on, how well it ranks, and what it is not for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.evaluate import table

from ttsnap.sampling.drafts import TrainedFor
from ttsnap.simulation.looks import Ranked
from ttsnap.version import __version__


def card(config: DraftConfig, purpose: TrainedFor, validation: dict[str, float], looks: Sequence[Ranked]) -> str:
    """In Markdown, as hubs show it. validation: errors on held-back trajectories; looks: none before evaluation."""
    data, training, measured = config.trajectories, config.training, config.evaluation
    scale = "no guidance" if purpose.guidance_scale is None else f"guidance {purpose.guidance_scale:g}"
    made = math.ceil(data.count / data.shard) * data.shard  # in whole files
    head = f"""---
library_name: diffusers
base_model: {purpose.model}
tags: [lora, ttsnap, draft]
---

# Draft LoRA for {purpose.model}

It guesses, in one call or two, without guidance, where the model's own deterministic sampler will end from a given
noise: the image that this seed would become. The guess is rough, but its reward ranks seeds much better than the first
x0 estimates do, so that a search drops most seeds before it pays for them. Made by `ttsnap distill-draft` of version
{__version__}.

    ttsnap generate PROMPT --model {purpose.model} --draft THIS_FOLDER

Trained for {purpose.steps} steps at {scale}, and for nothing else: at another number of steps, guidance or scheduler
the sampler ends elsewhere. It is told {training.first_time:g} of the true time at its first call (draft.json).

## Training

- {made:,} trajectories, of which {training.validation:,} were held back{_shortened(config)}
- {training.steps:,} steps of {training.batch} rows, rank {training.rank}, AdamW at {training.lr:g}{_started(config)}
- no reward was used: one draft serves all rewards
"""
    if validation:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in validation.items() if name not in _OTHER)
        head += f"- mean squared error of the guesses on the held-back trajectories: {errors}\n"
    if looks:
        head += f"""
## How well it ranks

Spearman correlation, within a prompt, of the guess's reward with that of the finished image ({measured.reward});
{measured.prompts} held-out prompts, {measured.seeds} seeds each, standard error over prompts. An NFE is one guided
evaluation of the model; x0 estimates are those that the sampler makes anyway.

{table(looks)}
"""
    return (
        head
        + """
## What it is not for

- pictures: loaded as an ordinary LoRA (`pipe.load_lora_weights`) it changes what the model makes, and one call with it
  is a blurred guess
- samplers that draw noise, other schedules, other guidance, other weights of the model
- prompts far from those that it was trained on, until `ttsnap evaluate-draft` says how it ranks there
"""
    )


_OTHER = ("step", "loss", "seconds")


def _shortened(config: DraftConfig) -> str:
    skipped = len(config.trajectories.skipped)
    return f"; {skipped} late steps were jumped over to save evaluations" if skipped else ""


def _started(config: DraftConfig) -> str:
    return ", from the weights of an earlier draft" if config.training.start else ""
