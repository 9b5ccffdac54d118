"""The settings of a recording, its units of work, and every check of them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np

from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import KINDS, Rates
from ttsnap.core.grid import Grid
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.price import GuidedSteps, Price
from ttsnap.core.start import AS_NOISE, Start
from ttsnap.files import reading as files
from ttsnap.files.run_folder import digest
from ttsnap.files.settings import Json, build, check, short
from ttsnap.recordings.replay import Recording

FORMAT = 1
MOST_UNITS, MOST_SCORES = 10**7, 10**10
COUNTS = ("passes_per_nfe", "depth", "asked", "passes_per_draft", "more_calls", "bases")
"""Whole numbers of a price."""
HEADER_CRC = "header_crc32"
"""Key of scores.safetensors' header for the checksum of its other keys. The oldest files lack
it."""
NEWER = ("extras", "evals", "looks")
"""Settings that the oldest files lack, and that are left out where they are empty."""
_ROLLOUT = re.compile("rollout:[1-9][0-9]{0,3}@[0-9]{1,6}")


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
    """S, seeds per prompt: first_seed..first_seed + S - 1."""
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
    """What is kept with each image: "latents", in earlier versions also "features:BLOCK"."""
    evals: tuple[int, ...] | None = None
    """Evaluations of each step, where one takes several."""
    looks: tuple[str, ...] = ()
    """Looks in addition to estimates, as "draft:1@0", in earlier versions also coarse rollouts, as
    "rollout:3@4"."""

    def __post_init__(self) -> None:
        last = Grid(self.levels, self.evals).steps
        seen = [look for look in self.seen if look]
        if len(set(self.looks)) < len(self.looks) or any(look.step >= last for look in seen):
            raise ValueError(f"looks must differ and come before step {last}, got {self.looks}")
        if not self.prompts or not self.rewards:
            raise ValueError(
                f"a recording needs prompts and rewards, got {self.prompts} and {self.rewards}"
            )
        if self.seeds < 1 or not 0 <= self.first_seed <= 2**64 - self.seeds:
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
        units = math.prod(-(-n // of) for n, of in zip(self.shape, self.block, strict=False))
        if units > MOST_UNITS or math.prod(self.shape) > MOST_SCORES:
            raise ValueError(
                f"a recording may hold {MOST_SCORES:,} scores in {MOST_UNITS:,} units of work, got "
                f"{math.prod(self.shape):,} in {units:,}"
            )
        guided, size = self.price.guided, self.price.start.size
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
    def seen(self) -> tuple[EstimatorAt | None, ...]:
        """The looks; None for a coarse rollout, whose scores are left alone."""
        return tuple(
            None if _ROLLOUT.fullmatch(text) else EstimatorAt.read(text) for text in self.looks
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(P, S, C, R) of all scores: of the K+1 steps, then of the looks."""
        return len(self.prompts), self.seeds, len(self.levels) + len(self.looks), len(self.rewards)

    def units(self) -> list[Unit]:
        """The units of work, block by block: all seeds of the first prompts, then the next
        prompts."""
        p, s = len(self.prompts), self.seeds
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
            looks={seen: scores[:, :, points + i] for i, seen in enumerate(self.seen) if seen},
        )

    def to_json(self) -> dict[str, Json]:
        """The settings after a round trip through JSON. ValueError where `info` is not
        JSON-ready."""
        try:
            price = _price_to_json(self.price)
            data = {"format": FORMAT, **dataclasses.asdict(self), "price": price}
            settings = dict(json.loads(json.dumps(data)))
        except TypeError as error:
            raise ValueError(f"info must hold plain JSON values: {error}") from None
        for name in NEWER:  # as in older recordings
            if not settings[name]:
                del settings[name]
        return settings

    def digest(self) -> str:
        """SHA-256 of the settings, in hexadecimal, whatever the order of their JSON."""
        return digest(self.to_json())

    @classmethod
    def read(cls, text: str, where: Path) -> tuple[Header, dict[str, Json]]:
        """A header from JSON, and the other keys of that JSON.

        ValueError that names `where` for what is no header, a damaged one, or one of another
        format.
        """
        data = files.parse_json(text, where)
        if not isinstance(data, dict) or "format" not in data:
            raise ValueError(f"{where} does not describe a recording of ttsnap")
        if data["format"] != FORMAT:
            there = str(data["format"])[:40]
            raise ValueError(
                f"{where} has format {there}, this ttsnap reads {FORMAT}; update ttsnap"
            )
        if HEADER_CRC in data and data[HEADER_CRC] != checksum(
            {k: v for k, v in data.items() if k != HEADER_CRC}
        ):
            raise ValueError(
                f"{where} is damaged: its header does not have the checksum with which it was"
                " written"
            )
        names = [f.name for f in dataclasses.fields(cls)]
        missing = [name for name in names if name not in data and name not in NEWER]
        if missing:
            raise ValueError(f"{where} is damaged: it lacks {missing}")
        return cls._from(data, where), {
            k: v for k, v in data.items() if k not in (*names, "image_nfe")
        }

    @classmethod
    def _from(cls, data: Mapping[str, Json], where: Path) -> Header:
        hints = get_type_hints(cls)
        try:
            plain = {
                name: check(name, data[name], hints[name])
                for name in data
                if name in hints and name != "price"
            }
            price = _price(_object("price", data["price"]), data.get("image_nfe"))
            return cls(**plain, price=price)
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


def checksum(about: Mapping[str, Json]) -> int:
    """CRC-32 of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _object(name: str, value: Json) -> Mapping[str, Json]:
    """ValueError for what has no keys."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold keys and values, got {short(value)}")
    return value


def _price(data: Mapping[str, Json], image_nfe: Json) -> Price:
    """A price from JSON. The oldest recordings have `decode_estimates` for `estimates`, and no
    guidance."""
    if missing := sorted({"flops", "seconds", "passes_per_nfe"} - set(data)):
        raise ValueError(f"price lacks {missing}")
    seconds, guided = data["seconds"], data.get("guided")
    estimates = data.get("estimates", "decode" if data.get("decode_estimates", True) else "nothing")
    if estimates not in ("decode", "preview", "nothing"):
        raise ValueError(
            f"estimates must be decode, preview or nothing, got {str(estimates)[:40]!r}"
        )
    return Price(
        flops=_rates(_object("flops", data["flops"])),
        seconds=None if seconds is None else _rates(_object("seconds", seconds)),
        estimates=str(estimates),
        guided=None if guided is None else build(GuidedSteps, guided, "guided."),
        start=_start(data, image_nfe),
        **{name: check(name, data[name], int) for name in COUNTS if name in data},
    )


def _rates(data: Mapping[str, Json]) -> Rates:
    names = {kind.one: kind.name for kind in KINDS} | {"call": "call"}
    if unknown := sorted(set(data) - set(names)):
        raise ValueError(
            f"prices are of {', '.join(names)}; this ttsnap knows no {unknown}, update it"
        )
    return Rates(
        **{names[key]: check(f"the price of {key}", value, float) for key, value in data.items()}
    )


def _price_to_json(price: Price) -> dict[str, Json]:
    """A price as `_price` reads it. Drafters and frames are left out where there are none, as in
    older files."""
    seconds = None if price.seconds is None else _rates_to_json(price.seconds)
    data = dataclasses.asdict(price) | {"flops": _rates_to_json(price.flops), "seconds": seconds}
    del data["tokens"], data["features"]  # a recording asks no judge, and compares no images
    for name in ("passes_per_draft", "more_calls", "bases"):
        if not data[name]:
            del data[name]
    if price.start == AS_NOISE:
        del data["start"]
    else:
        taken = price.start.cost.named().items()
        data["start"]["cost"] = {kind: amount for kind, amount in taken if amount}
    return data


def _start(price: Mapping[str, Json], image_nfe: Json) -> Start:
    """How seeds begin. Older files have it as `begin_calls` or `groups` of a price, and as
    `image_nfe` of the header."""
    made = {"image_nfe": image_nfe}
    if (groups := price.get("groups")) is not None:
        keys, groups = ("size", "nfe"), _object("groups", groups)
        size, nfe = (check(f"groups.{key}", groups.get(key), int) for key in keys)
        whole: Json = {"nfe": size * nfe, "coupled": size * nfe}
        made |= {"size": size, "first": nfe, "cost": whole}
    elif "begin_calls" in price:
        made["cost"] = {"draft_calls": price["begin_calls"]}
    return build(Start, price.get("start", made), "start.")


def _rates_to_json(rates: Rates) -> dict[str, float]:
    """Rates by the singular of each kind, rare ones last, as in all recordings so far."""
    priced = list(zip(KINDS, rates.amounts(), strict=True))
    usual = {kind.one: rate for kind, rate in priced if not kind.rare}
    rare = {kind.one: rate for kind, rate in priced if kind.rare and (rate or not kind.newer)}
    return usual | {"call": rates.call} | rare
