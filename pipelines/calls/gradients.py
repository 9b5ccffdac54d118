"""Whether gradients go through a stock call: tried without its networks, before anything is paid.

Networks and decoders answer with dummies that have a graph back to what they were given. So a
gradient is lost only where the call's own code loses it: it detaches its latents, or uses numpy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.frame import CallFrame
from ttsnap.pipelines.calls.parts import DECODE
from ttsnap.pipelines.calls.pictures import images_of
from ttsnap.pipelines.calls.stops import PartCall, Step
from ttsnap.pipelines.calls.values import mapped, tensors_in


@torch.enable_grad()
def follow(frame: CallFrame, latents: Tensor) -> set[str]:
    """Let a frame go on until its next step, or its end; returns the networks and decoders that
    it calls.

    latents (1, ...): are put in, with a graph. ValueError where what the frame makes of them has
    none.
    """
    try:
        parts = _followed(frame, latents)
        asked = frame.question
        made = asked.out if isinstance(asked, Step) else images_of(frame.returned)
        lost = "" if made.requires_grad else "its own code detaches what it computes"
    except (RuntimeError, TypeError) as error:
        lost = str(error)
    if lost:
        way = "decoder" if frame.index else "step"
        name = type(frame.stock.pipe).stock_class().__name__
        raise ValueError(
            f"no gradient goes back through the {way} of {name}: {lost}; search by an algorithm "
            "without gradients"
        )
    return parts


def _followed(frame: CallFrame, latents: Tensor) -> set[str]:
    parts = set[str]()
    stock = frame.stock
    frame.go_on(latents.clone().requires_grad_() * 1)  # no leaf, which calls may not write into
    while isinstance(call := frame.question, PartCall):
        if call.part in stock.networks or call.method == DECODE:
            parts.add(call.part)
            frame.answer(_tied(frame, call))
        else:
            frame.answer(stock.encoded(call, getattr(frame.real(call), call.method)))
    return parts


def _tied(frame: CallFrame, call: PartCall) -> Any:
    """A dummy of what a part makes, with a graph if what it is given has one."""
    given = [each for each in tensors_in(call.given) if each.requires_grad]
    made = frame.stock.dummies.of(frame.real(call), call)
    if not given:
        return made
    nothing = torch.stack([each.flatten()[0].float() for each in given]).sum() * 0
    return mapped(made, lambda each: each + nothing.to(each) if each.is_floating_point() else each)
