"""Budgets and ledgers: what a move costs, what has been spent, what may still be spent.

Everything here is exact and known before a move runs, so that a budget is never exceeded. Seconds are the
exception: no one knows them beforehand. They are planned with measured rates and enforced by the search loop's
deadline (see search.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from ttsnap.moves import ascends, drafted, mixes
from ttsnap.types import BoolArray, Cost, Engine, Grid, IntArray, Move, Particles, Task

_SI = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
NOTHING = Cost()
_EXAMPLES = "400nfe, 20images, medium, 2pflop, 30s, 5min, 100decodes, or several as 400nfe,30s"
EFFORTS = {"low": 5.0, "medium": 20.0, "high": 80.0}
"""Presets, in images' worth of evaluations."""
MOST = {"flops": 1e30, "seconds": 1e9, "images": 1e9}
"""The largest caps; 1e15 for the others, which are counted in whole units: sums stay exact, and far from overflow."""


@dataclass(frozen=True)
class Rates:
    """A price per unit of Cost, in FLOPs or in seconds. `call` is a fixed overhead per denoiser batch.

    `gradient` and `backward` are backward passes alone: their forward halves are among the decodes, reward calls and
    evaluations of a Cost, so that nothing is paid twice.
    """

    nfe: float = 0.0
    decode: float = 0.0
    reward_call: float = 0.0
    call: float = 0.0
    preview: float = 0.0
    gradient: float = 0.0
    backward: float = 0.0

    def of(self, cost: Cost) -> float:
        decoding = self.decode * cost.decodes + self.preview * cost.previews
        return self.nfe * cost.nfe + decoding + self.reward_call * cost.reward_calls + self.pulling(cost)

    def pulling(self, cost: Cost) -> float:
        """What the backward passes of a cost take."""
        return self.gradient * cost.gradients + self.backward * cost.backwards

    def pixels(self, estimates: str) -> float:
        """What making pixels of one unfinished estimate takes; `estimates` as in Price."""
        return {"decode": self.decode, "preview": self.preview, "nothing": 0.0}[estimates]


@dataclass(frozen=True)
class Guided:
    """Which steps (K,) a reward's gradient guides, and whether it goes back `through` the denoiser (guidance.py).

    A particle that moves on from such a step takes one gradient there, which its siblings share. Where it goes back
    through the denoiser it is had with the evaluation, or by another one where that was made without.
    """

    steps: tuple[bool, ...]
    through: bool

    @cached_property
    def at(self) -> BoolArray:
        """(K+1,) steps."""
        return np.array([*self.steps, False])

    @cached_property
    def before(self) -> IntArray:
        """(K+1,) gradients that it takes to get from noise to each step."""
        return np.concatenate([[0], np.cumsum(self.steps)])


@dataclass(frozen=True)
class Price:
    """What one unit costs on this engine. `seconds` is None until it has been measured.

    estimates: what scoring an unfinished estimate takes: a "decode", a "preview" by a cheap VAE, or "nothing". A
    finished image always takes a decode. depth: evaluations that the gradient of a finished image goes back through.
    asked: rewards that a gradient asks; each is a reward call, and the decode that they share is one, too.
    """

    flops: Rates = Rates()
    seconds: Rates | None = None
    passes_per_nfe: int = 1
    estimates: str = "decode"
    guided: Guided | None = None
    depth: int = 0
    asked: int = 1

    def __post_init__(self) -> None:
        for name, least in (("passes_per_nfe", 1), ("depth", 0), ("asked", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a price must be at least {least}, got {getattr(self, name)}")

    def of_gradients(self, gradients: int, backwards: int, nfe: int = 0) -> Cost:
        """The cost of so many gradients, which go back through `backwards` evaluations, of which `nfe` are new."""
        return Cost(nfe, gradients, gradients * self.asked, gradients=gradients, backwards=backwards)


PLAIN = Price()


@dataclass(frozen=True)
class Budget:
    """Caps for one prompt; None is no cap. `nfe`, `decodes`, `reward_calls` in units of Cost, `flops`, `seconds`.

    `images` caps evaluations as well, in units of one image's: `on` turns it into `nfe` for a grid.
    """

    nfe: int | None = None
    decodes: int | None = None
    reward_calls: int | None = None
    flops: float | None = None
    seconds: float | None = None
    images: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            most = MOST.get(f.name, 1e15)
            if value is not None and not (isinstance(value, int | float | np.integer) and 0 < value <= most):
                shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
                raise ValueError(f"budget {f.name} must be a positive finite number up to {most:g}, got {shown}")

    @classmethod
    def parse(cls, text: str | Budget | int | None) -> Budget:
        """Read "400nfe", "2pflop", "30s", "5min", several with commas; a bare whole number is in NFE."""
        if text is None:
            return cls()
        if isinstance(text, Budget):
            return text
        if isinstance(text, str) and text.strip().lower() in EFFORTS:
            return cls.of_effort(text.strip().lower())
        caps: dict[str, Any] = {}
        for part in str(text).lower().replace("_", "").split(","):
            match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", part)
            name, value = _read_part(match.group(1), match.group(2)) if match else ("", 0.0)
            if not name or name in caps:
                raise ValueError(f"cannot read budget {text!r}; write it like {_EXAMPLES}")
            caps[name] = value if name in ("flops", "seconds", "images") else int(value)
        return cls(**caps)

    @classmethod
    def of_effort(cls, effort: str | float) -> Budget:
        """low, medium or high (5, 20, 80 images' worth of evaluations), or a fraction of high in (0, 1]."""
        if isinstance(effort, str) and effort in EFFORTS:
            return cls(images=EFFORTS[effort])
        try:
            fraction = float(effort)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            raise ValueError(f"effort is {', '.join(EFFORTS)} or a fraction of high in (0, 1], got {effort!r}")
        return cls(images=max(1.0, fraction * EFFORTS["high"]))

    def on(self, grid: Grid) -> Budget:
        """With `images` counted in this grid's evaluations."""
        if self.images is None:
            return self
        nfe = int(self.images * grid.nfe + 1e-9)
        return replace(self, images=None, nfe=nfe if self.nfe is None else min(nfe, self.nfe))

    def __str__(self) -> str:
        units = {"nfe": "nfe", "decodes": "decodes", "reward_calls": "rewards", "seconds": "s", "images": "images"}
        caps = [f"{getattr(self, k):.6g}{u}" for k, u in units.items() if getattr(self, k) is not None]
        if self.flops is not None:
            prefix, size = max((x for x in _SI.items() if x[1] <= self.flops), key=lambda x: x[1], default=("", 1.0))
            caps.append(f"{self.flops / size:.6g}{prefix}flop")
        return ",".join(caps) or "no limit"

    def shortfall(self, cost: Cost, price: Price, *, seconds: bool = False) -> str | None:
        """None when `cost` fits, else which cap it breaks, for a message. Seconds only where asked for."""
        needs: list[tuple[str, float, float | None]] = [
            ("NFE", cost.nfe, self.nfe),
            ("decodes", cost.decodes, self.decodes),
            ("reward calls", cost.reward_calls, self.reward_calls),
        ]
        if self.flops is not None:
            needs.append(("FLOPs", price.flops.of(cost), self.flops))
        if seconds and price.seconds is not None:
            needs.append(("seconds", price.seconds.of(cost), self.seconds))
        for name, need, cap in needs:
            if cap is not None and need > cap * (1 + 1e-12):
                return f"{need:.6g} {name} of {cap:.6g}"
        return None


def task_of(budget: Budget, engine: Engine, keep: int = 1, shared: bool = False) -> Task:
    """The task of one search under `budget`, in evaluations: by the cap that affords the fewest images."""
    grid, rewards = engine.grid, len(engine.reward_names)
    found = [(float(budget.nfe), 0.0, 0.0)] if budget.nfe is not None else []
    for cap, rates in ((budget.flops, engine.price.flops), (budget.seconds, engine.price.seconds)):
        if cap is not None and rates is not None and rates.nfe > 0:
            check, scoring = rates.pixels(engine.price.estimates), rewards * rates.reward_call
            whole = finish_cost(0, False, grid, rewards, engine.price)
            unit = (rates.of(whole) - rates.decode - scoring) / grid.nfe  # an evaluation with its share of gradients
            found.append((cap / unit, (rates.decode + scoring) / unit, (check + scoring) / unit))
    allowance, score, check = min(found, key=lambda f: f[0] / (grid.nfe + f[1]), default=(np.inf, 0.0, 0.0))
    return Task(grid, keep, allowance, score, shared, None if engine.price.estimates == "decode" else check)


def _read_part(number: str, unit: str) -> tuple[str, float]:
    try:
        value = float(number)
    except ValueError:
        return "", 0.0
    if not np.isfinite(value):
        return "", 0.0
    if unit in ("image", "images"):
        return "images", value
    if unit in _SECONDS:
        return "seconds", value * _SECONDS[unit]
    if unit in ("", "nfe", "nfes") and value == int(value):
        return "nfe", value
    if unit in ("decode", "decodes") and value == int(value):
        return "decodes", value
    if unit in ("reward", "rewards") and value == int(value):
        return "reward_calls", value
    flop = re.fullmatch(r"([kmgtpe]?)flops?", unit)
    return ("flops", value * _SI[flop.group(1)]) if flop else ("", 0.0)


def price_move(move: Move, particles: Particles, grid: Grid, rewards: int, price: Price = PLAIN) -> Cost:
    """Exact cost of a move, for so many rewards; of `price` count estimates, guided, depth and asked.

    A row from step a to b takes the evaluations of the steps between (b - a, where each takes one), one more if it is
    scored before the end (the x0 estimate at b), and one less if the estimate at a is already paid. Children of one
    particle share the evaluation at its step.
    """
    ahead = move.score & (move.stop < grid.steps)
    scored, early = int(np.count_nonzero(move.score)), int(np.count_nonzero(ahead))
    calls = int((grid.calls[move.stop] - grid.calls[move.start]).sum()) + early
    if move.draft is not None:
        calls += int(drafted(move, grid).sum())
    own = move.parent >= 0
    uids, start = move.parent[own], move.start[own]
    uses = ((move.stop > move.start) | ahead)[own] & (start == particles.step[uids]) & ~mixes(move)[own]
    shared = uids[uses]
    calls -= len(shared) - len(set(shared[~particles.cached[shared]].tolist()))
    decodes = scored if price.estimates == "decode" else scored - early
    cost = Cost(calls, decodes, scored * rewards, early if price.estimates == "preview" else 0)
    if move.ascend is not None:  # a particle's gradient is paid once
        up = np.unique(move.parent[ascends(move)])
        new = len(up) if particles.pulled is None else int((~particles.pulled[up]).sum())
        cost += price.of_gradients(new, new * price.depth, new * price.depth)
    return cost if price.guided is None else cost + _gradients(move, particles, price, price.guided)


def _gradients(move: Move, particles: Particles, price: Price, guided: Guided) -> Cost:
    """What guidance adds to a move."""
    pulls = int((guided.before[move.stop] - guided.before[move.start]).sum())
    own = np.flatnonzero((move.parent >= 0) & (move.stop > move.start) & ~mixes(move))
    shared = move.parent[own][(move.start[own] == particles.step[move.parent[own]]) & guided.at[move.start[own]]]
    parents = np.unique(shared)
    paid = np.zeros(len(parents), bool) if particles.pulled is None else particles.pulled[parents]
    pulls -= len(shared) - int((~paid).sum())
    again = int((particles.cached[parents] & ~paid).sum()) if guided.through else 0
    return price.of_gradients(pulls, pulls if guided.through else 0, again)


def finish_cost(
    step: IntArray | int,
    cached: BoolArray | bool,
    grid: Grid,
    rewards: int,
    price: Price = PLAIN,
    pulled: BoolArray | bool = False,
) -> Cost:
    """Cost of taking a particle from `step` to a finished, scored image; of several (n,), the one that takes least."""
    step, cached = np.atleast_1d(step), np.atleast_1d(cached)
    calls = grid.nfe - grid.calls[step] - (cached & (step < grid.steps))
    if (guided := price.guided) is None:
        return Cost(int(calls.min()), 1, rewards)
    pulls = guided.before[-1] - guided.before[step] - pulled
    again = cached & guided.at[step] & ~np.asarray(pulled) if guided.through else np.zeros(len(step), bool)
    least = np.lexsort((pulls, calls + again))[0]
    gradients = int(pulls[least])
    cost = price.of_gradients(gradients, gradients if guided.through else 0, int(again[least]))
    return Cost(int(calls[least]), 1, rewards) + cost


class Ledger:
    """Charges against a budget, with a reserve that guarantees one finished image.

    `reserve` is held back while nothing is finished. A ledger may have a `parent` that several prompts share: a
    charge must then fit both, and the reserves of the other prompts count in the parent.
    """

    def __init__(self, budget: Budget, price: Price, parent: Ledger | None = None) -> None:
        if budget.images is not None:
            raise ValueError(f"budget {budget} must be counted on a grid first (Budget.on)")
        self.budget, self.price, self.parent = budget, price, parent
        self.spent = Cost()
        self.reserve = Cost()

    def affords(self, cost: Cost, reserve: Cost = NOTHING) -> bool:
        """Whether `cost` fits while `reserve` (which replaces the present one) stays covered."""
        if self.budget.shortfall(self.spent + cost + reserve, self.price) is not None:
            return False
        return self.parent is None or self.parent.affords(cost, self.parent.reserve - self.reserve + reserve)

    def hold(self, reserve: Cost) -> None:
        """Set the amount held back."""
        if self.parent is not None:
            self.parent.hold(self.parent.reserve - self.reserve + reserve)
        self.reserve = reserve

    def charge(self, cost: Cost, reserve: Cost = NOTHING) -> None:
        """Spend `cost` and hold `reserve` from now on. Raises ValueError when it does not fit."""
        if not self.affords(cost, reserve):
            raise ValueError(f"charge {cost} with reserve {reserve} exceeds {self.budget}; spent {self.spent}")
        self.hold(reserve)
        self._add(cost)

    def refund(self, cost: Cost) -> None:
        """Take back what was charged for work that was cancelled before it ran."""
        self._add(Cost() - cost)

    def _add(self, cost: Cost) -> None:
        self.spent = self.spent + cost
        if self.parent is not None:
            self.parent._add(cost)

    def summary(self) -> dict[str, Any]:
        """JSON-ready: counts, forward passes, FLOPs by kind, flops_gradient being those of backward passes alone."""
        flops, c = self.price.flops, self.spent
        return {
            "nfe": c.nfe,
            "forward_passes": c.nfe * self.price.passes_per_nfe,
            "decodes": c.decodes,
            "previews": c.previews,
            "reward_calls": c.reward_calls,
            "flops": flops.of(c),
            "flops_denoise": flops.nfe * c.nfe,
            "flops_decode": flops.decode * c.decodes + flops.preview * c.previews,
            "flops_reward": flops.reward_call * c.reward_calls,
            "gradients": c.gradients,
            "flops_gradient": flops.pulling(c),
            "budget": str(self.budget) if self.parent is None else f"{self.parent.budget} shared by all prompts",
        }
