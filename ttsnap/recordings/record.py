"""Record every seed of every prompt to the end, unit by unit, into a folder that survives
interruption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Cost
from ttsnap.core.grid import Task
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event
from ttsnap.files.pictured import digests
from ttsnap.files.settings import Json
from ttsnap.files.unbroken import Unbroken
from ttsnap.files.writing import CHECKPOINT_SECONDS, write_whole
from ttsnap.loop.budget import Budget
from ttsnap.loop.search import dry_costs, search
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import begun_block, open_recording, shard_path
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.replay import Recording
from ttsnap.recordings.shards import Shard, ShardWriter
from ttsnap.rewards.reward_model import RewardError
from ttsnap.version import versions


class RecordingSetup(NamedTuple):
    """A recording that is to be made."""

    header: Header
    prompts: tuple[Prompt, ...]
    nfe: float
    """Evaluations of each seed."""


class RecordedUnit(NamedTuple):
    """A unit that was made."""

    scores: FloatArray
    """(prompts, seeds, C, R)."""
    shard: Shard | None
    """The tar of its images, where these are kept."""


Making = Callable[
    [list[Unit], Callable[[float], None], Callable[[], bool]], Iterator[tuple[Unit, RecordedUnit]]
]
"""Makes these units in any order, reports evaluations to one function, and begins no further one
where the other says so."""


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

    engine: of a pipeline, as `pipe.engine(...)` makes one; its EngineOptions must keep the latents
        that are recorded.
    prompts: texts, or a Prompt with its picture where the model edits; digests of pictures are
    noted. options: seeds, steps, and what is kept (each field says what it does). info: what else
    to note, JSON-ready (model, call, kernel).

    Ctrl-C and SIGTERM wait for the unit at hand. After an interruption (any exception, a kill) the
    same call resumes after the last finished unit. Units run in the batches that they would have
    had. The result is the same to the last bit where the engine is deterministic for equal batches.

    Raises ValueError before any compute where the folder holds something else or settings do not
    fit. Raises it later where a reward fails on every image of a unit, which is not kept then, or
    on the first images.
    """
    options = replace(options, block=options.block or begun_block(folder))
    setup = describe(engine, [Prompt.of(prompt) for prompt in prompts], options, info or {})

    def making(
        units: list[Unit], on_nfe: Callable[[float], None], stopping: Callable[[], bool]
    ) -> Iterator[tuple[Unit, RecordedUnit]]:
        for unit in units:
            if stopping():
                return
            yield unit, make_unit(engine, setup, unit, shard_path(Path(folder), unit), on_nfe)

    return keep(setup, Path(folder), making, progress_bar=progress_bar)


def describe(
    engine: Engine, prompts: Sequence[Prompt], options: RecordOptions, info: Mapping[str, Json]
) -> RecordingSetup:
    """What `record` would record. ValueError for arguments that do not fit together."""
    grid = engine.grid
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
        rewards=engine.reward_names,
        block=options.block or (1, max(1, options.seeds)),
        images=options.images,
        extras=options.keep,
        # a recording asks no judge, and compares no images
        price=replace(engine.price, seconds=None, tokens=0, features=0),
        info={
            "versions": versions("torch", "diffusers"),
            **engine.batch_sizes,
            **info,
            **({"pictures": pictures} if any(pictures) else {}),
        },
    )
    if not set(options.keep) <= set(engine.keep):
        wanted = sorted(options.keep)
        raise ValueError(f"the engine does not keep {wanted}; make it with keep={wanted}")
    size = engine.price.start.size
    group = dry_costs(KeepAll(steps=header.steps, looks=looks), engine)(size, Budget())
    if options.block is None:
        header = replace(header, block=_block(engine, group, size, options.seeds))
    return RecordingSetup(header, tuple(prompts), engine.price.evaluations(group) / size)


def keep(
    setup: RecordingSetup, folder: Path, making: Making, *, progress_bar: bool = False
) -> Recording:
    """Make the units that a folder lacks, keep each as soon as it is made, and finish the
    recording.

    ValueError before any unit is made where the folder holds something else.
    """
    header, _, nfe = setup
    with open_recording(folder, header) as there:
        missing = there.missing()
        total, left = (
            round(seeds * nfe)
            for seeds in (
                len(header.prompts) * header.seeds,
                sum(len(u.prompts) * len(u.seeds) for u in missing),
            )
        )
        quiet = not (progress_bar and missing)
        bar = tqdm(total=total, initial=total - left, unit="nfe", desc="record", disable=quiet)
        with bar, Unbroken() as stopping:

            def advance(nfe: float) -> None:
                bar.update(nfe)

            for unit, made in making(missing, advance, stopping):
                there.add(unit, made.scores, made.shard)
        return there.finish()


def make_unit(
    engine: Engine, setup: RecordingSetup, unit: Unit, path: Path, on_nfe: Callable[[float], None]
) -> RecordedUnit:
    """Denoise and score a unit. Images that are kept are at `path` on return, whole.

    A unit runs in the same batches on any engine of the same settings. The result is the same to
    the last bit where the engine is deterministic for equal batches. on_nfe: called with the
    evaluations of each batch. Raises ValueError where a reward fails on every image; nothing is
    kept then.
    """

    def save(file: BinaryIO) -> FloatArray:
        writer = ShardWriter(file)
        scores = _scores(engine, setup, unit, on_nfe, writer)
        writer.close()
        return scores

    if setup.header.images or setup.header.extras:
        path.parent.mkdir(exist_ok=True)
        return RecordedUnit(write_whole(path, save), Shard.of(path))
    return RecordedUnit(_scores(engine, setup, unit, on_nfe, None), None)


def _scores(
    engine: Engine,
    setup: RecordingSetup,
    unit: Unit,
    on_nfe: Callable[[float], None],
    shard: ShardWriter | None,
) -> FloatArray:
    """The scores of a unit. Images go to the shard, where there is one."""
    header = setup.header
    first = header.first(unit.prompts.start) + unit.seeds.start
    prompts = setup.prompts[unit.prompts.start : unit.prompts.stop]
    column = {seen: i for i, seen in enumerate(header.seen)}
    looked = np.full((len(prompts), len(unit.seeds), len(column), len(header.rewards)), np.nan)

    def listen(event: Event) -> None:
        if event.kind == "tick":
            on_nfe(event.nfe)
        elif (
            event.kind == "score"
            and (at := column.get(EstimatorAt(event.look, event.step))) is not None
        ):
            looked[event.job, event.uids[0], at] = event.scores
        elif event.kind == "score" and shard is not None:
            image = event.image if header.images else None
            if header.images and image is None:
                raise ValueError(
                    "there is no picture of an estimate to keep, as no reward reads pixels; record "
                    "without images"
                )
            if image is not None and image.ndim > 3:
                raise ValueError(
                    "recordings keep pictures of images, not videos; record without images"
                )
            kept = event.kept if "latents" in header.extras else {}
            shard.add(
                unit.prompts.start + event.job, first + event.uids[0], event.step, image, kept
            )

    algorithm = KeepAll(len(unit.seeds), header.steps, header.looks)
    try:
        results = search(prompts, algorithm, engine, seed=first, on_event=listen)
    except RewardError as error:
        raise ValueError(str(error)) from error
    if short := [result for result in results if result.spent.finished < len(unit.seeds)]:
        raise ValueError(f"a unit was not finished: {'; '.join(short[0].warnings)}")
    scores = np.stack([result.particles.scores for result in results])
    for name, final in zip(header.rewards, np.moveaxis(scores[:, :, -1], -1, 0), strict=True):
        if np.isnan(final).all():
            why = next((w for result in results for w in result.warnings), "it returned nan")
            raise ValueError(
                f"the reward {name!r} gave no score at all for {final.size} images: {why}"
            )
    # by looks, if by anything
    scores[:, :, [k for k in range(scores.shape[2]) if k not in header.steps]] = np.nan
    return np.concatenate([scores, looked], axis=2)


def step_correlations(recording: Recording) -> FloatArray:
    """(K+1, R) Spearman correlation of each reward's scores at a step with its final ones, mean
    over prompts.

    Over the prompts where both vary and no score failed; nan where there is none, and at steps not
    scored.
    """
    correlations = np.full((recording.grid.steps + 1, len(recording.reward_names)), np.nan)
    for step in np.flatnonzero(recording.scored):
        for r in range(correlations.shape[1]):
            early = recording.scores[:, :, step, r]
            final = recording.final[..., r]
            # a nan makes it False
            varied = (np.ptp(early, axis=1) > 0) & (np.ptp(final, axis=1) > 0)
            if varied.any():
                correlations[step, r] = rank_correlation(early[varied], final[varied])
    return correlations


def _block(engine: Engine, group: Cost, size: int, seeds: int) -> tuple[int, int]:
    """Prompts and seeds of a unit: of one prompt all seeds, in equal parts where they are more than
    about four full batches, or take longer than CHECKPOINT_SECONDS. group: what so many seeds cost
    that begin together.
    """
    engine.calibrate()
    taken = 0.0 if engine.price.seconds is None else engine.price.seconds.of(group) / size
    most = max(1, min(2 * engine.capacity, int(CHECKPOINT_SECONDS / max(taken, 1e-9))))
    return 1, size * math.ceil(math.ceil(seeds / math.ceil(seeds / most)) / size)
