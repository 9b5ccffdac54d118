"""A group of seeds whose network calls are one, in which attention pushes its rows apart (Repel)."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ttsnap.core.memory import lacks_memory
from ttsnap.options.variety import Repel
from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.hub import ONE_BY_ONE, Hub, kind_of
from ttsnap.pipelines.calls.joining import PartArguments, joined
from ttsnap.pipelines.calls.stops import PartCall
from ttsnap.pipelines.calls.values import mapped
from ttsnap.profiling.flops import count_flops, on_meta
from ttsnap.sampling import rng
from ttsnap.sampling.repel import coupled

logger = logging.getLogger(__name__)
APART = f"{ONE_BY_ONE}; leave variety out"
IMAGE_FIRST = ("ZImage", "HiDream", "Motif")
"""How the classes of networks begin that put a text behind the image; others put it before."""


class ImageTokens:
    """Where the tokens of latents are in the sequences of a network's attention.

    shape: of the latents (1, ...).
    """

    def __init__(self, net: nn.Module, shape: Sequence[int]) -> None:
        config: Any = getattr(net, "config", {})
        size = config.get("patch_size") or config.get("all_patch_size", [None])[0]
        sides = size if isinstance(size, list | tuple) else (size or 1, size or 1)
        self._patch = (config.get("patch_size_t") or 1, *sides)[-3:]
        self._patched = size is not None
        self._image_first = type(net).__name__.startswith(IMAGE_FIRST)
        self._own = self._count(shape)

    def _count(self, shape: Sequence[int]) -> int:
        """How many tokens there are of a tensor (N, ...), or of a list of (...)."""
        if len(shape) == 3:  # packed
            return shape[1]
        sides = shape[2:]
        return prod(-(-n // p) for n, p in zip(sides, self._patch[-len(sides) :], strict=True))

    def within(self, given: Any, length: int) -> slice | None:
        """Where they are in a sequence, when a network is given this; None for one of a text."""
        row = given[0].shape if isinstance(given, list) else given.shape[1:]
        seen = self._count((1, *row))
        if length < seen and self._patched:
            return None
        if length <= seen or self._image_first:  # U-Nets have sequences of fewer tokens
            return slice(0, min(length, self._own))
        return slice(length - seen, length - seen + self._own)


class CoupledHub(Hub):
    """Answers the frames of a group. Calls of `nets` are one, whose rows attention couples.

    nets: copies of networks, called by nobody else, by the names of parts. like: latents (1, ...).
    tried: where rows are counted that were made again to try whether they join.
    """

    def __init__(
        self,
        networks: Iterable[str],
        nets: Mapping[str, nn.Module],
        how: Repel,
        like: Tensor,
        tried: Counter[tuple[str, bool]],
    ) -> None:
        super().__init__(list(networks))
        self.tried = tried
        self.nets = nets
        self.how = how
        self._tokens = {name: ImageTokens(net, like.shape) for name, net in nets.items()}
        self.key: rng.Key = (0, 0)
        """By which tokens are let off."""

    def _batches(self, frames: Sequence[CallFrame]) -> list[list[CallFrame]]:
        return [list(frames)] if frames[0].call.part in self.networks else super()._batches(frames)

    def _answers(self, frames: Sequence[CallFrame]) -> list[Any]:
        call = frames[0].call
        if call.part not in self.networks:
            return super()._answers(frames)
        self._must_join(frames)
        if call.part not in self.nets:
            return self._together(frames, aligned=True)
        with self.coupling(call.part, self.nets[call.part], frames[0].arguments):
            return self._together(frames, aligned=True)

    def _must_join(self, frames: Sequence[CallFrame]) -> None:
        """ValueError where a group's rows in one call, not coupled, are not what each is alone.

        It is tried once for calls of a kind.
        """
        kind = kind_of(frames[0]), True
        if kind not in self._joins:
            super()._answers(frames)
            self._note_trial(frames[0], sum(frame.images for frame in frames))
        if not self._joins[kind]:
            raise ValueError(APART.format(frames[0].call.part))

    def coupling(
        self, part: str, net: nn.Module, given: PartArguments
    ) -> AbstractContextManager[None]:
        """Within it, calls of this network of a whole group couple its rows.

        given: of a call of some of its seeds.
        """
        where = functools.partial(self._tokens[part].within, given.input)
        rows = given.passes * self.how.size
        return coupled(net, self.how, where, self.key, rows=rows)

    @torch.no_grad()
    def flops(self, frame: CallFrame) -> float:
        """FLOPs of coupling a seed with its group, beside the evaluation that a frame of it waits
        for. No network is asked, where that can be counted without weights."""
        beside = 0.0
        while isinstance(call := frame.question, PartCall):
            if call.part in self.nets:
                beside += self._beside(call.part, frame.arguments) / self.how.size
            frame.answer_dummy()
        return beside

    def _beside(self, part: str, given: PartArguments) -> float:
        """FLOPs of coupling the rows of a group's call. given: of the same call of one seed."""
        one = joined([given] * self.how.size, aligned=True)

        def count(net: nn.Module, args: Any, kwargs: Any) -> float:
            alone = count_flops(lambda: net(*args, **kwargs))
            with self.coupling(part, net, given):
                return count_flops(lambda: net(*args, **kwargs)) - alone

        try:
            args, kwargs = mapped((one.args, one.kwargs), lambda each: each.to("meta"))
            return count(on_meta(self.nets[part]), args, kwargs)
        except Exception:  # of what depends on values, or cannot leave its device
            logger.debug("coupled calls of %s are counted by a real one", part, exc_info=True)
        try:
            return count(self.nets[part], one.args, one.kwargs)
        except (RuntimeError, IndexError, TypeError) as why:
            if lacks_memory(why):
                raise
            raise ValueError(APART.format(part)) from why
