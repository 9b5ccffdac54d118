"""The settings of a recording, its units of work, and every check of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import KINDS
from ttsnap.core.grid import Grid
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.price import Price
from ttsnap.files.settings import Json, build, to_json
from ttsnap.recordings.replay import Recording

FORMAT = 1
MOST_UNITS = 10**7
MOST_SCORES = 10**10
UNITS = ("flops", "seconds")
"""What a price tells rates in."""
_ONE = {kind.name: kind.one for kind in KINDS}
"""Files name a rate in the singular."""
_NAMES = {one: name for name, one in _ONE.items()}


@dataclass(frozen=True)
class Unit:
    """Rows of a recording's scores that one search call records. Prompts and seeds are counted from
    0."""

    index: int
    prompts: range
    seeds: range

    @property
    def rows(self) -> tuple[slice, slice]:
        """Where its scores lie in those (P, S, C, R) of the recording."""
        prompts = slice(self.prompts.start, self.prompts.stop)
        return prompts, slice(self.seeds.start, self.seeds.stop)

    @property
    def file(self) -> str:
        """The name of the file that holds its scores until all units are there."""
        return f"unit-{self.index:05d}.safetensors"


@dataclass(frozen=True)
class Header:
    """The settings of a recording: the contents of recording.json, which must be the same to resume
    it.

    Raises ValueError for settings that do not fit together.
    """

    prompts: tuple[str, ...]
    """P texts."""
    seeds: int
    """S, seeds per prompt, from `first(prompt)` on."""
    first_seed: int
    levels: tuple[float, ...]
    """(K+1,) noise levels of the grid."""
    steps: tuple[int, ...]
    """Steps that are scored, rising; the last one is K."""
    rewards: tuple[str, ...]
    """R names."""
    block: tuple[int, int]
    """Prompts and seeds of one unit of work."""
    images: bool
    """Whether the decoded estimates are kept."""
    price: Price
    """The price of the engine."""
    info: Mapping[str, Json]
    """What else is known (model, call, versions), JSON-ready."""
    extras: tuple[str, ...] = ()
    """What is kept of each estimate beside its image: "latents"."""
    evals: tuple[int, ...] | None = None
    """Evaluations of each step, where one takes several."""
    looks: tuple[str, ...] = ()
    """Looks in addition to estimates, as "draft:1@0"."""

    def __post_init__(self) -> None:
        last = Grid(self.levels, self.evals).steps
        late = any(look.step >= last for look in self.seen)
        if len(set(self.looks)) < len(self.looks) or late:
            raise ValueError(f"looks must differ and come before step {last}, got {self.looks}")
        if not self.prompts or not self.rewards:
            raise ValueError(
                f"a recording needs prompts and rewards, got {self.prompts} and {self.rewards}"
            )
        last_seed = self.first(len(self.prompts) - 1) + self.seeds
        if self.seeds < 1 or not 0 <= self.first_seed < last_seed <= 2**64:
            raise ValueError(
                f"seeds must be at least 1, from 0 on, got {self.seeds} from {self.first_seed} on"
            )
        rising = all(a < b for a, b in zip((-1, *self.steps), self.steps, strict=False))
        if not self.steps or not rising or self.steps[-1] != last:
            raise ValueError(
                f"steps must rise within 0..{last} and end with {last}, got {self.steps}"
            )
        if len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(
                f"block must be two numbers from 1 on (prompts, seeds), got {self.block}"
            )
        if self.apart and self.block[0] > 1:
            raise ValueError(
                "latents without images are recorded prompt by prompt, each with seeds of its own:"
                f" block must be (1, {self.block[1]}), got {self.block}"
            )
        units = math.prod(-(-n // of) for n, of in zip(self.shape, self.block, strict=False))
        if units > MOST_UNITS or math.prod(self.shape) > MOST_SCORES:
            raise ValueError(
                f"a recording may hold {MOST_SCORES:,} scores in {MOST_UNITS:,} units of work, got "
                f"{math.prod(self.shape):,} in {units:,}"
            )
        guided = self.price.guided
        size = self.price.start.size
        if self.block[1] % size and self.block[1] < self.seeds:
            raise ValueError(
                f"seeds begin in groups of {size}, so that a block holds a multiple of it,"
                f" got {self.block[1]} seeds"
            )
        if guided is not None and len(guided.steps) != last:
            raise ValueError(
                f"guidance must say for each of {last} steps whether it is there, got"
                f" {guided.steps}"
            )

    @property
    def apart(self) -> bool:
        """Whether no two prompts share a seed, as where latents are kept without images: they are
        trajectories to learn from, which should begin with different noises."""
        return bool(self.extras) and not self.images

    def first(self, prompt: int) -> int:
        """The first seed of a prompt, by its number."""
        return self.first_seed + self.apart * self.seeds * prompt

    @property
    def seen(self) -> tuple[EstimatorAt, ...]:
        """The looks."""
        return tuple(map(EstimatorAt.read, self.looks))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(P, S, C, R) of all scores: of the K+1 steps, then of the looks."""
        return len(self.prompts), self.seeds, len(self.levels) + len(self.looks), len(self.rewards)

    def units(self) -> list[Unit]:
        """The units of work, block by block: all seeds of the first prompts, then the next
        prompts."""
        p = len(self.prompts)
        s = self.seeds
        blocks = [
            (range(i, min(p, i + self.block[0])), range(j, min(s, j + self.block[1])))
            for i in range(0, p, self.block[0])
            for j in range(0, s, self.block[1])
        ]
        return [Unit(index, prompts, seeds) for index, (prompts, seeds) in enumerate(blocks)]

    def recording(self, scores: FloatArray) -> Recording:
        """The recording with these scores (P, S, C, R)."""
        points = len(self.levels)
        return Recording(
            prompts=tuple(map(str, self.prompts)),  # without the pictures that they may carry
            scores=scores[:, :, :points],
            grid=Grid(self.levels, self.evals),
            reward_names=self.rewards,
            first_seed=self.first_seed,
            scored=tuple(k in self.steps for k in range(points)),
            price=self.price,
            info=self.info,
            looks={seen: scores[:, :, points + i] for i, seen in enumerate(self.seen)},
        )

    def to_json(self) -> dict[str, Json]:
        """The settings as JSON. ValueError where `info` is not JSON-ready."""
        price = to_json(self.price)
        rates = {unit: _renamed(price[unit], _ONE) for unit in UNITS}
        return {"format": FORMAT, **to_json(self), "price": {**price, **rates}}

    @classmethod
    def from_json(cls, data: Mapping[str, Json], where: Path) -> Header:
        """A header of what `to_json` says. ValueError that names `where` for what is no header, a
        damaged one, or one of another format."""
        settings = dict(data)
        there = settings.pop("format", None)
        if there is None:
            raise ValueError(f"{where} does not describe a recording of ttsnap")
        if there != FORMAT:
            raise ValueError(
                f"{where} has format {str(there)[:40]}, this ttsnap reads {FORMAT}; update ttsnap"
            )
        price = settings.get("price")
        if isinstance(price, dict):
            rates = {unit: _renamed(price[unit], _NAMES) for unit in UNITS if unit in price}
            settings["price"] = {**price, **rates}
        try:
            return build(cls, settings)
        except ValueError as error:
            raise ValueError(f"{where} is damaged: {error}") from None

    @classmethod
    def of(cls, recording: Recording) -> Header:
        """The header of a recording in memory, as one unit without images."""
        r = recording
        return cls(
            prompts=r.prompts,
            seeds=r.seeds,
            first_seed=r.first_seed,
            levels=tuple(float(v) for v in r.grid.levels),
            evals=r.grid.evals,
            steps=tuple(np.flatnonzero(r.scored).tolist()),
            rewards=r.reward_names,
            block=(len(r.prompts), r.seeds),
            images=False,
            price=r.price,
            info=r.info,
            looks=tuple(map(str, r.looks)),
        )


def _renamed(rates: Json, names: Mapping[str, str]) -> Json:
    """Rates by other names of their kinds."""
    if not isinstance(rates, dict):
        return rates
    return {names.get(kind, kind): rate for kind, rate in rates.items()}
