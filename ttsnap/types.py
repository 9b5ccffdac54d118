"""The central types: what algorithms see, what they answer, what comes back.

Shapes: N particles, K grid steps, R rewards. Step 0 is pure noise, step K the finished image. A score at step
k < K is the score of the x0 (Tweedie) estimate at grid point k, which took one denoiser evaluation more than getting
there (k + 1, where each step takes one); a score at step K is that of the finished image, which took K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]
_Kind = TypeVar("_Kind", bound=np.generic)
Utility = Callable[[FloatArray], FloatArray]
"""Scores (N, R) -> one number per row (N,), higher is better. It may compare rows with one another (ranks)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What something takes, in whole units.

    `nfe` counts guided evaluations of the denoiser for one particle: with classifier-free guidance one NFE is two
    forward passes (`Price.passes_per_nfe`). `decodes` counts latents decoded to pixels, `reward_calls` images
    scored, once per reward; `previews` counts unfinished estimates decoded by a cheap preview VAE instead.
    `gradients` counts backward passes through a decode and its rewards, `backwards` those through an evaluation of the
    denoiser. Their forward halves are counted where they belong: in `decodes`, `reward_calls` and `nfe`.
    """

    nfe: int = 0
    decodes: int = 0
    reward_calls: int = 0
    previews: int = 0
    gradients: int = 0
    backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.decodes + other.decodes, self.reward_calls + other.reward_calls,
                    self.previews + other.previews, self.gradients + other.gradients,
                    self.backwards + other.backwards)  # fmt: skip

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.nfe - other.nfe, self.decodes - other.decodes, self.reward_calls - other.reward_calls,
                    self.previews - other.previews, self.gradients - other.gradients,
                    self.backwards - other.backwards)  # fmt: skip

    def counts(self) -> dict[str, int]:
        """JSON-ready; kinds that only some searches know are left out where they are 0."""
        rare = {"previews": self.previews, "gradients": self.gradients, "backwards": self.backwards}
        found = {"nfe": self.nfe, "decodes": self.decodes, "reward_calls": self.reward_calls}
        return found | {k: v for k, v in rare.items() if v}


@dataclass(frozen=True)
class Grid:
    """The denoising grid of one search: noise levels at steps 0..K.

    `levels` (K+1,), falling to 0, holds sigma / (alpha + sigma): the rectified-flow time of equal signal-to-noise
    ratio, so that a level means the same for every model, scheduler and step count. `evals` (K,) holds how many
    denoiser evaluations each step takes, by default one; solvers of two stages (Heun) take two.
    """

    levels: tuple[float, ...]
    evals: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, float)
        if len(levels) < 2 or np.any(np.diff(levels) >= 0) or levels[0] > 1 + 1e-6 or abs(levels[-1]) > 1e-6:
            raise ValueError(f"grid levels must fall strictly from at most 1 to 0, got {self.levels}")
        if self.evals is not None and (len(self.evals) != self.steps or min(self.evals) < 1):
            raise ValueError(f"grid evals must be {self.steps} numbers from 1 on, got {self.evals}")

    @property
    def steps(self) -> int:
        """K."""
        return len(self.levels) - 1

    @cached_property
    def calls(self) -> IntArray:
        """(K+1,) denoiser evaluations that it takes to get from noise to each step."""
        evals = np.ones(self.steps, int) if self.evals is None else np.asarray(self.evals)
        return np.concatenate([[0], np.cumsum(evals)])

    @property
    def nfe(self) -> int:
        """Denoiser evaluations of one image: K where each step takes one."""
        return int(self.calls[-1])

    def step_at(self, level: float) -> int:
        """The first step whose noise level is at most `level` (in (0, 1])."""
        return int(np.argmax(np.asarray(self.levels) <= level + 1e-9))


@dataclass(frozen=True)
class Task:
    """What one search is asked for: a grid, how many finished images, and what it may spend on them.

    `allowance` is the most that this prompt may spend (its share of a pot, where the budget is `shared`), and
    `score_cost` what a decode with its reward calls takes, both in units of one denoiser evaluation: the unit in
    which the tightest cap is counted in images. inf and 0 where nothing caps evaluations. `check_cost` is what scoring
    an unfinished estimate takes, less than that where it takes no decode (the same by default).
    """

    grid: Grid
    keep: int = 1
    allowance: float = float("inf")
    score_cost: float = 0.0
    shared: bool = False
    check_cost: float | None = None

    @property
    def checking(self) -> float:
        """check_cost, or score_cost where that is not set."""
        return self.score_cost if self.check_cost is None else self.check_cost


@dataclass(frozen=True)
class Particles:
    """Every particle that a search ever started, as an algorithm may see them. Row i is the particle with uid i.

    An algorithm that works along the last axis (`lockstep = True`) may also be shown a stack of B searches at once,
    every array with a leading axis B; that is how simulation is fast.

    seed (N,) uint64, of the initial noise; parent (N,) uid or -1; step (N,) where its latent is; cached (N,) whether
    the prediction at that step is already paid; alive (N,) not dropped; scores (N, K+1, R), nan where unscored or
    failed; scored (N,) the step of the last score or -1; `utility` makes one number out of R. Under guidance by a
    reward's gradient (guidance.py), log_ratio (N,) is log p - log q of the path to where it is, p the plain sampler and
    q the guided one, and pulled (N,) whether the gradient at its step is already paid; elsewhere they are None.
    """

    seed: IntArray
    parent: IntArray
    step: IntArray
    cached: BoolArray
    alive: BoolArray
    scores: FloatArray
    scored: IntArray
    utility: Utility
    log_ratio: FloatArray | None = None
    pulled: BoolArray | None = None

    def __len__(self) -> int:
        return int(self.step.shape[-1])

    @property
    def finished(self) -> BoolArray:
        """(N,) whether the image is done and has been looked at by the rewards."""
        done: BoolArray = self.scored == self.scores.shape[-2] - 1
        return done

    def value(self, uids: IntArray | Sequence[int]) -> FloatArray:
        """Utility of the last scores of these particles, (n,) float64; -inf where a score is missing or failed."""
        rows = np.asarray(uids, int)
        scored = take(self.scored, rows)
        lead = () if rows.ndim == 1 else (np.arange(len(rows))[:, None],)
        last = self.scores[(*lead, rows, scored)]
        if scored.min(initial=0) >= 0 and not np.isnan(last).any():
            return np.asarray(self.utility(last), float)
        if rows.ndim > 1:
            return np.stack([self.of(b).value(rows[b]) for b in range(len(rows))])
        good = (scored >= 0) & ~np.isnan(last).any(axis=-1)
        out = np.full(len(rows), -np.inf)
        if good.any():
            out[good] = self.utility(last[good])
        return out

    def ranked(self) -> IntArray:
        """Uids of the living, best first by their last scores; ties in order of birth. (n,)"""
        uids = np.flatnonzero(self.alive).reshape(*self.alive.shape[:-1], -1) % max(1, len(self))
        return take(uids, np.argsort(-self.value(uids), axis=-1, kind="stable"))

    def of(self, b: int) -> Particles:
        """Search b of a stack of searches in lockstep (see simulate.lockstep): a view."""
        return Particles(
            self.seed[b],
            self.parent[b],
            self.step[b],
            self.cached[b],
            self.alive[b],
            self.scores[b],
            self.scored[b],
            self.utility,
        )


def take(array: NDArray[_Kind], rows: IntArray) -> NDArray[_Kind]:
    """array[rows], along the last axis where both have a leading axis of searches in lockstep."""
    if array.ndim == 1:
        return array[rows]
    n = array.shape[1]  # what np.take_along_axis finds, in a third of its time
    found: NDArray[_Kind] = array.reshape(-1).take(rows + n * np.arange(len(array))[:, None])
    return found


@dataclass(frozen=True)
class Move:
    """What to do next: one row per child, the most wanted first (a search short of budget keeps a prefix).

    parent (n,) uid to go on from, -1 for a fresh seed; start (n,) step to go on from: below the parent's step, its
    latent is noised forward to it, and at 0 a new particle starts from mix times the parent's initial noise and
    sqrt(1 - mix^2) fresh noise, mix (n,) in [0, 1]; stop (n,) step to go to; score (n,) whether to score there. `drop`
    lists uids that are given up. `value` is the price per evaluation up to which the move is worth making, for ordering
    moves of several prompts under a shared budget. `draft` (n,), where given, is how many evaluations a score at an
    unfinished step is made with: above 1 the particle is looked at after a short coarse rollout from where it is, over
    later grid points, which it then does not follow. `near` (n,), where given, holds -1 or, for a row of one step from
    the parent's own, the uid of an earlier child that one step from there made: the row's step noise is mix times that
    child's and sqrt(1 - mix^2) fresh noise. `ascend` (n,), where given, marks rows from start 0 of a finished parent
    whose new share of noise is not fresh but points along the gradient of the parent's rewards (ascent.py). `reject`
    lists uids whose finished images are not to be returned. The first row of a parent that starts at the parent's own
    step, with mix 1 and near nothing, continues that particle; every other row makes a new one.
    """

    parent: IntArray
    start: IntArray
    stop: IntArray
    score: BoolArray
    mix: FloatArray
    drop: IntArray = field(default_factory=lambda: np.empty(0, int))
    value: float = 0.0
    draft: IntArray | None = None
    near: IntArray | None = None
    ascend: BoolArray | None = None
    reject: IntArray = field(default_factory=lambda: np.empty(0, int))

    def __len__(self) -> int:
        return len(self.parent)

    def head(self, n: int) -> Move:
        """The first n rows."""
        cut = (self.parent[:n], self.start[:n], self.stop[:n], self.score[:n], self.mix[:n])
        more: dict[str, Any] = {name: getattr(self, name) for name in ("draft", "near", "ascend")}
        more = {name: None if column is None else column[:n] for name, column in more.items()}
        return Move(*cut, drop=self.drop, value=self.value, reject=self.reject, **more)


MOST_SEEDS = 2**20
"""The most seeds that one move may start: their rows alone take 50 MB."""


def fresh(n: int, stop: int, *, score: bool = True) -> Move:
    """Start n new seeds and take them to step `stop`. ValueError for more than a search can hold."""
    if n > MOST_SEEDS:
        raise ValueError(
            f"{n:,} seeds at once are more than the {MOST_SEEDS:,} that a search can hold; take a smaller n"
        )
    return Move(np.full(n, -1), np.zeros(n, int), np.full(n, stop), np.full(n, score), np.zeros(n))


def branch(parents: IntArray | Sequence[int], start: IntArray | int, stop: int, *, score: bool = True,
           drop: IntArray | Sequence[int] = ()) -> Move:  # fmt: skip
    """One row for each of these parents, which may repeat, from their step `start` to `stop`."""
    rows = np.asarray(parents, int)
    n = rows.shape
    at = np.broadcast_to(np.asarray(start, int), n)
    return Move(rows, at, np.full(n, stop), np.full(n, score), np.ones(n), drop=np.asarray(drop, int))


def perturb(parents: IntArray | Sequence[int], mix: float, stop: int, *, score: bool = True) -> Move:
    """One new particle for each of these parents, from initial noise that is near theirs, to `stop`."""
    rows = np.asarray(parents, int)
    n = rows.shape
    return Move(rows, np.zeros(n, int), np.full(n, stop), np.full(n, score), np.full(n, mix))


def climb(parents: IntArray | Sequence[int], mix: float, stop: int, *, score: bool = True) -> Move:
    """As perturb, from these finished parents and along the gradient of their rewards instead of anywhere."""
    return replace(perturb(parents, mix, stop, score=score), ascend=np.ones(len(parents), bool))


def advance(
    particles: Particles,
    uids: IntArray | Sequence[int],
    stop: int,
    *,
    score: bool = True,
    drop: IntArray | Sequence[int] = (),
) -> Move:
    """Take these particles, in this order, from where they are to step `stop`; give up those in `drop`."""
    rows = np.asarray(uids, int)
    shape = rows.shape[-1:]  # in lockstep, these columns are the same for all searches
    at = take(particles.step, rows)
    return Move(rows, at, np.full(shape, stop), np.full(shape, score), np.ones(shape), drop=np.asarray(drop, int))


@runtime_checkable
class Algorithm(Protocol):
    """A search policy: a frozen dataclass of hyperparameters with two pure methods.

    `n` is the number of seeds; None asks for as many as the budget affords (see search.fit). `branches` says
    whether it makes several children of one particle, which needs a stochastic kernel. Optional class variables:
    `renoises`, whether it takes particles back to noisier steps, `mixes`, whether it starts from mixed noise, `nears`,
    whether it draws step noise near that of another child, `ascends`, through how many evaluations gradients of
    finished images go back (0: all; None: it takes none), and `weights`, of the rewards in those (None: all alike).
    """

    branches: ClassVar[bool]
    lockstep: ClassVar[bool]
    """Whether its moves have a shape that scores do not change, and it is written along the last axis."""

    @property
    def n(self) -> int | None: ...

    def init(self, task: Task) -> Any:
        """State before the first move. Raises ValueError where the settings do not fit the task."""

    def step(self, state: Any, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, Any]:
        """The next move, or None when done. Called only when every row of the last move has been carried out."""


@runtime_checkable
class Reward(Protocol):
    """Scores images. `name` labels it; higher is better.

    A reward whose `estimates` attribute is "latents" or "features" reads unfinished x0 estimates without a decode:
    `score_estimates(x, prompts, level)` takes the latents (N, C, h, w), or the denoiser's hidden features (N, D, h, w)
    after the transformer block `features_block`, in place of images; finished images are scored as by any other.
    One whose calls carry no gradient may have `differentiable`, with the arguments and result of a call, that does.
    """

    name: str

    def __call__(self, images: Any, prompts: Sequence[str], level: Any) -> Any:
        """images (N, 3, H, W) float in [0, 1], N prompts, level (N,) noise level of each estimate -> (N,) float32.

        Ordinary rewards ignore `level`; noise-aware ones do not. A NaN counts as a failed call on that image.
        """


@dataclass(frozen=True)
class Outcome:
    """Rows of one job's move that are done, or how far they got before they were cancelled.

    uids, step, cached (n,); scores (n, R), nan where a reward failed, or None for rows that were not to be scored.
    `images` are opaque handles on the decoded images, one a row, None where the rewards did not need it decoded;
    `kept` holds what else the engine was asked to keep of each row; `errors` say what went wrong in a reward; `drafted`
    (n,) counts the evaluations that drafts took; log_ratio (n,) is as in Particles, and so is pulled (n,), which only
    rows that were cancelled need to tell.
    """

    job: int
    uids: IntArray
    step: IntArray
    cached: BoolArray
    scores: FloatArray | None = None
    images: Sequence[Any] | None = None
    errors: Sequence[str | None] = ()
    kept: Sequence[Mapping[str, Any]] = ()
    drafted: IntArray | None = None
    log_ratio: FloatArray | None = None
    pulled: BoolArray | None = None


@runtime_checkable
class Engine(Protocol):
    """Carries moves out. Rows of several jobs (one job per prompt) share its batches."""

    grid: Grid
    reward_names: tuple[str, ...]
    stochastic: bool

    @property
    def renoises(self) -> bool:
        """Whether it can take particles back to noisier steps, and make drafts: it has a path and no history."""

    @property
    def nears(self) -> bool:
        """Whether it can draw step noise near that of another child: the sampler draws noise, and keeps no history."""

    @property
    def capacity(self) -> int:
        """Pending rows that keep it busy; with fewer, another prompt may be taken up."""

    @property
    def nfe(self) -> int:
        """Evaluations so far, for progress."""

    @property
    def price(self) -> Any:
        """The budget.Price of its work."""

    def calibrate(self) -> Cost:
        """Measure price.seconds; returns what that took."""

    def differentiate(self, depth: int, weights: Any = None) -> None:
        """Get ready for moves that ascend, `depth` evaluations back (0: all), with these weights of the rewards.

        ValueError where it cannot."""

    def start(self, prompts: Sequence[str], seed: int) -> None:
        """Get ready for these prompts; job j is prompts[j]."""

    def submit(self, job: int, uids: IntArray, seeds: IntArray, move: Move) -> None:
        """Queue the rows of a move; row i becomes particle uids[i]."""

    def pending(self) -> int:
        """Rows queued or under way."""

    def tick(self) -> list[Outcome]:
        """One denoiser batch and whatever became ready for scoring; the rows that are now complete."""

    def cancel(self, job: int) -> Outcome:
        """Take this job's rows off the queue; says how far each got."""

    def drop(self, job: int, uids: Sequence[int]) -> None:
        """Forget these particles' state."""


@dataclass(frozen=True)
class Event:
    """One thing that happened, for progress bars, contact sheets and live views.

    kind: "start" (a prompt was taken up), "move" (a move was submitted; `move` is its entry of the trace), "tick" (a
    batch ran; `nfe` evaluations), "score" (a particle was scored; `image` holds the decoded estimate, `kept` its latent
    and features where the engine keeps them), "drop", "end" (a prompt is done).
    """

    kind: str
    job: int = -1
    seconds: float = 0.0
    uids: tuple[int, ...] = ()
    step: int = -1
    scores: tuple[float, ...] = ()
    image: Any = field(default=None, repr=False)
    kept: Mapping[str, Any] = field(default_factory=dict, repr=False)
    move: Mapping[str, Any] = field(default_factory=dict)
    nfe: int = 0
    best: float = float("nan")


@dataclass(frozen=True)
class Candidate:
    """A finished image. `reward` is its utility among the finished ones, `scores` (R,) by reward name."""

    uid: int
    seed: int
    reward: float
    scores: dict[str, float]
    image: Any = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Result:
    """What one prompt's search gave: the kept images, best first, what it spent, and how it went.

    `spent` is the ledger's summary (see budget.Ledger.summary), `trace` one dict per move (JSON-ready), `particles`
    the final table, `warnings` what the user should know (failed rewards, trimmed moves, early stop). `state` is the
    algorithm's last, which it alone understands: of smc, `uids`, `logw` and `log_z` are the weighted sample. `levels`
    (K+1,) are the noise levels of the steps. `thumbnails` holds small pictures of what was scored, by (uid, step),
    where someone kept them, as pipelines do: the contact sheet (ttsnap.sheet), which notebooks show, is made of them.
    """

    prompt: str
    images: tuple[Candidate, ...]
    spent: dict[str, Any]
    trace: tuple[dict[str, Any], ...]
    particles: Particles
    warnings: tuple[str, ...] = ()
    state: Any = None
    levels: tuple[float, ...] = ()
    thumbnails: Mapping[tuple[int, int], Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """A line: what was asked for, the best image and what it took."""
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "..."
        count = f"{len(self.images)} image{'s' * (len(self.images) != 1)}"
        best = f", the best of seed {self.best.seed} with reward {self.best.reward:.4g}" if self.images else ""
        return f"Result({prompt!r}: {count}{best}; {self.spent.get('nfe')} NFE, {self.spent.get('seeds')} seeds)"

    def _repr_html_(self) -> str:
        """For notebooks: the same line, the images, and the contact sheet."""
        from ttsnap.notebook import page_of

        return page_of(self)

    @property
    def saturated(self) -> bool:
        """Whether more of the same budget would be nearly pointless: the second half of the finished images raised the
        best by less than 1 % of their spread."""
        gain, done = self.spent.get("gain_of_second_half"), self.particles.finished
        value = self.particles.value(np.flatnonzero(done))
        value = value[np.isfinite(value)]
        return gain is not None and bool(gain < 0.01 * (value.max() - value.min()) + 1e-12)

    @property
    def best(self) -> Candidate:
        if not self.images:
            raise ValueError(f"no image for {self.prompt!r}: the search was stopped before this prompt was taken up")
        return self.images[0]
