"""Answers what frames wait for: calls of one part by many frames in one batch, where they may be.

Whether it does is tried, not believed, since networks may mix rows. In the first batch of a kind
two images are made apart as well; where the results differ, images of such calls stay apart.

A frame may have more images than are wanted: those of particles that are gone. No network sees them.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from itertools import groupby
from typing import Any

import torch

from ttsnap.core.memory import lacks_memory
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.joining import (
    close,
    image_of,
    joined,
    parted,
    rows_of,
    stacked,
)
from ttsnap.pipelines.calls.parts import DECODE, Processor
from ttsnap.pipelines.calls.stops import PartCall
from ttsnap.pipelines.calls.values import Alike, mapped, shape_of

logger = logging.getLogger(__name__)

ONE_BY_ONE = "rows go through {} one by one: joined, they would not be what each is alone"
"""What to say of a part."""


class Hub:
    """Of one call of a pipeline.

    networks: the parts that denoise. held: attention processors that frames put into them, by part.
    alone: whether frames change them around single calls, so that each goes through all of its
    calls before the next. joins: what other hubs of the same networks know of calls of a kind.
    """

    def __init__(
        self,
        networks: Sequence[str],
        held: Mapping[str, Sequence[Processor]] | None = None,
        *,
        alone: bool = False,
        joins: MutableMapping[Hashable, bool] | None = None,
    ) -> None:
        self.networks = frozenset(networks)
        self.held = held or {}
        self.alone = alone
        self.calls: Counter[str] = Counter()
        """How often each part was called, by its name."""
        self.rows: Counter[str] = Counter()
        """How many images those were of."""
        self.apart: set[str] = set(networks) if alone else set()
        """Parts whose calls cannot be joined."""
        self.tried = Counter[tuple[str, bool]]()
        """Rows made again to try it, of each part, and whether in the place of the pipeline's."""
        self._joins: MutableMapping[Hashable, bool] = {} if joins is None else joins
        """Whether calls of a kind can be joined."""
        self._unlike = set[Hashable]()
        """Kinds of which the first calls could not be made together: those of other searches may."""
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
            key = kind_of(frame) if self._may_join(frame.call) else id(frame)
            together.setdefault(key, []).append(frame)
        return list(together.values())

    def _may_join(self, call: PartCall) -> bool:
        """Whether a part denoises or decodes. What others make, frames keep."""
        return call.part in self.networks or call.method == DECODE

    def _answers(self, frames: Sequence[CallFrame]) -> list[Any]:
        """What frames wait for whose calls are of one kind."""
        first = frames[0]
        images = sum(frame.images for frame in frames)
        self.rows[first.call.part] += images
        if not self._may_join(first.call) or (len(frames) == 1 and first.width == 1):
            return [self._called(frame) for frame in frames]
        # A pipeline object is of one call, and so of one schedule.
        aligned = len({(id(frame.stock.pipe), frame.index) for frame in frames}) == 1
        kind = kind_of(first), aligned
        if images > 1 and kind not in self._joins and kind not in self._unlike:
            return self._tried(frames, kind, aligned=aligned)
        joins = images == 1 or self._joins.get(kind, False)
        if not joins:
            self.apart.add(first.call.part)
        made = self._joined(frames, aligned=aligned) if joins else None
        return [self._apart(frame) for frame in frames] if made is None else made

    def _tried(self, frames: Sequence[CallFrame], kind: Hashable, *, aligned: bool) -> list[Any]:
        """The same, where two images are made apart as well."""
        made = self._joined(frames, aligned=aligned)
        places = [(frame, image) for frame in frames for image in range(frame.images)]
        answers = {} if made is None else dict(zip(frames, made, strict=True))
        alone = list[bool]()
        for frame, image in places[:2]:
            if made is not None and all(alone):
                alone.append(self._is_alone(frame, image, answers[frame]))
        if made is None:
            self._unlike.add(kind)
        else:
            self._joins[kind] = all(alone)
        if made is not None and all(alone):
            self._note_trial(frames[0], len(alone))
            return made
        self._note_trial(frames[0], len(alone) + len(places))
        name = frames[0].call.part
        if name not in self.apart:
            self.apart.add(name)
            logger.warning(ONE_BY_ONE.format(name))
        return [self._apart(frame) for frame in frames]

    def _is_alone(self, frame: CallFrame, image: int, answer: Any) -> bool:
        """Whether one image of an answer is what the part makes of it alone."""
        with torch.no_grad():
            alone = self._alone(frame, image)
        return close(image_of(answer, frame.arguments, image), alone)

    def _note_trial(self, frame: CallFrame, images: int) -> None:
        """Count rows that were made to try it."""
        name = frame.call.part
        passes = rows_of(frame.call) // frame.width
        self.tried[name, name in frame.parts] += images * passes

    def _joined(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any] | None:
        """What frames wait for, in one call; None where that cannot be.

        Raises what a lack of memory does.
        """
        try:
            if len(frames) == 1 and frames[0].images == frames[0].width:
                return [self._called(frames[0])]
            return self._together(frames, aligned=aligned)
        except (RuntimeError, ValueError, IndexError, TypeError) as why:
            if lacks_memory(why):
                raise
            logger.debug("calls of %s stay apart: %s", frames[0].call.part, why)
            return None

    def _together(self, frames: Sequence[CallFrame], *, aligned: bool) -> list[Any]:
        """What frames wait for, in one call. UnlikeError where that cannot be."""
        calls = [frame.arguments for frame in frames]
        one = joined(calls, aligned=aligned, equal=self._alike)
        return parted(self._call(frames[0], *one.args, **one.kwargs), calls)

    def _apart(self, frame: CallFrame) -> Any:
        """What a frame waits for, image by image."""
        if frame.width == 1:
            return self._called(frame)
        made = [self._alone(frame, image) for image in range(frame.images)]
        made += made[-1:] * (frame.width - frame.images)
        return stacked(made, frame.arguments)

    def _alone(self, frame: CallFrame, image: int) -> Any:
        """What a frame waits for, of one image."""
        if frame.width == 1:
            return self._called(frame)
        one = joined([frame.arguments.alone(image)], aligned=True)
        return self._call(frame, *one.args, **one.kwargs)

    def _called(self, frame: CallFrame) -> Any:
        """What a frame waits for, in a call of its own."""
        call = frame.call
        make = functools.partial(self._call, frame)
        if self._may_join(call):
            # lists of their own, since networks take residuals out of them, and may be asked again
            args, kwargs = mapped((call.args, call.kwargs), lambda each: each)
            return make(*args, **kwargs)
        return frame.stock.encoded(call, make)

    def _call(self, frame: CallFrame, *args: Any, **kwargs: Any) -> Any:
        """What the part that a frame waits for makes of these arguments."""
        call = frame.call
        self.calls[call.part] += 1
        return getattr(frame.real(call), call.method)(*args, **kwargs)


def _part(frame: CallFrame) -> str:
    return frame.call.part


def kind_of(frame: CallFrame) -> Hashable:
    """What calls agree in that may be one."""
    call = frame.call
    return id(frame.real(call)), call.method, shape_of(call.args), shape_of(call.kwargs)
