"""What the scores of a finished image must be for it to be returned."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ttsnap.core.arrays import BoolArray, FloatArray

SIGNS: dict[str, Callable[[FloatArray, float], BoolArray]] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    ">": np.greater,
    "<": np.less,
}
_WRITTEN = re.compile(r"([^<>]*[^<>\s])\s*(>=|<=|>|<)\s*([^\s<>=]+)")


@dataclass(frozen=True)
class Requirement:
    """A bound on one score, as "ocr>0.99". ValueError for a sign or a bound that is none."""

    reward: Any
    """What scores: as `--reward` takes it; in `Gate.of`, a name of one of the rewards."""
    sign: str = ">="
    bound: float = 0.5

    def __post_init__(self) -> None:
        if self.sign not in SIGNS or not math.isfinite(self.bound):
            raise ValueError(
                f"a requirement has a sign of {', '.join(SIGNS)} and a finite bound, got "
                f"{self.sign!r} and {self.bound!r}"
            )

    @classmethod
    def parse(cls, given: str | Requirement) -> Requirement:
        """Read "ocr>0.99"; a name alone, "safe", is "safe>=0.5". ValueError for what cannot be
        read."""
        if isinstance(given, Requirement):
            return given
        if isinstance(given, str) and given.strip() and not re.search("[<>]", given):
            return cls(given.strip())
        match = _WRITTEN.fullmatch(given.strip()) if isinstance(given, str) else None
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ValueError(
                f"cannot read requirement {given!r:.80}; write it like ocr>0.99, brightness<0.6 or"
                " safe (which is safe>=0.5)"
            )
        return cls(match[1].strip(), match[2], bound)

    def __str__(self) -> str:
        return f"{self.reward}{self.sign}{self.bound:.12g}"

    def met(self, scores: FloatArray) -> BoolArray:
        """Whether each of these scores is within the bound; a nan is not."""
        return np.asarray(SIGNS[self.sign](scores, self.bound))


@dataclass(frozen=True)
class Gate:
    """Requirements on the scores (R,) of finished images. An image that fails one is finished, but
    never returned.

    Unfinished estimates pass: a score of an estimate says little about the image's.
    """

    requirements: tuple[Requirement, ...]
    columns: tuple[int, ...]
    """Of each requirement, which score it bounds."""
    counted: int
    """How many of the scores, from the first on, the utility is made of; the others only admit."""

    @classmethod
    def of(
        cls,
        requirements: Sequence[str | Requirement],
        rewards: Sequence[Any],
        counted: int | None = None,
    ) -> Gate:
        """The gate of these requirements on scores by these rewards; all are counted by default.
        ValueError for a requirement of another reward."""
        read = tuple(map(Requirement.parse, requirements))
        if strange := [str(one) for one in read if one.reward not in rewards]:
            raise ValueError(
                f"{strange[0]} bounds no score that there is; rewards are"
                f" {', '.join(map(str, rewards))}"
            )
        columns = tuple(list(rewards).index(one.reward) for one in read)
        return cls(read, columns, len(rewards) if counted is None else counted)

    def named(self, names: Sequence[str]) -> Gate:
        """The same, its requirements in words of the rewards' names: what a user gave may be an
        address or a file."""
        pairs = zip(self.requirements, self.columns, strict=True)
        return replace(
            self, requirements=tuple(replace(one, reward=names[column]) for one, column in pairs)
        )

    @property
    def words(self) -> list[str]:
        """The requirements as users write them."""
        return list(map(str, self.requirements))

    @property
    def scores_more(self) -> bool:
        """Whether there are scores that only admit."""
        return any(column >= self.counted for column in self.columns)

    def admits(self, scores: FloatArray) -> BoolArray:
        """(..., R) scores of finished images -> (...) whether they meet all requirements."""
        met = [
            one.met(scores[..., column])
            for one, column in zip(self.requirements, self.columns, strict=True)
        ]
        return np.asarray(np.logical_and.reduce(met))

    def refusals(self, scores: FloatArray) -> dict[str, int]:
        """How many of these images (N, R) fail each requirement, by its words; an image may fail
        several."""
        pairs = zip(self.requirements, self.columns, strict=True)
        return {
            str(one): int(np.count_nonzero(~one.met(scores[:, column]))) for one, column in pairs
        }
