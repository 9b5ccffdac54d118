"""Runs a benchmark: searches for every prompt by every algorithm, and keeps each image as soon as it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
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
from ttsnap.files.writing import write_whole
from ttsnap.loop.budget import Budget
from ttsnap.loop.request import SearchSpec
from ttsnap.loop.search import prepared, search
from ttsnap.options.record import BenchOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results.outputs import Recorder, Thumbnails, save_made
from ttsnap.results.payload import for_prompt, payload_of, plain
from ttsnap.results.sheet import contact_sheet

STRIDE = 10**6
"""Repeat r starts from the seed r times so far on: more seeds than any search starts."""


class Bench(NamedTuple):
    """What is run. prompts: entries of a set; texts: what is searched for, by entry, in the model's words and with its
    pictures. budget: of each prompt, the same for all arms."""

    prompts: Sequence[PromptRecord]
    texts: Sequence[Prompt]
    arms: Sequence[Arm]
    budget: Budget
    utility: Utility
    seed: int
    shared: bool
    options: BenchOptions

    @property
    def images(self) -> int:
        """How many it makes."""
        return len(self.prompts) * len(self.arms) * self.options.repeats


class Model(Protocol):
    """What searches run on: engines by sampler, and what is done with the results of a search."""

    def engine(self, sampler: SamplerOptions) -> AbstractContextManager[Engine]:
        """An engine, until the block ends. ValueError for a sampler that does not fit."""

    def finished(self, results: list[Result], prompts: Sequence[Prompt], seen: Thumbnails) -> list[Result]:
        """The same with the metrics that are only reported, and with thumbnails, as far as the safety checker lets them
        pass. prompts: that of each result. seen: thumbnails by result, as Recorder keeps them.
        """

    def settings(self, arm: Arm, budget: Budget, prompts: Sequence[Prompt]) -> Mapping[str, object]:
        """What each PNG of a search of these prompts says, as results.outputs.write_results has it."""


@dataclass(frozen=True)
class Work:
    """One search: some prompts, by their places in Bench.prompts, by one arm in one repeat."""

    arm: Arm
    repeat: int
    places: range


def works(bench: Bench) -> Iterator[Work]:
    """All searches, in the order in which they run: the first algorithm's before the second's."""
    count, size = len(bench.prompts), bench.options.together
    for arm in bench.arms:
        for repeat in range(bench.options.repeats):
            for start in range(0, count, size):
                yield Work(arm, repeat, range(start, min(count, start + size)))


def run(bench: Bench, there: OpenBench, model: Model, on_done: Callable[[int], None]) -> None:
    """Run what the folder lacks. on_done: told how many more images are there, and at first how many were.

    A search whose images are not all there runs as a whole, as it would have without an interruption, so that they are
    the same to the last bit where the engine is deterministic for equal batches (under a budget in seconds it is not).

    ValueError before any of an engine's searches where an algorithm does not fit it or the budget pays for no image.
    """
    left = missing(bench, there)
    on_done(bench.images - sum(len(work.places) for work in left))
    samplers = list(dict.fromkeys(work.arm.sampler for work in left))
    for sampler in samplers[1:]:  # what does not fit is refused before anything is computed
        with model.engine(sampler) as engine:
            _fitted(bench, sampler, engine)
    for sampler in samplers:
        with model.engine(sampler) as engine:
            specs = _fitted(bench, sampler, engine)
            for work in left:
                if work.arm.sampler == sampler:
                    _search(work, specs[work.arm.name], bench, there, (engine, model, on_done))


def missing(bench: Bench, there: OpenBench) -> list[Work]:
    """The searches whose images are not all there."""

    def done(work: Work) -> bool:
        return all(there.has(work.arm.folder, work.repeat, bench.prompts[place].index) for place in work.places)

    return [work for work in works(bench) if not done(work)]


def _fitted(bench: Bench, sampler: SamplerOptions, engine: Engine) -> dict[str, SearchSpec]:
    """How each arm with this sampler searches, with as many seeds as the budget affords, by its name."""
    engine.check(bench.texts)
    budget = bench.budget.on(engine.grid)
    arms = [arm for arm in bench.arms if arm.sampler == sampler]
    specs: dict[str, SearchSpec] = {}
    for arm in arms:
        try:
            specs[arm.name] = prepared(SearchSpec(arm.made, budget, bench.utility, shared=bench.shared), engine)
        except ValueError as error:
            raise ValueError(f"{arm.name}: {error}") from error
    return specs


def _search(
    work: Work,
    spec: SearchSpec,
    bench: Bench,
    there: OpenBench,
    how: tuple[Engine, Model, Callable[[int], None]],
) -> None:
    """Search, write the images, and note them."""
    engine, model, on_done = how
    seed = (bench.seed + STRIDE * work.repeat) % 2**64

    recorder = Recorder()

    def listen(event: Event) -> None:
        if bench.options.sheets:
            recorder(event)
        if event.kind == "end":
            on_done(1)

    texts = [bench.texts[place] for place in work.places]
    results = search(
        texts,
        spec.algorithm,
        engine,
        spec.budget,
        utility=spec.utility,
        seed=seed,
        shared=spec.shared,
        on_event=listen,
    )
    settings = model.settings(work.arm, bench.budget, texts)
    prompts = [bench.prompts[place] for place in work.places]
    images = []
    for i, (prompt, result) in enumerate(
        zip(prompts, model.finished(results, texts, recorder.thumbnails), strict=True)
    ):
        write_metadata(there.folder, work.arm.folder, prompt)
        path = image_path(there.folder, work.arm.folder, prompt.index, work.repeat)
        if result.thumbnails:
            sheet = contact_sheet(result, result.thumbnails)
            write_whole(sheet_path(path), partial(sheet.save, format="PNG"))
        save_made(path, result.best.pixels, payload_of(result, 0, for_prompt(settings, i)))
        images.append(_found(work, prompt, result, path))
    there.add(images)


def _found(work: Work, prompt: PromptRecord, result: Result, path: Path) -> Found:
    best = result.best
    return Found(
        arm=work.arm.folder,
        repeat=work.repeat,
        index=prompt.index,
        bytes=path.stat().st_size,
        seed=best.seed,
        reward=_known(best.reward),
        scores={name: _known(score) for name, score in best.scores.items()},
        metrics={name: _known(score) for name, score in best.metrics.items()},
        spent={name: plain(value) for name, value in result.spent.to_json().items()},
        warnings=result.warnings,
    )


def _known(score: float) -> float | None:
    """None for a score that failed."""
    return score if math.isfinite(score) else None
