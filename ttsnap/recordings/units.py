"""One unit of a recording: prompts and seeds that one search call denoises and scores on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine
from ttsnap.core.results import Event
from ttsnap.files.writing import write_whole
from ttsnap.loop.search import search
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.shards import Shard, ShardWriter
from ttsnap.rewards.reward_model import RewardError


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


def make_unit(
    engine: Engine, setup: RecordingSetup, unit: Unit, path: Path, on_nfe: Callable[[float], None]
) -> RecordedUnit:
    """Denoise and score a unit. Images that are kept are at `path` on return, whole.

    A unit runs in the same batches on any engine of the same settings. The result is the same to the last bit where the
    engine is deterministic for equal batches. on_nfe: called with the evaluations of each batch. Raises ValueError
    where a reward fails on every image; nothing is kept then.
    """

    def save(file: BinaryIO) -> FloatArray:
        writer = ShardWriter(file)
        scores = _scores(engine, setup, unit, on_nfe, writer)
        writer.close()
        return scores

    if setup.header.images:
        return RecordedUnit(write_whole(path, save), Shard.of(path))
    return RecordedUnit(_scores(engine, setup, unit, on_nfe, None), None)


def _scores(
    engine: Engine, setup: RecordingSetup, unit: Unit, on_nfe: Callable[[float], None], shard: ShardWriter | None
) -> FloatArray:
    """The scores of a unit. Images go to the shard, where there is one."""
    header = setup.header
    first = header.first_seed + unit.seeds.start
    prompts = setup.prompts[unit.prompts.start : unit.prompts.stop]
    column = {seen: i for i, seen in enumerate(header.seen)}
    looked = np.full((len(prompts), len(unit.seeds), len(column), len(header.rewards)), np.nan)

    def listen(event: Event) -> None:
        if event.kind == "tick":
            on_nfe(event.nfe)
        elif event.kind == "score" and (at := column.get(EstimatorAt(event.look, event.step))) is not None:
            looked[event.job, event.uids[0], at] = event.scores
        elif event.kind == "score" and shard is not None:
            if event.image is None:
                raise ValueError("there is no picture of an estimate to keep, as no reward reads pixels; record "
                                 "without images")  # fmt: skip
            if event.image.ndim > 3:
                raise ValueError("recordings keep pictures of images, not videos; record without images")
            kept = event.kept if "latents" in header.extras else {}
            shard.add(unit.prompts.start + event.job, first + event.uids[0], event.step, event.image, kept)

    algorithm = KeepAll(len(unit.seeds), header.steps, header.looks)
    try:
        results = search(prompts, algorithm, engine, seed=first, on_event=listen)
    except RewardError as error:
        raise ValueError(str(error)) from error
    scores = np.stack([result.particles.scores for result in results])
    for name, final in zip(header.rewards, np.moveaxis(scores[:, :, -1], -1, 0), strict=True):
        if np.isnan(final).all():
            why = next((w for result in results for w in result.warnings), "it returned nan")
            raise ValueError(f"the reward {name!r} gave no score at all for {final.size} images: {why}")
    scores[:, :, [k for k in range(scores.shape[2]) if k not in header.steps]] = np.nan  # by looks, if by anything
    return np.concatenate([scores, looked], axis=2)
