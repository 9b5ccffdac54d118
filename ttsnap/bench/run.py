"""A benchmark: a search for every prompt by every algorithm, whose images are kept at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from ttsnap.bench.arms import Arm
from ttsnap.bench.folder import Found, OpenBench
from ttsnap.bench.layout import image_path, sheet_path, write_metadata
from ttsnap.bench.prompts import PromptRecord
from ttsnap.core.cost import Cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event, Result
from ttsnap.files.unbroken import Unbroken
from ttsnap.loop.request import SHORT, Listener, LoopSearch
from ttsnap.loop.search import foreseen, prepared
from ttsnap.options.record import BenchOptions
from ttsnap.results.media import save_png
from ttsnap.results.outputs import save_made
from ttsnap.results.record import SearchRecord, jsonable
from ttsnap.results.sheet import contact_sheet

STRIDE = 10**6
"""Distance of the first seeds of two repeats: more seeds than any search starts."""


class ArmSearch(Protocol):
    """A search, as far as a benchmark knows it."""

    @property
    def loop(self) -> LoopSearch:
        """What the loop runs."""


class Bench(NamedTuple):
    """What is run."""

    prompts: Sequence[PromptRecord]
    """Entries of a set."""
    texts: Sequence[Prompt]
    """The prompt of each entry, in the model's words and with its pictures."""
    arms: Sequence[Arm]
    searches: Mapping[str, ArmSearch]
    """That of each arm, by its name. All have the same budget, for each prompt, and the same
    utility."""
    options: BenchOptions

    @property
    def search(self) -> LoopSearch:
        """The first arm's."""
        return self.searches[self.arms[0].name].loop

    @property
    def images(self) -> int:
        """How many images it makes."""
        return len(self.prompts) * len(self.arms) * self.options.repeats


class Model(Protocol):
    """What searches run on."""

    def engine(self, arm: Arm) -> AbstractContextManager[Engine]:
        """An engine, until the block ends. ValueError for a sampler that does not fit."""

    def run(
        self,
        arm: Arm,
        search: LoopSearch,
        prompts: Sequence[Prompt],
        engine: Engine,
        listener: Listener,
        *,
        sheets: bool,
    ) -> tuple[list[Result], SearchRecord]:
        """Results of this search of an arm, as a call of the pipeline returns them, and their
        record. sheets: whether they have thumbnails."""


@dataclass(frozen=True)
class Work:
    """One search by one arm in one repeat."""

    arm: Arm
    repeat: int
    places: range
    """The prompts, by their places in `Bench.prompts`."""


def works(bench: Bench) -> Iterator[Work]:
    """All searches, in the order in which they run: the first algorithm's before the second's."""
    count = len(bench.prompts)
    size = bench.options.together or (16 if bench.search.shared else 1)
    for arm in bench.arms:
        for repeat in range(bench.options.repeats):
            for start in range(0, count, size):
                yield Work(arm, repeat, range(start, min(count, start + size)))


def run(bench: Bench, there: OpenBench, model: Model, on_done: Callable[[int], None]) -> None:
    """Run the searches that the folder lacks. Ctrl-C and SIGTERM wait for the one at hand.

    on_done: called with the number of images that are there, then with each further number. A
    search runs as a whole unless all its images are there. Images are then the same to the last bit
    as without an interruption, where the engine is deterministic for equal batches; under a budget
    in seconds it is not.

    ValueError, before an engine searches, where an algorithm does not fit it or the budget pays for
    no image.
    """
    left = missing(bench, there)
    on_done(bench.images - sum(len(work.places) for work in left))
    if not left:
        return
    firsts = list({work.arm.setup: work.arm for work in reversed(left)}.values())[::-1]
    for first in firsts[1:]:  # what does not fit is refused before anything is computed
        with model.engine(first) as engine:
            _fitted(bench, first, engine)
    for first in firsts:
        with model.engine(first) as engine:
            specs = _fitted(bench, first, engine)
            for work in left:
                if work.arm.setup == first.setup:
                    with Unbroken():
                        there.add(
                            _searched(
                                bench, work, specs[work.arm.name], engine, there, model, on_done
                            )
                        )


def missing(bench: Bench, there: OpenBench) -> list[Work]:
    """The searches whose images are not all there."""

    def done(work: Work) -> bool:
        return all(
            there.has(work.arm.folder, work.repeat, bench.prompts[place].index)
            for place in work.places
        )

    return [work for work in works(bench) if not done(work)]


class Foreseen(NamedTuple):
    """What an image takes, by a plan with random scores."""

    arm: str
    cost: Cost
    flops: float
    seconds: float
    images: int
    """How many there are to be."""


def plan(bench: Bench, model: Model) -> list[Foreseen]:
    """What an image of each arm takes. Seconds are measured, by a few calls of each engine."""
    found: dict[str, Foreseen] = {}
    for first in {arm.setup: arm for arm in reversed(bench.arms)}.values():
        with model.engine(first) as engine:
            engine.calibrate()
            for name, spec in _fitted(bench, first, engine).items():
                cost, seconds = foreseen(spec, engine)
                flops = engine.price.flops.of(cost)
                images = bench.images // len(bench.arms)
                found[name] = Foreseen(name, cost, flops, seconds or math.nan, images)
    return [found[arm.name] for arm in bench.arms]


def _fitted(bench: Bench, first: Arm, engine: Engine) -> dict[str, LoopSearch]:
    """The search of each arm that shares an engine with this one, by name, with as many seeds as
    the budget affords."""
    engine.check(bench.texts)
    specs: dict[str, LoopSearch] = {}
    for arm in [arm for arm in bench.arms if arm.setup == first.setup]:
        try:
            specs[arm.name] = prepared(bench.searches[arm.name].loop, engine)
        except ValueError as error:
            raise ValueError(f"{arm.name}: {error}") from error
    return specs


def _searched(
    bench: Bench,
    work: Work,
    spec: LoopSearch,
    engine: Engine,
    there: OpenBench,
    model: Model,
    on_done: Callable[[int], None],
) -> list[Found]:
    """Search, and write the images with their records and sheets."""
    texts = [bench.texts[place] for place in work.places]
    arm = work.arm.folder
    search = replace(spec, seed=(bench.search.seed + STRIDE * work.repeat) % 2**64)

    def listen(event: Event) -> None:
        if event.kind == "end":
            on_done(1)

    results, record = model.run(
        work.arm, search, texts, engine, listen, sheets=bench.options.sheets
    )
    if short := [result for result in results if result.spent.ended == SHORT]:
        raise ValueError(f"a search ended early and is not kept: {'; '.join(short[0].warnings)}")
    images = []
    for i, result in enumerate(results):
        prompt = bench.prompts[work.places[i]]
        write_metadata(there.folder, arm, prompt)
        path = image_path(there.folder, arm, prompt.index, work.repeat)
        if result.thumbnails:
            save_png(sheet_path(path), contact_sheet(result, result.thumbnails), ())
        save_made(path, result.best.pixels, record.of(result, index=i))
        images.append(_found(work, prompt, result, path))
    return images


def _found(work: Work, prompt: PromptRecord, result: Result, path: Path) -> Found:
    return Found(
        arm=work.arm.folder,
        repeat=work.repeat,
        index=prompt.index,
        image_bytes=path.stat().st_size,
        **result.best.to_json(),
        spent={name: jsonable(value) for name, value in result.spent.to_json().items()},
        warnings=result.warnings,
    )
