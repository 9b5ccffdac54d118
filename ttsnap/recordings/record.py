"""Record every seed of every prompt to the end, unit by unit, into a folder that survives interruption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.files.pictured import digests
from ttsnap.files.settings import Json
from ttsnap.loop.budget import Budget
from ttsnap.loop.search import dry_costs
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import OpenRecording, shard_path
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.units import RecordedUnit, RecordingSetup, make_unit
from ttsnap.version import versions

Making = Callable[[list[Unit], Callable[[float], None]], Iterator[tuple[Unit, RecordedUnit]]]
"""Makes these units in any order, and reports evaluations to the function."""


def record(
    engine: Engine,
    prompts: Sequence[str | Prompt],
    folder: str | Path,
    options: RecordOptions,
    *,
    info: Mapping[str, Json] | None = None,
    progress_bar: bool = False,
) -> Recording:
    """Denoise all seeds of every prompt with KeepAll on `engine`, and score on the way.

    engine: of a pipeline, as `pipe.engine(...)` makes one; its EngineOptions must keep the latents that are recorded.
    prompts: texts, or a Prompt with its picture where the model edits; digests of pictures are noted. options: seeds,
    steps, and what is kept (each field says what it does). info: what else to note, JSON-ready (model, call, kernel).

    After an interruption (any exception, Ctrl-C, a kill) the same call resumes after the last finished unit. Units run
    in the batches that they would have had. The result is the same to the last bit where the engine is deterministic
    for equal batches.

    Raises ValueError before any compute where the folder holds something else or settings do not fit. Raises it later
    where a reward fails on every image of a unit, which is not kept then, or on the first images.
    """
    setup = describe(engine, [Prompt.of(prompt) for prompt in prompts], options, info or {})

    def making(units: list[Unit], on_nfe: Callable[[float], None]) -> Iterator[tuple[Unit, RecordedUnit]]:
        for unit in units:
            yield unit, make_unit(engine, setup, unit, shard_path(Path(folder), unit), on_nfe)

    return keep(setup, Path(folder), making, progress_bar=progress_bar)


def describe(
    engine: Engine, prompts: Sequence[Prompt], options: RecordOptions, info: Mapping[str, Json]
) -> RecordingSetup:
    """What `record` would record. ValueError for arguments that do not fit together."""
    grid, names = engine.grid, engine.reward_names
    engine.check(prompts)
    looks = options.looks_of(engine.draft_calls)
    steps = None if options.steps is None else tuple(options.steps)
    KeepAll(max(1, options.seeds), steps, looks).init(Task(grid))
    pictures: list[Json] = [dict(digests(prompt.inputs)) for prompt in prompts]
    header = Header(
        prompts=tuple(prompt.text for prompt in prompts),
        seeds=options.seeds,
        first_seed=options.seed,
        levels=tuple(float(level) for level in grid.levels),
        evals=grid.evals,
        steps=KeepAll(steps=steps).scored(grid.steps),
        looks=looks,
        rewards=names,
        block=options.block or _block(len(prompts), options.seeds, engine.capacity),
        images=options.images,
        extras=options.keep,
        price=replace(engine.price, seconds=None, tokens=0),
        info={
            "versions": versions("torch", "diffusers"),
            **engine.batch_sizes,
            **info,
            **({"pictures": pictures} if any(pictures) else {}),
        },
    )
    if not set(options.keep) <= set(engine.keep):
        raise ValueError(f"the engine does not keep {list(options.keep)}; make it with keep={sorted(options.keep)}")
    every = KeepAll(steps=header.steps, looks=looks)
    return RecordingSetup(header, tuple(prompts), engine.price.evaluations(dry_costs(every, engine)(1, Budget())))


def keep(setup: RecordingSetup, folder: Path, making: Making, *, progress_bar: bool = False) -> Recording:
    """Make the units that a folder lacks, keep each as soon as it is made, and finish the recording.

    ValueError before any unit is made where the folder holds something else.
    """
    header, _, nfe = setup
    with OpenRecording(folder, header) as there:
        missing = there.missing()
        total, left = (
            round(seeds * nfe)
            for seeds in (len(header.prompts) * header.seeds, sum(len(u.prompts) * len(u.seeds) for u in missing))
        )
        quiet = not (progress_bar and missing)
        with tqdm(total=total, initial=total - left, unit="nfe", desc="record", disable=quiet) as bar:

            def advance(nfe: float) -> None:
                bar.update(nfe)

            for unit, made in making(missing, advance):
                there.add(unit, made.scores, made.shard)
        return there.finish()


def step_correlations(recording: Recording) -> FloatArray:
    """(K+1, R) Spearman correlation of each reward's scores at a step with its final ones, mean over prompts.

    Over the prompts where both vary and no score failed; nan where there is none, and at steps not scored.
    """
    correlations = np.full((recording.grid.steps + 1, len(recording.reward_names)), np.nan)
    for step in np.flatnonzero(recording.scored):
        for r in range(correlations.shape[1]):
            early, final = recording.scores[:, :, step, r], recording.final[..., r]
            varied = (np.ptp(early, axis=1) > 0) & (np.ptp(final, axis=1) > 0)  # a nan makes it False
            if varied.any():
                correlations[step, r] = rank_correlation(early[varied], final[varied])
    return correlations


def _block(prompts: int, seeds: int, capacity: int) -> tuple[int, int]:
    """Prompts and seeds of a unit: seeds in equal parts, and prompts for about four full batches.

    Small enough that little is lost by an interruption, large enough that the batches stay full.
    """
    rows = 2 * capacity
    parts = math.ceil(max(1, seeds) / rows)
    size = math.ceil(max(1, seeds) / parts)
    return min(max(1, prompts), math.ceil(rows / size)), size
