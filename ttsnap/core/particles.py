"""The table of particles as an algorithm sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray, take
from ttsnap.core.selection import BEST, Selection


@dataclass(frozen=True)
class Particles:
    """Every particle that a search ever started, as an algorithm may see them. Row i is the
    particle with uid i.

    An algorithm that works along the last axis (`lockstep = True`) may also be shown a stack of B
    searches at once. Every array then has a leading axis B, which makes simulation fast.
    """

    seed: IntArray
    """(N,) uint64, of the initial noise."""
    parent: IntArray
    """(N,) uid, or -1."""
    step: IntArray
    """(N,) grid step where the latent is."""
    cached: BoolArray
    """(N,) whether the prediction at that step is paid."""
    alive: BoolArray
    """(N,) not dropped."""
    scores: FloatArray
    """(N, K+1, R), nan where unscored or failed."""
    scored: IntArray
    """(N,) step of the last score, or -1."""
    log_ratio: FloatArray
    """(N,) log p - log q of the path so far, p the plain sampler and q the one guided by a reward's
    gradient; 0 without guidance."""
    has_gradient: BoolArray
    """(N,) whether the gradient at its step is paid."""
    selection: Selection = BEST
    """What counts as best, and which finished images are returned."""
    moved: IntArray = field(default_factory=lambda: np.empty(0, int))
    """(n,) uid that each row of the algorithm's last move took on or made, -1 for rows that the
    budget cut off."""
    left: FloatArray | float = np.inf
    """What this prompt may still spend of its allowance, in evaluations as Task counts them."""
    features: FloatArray | None = None
    """(N, D) of what was scored last, by which images are compared, nan where there are none; None
    where all are."""
    owing: bool = False
    """Whether the group of the next fresh seed is not paid, though others of it came before: they
    were taken back."""

    def __len__(self) -> int:
        return int(self.step.shape[-1])

    @property
    def seeds(self) -> int:
        """How many of them started from a fresh seed. In lockstep all did."""
        return int(np.count_nonzero(self.parent < 0)) if self.parent.ndim == 1 else len(self)

    @property
    def finished(self) -> BoolArray:
        """(N,) whether the image is done and has been looked at by the rewards."""
        done: BoolArray = self.scored == self.scores.shape[-2] - 1
        return done

    @property
    def refused(self) -> BoolArray:
        """(N,) whether the image is done and must not be returned."""
        done: BoolArray = self.finished & ~self.selection.admits(self.scores[..., -1, :])
        return done

    @property
    def before_end(self) -> Particles:
        """The same particles, each at its last score on the way that did not fail."""
        failed = np.isnan(self.scores[:, :-1]).any(-1)
        steps = np.where(failed, -1, np.arange(failed.shape[1]))
        return replace(self, scored=steps.max(1, initial=-1))

    def value(self, uids: IntArray | Sequence[int]) -> FloatArray:
        """Utility of the last scores of these particles, (n,) float64; -inf where a score is
        missing or failed, and where a finished image is refused."""
        rows = np.asarray(uids, int)
        scored = take(self.scored, rows)
        lead = () if rows.ndim == 1 else (np.arange(len(rows))[:, None],)
        last = self.scores[(*lead, rows, scored)]
        selection = self.selection
        if selection.gate is None and not (
            np.count_nonzero(scored < 0) or np.count_nonzero(np.isnan(last))
        ):
            return selection.values(last)
        if rows.ndim > 1:
            return np.stack([self.of(b).value(rows[b]) for b in range(len(rows))])
        good = (scored >= 0) & ~np.isnan(last).any(axis=-1)
        good &= (scored < self.scores.shape[-2] - 1) | selection.admits(last)
        out = np.full(len(rows), -np.inf)
        if good.any():
            out[good] = selection.values(last[good])
        return out

    def ranked(self, uids: IntArray | Sequence[int] | None = None) -> IntArray:
        """These uids (n,), or those of the living, best first by their last scores; ties stay in
        their order."""
        if uids is None:
            uids = np.flatnonzero(self.alive).reshape(*self.alive.shape[:-1], -1) % max(
                1, len(self)
            )
        rows = np.asarray(uids, int)
        return take(rows, np.argsort(-self.value(rows), axis=-1, kind="stable"))

    def spread(self, ranked: IntArray, k: int) -> IntArray:
        """The same uids (n,), first the k to go on with: the best, or a diverse subset if diversity
        is on.

        ranked: best first. Both parts of the result are.
        """
        if self.features is None:
            return ranked
        return ranked[self.selection.spread(self.value(ranked), self.features[ranked], k)]

    def others(self, uids: IntArray | Sequence[int]) -> IntArray:
        """Uids of the living but these, ascending: what a move drops that goes on from these
        alone."""
        return np.setdiff1d(np.flatnonzero(self.alive), uids)

    def after_move(self, moved: IntArray, left: float) -> Particles:
        """The same particles, with what came of the last move."""
        return replace(self, moved=moved, left=left)

    def of(self, b: int | IntArray) -> Particles:
        """Search b, or several searches, of a stack of searches in lockstep (see
        simulation/lockstep.py)."""
        left = np.broadcast_to(self.left, len(self.step))
        columns = {**vars(self), "left": left}
        same = ("selection", "features", "owing")  # no search in lockstep compares images
        return Particles(
            **{name: column if name in same else column[b] for name, column in columns.items()}
        )
