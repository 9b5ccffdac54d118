"""A benchmark: a search for every prompt by every algorithm, whose images are kept at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from ttsnap.bench.arms import Arm
from ttsnap.bench.folder import Found, OpenBench
from ttsnap.bench.layout import image_path, sheet_path, write_metadata
from ttsnap.bench.prompts import PromptRecord
from ttsnap.core.particles import Utility
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event, Result
from ttsnap.files.unbroken import Unbroken
from ttsnap.loop.budget import Budget
from ttsnap.loop.request import SearchSpec
from ttsnap.loop.search import prepared, searched
from ttsnap.options.record import BenchOptions
from ttsnap.results.media import save_png
from ttsnap.results.outputs import Recorder, Thumbnails, save_made
from ttsnap.results.record import SearchRecord, plain
from ttsnap.results.sheet import contact_sheet

STRIDE = 10**6
"""Distance of the first seeds of two repeats: more seeds than any search starts."""


class Bench(NamedTuple):
    """What is run."""

    prompts: Sequence[PromptRecord]
    """Entries of a set."""
    texts: Sequence[Prompt]
    """The prompt of each entry, in the model's words and with its pictures."""
    arms: Sequence[Arm]
    budget: Budget
    """The budget of each prompt, the same for all arms."""
    utility: Utility
    seed: int
    shared: bool
    options: BenchOptions

    @property
    def images(self) -> int:
        """How many images it makes."""
        return len(self.prompts) * len(self.arms) * self.options.repeats


class Model(Protocol):
    """What searches run on: engines of arms, and what is done with the results of a search."""

    def engine(self, arm: Arm) -> AbstractContextManager[Engine]:
        """An engine, until the block ends. ValueError for a sampler that does not fit."""

    def finished(self, results: list[Result], prompts: Sequence[Prompt], seen: Thumbnails) -> list[Result]:
        """Results with metrics that are only reported, and with thumbnails that pass the safety checker.

        prompts: by result. seen: thumbnails by result, as Recorder keeps them.
        """

    def record(self, arm: Arm, prompts: Sequence[Prompt]) -> SearchRecord:
        """That of a search of these prompts."""


@dataclass(frozen=True)
class Work:
    """One search by one arm in one repeat."""

    arm: Arm
    repeat: int
    places: range
    """The prompts, by their places in `Bench.prompts`."""


def works(bench: Bench) -> Iterator[Work]:
    """All searches, in the order in which they run: the first algorithm's before the second's."""
    count, size = len(bench.prompts), bench.options.together or (16 if bench.shared else 1)
    for arm in bench.arms:
        for repeat in range(bench.options.repeats):
            for start in range(0, count, size):
                yield Work(arm, repeat, range(start, min(count, start + size)))


def run(bench: Bench, there: OpenBench, model: Model, on_done: Callable[[int], None]) -> None:
    """Run the searches that the folder lacks. Ctrl-C and SIGTERM wait for the one at hand.

    on_done: called with the number of images that are there, then with each further number. A search runs as a whole
    unless all its images are there. Images are then the same to the last bit as without an interruption, where the
    engine is deterministic for equal batches; under a budget in seconds it is not.

    ValueError, before an engine searches, where an algorithm does not fit it or the budget pays for no image.
    """
    left = missing(bench, there)
    on_done(bench.images - sum(len(work.places) for work in left))
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
                        results = _search(bench, work, specs[work.arm.name], engine, on_done)
                        there.add(_written(bench, work, results, there, model))


def missing(bench: Bench, there: OpenBench) -> list[Work]:
    """The searches whose images are not all there."""

    def done(work: Work) -> bool:
        return all(there.has(work.arm.folder, work.repeat, bench.prompts[place].index) for place in work.places)

    return [work for work in works(bench) if not done(work)]


def _fitted(bench: Bench, first: Arm, engine: Engine) -> dict[str, SearchSpec]:
    """The search of each arm that shares an engine with this one, by name, with as many seeds as the budget affords."""
    engine.check(bench.texts)
    budget = bench.budget.on(engine.grid)
    arms = [arm for arm in bench.arms if arm.setup == first.setup]
    specs: dict[str, SearchSpec] = {}
    for arm in arms:
        try:
            specs[arm.name] = prepared(SearchSpec(arm.made, budget, bench.utility, shared=bench.shared), engine)
        except ValueError as error:
            raise ValueError(f"{arm.name}: {error}") from error
    return specs


def _search(
    bench: Bench, work: Work, spec: SearchSpec, engine: Engine, on_done: Callable[[int], None]
) -> tuple[list[Result], Thumbnails]:
    """The results of a search, and thumbnails where there are to be sheets."""
    recorder = Recorder()

    def listen(event: Event) -> None:
        if bench.options.sheets:
            recorder(event)
        if event.kind == "end":
            on_done(1)

    texts = [bench.texts[place] for place in work.places]
    seed = (bench.seed + STRIDE * work.repeat) % 2**64
    return searched(texts, replace(spec, seed=seed), engine, listen), recorder.thumbnails


def _written(
    bench: Bench, work: Work, found: tuple[list[Result], Thumbnails], there: OpenBench, model: Model
) -> list[Found]:
    """Write the images of a search, with their metadata and sheets."""
    texts, arm = [bench.texts[place] for place in work.places], work.arm.folder
    record = model.record(work.arm, texts)
    images = []
    for i, result in enumerate(model.finished(found[0], texts, found[1])):
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
        spent={name: plain(value) for name, value in result.spent.to_json().items()},
        warnings=result.warnings,
    )
