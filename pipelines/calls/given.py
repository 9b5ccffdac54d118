"""The stock call of a pipeline with the arguments that all images share: a StockCall a prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.amp import is_autocast_available

from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import opened
from ttsnap.pipelines.calls import guiders, loops
from ttsnap.pipelines.calls.asking import locked
from ttsnap.pipelines.calls.parts import tokenizers_of
from ttsnap.pipelines.calls.stock_call import StockCall
from ttsnap.pipelines.calls.tasks import PICTURES
from ttsnap.pipelines.guidance import SCALES

TYPICAL = Prompt("a red circle and a blue square")
"""Of a rehearsal."""


@dataclass(frozen=True)
class GivenCall:
    """A pipeline object of a call alone, and the arguments of that call."""

    pipe: Any
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, call: Mapping[str, Any]) -> Self:
        """Of these arguments. Those that set guiders of a modular pipeline set those of `pipe`."""
        given = opened(call)
        vars(pipe).update(guiders.set_by(pipe, given))
        if loops.is_modular(pipe.stock_class()):
            takes = {each.name for each in loops.inputs_of(pipe)}
            given = {name: value for name, value in given.items() if name in takes}
        return cls(pipe, given)

    def returning(self, form: str) -> Self:
        """The same, which returns what it makes in this form: pt, np, pil."""
        return replace(self, arguments={**self.arguments, "output_type": form})

    def for_prompt(self, prompt: Prompt) -> StockCall:
        """The call of one prompt."""
        own = opened(prompt.inputs)
        if prompt.negative is not None:
            own |= {"negative_prompt": prompt.negative}
        if "prompt" in self.pipe.stock_arguments():
            own |= {"prompt": prompt.text}
        pipe, tokenizers = self.pipe, tokenizers_of(self.pipe.components)
        device = pipe._execution_device
        return StockCall(
            pipe,
            pipe.stock_call(),
            {**self.arguments, **own},
            device,
            is_autocast_available(device.type) and torch.is_autocast_enabled(device.type),
            {name: locked(part) for name, part in tokenizers.items()},
        )

    @property
    def edits(self) -> bool:
        """Whether it changes a picture."""
        return "image" in self.arguments

    @functools.cached_property
    def redraws(self) -> bool:
        """Whether first latents are a noised picture, which each prompt may have of its own."""
        pictured = any(self.arguments.get(name) is not None for name in PICTURES)
        return pictured and "strength" in self.pipe.stock_arguments()

    def scale_name(self, call: StockCall, *, embeds: bool) -> str | None:
        """The argument that guides by two passes or, where the network reads a scale, that one."""
        names = [name for name in SCALES if name in call.takes]
        if not names:
            return None
        return names[-1] if embeds else names[0]

    def scale(self, call: StockCall, *, embeds: bool) -> float:
        """The guidance scale, 1 where there is none."""
        name = self.scale_name(call, embeds=embeds)
        if name is None:
            return 1.0
        value = self.arguments.get(name, call.takes[name].default)
        return float(value) if isinstance(value, int | float) else 1.0
