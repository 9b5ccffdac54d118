"""Record every seed of every prompt to the end, unit by unit, into a folder that survives interruption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Never

import numpy as np
from tqdm.auto import tqdm

from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.arrays import FloatArray
from ttsnap.core.grid import Task
from ttsnap.core.looks import Seen
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event
from ttsnap.files.typed import Json
from ttsnap.files.writing import write_whole
from ttsnap.loop.search import dry_costs, search
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import OpenRecording
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.shards import ShardWriter
from ttsnap.rewards.registry import RewardError
from ttsnap.version import versions


def record(
    engine: Engine,
    prompts: Sequence[str],
    folder: str | Path,
    options: RecordOptions,
    *,
    info: Mapping[str, Json] | None = None,
    progress_bar: bool = False,
) -> Recording:
    """Denoise all seeds of every prompt with KeepAll on `engine`, and score on the way.

    options: which seeds and steps, and what is kept beside the scores (each field says what it does); the engine must
    have been told to keep the same latents and features (EngineOptions). info: what else to note, JSON-ready (model,
    call, kernel). `pipe.engine(...)` makes an engine of a pipeline.

    Called again with the same arguments after an interruption (any exception, Ctrl-C, a kill) it goes on after the
    last finished unit. Units run in the batches that they would have had, so the result is the same to the last bit
    where the engine is deterministic for equal batches.

    Raises ValueError before any compute where the folder holds something else or settings do not fit, and where a
    reward fails on every image of a unit (nothing is kept of that unit), or on all of the first images of all.
    """
    grid, names = engine.grid, engine.reward_names
    engine.check(prompts)
    looks = options.looks_of(engine.draft_calls)
    steps = None if options.steps is None else tuple(options.steps)
    KeepAll(max(1, options.seeds), steps, looks).init(Task(grid))
    header = Header(
        prompts=tuple(prompts),
        seeds=options.seeds,
        first_seed=options.seed,
        levels=tuple(float(level) for level in grid.levels),
        evals=grid.evals,
        steps=KeepAll(steps=steps).scored(grid.steps),
        looks=looks,
        rewards=names,
        block=options.block or _block(len(prompts), options.seeds, engine.capacity),
        images=options.images,
        extras=options.extras,
        price=replace(engine.price, seconds=None),
        info={"versions": versions("torch", "diffusers"), **engine.batch_sizes, **(info or {})},
    )
    if not set(options.keep) <= set(engine.keep):
        raise ValueError(f"the engine does not keep {list(options.extras)}; make it with keep={sorted(options.keep)}")
    with OpenRecording(Path(folder), header) as there:
        missing = there.missing()
        every = KeepAll(steps=header.steps, looks=looks)
        each = engine.price.evaluations(dry_costs(every, engine)(1))  # of a seed, with drafts
        total = round(len(prompts) * options.seeds * each)
        quiet = not (progress_bar and missing)
        left = round(sum(len(unit.prompts) * len(unit.seeds) for unit in missing) * each)
        with tqdm(total=total, initial=total - left, unit="nfe", desc="record", disable=quiet) as bar:
            for unit in missing:
                run = partial(_run, engine, header, unit, bar)
                there.add(unit, write_whole(there.shard_path(unit), run) if options.images else run())
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


def _run(engine: Engine, header: Header, unit: Unit, bar: tqdm[Never], file: BinaryIO | None = None) -> FloatArray:
    """One unit's scores (prompts, seeds, C, R); its images go to `file`, where there is one."""
    first = header.first_seed + unit.seeds.start
    shard = ShardWriter(file) if file is not None else None
    singular = {"latent" if kind == "latents" else kind for kind in _kinds(header.extras)}

    prompts = header.prompts[unit.prompts.start : unit.prompts.stop]
    column = {seen: i for i, seen in enumerate(header.seen)}
    looked = np.full((len(prompts), len(unit.seeds), len(column), len(header.rewards)), np.nan)

    def listen(event: Event) -> None:
        if event.kind == "tick":
            bar.update(event.nfe)
        elif event.kind == "score" and (at := column.get(Seen(event.look, event.step))) is not None:
            looked[event.job, event.uids[0], at] = event.scores
        elif event.kind == "score" and shard is not None:
            if event.image is None:
                raise ValueError("there is no picture of an estimate to keep, as no reward reads pixels; record "
                                 "without images")  # fmt: skip
            kept = {name: value for name, value in event.kept.items() if name in singular}
            shard.add(unit.prompts.start + event.job, first + event.uids[0], event.step, event.image, kept)

    algorithm = KeepAll(len(unit.seeds), header.steps, header.looks)
    try:
        results = search(prompts, algorithm, engine, seed=first, on_event=listen)
    except RewardError as error:
        raise ValueError(str(error)) from error
    if shard is not None:
        shard.close()
    scores = np.stack([result.particles.scores for result in results])
    for name, final in zip(header.rewards, np.moveaxis(scores[:, :, -1], -1, 0), strict=True):
        if np.isnan(final).all():
            why = next((w for result in results for w in result.warnings), "it returned nan")
            raise ValueError(f"the reward {name!r} gave no score at all for {final.size} images: {why}")
    scores[:, :, [k for k in range(scores.shape[2]) if k not in header.steps]] = np.nan  # by looks, if by anything
    return np.concatenate([scores, looked], axis=2)


def _kinds(extras: Sequence[str]) -> set[str]:
    """latents, features."""
    return {extra.partition(":")[0] for extra in extras}


def _block(prompts: int, seeds: int, capacity: int) -> tuple[int, int]:
    """Prompts and seeds of a unit: seeds in equal parts, and enough prompts for about four full batches.

    Small enough that little is lost by an interruption, large enough that the batches stay full.
    """
    rows = 2 * capacity
    parts = math.ceil(max(1, seeds) / rows)
    size = math.ceil(max(1, seeds) / parts)
    return min(max(1, prompts), math.ceil(rows / size)), size
