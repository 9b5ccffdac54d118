"""What an engine tells about rows that are done, or that it gave up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttsnap.core.arrays import BoolArray, FloatArray, IntArray
from ttsnap.core.cost import Cost
from ttsnap.core.pictures import Decoded

if TYPE_CHECKING:  # the core runs without torch
    from torch import Tensor


NOTHING = Cost()


@dataclass(frozen=True)
class Outcome:
    """Rows of one job's move that are done, or how far they got before they were cancelled.

    uids, step, cached (n,); scores (n, R), nan where a reward failed, or None for rows that were not to be scored.
    `images` are the decoded images or videos, one a row, None where the rewards did not need it decoded;
    `kept` holds what else the engine was asked to keep of each row; `errors` say what went wrong in a reward. look_cost
    is what looks took beyond the particles' own evaluations; log_ratio (n,) is as in Particles, and so is
    has_gradient (n,), which only rows that were cancelled need to tell. unspent: what these rows were charged for and
    did not take, of kinds of cost that are known afterwards only (tokens); below 0 where they took more.
    """

    job: int
    uids: IntArray
    step: IntArray
    cached: BoolArray
    scores: FloatArray | None = None
    images: Sequence[Decoded | None] | None = None
    errors: Sequence[str | None] = ()
    kept: Sequence[Mapping[str, Tensor]] = ()
    look_cost: Cost = NOTHING
    log_ratio: FloatArray | None = None
    has_gradient: BoolArray | None = None
    unspent: Cost = NOTHING
