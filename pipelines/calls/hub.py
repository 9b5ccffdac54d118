"""Answers what frames wait for: calls of one network by many frames in one batch, as far as that network allows.

Whether it does is tried, not believed. Networks may mix rows, as perturbed-attention guidance splits its batch in
three. The first two calls of a kind are made together and apart; where the results differ, such calls stay apart.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from ttsnap.core.memory import lacks_memory
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.joining import Alike, Arguments, close, joined, parted, rows_of, shape_of
from ttsnap.pipelines.calls.questions import PartCall
from ttsnap.pipelines.calls.shared_parts import Processor

logger = logging.getLogger(__name__)

ONE_BY_ONE = "rows go through {} one by one: joined, they would not be what each is alone"
"""What to say of a part."""


class Hub:
    """Of one call of a pipeline.

    networks: the parts that denoise. held: attention processors that frames put into them, by part. alone: whether
    frames change them around single calls, so that each goes through all of its calls before the next.
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
        """Rows that were made again to try it, of each part, and whether that was in the place of the pipeline's."""
        self._joins: dict[Any, bool] = {}
        """Whether calls of a kind can be."""
        self._alike = Alike()

    def run(self, frames: Sequence[CallFrame], *, networks: bool = True) -> None:
        """Answer all calls of parts until each frame waits for something else; without `networks`, or for these.

        Where anything fails, all of these frames end: one may hold ENCODING, for which other searches wait.
        """
        try:
            self._run(frames, networks=networks)
        except BaseException:
            for frame in frames:
                frame.close()
            raise

    def _run(self, frames: Sequence[CallFrame], *, networks: bool) -> None:
        for frame in frames if self.alone else ():
            while self._asks(frame, networks):
                ((_, answer),) = self._answers(_part(frame), [frame])
                frame.answer(answer)
        while waiting := [frame for frame in frames if self._asks(frame, networks)]:
            for each in chain.from_iterable(self.held.values()):
                each.hold()
            for name, some in groupby(sorted(waiting, key=_part), key=_part):
                here = list(some)
                # All are answered before any goes on: frames may change a part that they share around its call.
                made = [self._answers(name, batch) for batch in self._batches(here)]
                answers = dict(pair for each in made for pair in each)
                for frame in here:
                    frame.answer(answers[frame])

    def _asks(self, frame: CallFrame, networks: bool) -> bool:
        asked = frame.question
        return isinstance(asked, PartCall) and (networks or asked.part not in self.networks)

    def _batches(self, frames: Sequence[CallFrame]) -> list[list[CallFrame]]:
        """Frames whose calls of one part are to be joined."""
        together: dict[Any, list[CallFrame]] = {}
        for frame in frames:
            call = _call(frame)
            joins = call.part in self.networks or call.method == "decode"
            key = (id(frame.real(call)), call.method, shape_of(call.args), shape_of(call.kwargs))
            together.setdefault(key if joins else id(frame), []).append(frame)
        return list(together.values())

    def _answers(self, name: str, frames: Sequence[CallFrame]) -> list[tuple[CallFrame, Any]]:
        """What these frames wait for."""
        self.rows[name] += len(frames)
        if len(frames) == 1:
            return [(frames[0], self._called(frames[0]))]
        aligned = len({frame.index for frame in frames}) == 1
        call = _call(frames[0])
        kind = (id(frames[0].real(call)), call.method, aligned, shape_of(call.args), shape_of(call.kwargs))
        known: list[Any] = []
        if kind not in self._joins:
            known = [self._called(frame) for frame in frames[:2]]
            self._joins[kind] = self._equal(frames[:2], known, aligned=aligned)
            self.tried[name, name in frames[0].parts] += sum(rows_of(_call(frame)) for frame in frames[:2])
            if not self._joins[kind] and name not in self.apart:
                self.apart.add(name)
                logger.warning(ONE_BY_ONE.format(name))
        rest = frames[len(known) :]
        made = self._joined(rest, aligned=aligned) if self._joins[kind] and len(rest) > 1 else None
        return list(zip(frames, [*known, *(map(self._called, rest) if made is None else made)], strict=True))

    def _equal(self, frames: Sequence[CallFrame], alone: Sequence[Any], *, aligned: bool) -> bool:
        """Whether calls joined make what they make alone."""
        made = self._joined(frames, aligned=aligned)
        return made is not None and close(made, list(alone))

    def _joined(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any] | None:
        """What these frames wait for, in one call; None where they cannot be one. Raises what a lack of memory does."""
        try:
            return self._together(frames, aligned=aligned)
        except (RuntimeError, ValueError, IndexError, TypeError) as why:
            if lacks_memory(why):
                raise
            logger.debug("calls of %s stay apart: %s", _part(frames[0]), why)
            return None

    def _together(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any]:
        """What these frames wait for, in one call. UnlikeError where they cannot be one."""
        calls = [Arguments(_call(frame).args, _call(frame).kwargs) for frame in frames]
        one = joined(calls, aligned=aligned, equal=self._alike)
        self.calls[_part(frames[0])] += 1
        method = getattr(frames[0].real(_call(frames[0])), _call(frames[0]).method)
        made = method(*one.args, **one.kwargs)
        return parted(made, [call.rows for call in calls], listed=isinstance(one.input, list))

    def _called(self, frame: CallFrame) -> Any:
        """What a frame waits for, in a call of its own."""
        call = _call(frame)

        def made(*args: Any, **kwargs: Any) -> Any:
            self.calls[call.part] += 1
            return getattr(frame.real(call), call.method)(*args, **kwargs)

        if call.part in self.networks or call.method == "decode":
            return made(*call.args, **call.kwargs)
        return frame.stock.encoded(call, made)


def _call(frame: CallFrame) -> PartCall:
    asked = frame.question
    assert isinstance(asked, PartCall)
    return asked


def _part(frame: CallFrame) -> str:
    return _call(frame).part
