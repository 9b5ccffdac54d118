"""One stock call of a pipeline under way, which stops where it asks (questions.py).

    frame = CallFrame(stock, [generator])  # stops where its first latents are drawn
    frame.go_on(x)                         # x are its latents; it stops where it calls a network
    frame.answer(out)                      # what that makes; it stops at the scheduler's step

A frame is of one image, or of as many as its stock call has generators (widths.py).

The pipeline object is a copy. Its parts are copies of the outer objects alone, over the same
weights (asking.py). So nothing that a frame sets shows in the user's pipeline.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttsnap.pipelines.calls.dummies import Shown
from ttsnap.pipelines.calls.joining import PartArguments
from ttsnap.pipelines.calls.modular import TREE, begun_by
from ttsnap.pipelines.calls.parts import (
    DEVICE,
    UNASKED,
    Parts,
    asking,
    drawing,
    drawing_methods,
    encoding_methods,
    guiders_of,
    keeping,
    schedulers_of,
)
from ttsnap.pipelines.calls.stepping import Led, release, stepping
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.stops import Drawn, PartCall, Question, Step
from ttsnap.pipelines.calls.values import owned
from ttsnap.pipelines.suspended import Ask, Returned, Suspended


class CallFrame:
    """One stock call under way. It ends with the last reference to it.

    generators: one per image. parts: in the place of the pipeline's. index: that of the latents
    which it first waits for; at 0 it stops where its first ones are drawn.
    """

    def __init__(
        self,
        stock: StockCall,
        generators: Sequence[torch.Generator],
        parts: Parts | None = None,
        index: int = 0,
    ) -> None:
        self.stock = stock.widened(len(generators))
        self.parts = parts or {}
        self._to = index
        self.images = self.width
        """How many of its images are wanted, which are the first."""
        self._steps = max(0, index - 1)
        program = functools.partial(_program, self.stock, generators, self.parts, index)
        self._suspended = Suspended(program)

    # --- what it waits for ------------------------------------------------------------------------

    @property
    def question(self) -> Question:
        """What it waits for."""
        asked: Question = self._suspended.question
        return asked

    @property
    def call(self) -> PartCall:
        """The call of a part that it waits for."""
        asked = self.question
        assert isinstance(asked, PartCall)
        return asked

    @property
    def arguments(self) -> PartArguments:
        """Those of that call."""
        call = self.call
        rowed = self.stock.rowed(call.part)
        return PartArguments(call.args, call.kwargs, self.width, 0, self.images, rowed)

    @property
    def drawn(self) -> Tensor:
        """The first latents that it has just drawn."""
        asked = self.question
        assert isinstance(asked, Drawn)
        made: Tensor = asked.made
        return made

    @property
    def step(self) -> Step:
        """The step that it waits for."""
        asked = self.question
        assert isinstance(asked, Step)
        return asked

    @property
    def returned(self) -> Any:
        """What the stock call returned, at whose end it is."""
        asked = self.question
        assert isinstance(asked, Returned)
        return asked.value

    # --- where it is ------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """How many images it makes."""
        return self.stock.width

    @property
    def index(self) -> int:
        """The index of its latents: 0 before its first step."""
        return self._steps + isinstance(self.question, Step)

    @property
    def spent(self) -> bool:
        """Whether no latents can be put in any more.

        Where a round steps several fields, the steps of all but the last may have been answered.
        """
        fields = self.stock.fields
        several = fields is not None and fields.count > 1 and not fields.late
        return several and self.index > self._to

    def real(self, call: PartCall) -> nn.Module:
        """The part that answers a call."""
        return self.stock.real(call, self.parts)

    # --- going on ---------------------------------------------------------------------------------

    def go_on(self, latents: Tensor | None) -> None:
        """Let it go on with these as its latents at `index`; None: with those that it draws."""
        self._steps = self.index
        self.answer(latents)

    def answer(self, value: Any) -> None:
        """Let it go on with what a part returns, with a graph where gradients are enabled here."""
        self._suspended.answer((value, torch.is_grad_enabled()))

    def answer_dummy(self, fill: float = 0.0) -> Shown:
        """Let it go on with a dummy of what a part returns (dummies.py), and tell of that call."""
        call = self.call
        dummies = self.stock.dummies
        part = self.real(call)
        shown = dummies.shown(part, call)
        self.answer(dummies.of(part, call, fill))
        return shown

    def close(self) -> None:
        """End it."""
        self._suspended.close()


def _program(
    stock: StockCall,
    generators: Sequence[torch.Generator],
    parts: Parts,
    index: int,
    asks: Ask,
) -> Any:
    """The stock call, whose parts ask."""

    def in_mode(question: Any) -> Any:
        answer, graded = asks(question)
        torch.set_grad_enabled(graded)  # a thread has a mode of its own
        return answer

    pipe = copy.copy(stock.pipe)
    generator = generators[0] if stock.width == 1 else list(generators)
    ask = Led(stock, parts, index, in_mode)
    vars(pipe).update(_methods(pipe, stock, ask))
    if hasattr(pipe, "run_safety_checker"):
        vars(pipe)[UNASKED] = None
    for name, part in stock.modules.items():
        vars(pipe)[name] = asking(name, part, parts.get(name, part), ask)
    for name, scheduler in schedulers_of(stock.parts).items():
        vars(pipe)[name] = stepping(scheduler, stock, ask)
    vars(pipe).update(
        maybe_free_model_hooks=_nothing,
        _progress_bar_config={"disable": True},
        _internal_dict=copy.copy(vars(pipe).get("_internal_dict")),
        **stock.tokenizers,
        **copy.deepcopy(guiders_of(stock.parts)),
        **{DEVICE: stock.device},
    )
    with torch.no_grad():  # a new thread does not inherit it
        try:
            return stock.function(pipe, **owned(dict(stock.arguments)), generator=generator)
        finally:
            vars(pipe).clear()  # its methods hold it, as those of schedulers do
            for scheduler in ask.schedulers:
                release(scheduler)


def _methods(pipe: Any, stock: StockCall, ask: Ask) -> dict[str, Any]:
    """Methods of a pipeline that keep what they encode, and ask what they draw."""

    def draws(method: Callable[..., Any]) -> Callable[..., Any]:
        return drawing(stock.places, method, ask)

    kind: Any = type(pipe)
    found = {name: keeping(stock.encodings, getattr(pipe, name)) for name in encoding_methods(kind)}
    found |= {name: draws(getattr(pipe, name)) for name in drawing_methods(kind)}
    if TREE in vars(pipe):
        found[TREE] = begun_by(pipe, draws)
    return found


def _nothing() -> None:
    """In the place of what a stock call does at its end to parts that other frames share."""
