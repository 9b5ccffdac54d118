"""Recorded reward trajectories, and an engine that plays searches back on them with the objects that run live."""

from __future__ import annotations

from dataclasses import dataclass

from ttsnap.budget import Price
from ttsnap.dry import DryEngine
from ttsnap.types import FloatArray, Grid, IntArray, Result


@dataclass(frozen=True)
class Recording:
    """Scores of one prompt's trajectories: scores (S, K+1, R) of seeds `first_seed`.. `first_seed + S - 1`.

    Index k < K is the score of the x0 estimate at grid point k (k + 1 evaluations), index K that of the finished
    image (K evaluations).
    """

    prompt: str
    scores: FloatArray
    grid: Grid
    reward_names: tuple[str, ...]
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.scores.ndim != 3 or self.scores.shape[1:] != (self.grid.steps + 1, len(self.reward_names)):
            expected = f"(seeds, {self.grid.steps + 1}, {len(self.reward_names)})"
            raise ValueError(f"scores have shape {self.scores.shape}, expected {expected}")

    @classmethod
    def from_result(cls, result: Result, grid: Grid, reward_names: tuple[str, ...]) -> Recording:
        """From a search with KeepAll."""
        p = result.particles
        return cls(result.prompt, p.scores.copy(), grid, reward_names, int(p.seed[0]))


class ReplayEngine(DryEngine):
    """Plays non-branching searches back on recordings, job j on recordings[j].

    Search with the recordings' first seed, so that seeds and rows agree. ValueError for a seed that was not recorded.
    """

    def __init__(self, recordings: list[Recording], price: Price | None = None) -> None:
        if not recordings or any((r.grid, r.reward_names) != (recordings[0].grid, recordings[0].reward_names)
                                 for r in recordings):  # fmt: skip
            raise ValueError("need recordings of one grid and one set of rewards")
        super().__init__(recordings[0].grid, recordings[0].reward_names)
        self.price = price if price is not None else Price()
        self._recordings = recordings

    def scores(self, job: int, seeds: IntArray, steps: IntArray) -> FloatArray:
        r = self._recordings[job]
        rows = seeds - r.first_seed
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(r.scores):
            last = r.first_seed + len(r.scores) - 1
            raise ValueError(f"seeds {seeds.min()}..{seeds.max()} of {r.prompt!r}: recorded are {r.first_seed}..{last}")
        found: FloatArray = r.scores[rows, steps]
        return found
