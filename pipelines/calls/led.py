"""How a frame is led to a later step: it answers itself until the call waits for its latents there.

    led to 2:   Drawn  PartCall  Step  PartCall  Step     PartCall  Step     ...
    answered    by itself ........................ asks    asks      asks

A round of the loop is one question. Where it steps several fields, latents are put in at the first,
from which the others have theirs. Guided outputs are known at the last. Until then steps leave
latents as they are, or return stand-ins for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttsnap.pipelines.calls.between import Between
from ttsnap.pipelines.calls.fields import Fields
from ttsnap.pipelines.calls.joining import PartArguments
from ttsnap.pipelines.calls.parts import Parts
from ttsnap.pipelines.calls.questions import Drawn, PartCall, Step
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.values import mapped, size_of
from ttsnap.pipelines.suspended import Ask


class Led:
    """What a stock call asks by. to: the index of the latents that it first waits for."""

    def __init__(self, stock: StockCall, parts: Parts, to: int, ask: Ask) -> None:
        self.stock, self.parts, self.to, self.ask = stock, parts, to, ask
        self.schedulers = list[Any]()
        """That ask by it."""
        self.index = 0
        """Rounds begun."""
        self._round = list[Step]()
        """Steps of the round that is under way."""
        self._given = list[Tensor]()
        """The latents of all fields that were put in last."""
        self._dummies: dict[Hashable, Any] = {}
        """What answered for parts, by what their results' shapes follow from in one call."""
        self._between: Between | None = None
        """What sees the operators of the round, from its first step to its last."""

    def __call__(self, question: Any) -> Any:
        if isinstance(question, Drawn):
            return self._drawn(question)
        if isinstance(question, PartCall):
            return self._called(question)
        if self.stock.fields is None:
            self.index += 1
            return self.ask(question)
        return self._stepped(question, self.stock.fields)

    def _called(self, call: PartCall) -> Any:
        stock = self.stock
        later = stock.asleep if self.index else frozenset()
        does_without = stock.networks if self.index < self.to else later
        if call.part in does_without:
            return self._dummy(call)
        return self.ask(call._replace(begun=self.index > 0))

    def _dummy(self, call: PartCall) -> Any:
        """In the place of what a part makes."""
        stock = self.stock
        rowed = stock.rowed(call.part)
        arguments = PartArguments(call.args, call.kwargs, stock.width, rowed=rowed)
        key = call.part, call.method, size_of(arguments.input)
        if key not in self._dummies:
            part = stock.real(call, self.parts)
            self._dummies[key] = stock.dummies.of_images(part, call, arguments)
        return mapped(self._dummies[key], torch.clone)

    def _drawn(self, question: Drawn) -> Any:
        if self.to > 0:
            return question.made
        if self.stock.fields is None:
            return self.ask(question)
        if question.field == 0:
            latents = self.ask(question)
            self._given = [] if latents is None else self.stock.fields.parted(latents)
        return self._given[question.field] if self._given else question.made

    def _stepped(self, step: Step, fields: Fields) -> Tensor:
        """The latents of one field after its step: until the call is where it is led, what was put
        in there, and from then on what the search makes of all fields of a round."""
        if not self._round:
            self.index += 1
        self._round.append(step)
        steps = self._round
        ends = len(steps) == fields.count
        if ends:
            self._round = []
        if self.index < self.to:
            return step.sample
        if self.index > self.to:
            return self._moved(steps, fields) if ends else self._unmoved(step, fields)
        if len(steps) == 1:  # the first step of the round asks for the latents of all fields
            self._given = fields.parted(self.ask(step))
        return self._given[len(steps) - 1]

    def _unmoved(self, step: Step, fields: Fields) -> Tensor:
        """What a step makes before the last of its round is known."""
        if not fields.late:
            return step.sample
        if self._between is None:
            self._between = Between()
            self._between.__enter__()
        return self._between.stand_in(step.sample)

    def _moved(self, steps: Sequence[Step], fields: Fields) -> Tensor:
        """What the last step of a round makes, with which those before it are known."""
        between, self._between = self._between, None
        if between is not None:
            between.__exit__(None, None, None)
        parts = fields.parted(self.ask(_joined(fields, steps)))
        if between is not None:
            between.settle(parts)
        return parts[-1]


def _joined(fields: Fields, steps: Sequence[Step]) -> Step:
    """The steps of a round as one."""
    out = fields.joined([step.out for step in steps])
    sample = fields.joined([step.sample for step in steps])
    return steps[0]._replace(out=out, sample=sample)
