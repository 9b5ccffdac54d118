"""Answers what frames wait for: calls of one part by many frames in one batch, where they may be.

Whether it does is tried, not believed. Networks may mix rows, as perturbed-attention guidance
splits its batch in three. The first two calls of a kind are made together and apart; where the
results differ, such calls stay apart.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from ttsnap.core.memory import lacks_memory
from ttsnap.pipelines.calls.alike import Alike
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.joining import PartArguments, close, joined, parted, rows_of
from ttsnap.pipelines.calls.parts import DECODE
from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.pipelines.calls.shared_parts import Processor
from ttsnap.pipelines.calls.values import shape_of

logger = logging.getLogger(__name__)

ONE_BY_ONE = "rows go through {} one by one: joined, they would not be what each is alone"
"""What to say of a part."""


class Hub:
    """Of one call of a pipeline.

    networks: the parts that denoise. held: attention processors that frames put into them, by part.
    alone: whether frames change them around single calls, so that each goes through all of its
    calls before the next.
    """

    def __init__(
        self,
        networks: Sequence[str],
        held: Mapping[str, Sequence[Processor]] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self.networks, self.held, self.alone = frozenset(networks), held or {}, alone
        self.calls: Counter[str] = Counter()
        """How often each part was called, by its name."""
        self.rows: Counter[str] = Counter()
        """How many calls of frames that answered."""
        self.apart: set[str] = set(networks) if alone else set()
        """Parts whose calls cannot be joined."""
        self.tried = Counter[tuple[str, bool]]()
        """Rows made again to try it, of each part, and whether in the place of the pipeline's."""
        self._joins: dict[Hashable, bool] = {}
        """Whether calls of a kind can be joined."""
        self._alike = Alike()

    def run(self, frames: Sequence[CallFrame], *, networks: bool = True) -> None:
        """Answer all calls of parts until each frame waits for something else.

        networks: whether those that denoise are answered, too. Where anything fails, all of these
        frames end: one may hold ENCODING, for which other searches wait.
        """
        try:
            self._run(frames, networks=networks)
        except BaseException:
            for frame in frames:
                frame.close()
            raise

    def _run(self, frames: Sequence[CallFrame], *, networks: bool) -> None:
        if self.alone:
            for frame in frames:
                while self._asks(frame, networks):
                    self._go_on([frame])
        while waiting := [frame for frame in frames if self._asks(frame, networks)]:
            self._hold()
            for _, here in groupby(sorted(waiting, key=_part), key=_part):
                self._go_on(list(here))

    def _asks(self, frame: CallFrame, networks: bool) -> bool:
        asked = frame.question
        return isinstance(asked, PartCall) and (networks or asked.part not in self.networks)

    def _hold(self) -> None:
        """Put attention processors back that a frame has taken out at its end."""
        for processors in self.held.values():
            for each in processors:
                each.hold()

    def _go_on(self, frames: Sequence[CallFrame]) -> None:
        """Let frames go on that call the same part.

        All are answered before any goes on: frames may change a part that they share around its
        call.
        """
        answers: dict[CallFrame, Any] = {}
        for batch in self._batches(frames):
            answers |= zip(batch, self._answers(batch), strict=True)
        for frame in frames:
            frame.answer(answers[frame])

    def _batches(self, frames: Sequence[CallFrame]) -> list[list[CallFrame]]:
        """Frames whose calls are to be joined."""
        together: dict[Hashable, list[CallFrame]] = {}
        for frame in frames:
            key = _kind(frame) if self._may_join(frame.call) else id(frame)
            together.setdefault(key, []).append(frame)
        return list(together.values())

    def _may_join(self, call: PartCall) -> bool:
        """Whether a part denoises or decodes. What others make, frames keep."""
        return call.part in self.networks or call.method == DECODE

    def _answers(self, frames: Sequence[CallFrame]) -> list[Any]:
        """What frames wait for whose calls are of one kind."""
        first = frames[0]
        self.rows[first.call.part] += len(frames)
        if len(frames) == 1:
            return [self._called(first)]
        aligned = len({frame.index for frame in frames}) == 1
        kind, known = (_kind(first), aligned), list[Any]()
        if kind not in self._joins:
            known = [self._called(frame) for frame in frames[:2]]
            self._joins[kind] = self._equal(frames[:2], known, aligned=aligned)
            self._note_trial(frames[:2], joins=self._joins[kind])
        rest, made = frames[len(known) :], None
        if self._joins[kind] and len(rest) > 1:
            made = self._joined(rest, aligned=aligned)
        if made is None:
            made = [self._called(frame) for frame in rest]
        return known + made

    def _note_trial(self, frames: Sequence[CallFrame], *, joins: bool) -> None:
        """Count rows that were made again, and say once of a part that its calls stay apart."""
        name = frames[0].call.part
        self.tried[name, name in frames[0].parts] += sum(rows_of(frame.call) for frame in frames)
        if not joins and name not in self.apart:
            self.apart.add(name)
            logger.warning(ONE_BY_ONE.format(name))

    def _equal(self, frames: Sequence[CallFrame], alone: Sequence[Any], *, aligned: bool) -> bool:
        """Whether calls joined make what they make alone."""
        with torch.no_grad():
            made = self._joined(frames, aligned=aligned)
        return made is not None and close(made, list(alone))

    def _joined(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any] | None:
        """What frames wait for, in one call; None where that cannot be.

        Raises what a lack of memory does.
        """
        try:
            return self._together(frames, aligned=aligned)
        except (RuntimeError, ValueError, IndexError, TypeError) as why:
            if lacks_memory(why):
                raise
            logger.debug("calls of %s stay apart: %s", frames[0].call.part, why)
            return None

    def _together(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any]:
        """What frames wait for, in one call. UnlikeError where that cannot be."""
        calls = [PartArguments(frame.call.args, frame.call.kwargs) for frame in frames]
        one = joined(calls, aligned=aligned, equal=self._alike)
        made = self._call(frames[0], *one.args, **one.kwargs)
        return parted(made, [call.rows for call in calls], listed=isinstance(one.input, list))

    def _called(self, frame: CallFrame) -> Any:
        """What a frame waits for, in a call of its own."""
        call, make = frame.call, functools.partial(self._call, frame)
        if self._may_join(call):
            return make(*call.args, **call.kwargs)
        return frame.stock.encoded(call, make)

    def _call(self, frame: CallFrame, *args: Any, **kwargs: Any) -> Any:
        """What the part that a frame waits for makes of these arguments."""
        call = frame.call
        self.calls[call.part] += 1
        return getattr(frame.real(call), call.method)(*args, **kwargs)


def _part(frame: CallFrame) -> str:
    return frame.call.part


def _kind(frame: CallFrame) -> Hashable:
    """What calls agree in that may be one."""
    call = frame.call
    return id(frame.real(call)), call.method, shape_of(call.args), shape_of(call.kwargs)
