"""Budgets: what a search may spend, read from what the user writes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ttsnap.core.cost import KINDS, NAMES, Cost, PerKind, Rates
from ttsnap.core.grid import Grid, Task
from ttsnap.core.names import nearest
from ttsnap.core.plans import image_cost
from ttsnap.core.price import Price
from ttsnap.core.protocols import Engine
from ttsnap.core.start import Start

_SI = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_SIZES = {
    "image": ("images", 1.0),
    **{f"{prefix}flop": ("flops", size) for prefix, size in _SI.items()},
    **{
        unit: ("seconds", size)
        for unit, size in {"ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}.items()
    },
}
_EXAMPLES = "400nfe, 20images, medium, 2pflop, 30s, 5min, 100decodes, or several as 400nfe,30s"
_KIND_OF = {kind.unit.removesuffix("s"): kind for kind in KINDS}
UNITS = (*_KIND_OF, *_SIZES)
"""Of budgets, in the singular."""
EFFORTS = {"low": 5.0, "medium": 20.0, "high": 80.0}
"""Presets, in images' worth of evaluations."""
MOST = {"flops": 1e30, "seconds": 1e9, "images": 1e9}
"""The largest caps; 1e15 for the others, which are counted in whole units: sums stay exact, and far
from overflow. The largest of FLOPs or seconds holds nothing: a search only counts its plan in it,
as `dry_costs` does."""


@dataclass(frozen=True)
class Budget(PerKind[int | None], unset=None):
    """Caps for one prompt, in units of Cost; None: no cap."""

    flops: float | None = None
    seconds: float | None = None
    """Of time, by the engine's price."""
    images: float | None = None
    """On evaluations, in units of one image's; `on` turns it into `nfe` for a grid."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = MOST.get(name, 1e15)
            if value is not None and not (
                isinstance(value, int | float | np.integer) and 0 < value <= most
            ):
                shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
                raise ValueError(
                    f"budget {name} must be a number above 0, at most {most:,.10g}, got {shown}"
                )

    @classmethod
    def parse(cls, text: str | Budget | int | None, effort: str | float | None = None) -> Budget:
        """Read "400nfe", "20images", "2pflop", "30s", "5min", several with commas; or an effort in
        its place.

        ValueError for both, for what cannot be read, and for a number without a unit, which could
        be evaluations or images.
        """
        if text is not None and effort is not None:
            raise ValueError(f"give a budget or an effort, not both: {text} and {effort}")
        if text is None:
            return cls() if effort is None else cls.of_effort(effort)
        if isinstance(text, Budget):
            return text
        if isinstance(text, str) and text.strip().lower() in EFFORTS:
            return cls.of_effort(text.strip().lower())
        caps: dict[str, Any] = {}
        for part in str(text).lower().replace("_", "").split(","):
            match = re.fullmatch(r"\s*(-?[0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", part)
            number, unit = match.groups() if match else ("", "")
            if number and not unit:
                raise ValueError(
                    f"budget {str(text)[:80]!r} does not say of what; write {number[:40]}nfe"
                    f" (evaluations of the denoiser) or {number[:40]}images (as many evaluations as"
                    " so many images take)"
                )
            name, value = _read_part(number, unit)
            if not name or name in caps:
                near = nearest(unit, UNITS)
                meant = (
                    f"did you mean {number}{near}? Write"
                    if near not in (None, unit.removesuffix("s"), unit)
                    else "write"
                )
                raise ValueError(f"cannot read budget {text!r}; {meant} it like {_EXAMPLES}")
            caps[name] = int(value) if name in NAMES else value
        return cls(**caps)

    @classmethod
    def of_effort(cls, effort: str | float) -> Budget:
        """low, medium or high (5, 20, 80 images' worth of evaluations), or a fraction of high in
        (0, 1]."""
        if isinstance(effort, str) and effort in EFFORTS:
            return cls(images=EFFORTS[effort])
        try:
            fraction = float(effort)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            raise ValueError(
                f"effort is {', '.join(EFFORTS)} or a fraction of high in (0, 1], got {effort!r}"
            )
        return cls(images=max(1.0, fraction * EFFORTS["high"]))

    def on(self, grid: Grid, start: Start) -> Budget:
        """With `images` counted in this grid's evaluations; where particles begin on the way, in
        those of an image from noise."""
        if self.images is None:
            return self
        nfe = int(self.images * (start.image_nfe or grid.nfe) + 1e-9)
        return replace(self, images=None, nfe=nfe if self.nfe is None else min(nfe, self.nfe))

    def times(self, n: int) -> Budget:
        """n times every cap."""
        return Budget(
            **{name: None if cap is None else cap * n for name, cap in asdict(self).items()}
        )

    def __str__(self) -> str:
        caps = [f"{cap:.6g}{KINDS[i].unit}" for i, cap in self._capped]
        caps += [f"{self.seconds:.6g}s"] if self.seconds is not None else []
        caps += [f"{self.images:.6g}images"] if self.images is not None else []
        if self.flops is not None:
            prefix, size = max(
                (x for x in _SI.items() if x[1] <= self.flops),
                key=lambda x: x[1],
                default=("", 1.0),
            )
            caps.append(f"{self.flops / size:.6g}{prefix}flop")
        return ",".join(caps) or "no limit"

    def shortfall(self, cost: Cost, price: Price, *, seconds: bool = False) -> str | None:
        """None when `cost` fits, else which cap it breaks, for a message. seconds: whether that cap
        counts."""
        broken = self.broken(cost, price, seconds=seconds)
        return broken and f"{broken[1]:.6g} {broken[0]}"

    def broken(
        self, cost: Cost, price: Price, *, seconds: bool = False
    ) -> tuple[str, float, float] | None:
        """The first cap that `cost` breaks: its name, what is needed, and what there is."""
        return next(
            (each for each in self._needs(cost, price, seconds) if each[1] > each[2] * (1 + 1e-12)),
            None,
        )

    def share(self, cost: Cost, price: Price, *, seconds: bool = False) -> float:
        """The share of the tightest cap that `cost` takes: up to 1 where it fits, 0 without
        caps."""
        return max((need / cap for _, need, cap in self._needs(cost, price, seconds)), default=0.0)

    def _needs(self, cost: Cost, price: Price, seconds: bool) -> list[tuple[str, float, float]]:
        """What `cost` takes of each cap that there is: its name, the amount, the cap."""
        # a cap in NFE holds drafts as well
        amounts = (price.evaluations(cost), *cost.amounts()[1:])
        needs: list[tuple[str, float, float]] = [
            (KINDS[i].label, amounts[i], cap) for i, cap in self._capped
        ]
        if self.flops is not None:
            needs.append(("FLOPs", price.flops.of(cost), self.flops))
        if seconds and self.seconds is not None and price.seconds is not None:
            needs.append(("seconds", price.seconds.of(cost), self.seconds))
        return needs

    @cached_property
    def _capped(self) -> list[tuple[int, int]]:
        """The kinds of cost that there is a cap on, by their place in KINDS, and the caps. Every
        charge reads them."""
        return [(i, cap) for i, cap in enumerate(self.amounts()) if cap is not None]


@dataclass(frozen=True)
class Cap:
    """The tightest cap of a budget: the one that affords the fewest images. Searches plan by it, in
    evaluations."""

    amount: float
    """Of the cap; inf where nothing caps."""
    rates: Rates
    """By which the cap is counted."""
    unit: float
    """What one evaluation takes of the cap, with its share of gradients."""
    unheld: Budget
    """The budget by which searches plan alike without an end."""
    engine: Engine

    def task(self, keep: int = 1, shared: bool = False) -> Task:
        """The task of one search."""
        grid = self.engine.grid
        price = self.engine.price
        rates = self.rates
        scoring = price.calls(len(self.engine.reward_names)) * rates.reward_calls
        features = price.features * rates.features
        pixels = rates.pixels(price.estimates) + (features if price.estimates != "nothing" else 0.0)
        check = None if price.estimates == "decode" else (pixels + scoring) / self.unit
        calls = self.engine.draft_calls
        score = (rates.decodes + scoring + features + price.bases * rates.base_calls) / self.unit
        allowance = self.amount / self.unit
        draft = rates.draft_calls / self.unit if calls else 0.0
        return Task(grid, keep, allowance, score, shared, check, calls, draft, price.start)

    def evaluations(self, cost: Cost) -> float:
        """What a cost takes, in the unit of a task's allowance."""
        return self.rates.of(cost) / self.unit


def tightest(budget: Budget, engine: Engine) -> Cap:
    """The cap that a search under `budget` plans by."""
    price = engine.price
    rewards = len(engine.reward_names)
    by_passes = Rates(nfe=1.0, draft_calls=price.nfe_per_draft)
    caps = [(float(budget.nfe), by_passes, Budget())] if budget.nfe is not None else []
    for amount, most, rates, unheld in (
        (budget.flops, MOST["flops"], price.flops, Budget(flops=MOST["flops"])),
        (budget.seconds, MOST["seconds"], price.seconds, Budget(seconds=MOST["seconds"])),
    ):
        if amount is not None and rates is not None and rates.nfe > 0:
            caps.append((np.inf if amount == most else amount, rates, unheld))
    whole = image_cost(engine.grid, rewards, price)
    amount, rates, unheld = min(
        caps, key=lambda cap: cap[0] / cap[1].of(whole), default=(np.inf, by_passes, Budget())
    )
    scoring = price.calls(rewards) * rates.reward_calls
    besides = (
        price.features * rates.features
        + price.bases * rates.base_calls
        + rates.of(price.start.cost)
    )
    unit = (rates.of(whole) - rates.decodes - scoring - besides) / engine.grid.nfe
    return Cap(amount, rates, unit, unheld, engine)


def task_of(budget: Budget, engine: Engine, keep: int = 1, shared: bool = False) -> Task:
    """The task of one search under `budget`."""
    return tightest(budget, engine).task(keep, shared)


def _read_part(number: str, unit: str) -> tuple[str, float]:
    try:
        value = float(number)
    except ValueError:
        value = np.inf
    for one in (unit, unit.removesuffix("s")) if np.isfinite(value) else ():
        if one in _SIZES:
            name, size = _SIZES[one]
            return name, value * size
        if one in _KIND_OF and value == int(value):
            return _KIND_OF[one].name, value
    return "", 0.0
