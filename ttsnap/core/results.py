"""What a search tells while it runs, and what it gives in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

import numpy as np

from ttsnap.core.checklist import YES
from ttsnap.core.cost import KINDS, PHASES, Cost, Phase
from ttsnap.core.outcome import Decoded
from ttsnap.core.particles import Particles
from ttsnap.core.price import Price
from ttsnap.core.protocols import AlgorithmState, RunUsage

if TYPE_CHECKING:  # the core runs without torch
    from PIL.Image import Image
    from torch import Tensor


_SUMMED = [
    kind
    for phase in PHASES
    if phase != "denoise"
    for kind in KINDS
    if kind.phase == phase and kind.summed
]
FORWARD = [kind.name for kind in _SUMMED if kind.phase != "gradient" and not kind.newer]
BACKWARD = [kind.name for kind in _SUMMED if kind.phase == "gradient"]
NEWER = [kind.name for kind in KINDS if kind.summed and kind.newer]
"""What files name beside evaluations: kinds of cost, phase by phase; newer ones only where there
was any."""


@dataclass(frozen=True)
class Spent:
    """What the search of one prompt took."""

    cost: Cost
    """In whole units of each kind."""
    price: Price
    """What one unit takes on the engine."""
    budget: str
    """The budget, as users write it."""
    seconds: float = 0.0
    """Of the run, by this prompt's share in its evaluations."""
    seconds_by: Mapping[str, float] = field(default_factory=dict)
    """`seconds` by phase ("denoise", "decode", "reward", "gradient"); empty where the engine takes
    no time."""
    seconds_all_prompts: float = 0.0
    """Of the whole run."""
    seconds_before: float = 0.0
    """Seconds before the run, in which the engine was measured and prompts were encoded. No budget
    pays them."""
    ended: str = ""
    """What ended the search: a cap, as "6 s were up", "stopped", "out of memory"; empty where its
    algorithm had all it wanted."""
    usage: RunUsage = field(default_factory=RunUsage)
    """Memory and energy (profiling/meter.py); energy by this prompt's share."""
    seeds: int = 0
    """Seeds started."""
    finished: int = 0
    """Images finished."""
    gain_of_second_half: float | None = None
    """By how much the best finished image exceeds the best of half of them; None below four
    images."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Finished images that fail each requirement, by its words; empty without requirements. One may
    fail several."""
    calibration: Cost = field(default_factory=Cost)
    """What the engine spent before the search, on finding batch sizes and the like. No budget pays
    it."""
    lost: Cost = field(default_factory=Cost)
    """What the engine computed in vain for all prompts, because a device broke down. No budget pays
    it."""

    def __str__(self) -> str:
        """A line: what was spent, of which budget, on how many seeds and images, what ended it."""
        amounts = {**self.counts(), "forward_passes": self.forward_passes}
        words = {kind.name: kind.label for kind in KINDS}
        words |= {"nfe": "nfe", "forward_passes": "forward passes"}
        counts = ", ".join(f"{round(n, 2)} {words[name]}" for name, n in amounts.items())
        seeds = f"{self.seeds} seeds started, {self.finished} finished"
        ended = f"; {self.ended}" if self.ended else ""
        return f"{counts} of a budget of {self.budget}; {seeds}{ended}"

    @property
    def nfe(self) -> float:
        """What a cap in NFE counts: denoiser evaluations (`cost.nfe`), and draft calls as parts of
        evaluations."""
        return self.price.evaluations(self.cost)

    def counts(self) -> dict[str, float]:
        """What users read, by kind of cost: as Cost.counts, with drafts among the NFE."""
        return {**self.cost.counts(), "nfe": self.nfe}

    @property
    def forward_passes(self) -> int:
        """Forward passes of the networks: two an evaluation with classifier-free guidance, and
        those of drafts."""
        return (
            self.cost.nfe * self.price.passes_per_nfe
            + self.cost.draft_calls * self.price.passes_per_draft
        )

    @property
    def flops(self) -> float:
        """FLOPs in all."""
        return self.price.flops.of(self.cost)

    @property
    def flops_by(self) -> Mapping[Phase, float]:
        """FLOPs by phase; those of "gradient" are of backward passes alone."""
        return self.price.flops.by_phase(self.cost)

    @property
    def verifier_share(self) -> float | None:
        """The share of all but denoising in the seconds of all phases, in [0, 1]; None without
        times."""
        whole = sum(self.seconds_by.values())
        return 1 - self.seconds_by["denoise"] / whole if whole > 0 else None

    def to_json(self) -> dict[str, object]:
        """As files keep it (PNG metadata, results.json)."""
        counts = self.cost.named()
        flops = self.flops_by
        return {
            "nfe": self.nfe,
            "forward_passes": self.forward_passes,
            **{name: counts[name] for name in NEWER if counts[name]},
            **{name: counts[name] for name in FORWARD},
            "flops": self.flops,
            "flops_denoise": flops["denoise"],
            "flops_decode": flops["decode"],
            "flops_reward": flops["reward"],
            **{name: counts[name] for name in BACKWARD},
            "flops_gradient": flops["gradient"],
            "budget": self.budget,
            "seconds": self.seconds,
            **{f"seconds_{phase}": seconds for phase, seconds in self.seconds_by.items()},
            "seconds_all_prompts": self.seconds_all_prompts,
            "seconds_before": self.seconds_before,
            **({"ended": self.ended} if self.ended else {}),
            "verifier_share": self.verifier_share,
            **self.usage,
            "seeds": self.seeds,
            "finished": self.finished,
            "gain_of_second_half": self.gain_of_second_half,
            **({"refused": dict(self.refused)} if self.refused else {}),
            "calibration": self.calibration.counts(),
            **({"lost": self.lost.counts()} if self.lost != Cost() else {}),
        }


class TracedMove(TypedDict):
    """A move as traces keep it, JSON-ready, with n rows."""

    move: int
    """Its number."""
    cost: dict[str, int]
    """What it cost, by kind."""
    uids: list[int]
    """(n,) particles, as in Plan."""
    parents: list[int]
    """(n,) as in Plan."""
    start: list[int]
    """(n,) as in Plan."""
    stop: list[int]
    """(n,) as in Plan."""
    seeds: list[int]
    """(n,) as in Plan."""
    scores: dict[int, list[float]]
    """(R,) by uid, as far as they have come."""
    drop: list[int]
    """Uids that were given up with the move."""
    closing: bool
    """Whether it only finishes an image, as nothing else is wanted or can be paid for."""
    look: NotRequired[str]
    """How unfinished particles were scored, where not by x0 estimates."""
    refund: NotRequired[dict[str, int]]
    """The part of the cost that did not run, where rows were taken back."""
    by_hand: NotRequired[dict[str, list[int]]]
    """Uids that a person dropped or finished with it, by DROP and FINISH."""


DROP = "drop"
FINISH = "finish"
"""What a person may do to a candidate."""


class Led(Protocol):
    """A running search as people lead it, from any thread. Commands are carried out between two
    batches; one about a candidate that is finished, dropped or unknown does nothing."""

    in_parts: bool
    """Whether seeds that begin by drafts or in groups, which cannot be interrupted, begin a batch
    at a time, so that commands come in between. It is set at "start"."""

    def drop(self, uid: int, prompt: int = 0) -> None:
        """Give a candidate up. What of it did not run is refunded."""

    def finish(self, uid: int, prompt: int = 0) -> None:
        """Finish a candidate before all others, as far as the budget pays for it."""


@dataclass(frozen=True)
class Event:
    """One thing that happened, for progress bars, contact sheets and live views."""

    kind: str
    """What happened: a prompt was taken up ("start"), a move was submitted ("move"), a batch ran
    ("tick"), a particle was scored ("score"), particles were dropped ("drop"), a prompt is done
    ("end")."""
    job: int = -1
    """Number of the prompt; -1 of a batch."""
    seconds: float = 0.0
    """Since the search began."""
    uids: tuple[int, ...] = ()
    """Particles of a move, a score or a drop."""
    step: int = -1
    """Where a particle was scored."""
    look: str = ""
    """By which look, of an unfinished particle."""
    scores: tuple[float, ...] = ()
    """(R,) of a particle."""
    picture: Decoded | None = field(default=None, repr=False)
    """What was decoded of a scored particle."""
    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The latent of a scored particle, where the engine keeps it."""
    move: TracedMove | None = None
    """The entry of the trace, of a move."""
    nfe: float = 0
    """What a cap in NFE counts of a batch, or of a move."""
    reward_calls: int = 0
    """Of a score."""
    best: float = float("nan")
    """The best reward of a finished image so far."""
    led: Led | None = field(default=None, repr=False)
    """The running search, of "start"."""

    @property
    def image(self) -> Tensor | None:
        """What was decoded, as in Candidate. Where another process did, it is fetched from
        there."""
        return None if self.picture is None else self.picture.fetch()


@dataclass(frozen=True)
class Candidate:
    """A finished image or video."""

    uid: int
    seed: int
    reward: float
    """Its utility among the finished ones."""
    scores: dict[str, float]
    """By reward name."""
    image: Tensor | None = field(repr=False)
    """(3, H, W), or a video (T, 3, H, W), in [0, 1] on the CPU; None where no model ran, as in a
    dry run or a replay."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Scores by rewards that report and do not choose."""
    batches: Sequence[int] = field(default=(), repr=False, compare=False)
    """As of Decoded."""

    def to_json(self) -> dict[str, Any]:
        """Which one it is, and how good, as traces and replies have it. Scores that failed are
        null."""
        scores, metrics = (
            {n: _finite(s) for n, s in of.items()} for of in (self.scores, self.metrics)
        )
        return {
            "seed": self.seed,
            "reward": _finite(self.reward),
            "scores": scores,
            "metrics": metrics,
        }

    @property
    def pixels(self) -> Tensor:
        """The image or video, where there must be one. ValueError where no model ran."""
        if self.image is None:
            raise ValueError(f"no image of seed {self.seed}: this search ran without a model")
        return self.image


@dataclass(frozen=True, repr=False)
class Result:
    """What one prompt's search gave."""

    prompt: str
    images: tuple[Candidate, ...]
    """The kept ones, best first."""
    spent: Spent
    """What the search took."""
    trace: tuple[TracedMove, ...]
    """Its moves."""
    particles: Particles
    """The final table."""
    warnings: tuple[str, ...] = ()
    """What the user should know: failed rewards, trimmed moves, an early stop."""
    state: AlgorithmState = None
    """The algorithm's last, which the algorithm alone understands; of smc, `uids`, `logw` and
    `log_z` are the weighted sample."""
    levels: tuple[float, ...] = ()
    """(K+1,) noise levels of the steps."""
    thumbnails: Mapping[tuple[int, int], Image] = field(default_factory=dict)
    """Small pictures of what was scored, by (uid, step), where someone kept them, as pipelines do.
    Contact sheets (results/sheet.py) are made of them."""
    source: Image | None = None
    """A small copy of the picture that the prompt changes; None for prompts that are texts only."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """The items of a checklist, by their words: which of the scores each has."""

    def __repr__(self) -> str:
        """A line: the prompt, the best image and what it took."""
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "..."
        count = f"{len(self.images)} image{'s' * (len(self.images) != 1)}"
        best = (
            f", the best of seed {self.best.seed} with reward {self.best.reward:.4g}"
            if self.images
            else ""
        )
        return (
            f"Result({prompt!r}: {count}{best}; {round(self.spent.nfe, 2)} NFE, {self.spent.seeds}"
            " seeds)"
        )

    def _repr_html_(self) -> str | None:
        """For notebooks: the same line, the images, and the contact sheet; None where nobody said
        how to draw them."""
        return _pages[-1](self) if _pages else None

    @property
    def saturated(self) -> bool:
        """Whether more of the same budget would be nearly pointless: the second half of the
        finished images raised the best by less than 1 % of their spread."""
        gain = self.spent.gain_of_second_half
        done = self.particles.finished
        value = self.particles.value(np.flatnonzero(done))
        value = value[np.isfinite(value)]
        return gain is not None and bool(gain < 0.01 * (value.max() - value.min()) + 1e-12)

    @property
    def by_hand(self) -> dict[str, list[int]]:
        """Uids that a person dropped or finished, by DROP and FINISH; empty where nobody did."""
        led = [move["by_hand"] for move in self.trace if "by_hand" in move]
        uids = {verb: [uid for one in led for uid in one.get(verb, ())] for verb in (DROP, FINISH)}
        return {verb: named for verb, named in uids.items() if named}

    @property
    def answers(self) -> dict[str, int]:
        """How many of the finished images have each item of a checklist, by its words."""
        final = self.particles.scores[self.particles.finished, -1]
        return {words: int((final[:, at] >= YES).sum()) for words, at in self.asked.items()}

    @property
    def best(self) -> Candidate:
        if not self.images:
            why = (
                "all that were finished were refused"
                if self.spent.refused
                else ("the search was stopped before this prompt was taken up")
            )
            raise ValueError(f"no image for {self.prompt!r}: {why}")
        return self.images[0]


def _finite(score: float) -> float | None:
    return float(score) if np.isfinite(score) else None


_pages: list[Callable[[Result], str]] = []


def show_by(page: Callable[[Result], str]) -> None:
    """Let notebooks show results as this HTML. The core draws nothing itself."""
    _pages[:] = [page]
