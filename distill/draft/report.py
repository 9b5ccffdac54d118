"""How well a draft and x0 estimates rank the seeds of held-out prompts; and the draft's card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ttsnap.core.looks import Draft, EstimatorAt
from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.student import WEIGHTS
from ttsnap.engine.live import LiveEngine
from ttsnap.files.settings import Json
from ttsnap.files.writing import sha256
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.sampling.drafts import Checked, TrainedFor
from ttsnap.simulation.looks import RankedLook, drafts_against_estimates, figures_of, ranked, table
from ttsnap.version import __version__

DRAFT = "draft"
"""The folder of the exported draft, in the folder of the run."""
LOOKS = tuple(
    EstimatorAt(Draft(calls).name, step) for calls, step in ((1, 0), (2, 0), (1, 2), (1, 4))
)
"""Drafts that are measured: one and two calls from noise, and one call from later states."""


def evaluate(
    engine: LiveEngine,
    prompts: Sequence[str],
    config: DraftConfig,
    purpose: TrainedFor,
    folder: Path,
    *,
    bar: bool = False,
) -> tuple[list[RankedLook], Checked]:
    """How each look ranks the seeds of these prompts, the cheapest look first, and the figures for
    draft.json.

    engine: drafts by the exported draft. folder: of the recording of the seeds, which is resumed.
    ValueError where the reward fails, and where the folder holds a recording of another draft.
    """
    measured = config.evaluation
    steps = engine.grid.steps
    draft = folder.parent / DRAFT
    options = RecordOptions(
        seeds=measured.seeds,
        steps=[step for step in measured.steps if step < steps],
        looks=[str(seen) for seen in LOOKS if seen.step < min(steps, config.trajectories.states)],
    )
    info: dict[str, Json] = {
        "model": config.model,
        "call": config.call,
        "weights": sha256(draft / WEIGHTS),
    }
    info |= {"draft": str(draft.resolve()), "draft_guidance": purpose.guidance_scale}
    recording = record(engine, prompts, folder, options, info=info, progress_bar=bar)
    looks = ranked(recording)
    figures = figures_of(recording, drafts_against_estimates(looks))
    return looks, Checked(purpose.model, steps, purpose.guidance_scale or 0.0, figures)


def card(
    config: DraftConfig,
    purpose: TrainedFor,
    validation: dict[str, float],
    looks: Sequence[RankedLook],
) -> str:
    """The card in Markdown. validation: errors on held-back trajectories. looks: empty before
    evaluation."""
    data = config.trajectories
    training = config.training
    measured = config.evaluation
    scale = (
        "no guidance" if purpose.guidance_scale is None else f"guidance {purpose.guidance_scale:g}"
    )
    made = math.ceil(data.count / data.shard) * data.shard  # in whole files
    skipped = len(data.skipped)
    shortened = f"; {skipped} late steps were jumped over to save evaluations" if skipped else ""
    started = ", from the weights of an earlier draft" if training.start else ""
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

- {made:,} trajectories, of which {training.validation:,} were held back{shortened}
- {training.steps:,} steps of {training.batch} rows, rank {training.rank}, AdamW at {training.lr:g}{started}
- no reward was used: one draft serves all rewards
"""
    if validation:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in validation.items())
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
- prompts far from those that it was trained on, until `ttsnap record --check-draft` says how it ranks there
"""
    )
