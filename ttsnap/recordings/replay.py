"""Recorded reward trajectories, and an engine that plays searches back on them with the objects that run live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Grid
from ttsnap.core.moves import CONTINUE
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.results import Result
from ttsnap.files.typed import Json
from ttsnap.loop.dry import DryEngine


@dataclass(frozen=True)
class Recording:
    """Scores (P, S, K+1, R) along the trajectories of P prompts with the seeds `first_seed`..`first_seed + S - 1`.

    Index k < K is the score of the x0 estimate at grid point k (k + 1 evaluations), index K that of the finished
    image (K evaluations); nan where a reward failed. `scored` (K+1,) says which steps were scored at all, the last
    always. `price` is the recorded engine's, `info` what else is known (model, call, versions), JSON-ready.
    """

    prompts: tuple[str, ...]
    scores: FloatArray
    grid: Grid
    reward_names: tuple[str, ...]
    first_seed: int = 0
    scored: tuple[bool, ...] = ()
    price: Price = field(default_factory=Price)
    info: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        points = self.grid.steps + 1
        expected = (len(self.prompts), points, len(self.reward_names))
        if self.scores.ndim != 4 or (self.scores.shape[0], *self.scores.shape[2:]) != expected:
            raise ValueError(
                f"scores have shape {self.scores.shape}, expected ({expected[0]}, seeds, {expected[1]}, {expected[2]})"
            )
        object.__setattr__(self, "scored", tuple(self.scored) or (True,) * points)
        if len(self.scored) != points or not self.scored[-1]:
            raise ValueError(f"scored must say for each of {points} steps whether it was, the last always")

    @property
    def seeds(self) -> int:
        """S, seeds per prompt."""
        return int(self.scores.shape[1])

    @property
    def final(self) -> FloatArray:
        """(P, S, R) scores of the finished images."""
        return self.scores[:, :, -1]

    @cached_property
    def failed(self) -> bool:
        """Whether a score that was asked for is nan."""
        return bool(np.isnan(self.scores[:, :, list(self.scored)]).any())

    @classmethod
    def from_results(
        cls, results: Sequence[Result], grid: Grid, reward_names: tuple[str, ...], price: Price | None = None
    ) -> Recording:
        """From a search with KeepAll, on an engine of this price."""
        scores = np.stack([r.particles.scores for r in results])
        first = int(results[0].particles.seed[0])
        return cls(tuple(r.prompt for r in results), scores, grid, reward_names, first, price=price or Price())

    def select(self, prompts: slice = slice(None), seeds: slice = slice(None)) -> Recording:
        """Some of the prompts and of the seeds (a range without gaps)."""
        start, _, step = seeds.indices(self.seeds)
        if step != 1:
            raise ValueError(f"seeds must be a range without gaps, got {seeds}")
        return dataclasses.replace(
            self,
            prompts=self.prompts[prompts],
            scores=self.scores[prompts, seeds],
            first_seed=self.first_seed + start,
        )


class ReplayEngine(DryEngine):
    """Plays non-branching searches back on a recording, job j on its prompt j.

    Search its `prompts` with its `first_seed`, so that seeds and rows agree. A score is handed out only for a step
    that a submitted, and therefore paid, move has reached (see `paid`). ValueError for what was not recorded.

    `capacity` matters where prompts share a budget: how many rows a round fills with moves worth less than the first
    ones. With that of a LiveEngine (twice its batch size) the rounds, and so the ledgers, are those of the live search.
    """

    def __init__(self, recording: Recording, *, capacity: int = 1) -> None:
        super().__init__(recording.grid, recording.reward_names, offers=frozenset(), price=recording.price)
        self.recording, self.capacity = recording, capacity
        self.start(recording.prompts, recording.first_seed)

    def start(self, prompts: Sequence[str], seed: int) -> None:
        if tuple(prompts) != self.recording.prompts[: len(prompts)]:
            raise ValueError(f"prompts {list(prompts)[:3]}... are not the recorded {self.recording.prompts[:3]}...")
        super().start(prompts, seed)
        self.paid = np.full(self.recording.scores.shape[:2], -1)

    def submit(self, job: int, plan: Plan) -> None:
        if np.count_nonzero(plan.rows.kind > CONTINUE):
            raise ValueError("a recording cannot be renoised or branched; only what was denoised once can be replayed")
        self.paid[job, self._rows(job, plan.seed)] = plan.rows.stop
        super().submit(job, plan)

    def scores(self, job: int, seeds: IntArray, steps: IntArray) -> FloatArray:
        rows = self._rows(job, seeds)
        if (steps > self.paid[job, rows]).any():
            raise ValueError(f"scores at steps {steps.tolist()} of seeds {seeds.tolist()} have not been paid for")
        if not np.asarray(self.recording.scored)[steps].all():
            known = np.flatnonzero(self.recording.scored).tolist()
            raise ValueError(f"steps {sorted(set(steps.tolist()))} asked for; the recording has scores at {known}")
        scores: FloatArray = self.recording.scores[job, rows, steps]
        return scores

    def _rows(self, job: int, seeds: IntArray) -> IntArray:
        r = self.recording
        rows = seeds - np.uint64(r.first_seed)  # of a seed before the first one, a huge number
        if rows.max(initial=0) >= r.seeds:
            last, prompt = r.first_seed + r.seeds - 1, r.prompts[job]
            raise ValueError(f"seeds {seeds.min()}..{seeds.max()} of {prompt!r}: recorded are {r.first_seed}..{last}")
        return rows.astype(int)
