"""How well a draft and x0 estimates rank the seeds of held-out prompts; and the draft's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ttsnap.core.looks import Draft, EstimatorAt
from ttsnap.distill.config import DraftConfig
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
LOOKS = tuple(EstimatorAt(Draft(calls).name, 0) for calls in (1, 2))
"""Drafts that are measured."""


def evaluate(
    engine: LiveEngine,
    prompts: Sequence[str],
    config: DraftConfig,
    purpose: TrainedFor,
    call: Mapping[str, Json],
    folder: Path,
    *,
    bar: bool = False,
) -> tuple[list[RankedLook], Checked]:
    """How each look ranks the seeds of these prompts, the cheapest look first, and the figures for
    draft.json.

    engine: drafts by the exported draft. folder: of the recording of the seeds, which is resumed.
    ValueError where the reward fails, and where the folder holds a recording of another draft.
    """
    steps = engine.grid.steps
    draft = folder.parent / DRAFT
    options = RecordOptions(
        seeds=config.seeds,
        steps=[step for step in config.estimates if step < steps],
        looks=[*map(str, LOOKS)],
    )
    info: dict[str, Json] = {
        "model": purpose.model,
        "call": call,
        "weights": sha256(draft / WEIGHTS),
        "draft": str(draft.resolve()),
        "draft_guidance": purpose.guidance_scale,
    }
    recording = record(engine, prompts, folder, options, info=info, progress_bar=bar)
    looks = ranked(recording)
    figures = figures_of(recording, drafts_against_estimates(looks))
    return looks, Checked(purpose.model, steps, purpose.guidance_scale or 0.0, figures)


def card(
    config: DraftConfig,
    purpose: TrainedFor,
    count: int,
    validation: Mapping[str, float],
    looks: Sequence[RankedLook],
) -> str:
    """The card in Markdown. count: of trajectories. validation: errors on those of held-out prompts.
    looks: empty before evaluation."""
    scale = (
        "no guidance" if purpose.guidance_scale is None else f"guidance {purpose.guidance_scale:g}"
    )
    started = ", from the weights of an earlier draft" if config.start else ""
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
the sampler ends elsewhere. It is told {config.first_time:g} of the true time at its first call (draft.json).

## Training

- {count:,} trajectories
- {config.updates:,} steps of {config.batch} rows, rank {config.rank}, AdamW at {config.lr:g}{started}
- no reward was used: one draft serves all rewards
"""
    if validation:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in validation.items())
        head += (
            f"- mean squared error of the guesses on trajectories of held-out prompts: {errors}\n"
        )
    if looks:
        head += f"""
## How well it ranks

Spearman correlation, within a prompt, of the guess's reward with that of the finished image, on held-out prompts with
{config.seeds} seeds each; standard error over prompts. An NFE is one guided evaluation of the model; x0 estimates are
those that the sampler makes anyway.

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
