"""Runs what the scheduler chose, on the model: evaluations, gradients, steps, scores. It chooses
nothing itself."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.engine.batch_sizes import BatchSizes, bucket_of, buckets
from ttsnap.engine.fair import Stage
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.rows import Row
from ttsnap.engine.scheduler import ScheduledBatch
from ttsnap.engine.scoring import BegunScores, Later, RowScorer, ScoredRows
from ttsnap.engine.shared_denoiser import Peer, PendingEval, SharedDenoiser
from ttsnap.engine.stepper import Stepper
from ttsnap.engine.store import Mixed, Node
from ttsnap.profiling.meter import Stopwatch
from ttsnap.sampling.denoiser import drafts_of
from ttsnap.sampling.kernels import Prediction

logger = logging.getLogger(__name__)


class Executor:
    """Of one engine. `stats` counts what ran, `watch` takes the time of it by phase.

    padded: fill batches up to a few sizes (batch_sizes.buckets).
    """

    def __init__(
        self,
        network: SharedDenoiser,
        noise: InitialNoise,
        scorer: RowScorer,
        sizes: BatchSizes,
        stats: MutableMapping[str, int],
        *,
        padded: bool,
    ) -> None:
        self.noise = noise
        self.scorer = scorer
        self.sizes = sizes
        self.stats = stats
        self.padded = padded
        self.network = network
        self.denoiser = noise.denoiser
        self.prompts = noise.prompts
        self.peer = Peer(noise, stats, network.start_of(self.denoiser))
        self.watch = Stopwatch(("denoise", "decode", "reward", "gradient"))
        self.compiled: set[int] = (
            self.denoiser.memo().setdefault("compiled", set()) if padded else set()
        )
        """Sizes of batches that a compiled network was called with."""

    def forward(
        self, batch: ScheduledBatch[Node], stepper: Stepper, others: Sequence[PendingEval] = ()
    ) -> None:
        """One batch of the scheduler: first the nodes that get gradients, then the others in one
        denoiser call.

        The call takes along what other engines have pending. Where memory runs out, the nodes that
        were too many stay as they are, and the scheduler chooses them again.
        """
        self.differentiate(batch.gradients, stepper)
        if batch.evaluations:
            calls = {
                Stage.BEGIN: self._begin,
                Stage.DRAFT: self._draft,
                Stage.STEP: self._evaluate,
            }
            pending = [*(PendingEval(self.peer, node) for node in batch.evaluations), *others]
            with self.watch("denoise", self.noise.device):
                self.sizes.run(pending, calls[batch.stage])

    def differentiate(self, nodes: Sequence[Node], stepper: Stepper) -> None:
        """Have the stepper give all of these nodes their gradients, in as many calls as it
        takes."""

        def call(batch: Sequence[Node]) -> None:
            self.noise.draw(batch)
            self.count(*stepper.differentiate(batch, self.prompts))

        left = list(nodes)
        while left:
            most = stepper.gradient_batch_size or self.sizes.batch_size
            with self.watch("gradient", self.noise.device):
                self.sizes.run(left[:most], call)
            left = [node for node in left if node.gradient is None]

    def ascend(self, rows: Sequence[Row], stepper: Stepper) -> None:
        """Give those of these rows that ascend the noise they start from. A parent's gradient is
        taken once."""
        ascending = [(row, row.ascends_from) for row in rows if row.ascends_from is not None]
        parents = {id(start.parent): start.parent for _, start in ascending}
        self.differentiate([node for node in parents.values() if node.gradient is None], stepper)
        for row, (parent, share) in ascending:
            if parent.gradient is not None:
                row.node.mixed_in = (*parent.mixed_in, Mixed(share, parent.gradient))
                row.node.latent = self.noise.of(row.node)
                row.ascends_from = None
                self.noise.begun(row.node)

    def advance(self, rows: Sequence[Row], stepper: Stepper) -> None:
        """Move every row whose evaluation is there to its next point: no network call."""
        moving = [row for row in rows if row.can_step]
        if moving:
            sources = [
                row.noise_source if row.node.position == row.branched_at else None for row in moving
            ]
            for row, node, source in zip(
                moving, self.noise.masked(stepper.step(moving)), sources, strict=True
            ):
                row.node = node
                node.step_noise = source
        for row in rows:
            if row.at_stop:
                row.look.begin(row.node)

    def begin_scores(self, rows: Sequence[Row], later: Later | None) -> tuple[BegunScores, int]:
        """Begin to score these rows, or the first of them where memory runs out (RowScorer.begin);
        and how many."""
        begin = self.scorer.begin
        begun, n = self.sizes.run(
            rows, lambda some: begin(some, self.prompts, self.watch, later), decoding=True
        )
        self.count(begun.cost)
        return begun, n

    def end_scores(self, begun: BegunScores) -> ScoredRows:
        """Their scores, which are waited for."""
        with self.watch("reward", None):
            scored = self.scorer.end(begun)
        self.count(scored.cost)
        return scored

    def _evaluate(self, pending: Sequence[PendingEval]) -> None:
        """One call of the denoiser on these nodes."""
        batch = self._batch(pending)
        prediction = self.network.denoiser.predict(*batch)
        for i, (peer, node) in enumerate(pending):
            node.keep_prediction(prediction, i)
            node.batches += (len(batch[0]),)
            peer.stats["nfe"] += 1
        self.count(Cost(), 1)

    def _begin(self, pending: Sequence[PendingEval]) -> None:
        """Those of these particles begin that can in one call; the others are chosen again."""
        self.count(*self.noise.begin([node for _, node in pending]))

    def _draft(self, pending: Sequence[PendingEval]) -> None:
        """A guess by the drafter at each of these nodes, in a call for all that take as many."""
        # where memory ran out, this is called again
        left = [one for one in pending if one.node.prediction is None]
        for calls in sorted({node.draft_calls for _, node in left}):
            some = [one for one in left if one.node.draft_calls == calls]
            x, at, cond = self._batch(some)
            steps = torch.as_tensor(np.searchsorted(self.denoiser.grid.calls, at.numpy()))
            guess = drafts_of(self.denoiser).guess(x, steps, cond, calls)
            self.count(Cost(draft_calls=calls * len(some)))
            for i, (_, node) in enumerate(some):
                node.keep_prediction(Prediction(guess, guess), i)

    def _batch(self, pending: Sequence[PendingEval]) -> tuple[Tensor, Tensor, Tensor]:
        """What a network is called with for these nodes: latents, positions and prompts, padded
        with `padded`."""
        for peer in dict.fromkeys(peer for peer, _ in pending):
            peer.noise.draw([node for whose, node in pending if whose is peer])
        rows = list(pending)
        if self.padded:
            rows += rows[-1:] * (bucket_of(len(rows), buckets(self.sizes.batch_size)) - len(rows))
            if len(rows) not in self.compiled:
                self.compiled.add(len(rows))
                logger.warning(
                    "compiling for batches of %d: sizes so far: %d", len(rows), len(self.compiled)
                )
        x = torch.stack([node.x for _, node in rows])
        at = torch.tensor([peer.start + node.position for peer, node in rows])
        return x, at, torch.cat([peer.noise.prompts.rows([node]) for peer, node in rows])

    def count(self, cost: Cost, calls: int = 0) -> None:
        """What ran, in so many calls of the denoiser."""
        self.stats["batches"] += calls
        self.stats["room"] += calls * self.sizes.batch_size
        for name, amount in cost.named().items():
            self.stats[name] += amount
