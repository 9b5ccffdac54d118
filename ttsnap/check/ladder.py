"""What the rungs of a check share: what is checked, what a rung found, and the folder from which a
check goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ttsnap.check.titles import title
from ttsnap.core import utility as utilities
from ttsnap.core.cost import Rates
from ttsnap.core.prompt import Prompt
from ttsnap.core.utility import Utility
from ttsnap.engine.live import LiveEngine
from ttsnap.files.run_folder import read_unit
from ttsnap.files.settings import Json, to_json
from ttsnap.files.writing import write_json
from ttsnap.options.sampler import SamplerOptions
from ttsnap.request.request import EngineSpec

DRAWS = 2000
"""Resamples of a bootstrap."""


def in_short(said: BaseException | str) -> str:
    """What an error or a service says, in a line that a terminal may show."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(said)).split()
    return " ".join(words)[:400] or type(said).__name__


@dataclass(frozen=True)
class Figure:
    """A number that was measured, with the interval that holds it in 19 of 20 cases or, of seconds,
    its extremes."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def cells(self) -> tuple[str, str]:
        """The number with its unit, and the interval, as text; "" without one."""
        interval = "" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.value:.3g} {self.unit}".strip(), interval

    def __str__(self) -> str:
        number, interval = self.cells()
        return f"{number} ({interval})" if interval else number

    @classmethod
    def over_prompts(
        cls, values: Sequence[float] | Any, below: Any = None, unit: str = ""
    ) -> Figure | None:
        """The mean of values (P,), or the ratio of two means, and its interval by resampling
        prompts. None where that is not known: with fewer than two prompts, or nothing to divide
        by."""
        top = np.asarray(values, float)
        under = np.ones_like(top) if below is None else np.asarray(below, float)
        known = np.isfinite(top) & np.isfinite(under)
        top = top[known]
        under = under[known]
        if len(top) < 2 or under.mean() <= 0:
            return None
        draws = np.random.default_rng(0).integers(len(top), size=(DRAWS, len(top)))
        means = under[draws].mean(1)
        low, high = np.quantile(top[draws].mean(1)[means > 0] / means[means > 0], (0.025, 0.975))
        value = top.mean() / under.mean()
        n = len(top)
        # Resamples of few prompts vary too little: as much wider as Student's t is than the normal
        # distribution.
        wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * np.sqrt(n / (n - 1))
        return cls(
            float(value),
            float(value + wider * (low - value)),
            float(value + wider * (high - value)),
            unit,
        )

    @classmethod
    def of_seconds(cls, call: Callable[[], object], rows: int = 1) -> Figure:
        """Seconds a row: the median of three calls after a first one, which may load or compile;
        fewer of slow ones."""
        taken: list[float] = []
        while not taken or (len(taken) < 4 and sum(taken) < 10):
            begin = time.perf_counter()
            call()
            taken.append((time.perf_counter() - begin) / rows)
        timed = taken[1:] or taken
        return cls(float(np.median(timed)), min(timed), max(timed), "s")


@dataclass(frozen=True)
class Known:
    """What later rungs and the verdict need of a rung beside its figures."""

    batch_size: int | None = None
    """The best one."""
    seconds: Rates | None = None
    """Of each unit, as a search took them."""
    varied: bool | None = None
    """Whether the seeds of a prompt differ in reward."""
    latest: str | None = None
    """The name of the rank correlation of the last estimate before the finished image."""
    schedules: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """By the search that was compared, its algorithm as --algorithm reads it."""


@dataclass
class Rung:
    """What a rung found."""

    name: str
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the names of `titles`."""
    said: list[str] = field(default_factory=list)
    """What holds, in our own words: evidence shows them, and names nothing of a user's."""
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be measured, by name, and why, which evidence leaves out."""
    holds: bool | None = None
    """Whether what it is for holds; None where that is not known."""
    done: bool = False
    """Whether nothing is left that more time would add."""
    seconds: float = 0.0
    known: Known = Known()

    def note(self, name: str, figure: Figure | None, why: str) -> None:
        """Keep a figure, or why there is none. What is not finite is none."""
        if figure is None or not np.isfinite(figure.value):
            self.missing[name] = why
        else:
            self.figures[name] = figure

    def of(self, word: str) -> dict[str, Figure]:
        """The figures whose names begin with this word, by what they are of."""
        begin = f"{word}:"
        return {
            name.removeprefix(begin): figure
            for name, figure in self.figures.items()
            if name.startswith(begin)
        }

    def lines(self) -> list[str]:
        """All of it as lines to read."""
        figures = [f"{title(name)}: {figure}" for name, figure in self.figures.items()]
        missing = [f"{title(name)}: not measured: {why}" for name, why in self.missing.items()]
        return [*figures, *self.said, *missing]


@dataclass
class Setup:
    """What is checked."""

    pipe: Any
    """The search pipeline, on its device."""
    spec: EngineSpec
    """Complete."""
    prompts: tuple[Prompt, ...]
    out: Path
    """Where rungs and recordings are kept."""
    draft: str | None = None
    """A drafter as `draft=` takes it."""
    judged: bool = False
    """Whether the last reward knows what is right and chooses nothing."""
    say: Callable[[str], None] = print
    rewards: Sequence[Any] | None = None
    """Loaded: those of the spec, by which images are chosen, then perhaps one that knows what is
    right; None: an engine loads those of the spec."""
    deadline: float = float("inf")
    """Of the rung under way, on `time.monotonic`."""
    found: dict[str, Rung] = field(default_factory=dict)
    """Rungs before this one."""

    @property
    def left(self) -> float:
        """Seconds that the rung under way still has."""
        return self.deadline - time.monotonic()

    @property
    def utility(self) -> Utility:
        """By which images are chosen."""
        return utilities.first(utilities.mean, len(self.rewards or self.spec.rewards) - self.judged)

    @property
    def cost(self) -> Known:
        """What the cost rung found; nothing where it did not run."""
        return self.found["cost"].known if "cost" in self.found else Known()

    @property
    def drafted(self) -> SamplerOptions:
        """The sampler with the drafter, if there is one, whose drafts only rank seeds."""
        return replace(self.spec.sampler.from_noise(), draft=self.draft)

    def engine(
        self, batch_size: int | None = None, sampler: SamplerOptions | None = None
    ) -> LiveEngine:
        """An engine without a drafter, unless by this sampler. batch_size: in place of the given or
        fitting one."""
        spec = self.spec.sampled(sampler or replace(self.drafted, draft=None))
        engine: LiveEngine = self.pipe.engine_of(spec, rewards=self.rewards, batch_size=batch_size)
        return engine

    def climb(self, name: str, rung: Callable[[Setup], Rung], seconds: float) -> Rung:
        """What a rung finds within these seconds; what it found before, where it was done. Its
        errors are its result: nothing that fails keeps the others from running."""
        kept = self.out / f"{name}.json"
        before = 0.0
        if kept.exists():
            found = read_unit(Rung, kept, f"{name} is measured again")
            if found.done:
                self.found[name] = found
                return found
            before = found.seconds
        begin = time.monotonic()
        self.deadline = begin + seconds
        try:
            found = rung(self)
        # torch's out of memory is a RuntimeError
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            found = Rung(name, missing={name: in_short(error)})
        found.seconds = before + time.monotonic() - begin
        write_json(kept, to_json(found))
        self.found[name] = found
        return found
