"""The frames of a denoiser that wait for rows, by what they are begun for and where they stand.

A frame is a cursor: any frame of a row's condition that stands at the row's step takes its latents.
Where none does, one is begun, and led there without the network.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.hub import Hub
from ttsnap.pipelines.calls.parts import Parts
from ttsnap.pipelines.calls.stock_call import Condition, StockCall
from ttsnap.sampling.rng import seeded


class FramePool:
    """Frames that wait, and how new ones are begun.

    remembers: whether a frame's steps depend on those that it has made, so that no other can take
    its place. parts: in place of the pipeline's.
    """

    def __init__(self, hub: Hub, *, remembers: bool, parts: Parts | None = None) -> None:
        self.hub = hub
        self.remembers = remembers
        self._parts = parts or {}
        self._waiting: dict[tuple[int, int, int], list[CallFrame]] = {}

    def take(
        self,
        condition: Condition,
        index: int,
        images: int = 1,
        *,
        ends: bool = False,
    ) -> list[CallFrame]:
        """Frames that wait for the latents of so many images at this index, perhaps of more.

        ends: whether they end with them; then they are of no more. RuntimeError where a frame would
        have to remember steps that it has not made.
        """
        waiting = self._waiting.get(condition.key(index), [])
        frames = list[CallFrame]()
        left = images
        while left:
            frame = _fitting(waiting, left, more=not ends)
            if frame is None:
                frame = self._led(condition, index, left, ends=ends)
            frame.images = min(left, frame.width)
            left -= frame.images
            frames.append(frame)
        return frames

    def _led(self, condition: Condition, index: int, images: int, *, ends: bool) -> CallFrame:
        """A new frame of as many of these images as it can have."""
        if self.remembers and index > 0 and not ends:
            raise RuntimeError(
                f"the stock call of seed {condition.seed} is lost, whose steps depend on those "
                "before; search again, with a smaller batch_size where memory was short"
            )
        return self.begin_for(condition, index, images)

    def begin_for(
        self,
        condition: Condition,
        index: int = 0,
        images: int = 1,
        **parts: Any,
    ) -> CallFrame:
        """A new frame of a condition, as of `begin`, of as many of these images as it can have."""
        width = 1 if condition.stock.widening is None else images
        generators = [seeded(condition.seed) for _ in range(width)]
        return self.begin(condition.stock, generators, index, **parts)

    @torch.no_grad()
    def begin(
        self,
        stock: StockCall,
        generators: Sequence[Generator],
        index: int = 0,
        **parts: Any,
    ) -> CallFrame:
        """A new frame, led to this index without its networks. parts: in place of the pipeline's.

        At 0 it has drawn its first latents or, where none can be put in, waits for its network.
        """
        frame = CallFrame(stock, generators, {**self._parts, **parts}, index)
        self.hub.run([frame], networks=False)
        return frame

    def go_on(
        self,
        frames: Sequence[CallFrame],
        latents: Sequence[Tensor | None],
        *,
        networks: bool = True,
    ) -> None:
        """Let frames go on with these latents, until each has stepped or is at its end."""
        for frame, each in zip(frames, latents, strict=True):
            frame.go_on(each)
        self.hub.run(frames, networks=networks)

    def keep(self, condition: Condition, frame: CallFrame) -> None:
        """Let a frame wait for another row, if it can."""
        if frame.spent:
            return frame.close()
        self._waiting.setdefault(condition.key(frame.index), []).append(frame)

    def trim(self, most: int) -> None:
        """End frames, those of the earliest places first, without which there are enough images.

        Nothing tells which images of a wide frame are still wanted, and to lead a new frame takes
        longer than to keep some in vain: twice as many as particles are enough. Where frames
        remember, none can take another's place: all stay until none is left.
        """
        if self.remembers and most > 0:
            return
        frames = [(key, frame) for key, waiting in self._waiting.items() for frame in waiting]
        images = sum(frame.images for _, frame in frames)
        if any(frame.width > 1 for _, frame in frames):
            most *= 2
        for key, frame in frames:
            if images - frame.images >= most:
                images -= frame.images
                self._waiting[key].remove(frame)
                frame.close()
        self._waiting = {key: waiting for key, waiting in self._waiting.items() if waiting}

    def forget_others(self, calls: Collection[StockCall]) -> None:
        """End the frames of all calls but these."""
        known = set(map(id, calls))
        for key in [key for key in self._waiting if key[0] not in known]:
            for frame in self._waiting.pop(key):
                frame.close()


def _fitting(frames: list[CallFrame], images: int, *, more: bool) -> CallFrame | None:
    """Takes one of these frames: the smallest of so many images, else the largest.

    more: whether it may be of more.
    """
    enough = [frame for frame in frames if frame.width >= images] if more else []
    rest = [frame for frame in frames if frame.width <= images]
    if enough:
        found = min(enough, key=lambda frame: frame.width)
    elif rest:
        found = max(rest, key=lambda frame: frame.width)
    else:
        return None
    frames.remove(found)
    return found
