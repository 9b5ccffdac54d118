"""How well drafts rank the seeds of a prompt, beside x0 estimates: a recording of held-out prompts, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.student import WEIGHTS

from ttsnap.core.looks import Draft, Seen
from ttsnap.engine.live import LiveEngine
from ttsnap.files.settings import Json
from ttsnap.files.writing import sha256
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.sampling.drafts import Checked, TrainedFor
from ttsnap.simulation.looks import Ranked, drafts_against_estimates, figures_of, ranked

DRAFT = "draft"
"""The exported draft, a folder beside that of the evaluation."""
LOOKS = (Seen(Draft(1).name, 0), Seen(Draft(2).name, 0), Seen(Draft(1).name, 2), Seen(Draft(1).name, 4))
"""Drafts that are measured: of one and of two calls from noise, and of one call from later states."""


def evaluate(
    engine: LiveEngine, prompts: Sequence[str], config: DraftConfig, purpose: TrainedFor, folder: Path,
    *, bar: bool = False,
) -> tuple[list[Ranked], Checked]:  # fmt: skip
    """How every look ranks the seeds of these prompts, the cheapest first, and the figures that draft.json keeps.

    The engine drafts by the exported draft. The seeds are recorded in `folder`; called again it goes on. ValueError
    where the reward fails, and where the folder holds a recording of another draft.
    """
    measured, steps, draft = config.evaluation, engine.grid.steps, folder.parent / DRAFT
    options = RecordOptions(
        seeds=measured.seeds,
        steps=[step for step in measured.steps if step < steps],
        looks=[str(seen) for seen in LOOKS if seen.step < min(steps, config.trajectories.states)],
    )
    info: dict[str, Json] = {"model": config.model, "call": config.call, "weights": sha256(draft / WEIGHTS)}
    # What ttsnap evaluate-draft reads, too.
    info |= {"draft": str(draft.resolve()), "draft_guidance": purpose.guidance_scale}
    recording = record(engine, prompts, folder, options, info=info, progress_bar=bar)
    looks = ranked(recording)
    figures = figures_of(recording, drafts_against_estimates(looks))
    return looks, Checked(purpose.model, steps, purpose.guidance_scale or 0.0, figures)


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
