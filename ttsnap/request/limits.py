"""Limits on what a stranger may ask of one search, and the fields of a request that are held to
them.

The service and the demo read each field here. A value that does not pass is a `FieldError`, which
names the field.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from ttsnap.core.grid import Grid
from ttsnap.core.names import FieldError, unknown
from ttsnap.core.start import Start
from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Count, Positive, Settings, build, check, short
from ttsnap.loop.budget import Budget
from ttsnap.request.request import Lora

LEAST_SIDE = 16
"""Pixels."""
USUAL = Budget.of_effort("medium")
"""The cap on evaluations beside a budget in units that evaluations need not use up, as tokens and
gradients."""


def whole(field: str, value: object, low: int, high: int) -> int:
    """A whole number from low to high, which pages give as floats. FieldError for anything else."""
    if value is None:
        raise FieldError(field, f"{field} is empty; write a whole number from {low} to {high}")
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    return int(check(field, plain, Annotated[int, Interval(ge=low, le=high)]))


@dataclass(frozen=True)
class SearchLimits(Settings):
    """What a stranger may ask of one search. ValueError for limits that are not positive."""

    nfe: Count = 4000
    """Evaluations of the denoiser."""
    seconds: Positive = 300.0
    """Until a search ends with its best image."""
    steps: Count = 100
    """Denoising steps of an image."""
    side: Count = 1024
    """Pixels a side."""
    images: Count = 10
    """Images to return."""
    frames: Count = 257
    """Of a video."""
    prompt: Count = 4000
    """Characters of a text."""
    rewards: Count = 3
    """Rewards at once."""
    loras: Count = 4
    """LoRAs at once."""

    def seconds_of(self, budget: Budget) -> float:
        """After how many seconds a search with this budget ends."""
        return min(budget.seconds or self.seconds, self.seconds)

    def capped(self, budget: Budget, grid: Grid, start: Start) -> Budget:
        """A budget in evaluations of this grid, as many as are allowed at most."""
        counted = budget.on(grid, start)
        return replace(counted, nfe=min(counted.nfe or self.nfe, self.nfe))

    def line(self, text: object, field: str, *, empty: bool = False) -> str:
        """One line of text, without white space around it. FieldError for control characters and
        broken text, and for none unless it may be empty."""
        if not isinstance(text, str):
            raise FieldError(field, f"the {field} must be text, got {short(text)}")
        if len(text) > self.prompt:
            raise FieldError(
                field,
                f"the {field} has {len(text)} characters; at most {self.prompt} are allowed here",
            )
        line = " ".join(text.split())
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") for letter in line):
            raise FieldError(
                field, f"the {field} holds control characters or broken text; write it again"
            )
        if not line and not empty:
            raise FieldError(
                field, f"the {field} must be text of 1 to {self.prompt} characters, got none"
            )
        return line

    def check_size(self, width: int, height: int) -> None:
        """FieldError for an image that is too small or too large."""
        if not (min(width, height) >= LEAST_SIDE and max(width, height) <= self.side):
            raise FieldError(
                "size",
                f"sides of {LEAST_SIDE} to {self.side} pixels are made here, got {width}x{height}",
            )

    def picture(self, data: bytes, field: str, *, mask: bool = False) -> Picture:
        """A picture to change. ValueError for what is none, FieldError for a large one, before that
        is decoded."""
        picture = Picture(data, mask)
        width, height = picture.size
        if max(width, height) > self.side:
            most = f"pictures have sides of at most {self.side} pixels here"
            raise FieldError(field, f"{most}, got {width} x {height}")
        picture.opened()  # damage shows where it is decoded
        return picture

    def rewards_of(self, names: object, offered: Collection[str], field: str) -> tuple[str, ...]:
        """The names of rewards: one, or several of which each is taken once."""
        wanted = [names] if isinstance(names, str) else names
        if not isinstance(wanted, Sequence) or not 0 < len(wanted) <= self.rewards:
            raise FieldError(
                field,
                f"name 1 to {self.rewards} rewards of {', '.join(offered)}; got {short(names)}",
            )
        for name in wanted:
            if name not in offered:
                raise FieldError(field, unknown("reward", name, offered))
        return tuple(dict.fromkeys(wanted))

    def loras_of(self, given: object, offered: Mapping[str, Lora]) -> tuple[Lora, ...]:
        """Those of one choice, or of several: NAME or {"name": NAME, "scale": NUMBER}. In the order
        of their names, so that equal choices share batches; what has a scale of 0 changes nothing,
        and is left out."""
        from ttsnap.request.fields import LoraChoice  # with pydantic, which --help does not load

        wanted = given if isinstance(given, list) else [given]
        if not offered:
            raise FieldError("lora", "no LoRAs are offered here; leave lora out")
        if len(wanted) > self.loras:
            raise FieldError(
                "lora", f"at most {self.loras} LoRAs are put together here, got {len(wanted)}"
            )
        found: dict[str, Lora] = {}
        for each in wanted:
            named = {"name": each} if isinstance(each, str) else each
            choice = build(LoraChoice, named, "lora")
            if choice.name not in offered:
                raise FieldError("lora", unknown("LoRA", choice.name, offered))
            if choice.name in found:
                raise FieldError(
                    "lora", f"the LoRA {choice.name} is given twice; give it one scale"
                )
            found[choice.name] = replace(
                offered[choice.name], scale=1.0 if choice.scale is None else choice.scale
            )
        return tuple(found[name] for name in sorted(found) if found[name].scale)

    def budget_of(self, text: object, steps: int) -> Budget:
        """A budget, which always caps the evaluations. FieldError for one that cannot be read, and
        for more evaluations than are allowed, at so many steps an image."""
        if isinstance(text, bool) or not isinstance(text, str | int | float) or len(str(text)) > 60:
            raise FieldError(
                "budget", f"cannot read budget {short(text)}; write it like 12images, 200nfe, 5s"
            )
        try:
            budget = Budget.parse(str(text).strip())
        except ValueError as error:
            raise FieldError("budget", str(error)) from None
        caps = [
            cap for cap in (budget.nfe, budget.images and budget.images * steps) if cap is not None
        ]
        if caps and min(caps) > self.nfe:
            raise FieldError(
                "budget",
                f"at most {self.nfe} evaluations are spent on a search here, got {short(text)}:"
                f" {min(caps):.6g} at {steps} steps; take fewer steps or a smaller budget",
            )
        if not caps and budget.seconds is None and budget.flops is None:
            return replace(budget, images=USUAL.images)
        return budget if caps else replace(budget, nfe=self.nfe)
