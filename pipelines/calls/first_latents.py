"""The latents with which particles of a stock call begin.

Mostly they are noise that any prompt can begin with, and the frame that drew it waits for them. A
call that keeps more of a seed, as a picture that its VAE samples, has latents of its own for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from ttsnap.pipelines.calls.conditions import Condition
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.questions import Drawn, PartCall
from ttsnap.pipelines.calls.rehearsal import Rehearsal


@dataclass(frozen=True)
class FirstLatents:
    """First latents (1, ...) of the frames of a call."""

    frames: FramePool
    rehearsed: Rehearsal

    def noise(self, condition: Condition, generator: Generator) -> Tensor:
        """By a generator, which stands then as in the stock call."""
        frame, found = self.frames.begin(condition.stock, generator), self.rehearsed
        if found.by_seed or not found.fields.plain:
            return self._of_first_step(frame)
        return self._drawn(frame, condition)

    def of(self, condition: Condition, followed: Condition) -> Tensor:
        """Those of a prompt and a seed. followed: what its frame goes on for."""
        frame, found = self.frames.begin_for(condition), self.rehearsed
        if isinstance(frame.question, Drawn) and found.fields.plain:
            return self._drawn(frame, followed)
        return self._of_first_step(frame)

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
