"""Whether one stock call may make several images of a prompt, each as a call of its own makes it.

Tried without networks: a call of two images goes on beside two calls of one. What its networks and
steps are given must be, for each image, what they are given there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.joining import (
    PartArguments,
    Path,
    close,
    generator_in,
    joined,
    rowed_in,
    stacked,
)
from ttsnap.pipelines.calls.parts import DECODE, dtypes_kept
from ttsnap.pipelines.calls.pictures import several_of
from ttsnap.pipelines.calls.stock_call import StockCall, Widening, ways
from ttsnap.pipelines.calls.stops import Drawn, PartCall, Step
from ttsnap.pipelines.calls.values import identity_of, tensors_in
from ttsnap.pipelines.suspended import Returned
from ttsnap.sampling.rng import seeded

logger = logging.getLogger(__name__)

IMAGES = 2
"""Of a trial."""


class _ApartError(ValueError):
    """A call of several images that is not as calls of one."""


@torch.no_grad()
def widening_of(call: StockCall) -> Widening | None:
    """How a call makes several images; None where it cannot, or they are not as those of its own.

    call: stops where a rehearsal found that it can.
    """
    for way in ways(call.pipe.stock_arguments()):
        try:
            return way._replace(rowed=_rowed(replace(call, widening=way)))
        except Exception as why:  # of code that was not meant for it
            logger.debug("not wide by %s: %s", way, why)
    return None


def _rowed(call: StockCall) -> dict[str, frozenset[Path]]:
    """Which arguments of each part's calls have rows.

    _ApartError, or whatever the stock call raises, where it is not as calls of one image.
    """
    rowed: dict[str, frozenset[Path]] = {}
    with ExitStack() as stack:
        seeds = range(IMAGES)
        wide = stack.enter_context(closing(CallFrame(call, list(map(seeded, seeds)))))
        ones = [stack.enter_context(closing(CallFrame(call, [seeded(seed)]))) for seed in seeds]
        while not isinstance(wide.question, Returned):
            _go_on(wide, ones, rowed)
        _check_all(several_of(wide.returned, IMAGES), [_picture(frame) for frame in ones])
    return rowed


def _picture(frame: CallFrame) -> Tensor:
    (picture,) = several_of(frame.returned, 1)
    return picture


def _go_on(
    wide: CallFrame,
    ones: Sequence[CallFrame],
    rowed: dict[str, frozenset[Path]],
) -> None:
    """Let frames go on that wait for the same, to their next questions."""
    for frame in (wide, *ones):
        _encode(frame)
    asked: Any = wide.question
    others: list[Any] = [frame.question for frame in ones]
    if any(type(other) is not type(asked) for other in others):
        raise _ApartError(f"{type(asked).__name__} beside {type(others[0]).__name__}")
    if isinstance(asked, Returned):
        return
    if isinstance(asked, PartCall):
        _call(wide, ones, rowed)
        return
    if isinstance(asked, Drawn):
        _check(asked.made, torch.cat([other.made for other in others]))
        latents = [other.made for other in others]
    else:
        assert isinstance(asked, Step)
        _check(asked.out, torch.cat([other.out for other in others]))
        _check(asked.sample, torch.cat([other.sample for other in others]))
        latents = [_moved(other.sample, i) for i, other in enumerate(others)]
    for frame, each in zip((wide, *ones), (torch.cat(latents), *latents), strict=True):
        with dtypes_kept(frame.stock.modules):  # one that it widens to decode, the next widens, too
            frame.go_on(each)


def _encode(frame: CallFrame) -> None:
    """Answer a frame's calls of parts that are neither networks nor decoders."""
    while isinstance(call := frame.question, PartCall):
        if call.part in frame.stock.networks or call.method == DECODE:
            return
        frame.answer(frame.stock.encoded(call, getattr(frame.real(call), call.method)))


def _moved(sample: Tensor, image: int) -> Tensor:
    """In the place of what a step makes, another for each image."""
    return sample * 0.75 + 0.125 * (image + 1)


def _call(
    wide: CallFrame,
    ones: Sequence[CallFrame],
    rowed: dict[str, frozenset[Path]],
) -> None:
    """Answer a call of a part."""
    call = wide.call
    if any((frame.call.part, frame.call.method) != (call.part, call.method) for frame in ones):
        raise _ApartError(f"{call.part} beside {ones[0].call.part}")
    answers = [_dummy(frame, image) for image, frame in enumerate(ones)]
    own = frozenset(_paths(wide.arguments, ones[0].arguments))
    if rowed.setdefault(call.part, own) != own:
        raise _ApartError(f"other arguments of {call.part} have rows")
    arguments = wide.arguments._replace(rowed=own)
    for image, frame in enumerate(ones):
        alone = joined([arguments.alone(image)], aligned=True)
        _check_arguments(alone, frame.arguments)
    answer = stacked(answers, arguments)
    _check_shared(wide, arguments, answer)
    wide.answer(answer)
    for frame, answer in zip(ones, answers, strict=True):
        frame.answer(answer)


def _paths(several: PartArguments, one: PartArguments) -> Iterator[Path]:
    yield from rowed_in(several.args, one.args)
    yield from rowed_in(several.kwargs, one.kwargs)


def _dummy(frame: CallFrame, image: int) -> Any:
    """What a part makes of one image, other numbers for each and for each step."""
    fill = 0.25 + 0.5 * image + 0.125 * (frame.index % 3)
    return frame.stock.dummies.of(frame.real(frame.call), frame.call, fill)


def _check_arguments(one: PartArguments, other: PartArguments) -> None:
    some = [*one.args, *one.kwargs.items()]
    others = [*other.args, *other.kwargs.items()]
    if _plain(some) != _plain(others):
        raise _ApartError(f"a call of {_plain(some)} beside {_plain(others)}")
    _check_all(tensors_in(some), tensors_in(others))


def _plain(value: Any) -> list[Any]:
    """A value without its tensors and generators."""
    if isinstance(value, Tensor) or generator_in(value) is not None:
        return []
    if isinstance(value, Mapping):
        return [_plain(each) for each in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return [identity_of(value)]


def _check_shared(frame: CallFrame, arguments: PartArguments, answer: Any) -> None:
    """See what a part makes of its arguments, where any with rows of one image stays as it is."""
    rowed = arguments.rowed or frozenset()
    named = [*enumerate(arguments.args), *arguments.kwargs.items()]
    shared = [value for name, value in named if (name,) not in rowed]
    if any(each.ndim > 1 and len(each) == arguments.passes for each in tensors_in(shared)):
        made = frame.stock.dummies.shown(frame.real(frame.call), frame.call).made
        if [each.shape for each in tensors_in(made)] != [each.shape for each in tensors_in(answer)]:
            raise _ApartError("a result of another shape")


def _check_all(some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for one, other in _pairs(some, others):
        _check(one, other)


def _pairs(some: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if len(some) != len(others):
        raise _ApartError(f"{len(some)} tensors beside {len(others)}")
    return zip(some, others, strict=True)


def _check(one: Tensor, other: Tensor) -> None:
    if not close(one, other):
        raise _ApartError(f"a tensor {tuple(one.shape)} that differs, beside {tuple(other.shape)}")
