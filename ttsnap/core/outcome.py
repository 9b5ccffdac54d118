"""What an engine tells about rows that are done, or that it gave up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.cost import Cost

if TYPE_CHECKING:  # the core runs without torch
    from torch import Tensor


SHOWN = 4
"""Frames of a video that one picture shows."""
SMALL = 192
"""Pixels of the shorter side that a small copy has at least, where the image has as many."""


class PictureLost(RuntimeError):  # noqa: N818 (an event that is handled, and no error of the user)
    """An image is gone with the machine that held it."""


class Decoded(ABC):
    """An image (3, H, W) or a video (T, 3, H, W), in [0, 1]."""

    level: float
    """The noise level, in [0, 1], of the estimate that was decoded; 0 of a finished one."""
    batches: Sequence[int] = ()
    """Rows of each call of the model that made it, on which last digits depend."""

    @abstractmethod
    def fetch(self) -> Tensor:
        """The whole of it, in this process. PictureLost where it is gone."""

    @abstractmethod
    def small(self) -> Tensor:
        """A copy of few pixels (3, h, w), of a video a few frames (F, 3, h, w), for thumbnails. It
        is at hand; its values may be rounded to 1/255."""

    @property
    @abstractmethod
    def held(self) -> int:
        """Bytes that it takes in this process."""


@dataclass(frozen=True)
class Here(Decoded):
    """An image in this process."""

    image: Tensor = field(repr=False)
    level: float
    batches: Sequence[int] = field(default=(), kw_only=True)

    def fetch(self) -> Tensor:
        return self.image

    def small(self) -> Tensor:
        return thinned(self.image)

    @property
    def held(self) -> int:
        return int(self.image.nbytes)


def thinned(image: Tensor) -> Tensor:
    """A small copy of an image (3, H, W), or of a few frames of a video (T, 3, H, W): every so
    many-th pixel."""
    shown = image if image.ndim == 3 else image[chosen(len(image), min(SHOWN, len(image)))]
    stride = max(1, min(image.shape[-2:]) // SMALL)
    return shown[..., ::stride, ::stride]


def chosen(total: int, frames: int) -> list[int]:
    """So many of `total` frames, chosen evenly: the middle one of each of `frames` equal parts.
    Where there are fewer frames than that, some are chosen twice."""
    return [(2 * part + 1) * total // (2 * frames) for part in range(frames)]


NOTHING = Cost()


@dataclass(frozen=True)
class Outcome:
    """Rows (n,) of one job's move that are done, or how far they got before they were cancelled."""

    job: int
    uids: IntArray
    """(n,) particles."""
    step: IntArray
    """(n,) where they are."""
    cached: BoolArray
    """(n,) whether the evaluation there is paid."""
    scores: FloatArray | None = None
    """(n, R), nan where a reward failed; None for rows that were not to be scored."""
    images: Sequence[Decoded | None] | None = None
    """The decoded images or videos, one a row; None where no reward needed a decode."""
    features: FloatArray | None = None
    """(n, D), by which images are compared (core/diversity.py), nan where none was made; None where
    they are not."""
    errors: Sequence[str | None] = ()
    """What went wrong in a reward, by row."""
    kept: Sequence[Mapping[str, Tensor]] = ()
    """What else the engine keeps of each row (Engine.keep)."""
    look_cost: Cost = NOTHING
    """What looks took beyond the particles' own evaluations."""
    log_ratio: FloatArray | None = None
    """(n,) as in Particles."""
    has_gradient: BoolArray | None = None
    """(n,) as in Particles; only cancelled rows need to tell."""
    begun: BoolArray | None = None
    """(n,) whether the draft was made by which a particle begins; None: all have begun. Cancelled
    rows tell."""
    unspent: Cost = NOTHING
    """What these rows were charged for and did not take, of kinds known afterwards only (tokens);
    below 0 where they took more."""
