"""Recorded reward trajectories, and an engine that plays searches back on them with the objects
that run live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.cost import Rates
from ttsnap.core.grid import Grid
from ttsnap.core.looks import ESTIMATE, Draft, Estimator, EstimatorAt, read_look
from ttsnap.core.moves import CONTINUE, FRESH
from ttsnap.core.needs import Need
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.results import Result
from ttsnap.files.reading import Tensor
from ttsnap.files.settings import Json
from ttsnap.loop.dry import DryEngine

PUBLISHED = Price(Rates(nfe=9.9e12, reward_calls=1.2e12))
"""FLOPs per denoiser evaluation and per decode with its reward call, as published with the reward
tensors."""


@dataclass(frozen=True)
class Recording:
    """Scores along the trajectories of P prompts with S seeds each."""

    prompts: tuple[str, ...]
    scores: FloatArray
    """(P, S, K+1, R). Index k < K is the x0 estimate at grid point k, after k + 1 evaluations;
    index K is the finished image, after K evaluations. nan where a reward failed."""
    grid: Grid
    reward_names: tuple[str, ...]
    first_seed: int = 0
    """The seeds are first_seed..first_seed + S - 1."""
    scored: tuple[bool, ...] = ()
    """(K+1,) whether a step was scored at all, the last always. Empty: every step."""
    price: Price = field(default_factory=Price)
    """The price of the recorded engine."""
    info: Mapping[str, Json] = field(default_factory=dict)
    """What else is known (model, call, versions), JSON-ready."""
    looks: Mapping[EstimatorAt, FloatArray] = field(default_factory=dict)
    """Scores (P, S, R) of other looks than the estimate, each at one step."""

    def __post_init__(self) -> None:
        points = self.grid.steps + 1
        expected = (len(self.prompts), points, len(self.reward_names))
        if self.scores.ndim != 4 or (self.scores.shape[0], *self.scores.shape[2:]) != expected:
            raise ValueError(
                f"scores have shape {self.scores.shape}, expected ({expected[0]}, seeds,"
                f" {expected[1]}, {expected[2]})"
            )
        object.__setattr__(self, "scored", tuple(self.scored) or (True,) * points)
        if len(self.scored) != points or not self.scored[-1]:
            raise ValueError(
                f"scored must say for each of {points} steps whether it was, the last always"
            )
        for seen, scores in self.looks.items():
            if scores.shape != (wanted := (*self.scores.shape[:2], self.scores.shape[3])):
                raise ValueError(f"scores of {seen} have shape {scores.shape}, expected {wanted}")

    @property
    def seeds(self) -> int:
        """S, seeds per prompt."""
        return int(self.scores.shape[1])

    @property
    def final(self) -> FloatArray:
        """(P, S, R) scores of the finished images."""
        return self.scores[:, :, -1]

    @property
    def columns(self) -> FloatArray:
        """(P, S, K+1+L, R) all scores: of the steps, then of the L looks."""
        return np.concatenate(
            [self.scores, *(scores[:, :, None] for scores in self.looks.values())], 2
        )

    @cached_property
    def failed(self) -> bool:
        """Whether a recorded score is nan."""
        asked = self.scores[:, :, list(self.scored)], *self.looks.values()
        return any(bool(np.isnan(scores).any()) for scores in asked)

    @property
    def call(self) -> Mapping[str, Json]:
        """What is known of the arguments of the recorded call."""
        call = self.info.get("call")
        return call if isinstance(call, Mapping) else self.info

    @property
    def denoising_steps(self) -> int | None:
        """Those of the recorded call; None where other arguments say which steps there are."""
        steps = self.call.get("num_inference_steps")
        if isinstance(steps, int):
            return steps
        return None if self.call.keys() & {"sigmas", "timesteps", "strength"} else self.grid.steps

    @property
    def draft_calls(self) -> int:
        """The fewest calls of a recorded draft from the initial noise; 0 without drafts."""
        return min(self.drafts, default=0)

    @property
    def drafts(self) -> tuple[int, ...]:
        """Calls of each recorded draft from the initial noise, rising."""
        looks = (read_look(seen.look) for seen in self.looks if seen.step == 0)
        return tuple(sorted(look.calls for look in looks if isinstance(look, Draft)))

    @property
    def offers(self) -> frozenset[Need]:
        """Needs that a replay meets: the looks that were recorded."""
        return frozenset(need for seen in self.looks for need in read_look(seen.look).needs)

    def seen(self, look: str, step: int) -> FloatArray:
        """(P, S, R) scores by a look at a step. ValueError where they were not recorded."""
        if step == self.grid.steps or (look == ESTIMATE.name and self.scored[step]):
            scores: FloatArray = self.scores[:, :, step]
            return scores
        if look == ESTIMATE.name:
            known = np.flatnonzero(self.scored).tolist()
            raise ValueError(
                f"the estimate at step {step} asked for; the recording has scores at {known}"
            )
        if (found := self.looks.get(EstimatorAt(look, step))) is None:
            there = ", ".join(map(str, self.looks)) or "none but estimates"
            raise ValueError(
                f"{EstimatorAt(look, step)} asked for; looks in the recording: {there}"
            )
        return found

    @classmethod
    def from_results(
        cls,
        results: Sequence[Result],
        grid: Grid,
        reward_names: tuple[str, ...],
        price: Price | None = None,
    ) -> Recording:
        """The recording of a search with KeepAll, on an engine of this price."""
        scores = np.stack([r.particles.scores for r in results])
        first = int(results[0].particles.seed[0])
        return cls(
            tuple(r.prompt for r in results),
            scores,
            grid,
            reward_names,
            first,
            price=price or Price(),
        )

    def select(self, prompts: slice = slice(None), seeds: slice = slice(None)) -> Recording:
        """The recording of some prompts and some seeds (a range without gaps)."""
        start, _, step = seeds.indices(self.seeds)
        if step != 1:
            raise ValueError(f"seeds must be a range without gaps, got {seeds}")
        return dataclasses.replace(
            self,
            prompts=self.prompts[prompts],
            scores=self.scores[prompts, seeds],
            looks={seen: scores[prompts, seeds] for seen, scores in self.looks.items()},
            first_seed=self.first_seed + start,
        )


def recording_of(path: Path, tensors: Mapping[str, Tensor], which: str, price: Price) -> Recording:
    """Reward tensors that were published with TTSnap (arXiv 2511.22242), in the layout that
    `load_recording` tells.

    ValueError for another layout, and for `which` other than "base" and "noise_aware".
    """
    if which not in ("base", "noise_aware"):
        raise ValueError(f"scores must be base or noise_aware, got {which!r}")
    base = tensors.get("base")
    aware = tensors.get("noise_aware")
    if (
        base is None
        or aware is None
        or base.ndim != 3
        or base.shape != aware.shape
        or not base.size
    ):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        raise ValueError(
            f"{path} is no recording: expected base and noise_aware, each (P, S, K), found {shapes}"
        )
    base = base.astype(float)
    aware = aware.astype(float)
    estimates = base if which == "base" else np.where(np.isnan(aware), base, aware)
    prompts, _, steps = base.shape
    final = base[..., -1:]
    return Recording(
        prompts=tuple(f"prompt {i}" for i in range(prompts)),
        scores=np.concatenate([estimates[..., :-1], final, final], -1)[..., None],
        grid=Grid(tuple(np.linspace(1, 0, steps + 1).tolist())),
        reward_names=(path.stem,),
        price=price,
        info={"source": path.name, "scores": which},
    )


class ReplayEngine(DryEngine):
    """Plays non-branching searches back on a recording, job j on its prompt j.

    Search the recording's `prompts` with its `first_seed`, so that seeds and rows agree. A score is
    given only for a step that a submitted, and therefore paid, move has reached (see `paid`).
    ValueError for what was not recorded.
    """

    def __init__(self, recording: Recording, *, capacity: int = 1) -> None:
        """capacity: of `Engine`, which matters where prompts share a budget. With that of a
        LiveEngine (twice its batch size) rounds and ledgers are those of the live search."""
        r = recording
        super().__init__(
            r.grid, r.reward_names, offers=r.offers, price=r.price, draft_calls=r.draft_calls
        )
        self.recording = recording
        self.capacity = capacity
        self.start()

    def start(self) -> None:
        super().start()
        self.admitted = 0
        self.paid = np.full(self.recording.scores.shape[:2], -1)

    def admit(self, prompts: Sequence[Prompt]) -> None:
        recorded = self.recording.prompts[self.admitted :]
        texts = tuple(prompt.text for prompt in prompts)
        if texts != recorded[: len(texts)]:
            raise ValueError(f"prompts {list(texts)[:3]}... are not the recorded {recorded[:3]}...")
        self.admitted += len(prompts)

    def submit(self, job: int, plan: Plan) -> None:
        if np.count_nonzero(plan.rows.kind > CONTINUE):
            raise ValueError(
                "a recording cannot be renoised or branched; only what was denoised once can be"
                " replayed"
            )
        rows = self._rows(job, plan.seed)
        size = self.price.start.size
        first = self.recording.first_seed
        if ((rows % size != plan.place) & (plan.rows.kind == FRESH)).any():
            raise ValueError(
                f"seeds were recorded in groups of {size} from {first} on, of which "
                f"{plan.seed[0]} begins none; search from {first} on"
            )
        self.paid[job, rows] = plan.rows.stop
        super().submit(job, plan)

    def scores(self, job: int, seeds: IntArray, steps: IntArray, look: Estimator) -> FloatArray:
        rows = self._rows(job, seeds)
        if (steps > self.paid[job, rows]).any():
            raise ValueError(
                f"scores at steps {steps.tolist()} of seeds {seeds.tolist()} have not been paid for"
            )
        scores = np.empty((len(rows), len(self.reward_names)))
        for step in set(steps.tolist()):
            at = steps == step
            scores[at] = self.recording.seen(look.at(step).name, step)[job, rows[at]]
        return scores

    def _rows(self, job: int, seeds: IntArray) -> IntArray:
        r = self.recording
        rows = seeds - np.uint64(r.first_seed)  # of a seed before the first one, a huge number
        if rows.max(initial=0) >= r.seeds:
            last = r.first_seed + r.seeds - 1
            prompt = r.prompts[job]
            raise ValueError(
                f"seeds {seeds.min()}..{seeds.max()} of {prompt!r}: recorded are"
                f" {r.first_seed}..{last}"
            )
        return rows.astype(int)
