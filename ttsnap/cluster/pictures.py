"""Images that stay where actors put them.

The driver hears where each of them is, gets a small copy of it, and fetches those that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ttsnap.cluster.messages import Turn
from ttsnap.core.outcome import Decoded, Outcome, thinned


class WhereStored(Protocol):
    """Where one image lies. Any process of the cluster can fetch it from there."""

    def fetch(self) -> Tensor:
        """It, as in Decoded, on the CPU. PictureLost where it is gone."""


@dataclass(frozen=True)
class Stored(Decoded):
    """An image at such a place. copy: a small one as of `Decoded.small`, uint8."""

    place: WhereStored
    copy: Tensor = field(repr=False)
    level: float

    def fetch(self) -> Tensor:
        return self.place.fetch()

    def small(self) -> Tensor:
        return self.copy.float() / 255

    @property
    def held(self) -> int:
        return int(self.copy.nbytes)


class Untold(WhereStored):
    """The place of an image in an answer on its way: whoever hears the answer knows where the images were put."""

    def fetch(self) -> Tensor:
        raise RuntimeError("nobody has told yet where this image was put")


def put_aside(turn: Turn) -> list[Tensor]:
    """Take the images out of an actor's answer. `located` puts in where they are, in the same order."""
    aside: list[Tensor] = []

    def stored(picture: Decoded) -> Decoded:
        aside.append(picture.fetch().cpu())
        copy = thinned(aside[-1]).double().clamp(0, 1).mul(255).round().to(torch.uint8)
        return Stored(Untold(), copy, picture.level)

    turn.outcomes = [_each(outcome, stored) for outcome in turn.outcomes]
    return aside


def located(turn: Turn, places: Iterable[WhereStored]) -> Turn:
    """The answer, with the places of its images."""
    following = iter(places)

    def told(picture: Decoded) -> Decoded:
        return replace(picture, place=next(following)) if isinstance(picture, Stored) else picture

    return replace(turn, outcomes=[_each(outcome, told) for outcome in turn.outcomes])


def _each(outcome: Outcome, change: Callable[[Decoded], Decoded]) -> Outcome:
    """The same with each of its pictures changed."""
    if outcome.images is None:
        return outcome
    return replace(outcome, images=[picture and change(picture) for picture in outcome.images])
