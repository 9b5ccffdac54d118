"""Where latents enter frames and images leave them: first latents, and the ends of calls."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.parts import dtypes_kept
from ttsnap.pipelines.calls.pictures import images_of, several_of
from ttsnap.pipelines.calls.pool import FramePool
from ttsnap.pipelines.calls.rehearsal import Rehearsal
from ttsnap.pipelines.calls.stock_call import Condition, StockCall
from ttsnap.pipelines.calls.stops import Drawn, PartCall
from ttsnap.pipelines.calls.values import tensors_in
from ttsnap.sampling.rng import seeded

# --- The latents with which particles of a stock call begin ---------------------------------------
# Mostly they are noise that any prompt can begin with, and the frame that drew it waits for them. A
# call that keeps more of a seed, as a picture that its VAE samples, has latents of its own for each.


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


# --- The ends of stock calls, after their last step: images of finished latents, and all that a
# call returns of them
# A call with sound decodes that, too. Pictures of estimates do without. Which part is for what is
# seen where each in turn answers something else.

CASTING = threading.Lock()
"""Held while a call ends that changes the dtype of a part to decode: other threads share it."""
Fill = Callable[[str], float]
"""The name of a part -> with what its dummies are filled."""


@dataclass
class End:
    """One that was seen, with parts that answered with dummies."""

    made: Any = None
    """What the call returned."""
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of each part."""
    given: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """The tensors that each part was given."""

    def all_flops(self, asleep: frozenset[str]) -> float:
        """Of all parts but these."""
        return sum(flops for part, flops in self.flops.items() if part not in asleep)

    def without(self, others: Mapping[str, End]) -> frozenset[str]:
        """The parts on which the pictures do not depend.

        others: the end where one part answered with another number, by that part.
        """
        own = [images_of(self.made)]
        reads = {part: self._readers(other) for part, other in others.items()}
        needed = {
            part for part, other in others.items() if not _equal(own, [images_of(other.made)])
        }
        while more := {part for part in others if reads[part] & needed} - needed:
            needed |= more
        return frozenset(others.keys() - needed)

    def _readers(self, other: End) -> set[str]:
        """The parts that are given something else in another end."""
        return {part for part in self.given if not _equal(self.given[part], other.given[part])}


@dataclass
class Ends:
    """Those of one call of a pipeline."""

    frames: FramePool
    rehearsed: Rehearsal
    unseen: frozenset[str] = frozenset()
    """The parts that pictures do without."""

    def know(self, call: StockCall, last: int) -> End:
        """Find what pictures do without; returns the end of this call with all parts.

        last: the index of finished latents.
        """
        plain = self.seen(call, last)
        if self.rehearsed.sounds:

            def other(part: str) -> End:
                return self.seen(call, last, lambda asked: 0.5 * (asked == part))

            self.unseen = plain.without({part: other(part) for part in plain.given})
        return plain

    @torch.no_grad()
    def seen(
        self,
        call: StockCall,
        last: int,
        fill: Fill = lambda part: 0.0,
        **parts: Any,
    ) -> End:
        """The end of a call, whose parts answer with dummies. parts: in place of the pipeline's."""
        end = End()
        frame = self.frames.begin(call, [seeded(0)], last, **parts)
        frame.go_on(self.rehearsed.latents)
        while isinstance(asked := frame.question, PartCall):
            end.given[asked.part] += tensors_in(asked.given)
            end.flops[asked.part] += frame.answer_dummy(fill(asked.part)).flops
        end.made = frame.returned
        return end

    def images(self, frames: Sequence[CallFrame], latents: Sequence[Tensor]) -> list[Tensor]:
        """Images in [0, 1] of finished latents (n, ...), which frames of n images wait for."""
        if not self.rehearsed.casts:
            self.frames.go_on(frames, latents)
        else:
            for frame, each in zip(frames, latents, strict=True):
                with CASTING, dtypes_kept(frame.stock.modules):
                    self.frames.go_on([frame], [each])
        made = list[Tensor]()
        for frame in frames:
            made += several_of(frame.returned, frame.width)
        return made

    def returned(self, condition: Condition, last: int, latents: Tensor) -> Any:
        """What a call returns of finished latents (1, ...)."""
        frame = self.frames.begin_for(condition, last)
        with CASTING, dtypes_kept(frame.stock.modules):
            self.frames.go_on([frame], [latents])
        return frame.returned


def _equal(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))
