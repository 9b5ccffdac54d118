"""How well the looks of a recording rank its seeds, and drafts against x0 estimates of equal
cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttsnap.core import metrics
from ttsnap.core import utility as utilities
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import ESTIMATE, Draft, EstimatorAt, read_look
from ttsnap.core.utility import Utility
from ttsnap.files.writing import markdown
from ttsnap.recordings.replay import Recording


@dataclass(frozen=True)
class RankedLook:
    """A look at one step, and how well it ranks the seeds of each prompt."""

    seen: EstimatorAt
    nfe: float
    """What it takes in evaluations, with draft calls by their forward passes."""
    spearman: FloatArray
    """(P,) rank correlation with the finished images; nan for prompts where nothing varies."""

    @property
    def mean(self) -> float:
        """Over prompts; nan where none varies."""
        return (
            float(np.nanmean(self.spearman)) if np.isfinite(self.spearman).any() else float("nan")
        )

    @property
    def error(self) -> float:
        """Standard error of the mean over prompts."""
        return _error(self.spearman)


@dataclass(frozen=True)
class Against:
    """A draft against x0 estimates."""

    draft: RankedLook
    rival: RankedLook
    """The best estimate that takes no more evaluations, or else the first."""
    gain: float
    """How much the draft's correlation is above the rival's."""
    error: float
    """Standard error of the gain over prompts, paired."""
    equals: float
    """Evaluations of the first estimate that ranks as well; inf where none does."""

    @property
    def pays(self) -> bool:
        """Whether the draft ranks seeds better by more than two standard errors."""
        return self.gain > 2 * self.error


def ranked(recording: Recording, utility: Utility = utilities.mean) -> list[RankedLook]:
    """All looks of a recording, the cheapest first. ValueError where only finished images were
    scored."""
    grid = recording.grid
    price = recording.price
    final = utility(recording.final)
    estimates = [EstimatorAt(ESTIMATE.name, k) for k in range(grid.steps) if recording.scored[k]]
    found = []
    for seen in (*recording.looks, *estimates):
        look = read_look(seen.look)
        at = np.array([seen.step])
        calls = int(grid.calls[seen.step]) + int(look.evaluations(at)[0])
        each = metrics.spearman(utility(recording.seen(*seen)), final)
        drafts = int(look.draft_calls(at)[0])
        found.append(RankedLook(seen, calls + drafts * price.nfe_per_draft, each))
    if not found:
        raise ValueError(
            "the recording scored finished images only; record with --score-steps, or without it"
            " for all"
        )
    return sorted(found, key=lambda r: r.nfe)


def drafts_against_estimates(looks: list[RankedLook]) -> list[Against]:
    """Each draft among these looks against the x0 estimates among them; none where there are no
    estimates."""
    estimates = [r for r in looks if r.seen.look == ESTIMATE.name]
    found = []
    for draft in (r for r in looks if isinstance(read_look(r.seen.look), Draft) and estimates):
        rivals = [r for r in estimates if r.nfe <= draft.nfe] or estimates[:1]
        rival = max(rivals, key=lambda r: -1.0 if math.isnan(r.mean) else r.mean)
        gains = draft.spearman - rival.spearman
        equals = next((r.nfe for r in estimates if r.mean >= draft.mean), float("inf"))
        gain = float(np.nanmean(gains)) if np.isfinite(gains).any() else float("nan")
        found.append(Against(draft, rival, gain, _error(gains), equals))
    return found


def figures_of(recording: Recording, found: list[Against]) -> dict[str, float]:
    """The finite figures that draft.json keeps of a check, by name
    (ttsnap.sampling.drafts.Checked)."""
    figures: dict[str, float] = {"prompts": len(recording.prompts), "seeds": recording.seeds}
    for a in found:
        figures |= {
            f"spearman of {a.draft.seen}": round(a.draft.mean, 4),
            f"gain of {a.draft.seen}": round(a.gain, 4),
        }
        figures |= {f"error of {a.draft.seen}": round(a.draft.error, 4)}
        figures |= {f"error of the gain of {a.draft.seen}": round(a.error, 4)}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _error(values: FloatArray) -> float:
    """Standard error of the mean of those that are finite; nan below two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1) / np.sqrt(len(finite))) if len(finite) > 1 else float("nan")


def table(looks: Sequence[RankedLook]) -> str:
    """A Markdown table with a row for each look."""
    rows = [
        (_name(look.seen), f"{look.nfe:.3g}", f"{look.mean:.3f} +- {look.error:.3f}")
        for look in looks
    ]
    return markdown(("look", "NFE", "Spearman"), rows, left=(0, 2))


def _name(seen: EstimatorAt) -> str:
    """In words: "draft, 2 calls", "x0 estimate at step 3"."""
    kind, _, calls = seen.look.partition(":")
    if kind != "draft":
        return f"x0 estimate at step {seen.step}"
    return f"draft, {calls} call{'s' * (calls != '1')}" + (
        f", from step {seen.step}" if seen.step else ""
    )
