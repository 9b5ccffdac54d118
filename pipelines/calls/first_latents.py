"""The latents with which particles of a stock call begin.

Mostly they are noise that any prompt can begin with, and the frame that drew it waits for them. A
call that keeps more of a seed, as a picture that its VAE samples, has latents of its own for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.conditions import Condition
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.questions import Drawn, PartCall
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.sampling.rng import seeded


@dataclass(frozen=True)
class FirstLatents:
    """First latents (N, ...) of the frames of a call."""

    frames: FramePool
    rehearsed: Rehearsal

    def noise(self, condition: Condition, generators: Sequence[Generator]) -> Tensor:
        """(N, ...) by generators, which stand then as in the stock call."""
        found = self.rehearsed
        made = list[Tensor]()
        for frame in self._begun(condition.stock, generators):
            if found.by_seed or not found.fields.plain:
                made.append(self._of_first_step(frame))
            else:
                made.append(self._drawn(frame, condition))
        return torch.cat(made)

    def of(self, conditions: Sequence[Condition], followed: Sequence[Condition]) -> Tensor:
        """(N, ...) those of prompts and seeds. followed: what their frames go on for."""
        made = list[Tensor]()
        rows = zip(conditions, followed, strict=True)
        # By identity, since calls may hold pictures, which may be tensors.
        for _, some in groupby(rows, key=lambda row: row[1].key(0)):
            together = list(some)
            after = together[0][1]
            generators = [seeded(condition.seed) for condition, _ in together]
            for frame in self._begun(after.stock, generators):
                if isinstance(frame.question, Drawn) and self.rehearsed.fields.plain:
                    made.append(self._drawn(frame, after))
                else:
                    made.append(self._of_first_step(frame))
        return torch.cat(made)

    def _begun(self, stock: StockCall, generators: Sequence[Generator]) -> Iterator[CallFrame]:
        """New frames, of as many images as they can have."""
        if stock.widening is not None:
            yield self.frames.begin(stock, generators)
            return
        for generator in generators:
            yield self.frames.begin(stock, [generator])

    def _drawn(self, frame: CallFrame, condition: Condition) -> Tensor:
        """What a frame has drawn, which then waits for any latents of a condition."""
        made = frame.drawn
        self.frames.keep(condition, frame)
        return made

    def _of_first_step(self, frame: CallFrame) -> Tensor:
        """What a frame steps first. No network is asked."""
        if isinstance(frame.question, Drawn):
            self.frames.go_on([frame], [None], networks=False)
        while isinstance(frame.question, PartCall):
            frame.answer_dummy()
        return frame.step.sample
