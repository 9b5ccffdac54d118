"""What a search tells while it runs, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from ttsnap.core.particles import Particles
from ttsnap.core.pictures import Decoded
from ttsnap.core.protocols import AlgorithmState
from ttsnap.core.spent import Spent

if TYPE_CHECKING:  # the core runs without torch or PIL
    from PIL.Image import Image
    from torch import Tensor


class TracedMove(TypedDict):
    """A move as traces keep it, JSON-ready: its number, what it cost, and its n rows, each by the uid of its particle.

    uids, parents, start, stop, seeds: (n,) as in Plan. scores: by uid, (R,) as far as they have come. drop: the uids
    that were given up with it. closing: whether it only finishes an image, as nothing else is wanted or can be paid
    for. look: how unfinished particles were scored, where not by x0 estimates. refund: the part of the cost that did
    not run, where the search was stopped.
    """

    move: int
    cost: dict[str, int]
    uids: list[int]
    parents: list[int]
    start: list[int]
    stop: list[int]
    seeds: list[int]
    scores: dict[int, list[float]]
    drop: list[int]
    closing: bool
    look: NotRequired[str]
    refund: NotRequired[dict[str, int]]


@dataclass(frozen=True)
class Event:
    """One thing that happened, for progress bars, contact sheets and live views.

    kind: "start" (a prompt was taken up), "move" (a move was submitted; `move` is its entry of the trace), "tick" (a
    batch ran; `nfe` evaluations), "score" (a particle was scored, an unfinished one by `look`, in so many
    `reward_calls`; `picture` holds what was decoded, `kept` its latent where the engine keeps it),
    "drop", "end" (a prompt is done).
    """

    kind: str
    job: int = -1
    seconds: float = 0.0
    uids: tuple[int, ...] = ()
    step: int = -1
    look: str = ""
    scores: tuple[float, ...] = ()
    picture: Decoded | None = field(default=None, repr=False)
    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    move: TracedMove | None = None
    nfe: int = 0
    reward_calls: int = 0
    best: float = float("nan")

    @property
    def image(self) -> Tensor | None:
        """What was decoded, as in Candidate. Where another process did, it is fetched from there."""
        return None if self.picture is None else self.picture.fetch()


@dataclass(frozen=True)
class Candidate:
    """A finished image (3, H, W), or a video (T, 3, H, W), in [0, 1] on the CPU; None where no model ran, as in a dry
    run or a replay.

    `reward` is its utility among the finished ones, `scores` (R,) by reward name.
    """

    uid: int
    seed: int
    reward: float
    scores: dict[str, float]
    image: Tensor | None = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """The image or video, where there must be one. ValueError where no model ran."""
        if self.image is None:
            raise ValueError(f"no image of seed {self.seed}: this search ran without a model")
        return self.image


@dataclass(frozen=True, repr=False)
class Result:
    """What one prompt's search gave: the kept images, best first, what it spent, and how it went.

    `spent` is what it took, `trace` its moves, `particles`
    the final table, `warnings` what the user should know (failed rewards, trimmed moves, early stop). `state` is the
    algorithm's last, which it alone understands: of smc, `uids`, `logw` and `log_z` are the weighted sample. `levels`
    (K+1,) are the noise levels of the steps. `thumbnails` holds small pictures of what was scored, by (uid, step),
    where someone kept them, as pipelines do: contact sheets (results/sheet.py), as notebooks show, are of them; and
    `source` is a small copy of the picture that the prompt changes, None for prompts that are texts only.
    """

    prompt: str
    images: tuple[Candidate, ...]
    spent: Spent
    trace: tuple[TracedMove, ...]
    particles: Particles
    warnings: tuple[str, ...] = ()
    state: AlgorithmState = None
    levels: tuple[float, ...] = ()
    thumbnails: Mapping[tuple[int, int], Image] = field(default_factory=dict)
    source: Image | None = None

    def __repr__(self) -> str:
        """A line: what was asked for, the best image and what it took."""
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "..."
        count = f"{len(self.images)} image{'s' * (len(self.images) != 1)}"
        best = f", the best of seed {self.best.seed} with reward {self.best.reward:.4g}" if self.images else ""
        return f"Result({prompt!r}: {count}{best}; {self.spent.nfe} NFE, {self.spent.seeds} seeds)"

    def _repr_html_(self) -> str | None:
        """For notebooks: the same line, the images, and the contact sheet; None where nobody said how to draw them."""
        return _pages[-1](self) if _pages else None

    @property
    def saturated(self) -> bool:
        """Whether more of the same budget would be nearly pointless: the second half of the finished images raised the
        best by less than 1 % of their spread."""
        gain, done = self.spent.gain_of_second_half, self.particles.finished
        value = self.particles.value(np.flatnonzero(done))
        value = value[np.isfinite(value)]
        return gain is not None and bool(gain < 0.01 * (value.max() - value.min()) + 1e-12)

    @property
    def best(self) -> Candidate:
        if not self.images:
            raise ValueError(f"no image for {self.prompt!r}: the search was stopped before this prompt was taken up")
        return self.images[0]


_pages: list[Callable[[Result], str]] = []


def show_by(page: Callable[[Result], str]) -> None:
    """Let notebooks show results as this HTML. The core draws nothing itself."""
    _pages[:] = [page]
