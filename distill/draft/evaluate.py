"""How well drafts rank the seeds of a prompt, beside x0 estimates: a recording of held-out prompts, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.student import WEIGHTS

from ttsnap.core.looks import Draft, Seen
from ttsnap.files.typed import Json
from ttsnap.files.writing import sha256
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.drafts import Checked, TrainedFor
from ttsnap.simulation.looks import Ranked, drafts_against_estimates, figures_of, ranked

LOOKS = (Seen(Draft(1).name, 0), Seen(Draft(2).name, 0), Seen(Draft(1).name, 2), Seen(Draft(1).name, 4))
"""Drafts that are measured: of one and of two calls from noise, and of one call from later states."""


@dataclass(frozen=True)
class Evaluation:
    """How every look ranks, the cheapest first, and the figures that draft.json keeps."""

    looks: Sequence[Ranked]
    checked: Checked


def evaluate(
    pipe: Any, reward: RewardModel, prompts: Sequence[str], config: DraftConfig, purpose: TrainedFor, draft: Path,
    folder: Path, *, bar: bool = False,
) -> Evaluation:  # fmt: skip
    """Record the seeds of these prompts in `folder`, with drafts by the exported `draft`, and rank them.

    Called again it goes on. ValueError where the reward fails, and where the folder holds a recording of another draft.
    """
    measured, call = config.evaluation, dict(config.call or {})
    engine = pipe.engine(reward, draft=str(draft), batch_size=config.trajectories.batch, **call)
    steps = engine.grid.steps
    options = RecordOptions(
        seeds=measured.seeds,
        steps=[step for step in measured.steps if step < steps],
        looks=[str(seen) for seen in LOOKS if seen.step < min(steps, config.trajectories.states)],
    )
    info: dict[str, Json] = {"model": config.model, "call": call, "weights": sha256(draft / WEIGHTS)}
    info |= {"draft": str(draft), "draft_guidance": purpose.guidance_scale}  # ttsnap evaluate-draft reads them, too
    recording = record(engine, prompts, folder, options, info=info, progress_bar=bar)
    looks = ranked(recording)
    figures = figures_of(recording, drafts_against_estimates(looks))
    return Evaluation(looks, Checked(purpose.model, steps, purpose.guidance_scale or 0.0, figures))


def table(looks: Sequence[Ranked]) -> str:
    """Markdown: a row per look."""
    rows = [(_name(look.seen), f"{look.nfe:.3g}", f"{look.mean:.3f} +- {look.error:.3f}") for look in looks]
    widths = [max(len(row[i]) for row in [("look", "NFE", "Spearman"), *rows]) for i in range(3)]
    lines = [("look", "NFE", "Spearman"), ("-" * widths[0], "-" * (widths[1] - 1) + ":", "-" * widths[2]), *rows]
    return "\n".join(
        f"| {look:<{widths[0]}} | {nfe:>{widths[1]}} | {found:<{widths[2]}} |" for look, nfe, found in lines
    )


def _name(seen: Seen) -> str:
    """In words: "draft, 2 calls", "x0 estimate at step 3"."""
    kind, _, calls = seen.look.partition(":")
    if kind != "draft":
        return f"x0 estimate at step {seen.step}"
    return f"draft, {calls} call{'s' * (calls != '1')}" + (f", from step {seen.step}" if seen.step else "")
