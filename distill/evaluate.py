"""How well a reward's scores of estimates predict the final reward at each noise level: ranks,
cuts, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.core.metrics import rank_correlation, top_fraction
from ttsnap.core.protocols import Reward
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.processes import ALONE, Member
from ttsnap.distill.scoring import progress, score_entries
from ttsnap.files import reading as files
from ttsnap.files.settings import Json, Settings, build
from ttsnap.results.record import jsonable
from ttsnap.reward_models.registry import make_reward

FRACTION = 0.25
"""Of the seeds that a cut keeps, in `top_accuracy` and `top_regret`."""


def measure(prediction: FloatArray, final: FloatArray) -> dict[str, float]:
    """Measures of predictions (P, S) against final rewards (P, S); nan where nothing varies.

    spearman, kendall: rank correlation within a prompt, mean over prompts.
    top_accuracy, top_regret: of a cut to the best quarter (metrics.top_fraction).
    slope, intercept: of the pooled regression of the final reward on the prediction; 1 and 0 when
        calibrated.
    r2: 1 - (squared error) / (variance), both within prompts; below 0 where a constant is better.
    rmse: root of the mean squared error.
    """
    with warnings.catch_warnings():
        # scipy and numpy warn of prompts whose rewards are all equal; these are nan
        warnings.simplefilter("ignore")
        spearman, kendall = (
            rank_correlation(prediction, final, kind=kind) for kind in ("spearman", "kendall")
        )
    accuracy, regret = top_fraction(prediction, final, FRACTION)
    spread = float(np.var(prediction))
    slope = (
        float(np.cov(prediction.ravel(), final.ravel(), bias=True)[0, 1] / spread)
        if spread > 0
        else math.nan
    )
    error, varied = (x - x.mean(1, keepdims=True) for x in (prediction - final, final))
    total = float(np.square(varied).sum())
    return {
        "spearman": spearman,
        "kendall": kendall,
        "top_accuracy": accuracy,
        "top_regret": regret,
        "slope": slope,
        "intercept": float(final.mean() - slope * prediction.mean()),
        "r2": 1 - float(np.square(error).sum()) / total if total > 0 else math.nan,
        "rmse": float(np.sqrt(np.square(prediction - final).mean())),
    }


@dataclass(frozen=True)
class Evaluation(Settings):
    """What was measured at each noise level."""

    names: tuple[str, ...]
    """The rewards compared, the base first."""
    prompts: int
    seeds: int
    held_out: bool = True
    """Whether training saw none of the prompts."""
    base_below: float = 0.0
    """The level up to which an exported student leaves estimates to its base."""
    rows: tuple[dict[str, Any], ...] = ()
    """{"step", "level", NAME: measures}, cleanest first."""

    def to_json(self) -> dict[str, Json]:
        """JSON-ready: nan as null, rows as "levels"."""
        return {
            "levels" if key == "rows" else key: jsonable(value) for key, value in vars(self).items()
        }

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """What `to_json` gave to a file. ValueError where the file is damaged."""
        try:
            data = files.read_object(path, nan=True)
            return build(
                cls, {"rows" if key == "levels" else key: value for key, value in data.items()}
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: {error}; remove it, and the run is evaluated again"
            ) from None


def evaluate(
    rewards: Mapping[str, Reward],
    finals: Sequence[FloatArray],
    frames: Frames,
    prompts: Sequence[int],
    steps: Sequence[int],
    *,
    batch_size: int = 64,
    member: Member = ALONE,
    held_out: bool = True,
) -> Evaluation:
    """Measure rewards, by name, on the estimates at `steps` against final rewards, (S,) for each of
    `prompts`.

    Of every prompt as many seeds are measured as the prompt with the fewest has. ValueError for
    fewer than 2, and for a reward whose scores are not finite.
    """
    if not prompts:
        raise ValueError("there are no prompts to evaluate")
    seeds = int(min(frames.seeds[p] for p in prompts))
    if seeds < 2:
        raise ValueError(f"ranks within a prompt need at least 2 seeds per prompt, got {seeds}")
    final = np.stack([scores[:seeds] for scores in finals])
    ordered = sorted(steps, reverse=True)
    rows: list[dict[str, Any]] = [{"step": step, "level": frames.levels[step]} for step in ordered]
    entries = [FrameAt(p, s, step) for step in ordered for p in prompts for s in range(seeds)]
    with progress(len(entries) * len(rewards), "evaluate", "image", member.shown) as bar:
        for name, given in rewards.items():
            reward = make_reward(given)
            score = reward if reward.estimates == "pixels" else reward.score_estimates
            space = reward.estimates
            frames.check_stored(space, ordered)
            scores = score_entries(
                score,
                frames,
                entries,
                space,
                batch_size=batch_size,
                member=member,
                bar=bar,
                name=name,
            )
            for row, step_scores in zip(
                rows, scores.reshape(len(rows), len(prompts), seeds), strict=True
            ):
                row[name] = measure(step_scores, final)
    return Evaluation(tuple(rewards), len(prompts), seeds, held_out, rows=tuple(rows))
