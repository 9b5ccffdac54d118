"""Images that stay where actors put them.

The driver gets the place and a small copy of each image, and fetches the images that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ttsnap.cluster.messages import Turn
from ttsnap.core.outcome import Decoded, Outcome, thinned


class WhereStored(Protocol):
    """Where one image lies. Any process of the cluster can fetch it from there."""

    def fetch(self) -> Tensor:
        """The image, as in Decoded, on the CPU. PictureLost where it is gone."""


@dataclass(frozen=True)
class Stored(Decoded):
    """An image at a place, which is not known while the image is in an answer under way."""

    copy: Tensor = field(repr=False)
    """The small image of `Decoded.small`, uint8."""
    level: float
    place: WhereStored | None = None
    batches: Sequence[int] = ()

    def fetch(self) -> Tensor:
        if self.place is None:
            raise RuntimeError("where this image was put is not known yet")
        return self.place.fetch()

    def small(self) -> Tensor:
        return self.copy.float() / 255

    @property
    def held(self) -> int:
        return int(self.copy.nbytes)


def put_aside(turn: Turn) -> tuple[Turn, list[Tensor]]:
    """Take the images out of an actor's answer. `located` puts in where they are, in the same
    order."""
    aside: list[Tensor] = []

    def stored(picture: Decoded) -> Decoded:
        aside.append(picture.fetch().cpu())
        copy = thinned(aside[-1]).double().clamp(0, 1).mul(255).round().to(torch.uint8)
        return Stored(copy, picture.level, batches=picture.batches)

    return _each(turn, stored), aside


def located(turn: Turn, places: Iterable[WhereStored]) -> Turn:
    """The answer, with the places of its images."""
    following = iter(places)

    def placed(picture: Decoded) -> Decoded:
        return replace(picture, place=next(following)) if isinstance(picture, Stored) else picture

    return _each(turn, placed)


def _each(turn: Turn, change: Callable[[Decoded], Decoded]) -> Turn:
    """The same with each of the pictures changed, where the answer is a list of outcomes."""
    if not isinstance(turn.answer, list):
        return turn
    changed: list[Outcome] = []
    for outcome in turn.answer:
        images = outcome.images and [picture and change(picture) for picture in outcome.images]
        changed.append(replace(outcome, images=images))
    return replace(turn, answer=changed)
