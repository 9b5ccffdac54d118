"""The frames of a denoiser that wait for rows, by what they are begun for and where they stand."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Generator

from ttsnap.pipelines.calls.frame import CallFrame, StockCall
from ttsnap.pipelines.calls.hub import Hub
from ttsnap.sampling.rng import seeded


class Condition(NamedTuple):
    """What a frame is begun for: frames of one condition differ in their latents alone."""

    stock: StockCall
    seed: int
    """By which it draws what else it draws; 0 where that changes nothing."""

    def key(self, index: int) -> tuple[int, int, int]:
        """Under which its frames wait that stand at this index."""
        return id(self.stock), self.seed, index


class FramePool:
    """Frames that wait, and how new ones are begun.

    remembers: whether a frame's steps depend on those that it has made, so that no other can take its place.
    """

    def __init__(self, hub: Hub, *, remembers: bool) -> None:
        self.hub, self.remembers = hub, remembers
        self._waiting: dict[tuple[int, int, int], list[CallFrame]] = {}

    def take(self, condition: Condition, index: int, *, ends: bool = False) -> CallFrame:
        """A frame that waits for its latents at this index. ends: whether it comes to its end with them.

        RuntimeError where it would have to remember steps that it has not made.
        """
        waiting = self._waiting.get(condition.key(index))
        if waiting:
            return waiting.pop()
        if self.remembers and index > 0 and not ends:
            raise RuntimeError(f"the stock call of seed {condition.seed} is lost, whose steps depend on those before; "
                               "search again, with a smaller batch_size where memory was short")  # fmt: skip
        return self.begin(condition.stock, seeded(condition.seed), index)

    def begin(self, stock: StockCall, generator: Generator, index: int = 0, **parts: Any) -> CallFrame:
        """A new frame, led to this index without its networks. At 0 it has drawn its first latents or, where none can
        be put in, waits for its network. parts: in the place of the pipeline's."""
        frame = stock.begin(generator, parts, index)
        self.hub.run([frame], networks=False)
        return frame

    def keep(self, condition: Condition, frame: CallFrame) -> None:
        """Let a frame wait for another row, if it can."""
        if frame.spent:
            return frame.close()
        self._waiting.setdefault(condition.key(frame.index), []).append(frame)

    def trim(self, most: int) -> None:
        """End frames, those of the earliest places first, until no more than so many wait. Where frames remember, none
        can take another's place, and nothing tells whose particle is gone: all stay until none is left."""
        if self.remembers and most > 0:
            return
        frames = [(key, frame) for key, waiting in self._waiting.items() for frame in waiting]
        for key, frame in frames[: max(0, len(frames) - most)]:
            self._waiting[key].remove(frame)
            frame.close()
        self._waiting = {key: waiting for key, waiting in self._waiting.items() if waiting}

    def forget_others(self, calls: set[int]) -> None:
        """End the frames of all calls but these, which go by their ids."""
        for key in [key for key in self._waiting if key[0] not in calls]:
            for frame in self._waiting.pop(key):
                frame.close()
