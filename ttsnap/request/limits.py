"""What a stranger may ask of one search: which algorithms, and within which limits.

The service and the demo read each field here. A value that does not pass is a `FieldError`, which
names the field.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from ttsnap.algorithms import ALGORITHMS, make_algorithm
from ttsnap.core.grid import Grid
from ttsnap.core.names import FieldError, unknown
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.protocols import Algorithm
from ttsnap.core.start import Start
from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Count, Positive, Settings, check, short
from ttsnap.loop.budget import Budget
from ttsnap.request.request import AlgorithmSpec

NOT_PUBLIC = {"price-of-compute", "keep-all", "noise-ascent", "refined"}
"""Searches that need a file, only study, or follow gradients, for which an engine has to be set up
anew."""
PUBLIC_ALGORITHMS = tuple(name for name in ALGORITHMS if name not in NOT_PUBLIC)


def search_of(wanted: object, files: Mapping[str, Algorithm], most: int) -> AlgorithmSpec:
    """A search by the name of an algorithm or of one of the operator's files, or {"name": ...,
    **options} of an algorithm. FieldError for what is not offered, for options that the algorithm
    does not have or take, and for whole numbers among them that are more than `most` when they are
    multiplied, as they say how much runs at once.
    """
    if isinstance(wanted, str) and wanted in files:
        return files[wanted]
    name = wanted.get("name") if isinstance(wanted, Mapping) else wanted
    try:
        if not isinstance(name, str) or name not in PUBLIC_ALGORITHMS:
            raise ValueError(
                f"no search {str(name)[:100]!r} here; choose one of {', '.join((*files, *PUBLIC_ALGORITHMS))}"
            )
        if not isinstance(wanted, Mapping):
            return name
        if (size := _size(wanted)) > most:
            raise ValueError(
                f"the whole numbers among the options of {name} may multiply to {most} here, got"
                f" {size}"
            )
        make_algorithm(wanted)
    except ValueError as error:
        raise FieldError("search", str(error)) from None
    return wanted


def searches_of(texts: Sequence[str]) -> dict[str, Algorithm]:
    """The operator's own, from NAME=FILE each, where FILE is what `ttsnap tune` wrote.
    ValueError for a file that holds no algorithm, for one that follows gradients,
    and for a name that is taken."""
    searches: dict[str, Algorithm] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if (
            not equals
            or not name.replace("-", "").replace("_", "").isalnum()
            or not file.endswith(".json")
        ):
            raise ValueError(
                f"give a search as NAME=FILE.json, where NAME is what clients ask for, got {text!r}"
            )
        if name in ALGORITHMS or name in searches:
            raise ValueError(f"there is a search {name!r} already; offer {file} by another name")
        searches[name] = make_algorithm(file)
        if any(isinstance(need, Gradient) for need in searches[name].needs):
            raise ValueError(
                f"{file} follows gradients of finished images, which the service cannot; offer"
                " another"
            )
    return searches


def kernel_for(algorithm: AlgorithmSpec) -> str:
    """The sampler where nobody chose one: one that draws noise or has a path, for searches that
    need that."""
    needs = make_algorithm(algorithm).needs
    return "sde" if needs & {Need.BRANCH, Need.NEAR, Need.RENOISE} else "pipeline"


def _size(value: object) -> int:
    """The product of the whole numbers among options, of which the largest counts in a list.
    ValueError for names of files, and of algorithms that are not offered."""
    if isinstance(value, str) and (value.endswith(".json") or value in NOT_PUBLIC):
        raise ValueError(
            f"options may name algorithms that are offered here and no file, got {value[:100]!r}"
        )
    if isinstance(value, Mapping):
        product = 1
        for inside in value.values():
            product *= _size(inside)
        return product
    if isinstance(value, list):
        return max((_size(inside) for inside in value), default=1)
    return max(1, int(value)) if isinstance(value, int | float) and value == int(value) else 1


LEAST_SIDE = 16
"""Pixels."""
USUAL_BUDGET = Budget.of_effort("medium")
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
            return replace(budget, images=USUAL_BUDGET.images)
        return budget if caps else replace(budget, nfe=self.nfe)
