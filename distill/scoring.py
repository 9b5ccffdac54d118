"""Scores of many recorded estimates, in batches, spread over the processes; and targets, which a
file keeps.

A target is the base reward's score of a trajectory's final image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.processes import ALONE, Member
from ttsnap.files.settings import Json
from ttsnap.files.unbroken import Unbroken
from ttsnap.recordings.kept import KeptNumbers

TARGETS = "targets.safetensors"
Bar: TypeAlias = "tqdm[Never]"
"""A progress bar without an iterable."""
Score = Callable[[Tensor, list[str], Tensor], Any]
"""(x (N, ...), N prompts, levels (N,)) -> N scores."""


@torch.no_grad()
def score_entries(
    score: Score,
    frames: Frames,
    entries: Sequence[FrameAt],
    space: str,
    *,
    batch_size: int,
    member: Member = ALONE,
    bar: Bar | None = None,
    name: str = "",
    kept: KeptNumbers | None = None,
) -> FloatArray:
    """Scores (N,) float64 of N entries. Each process scores its share, and all get all scores.

    name: of a reward whose scores must be finite: ValueError. kept: the scores so far, which are
    added to. KeyboardInterrupt, with all that was scored kept, where a process got a signal.
    """
    kept = kept or KeptNumbers(None, "", {}, len(entries))
    if bar is not None:
        bar.update(kept.done)
    with Unbroken() as stopping:
        for first in range(kept.done, len(entries), batch_size * member.count):
            mine = entries[
                first + member.rank * batch_size : first + (member.rank + 1) * batch_size
            ]
            scores = torch.full((batch_size,), float("nan"), dtype=torch.float64)
            if mine:
                scores[: len(mine)] = _one_batch(score, frames, mine, space)
            found = member.gather(scores)[: len(entries) - first].numpy()
            if name and len(bad := np.flatnonzero(~np.isfinite(found))):
                entry = entries[first + int(bad[0])]
                raise ValueError(
                    f"the reward {name!r} gave {found[bad[0]]} for {frames.named(entry)}, step"
                    f" {entry.step}, and must give a number: mend the reward, or record without"
                    " that prompt"
                )
            kept.add(found)
            if bar is not None:
                bar.update(len(found))
            if member.any(stopping()):
                raise KeyboardInterrupt
    return kept.numbers


def _one_batch(score: Score, frames: Frames, entries: Sequence[FrameAt], space: str) -> Tensor:
    """Scores (N,) float64 on the CPU. ValueError for scores of another shape."""
    x = frames.load(entries, space)
    prompts = [frames.prompts[entry.prompt] for entry in entries]
    level = torch.tensor([frames.levels[entry.step] for entry in entries], dtype=torch.float32)
    scores = torch.as_tensor(score(x, prompts, level)).double().cpu()
    if scores.shape != (len(entries),):
        raise ValueError(
            f"the reward gave scores of shape {tuple(scores.shape)} for {len(entries)} images"
        )
    return scores


def progress(total: int, text: str, unit: str, shown: bool) -> Bar:
    """A progress bar of `total` units; it prints nothing unless `shown`."""
    return tqdm(total=total, desc=text, unit=unit, disable=not shown, dynamic_ncols=True)


def final_scores(
    frames: Frames, base: Reward, reward: str, out: Path, *, batch_size: int, member: Member = ALONE
) -> list[FloatArray]:
    """Per prompt, (S,) float64: base(image, prompt) of each seed's finished image, as stored.

    out/targets.safetensors keeps the scores so far, so that an interrupted run resumes. reward:
    what names the base. ValueError for targets of another base or other data, and for a score that
    is nan or infinite.
    """
    entries = [FrameAt(p, s, frames.last) for p, n in enumerate(frames.seeds) for s in range(n)]
    frames.check_stored("pixels", [frames.last])
    about: dict[str, Json] = {"reward": reward, "data": frames.identity, "entries": len(entries)}
    with (
        KeptNumbers(out / TARGETS, "targets", about, len(entries), writes=member.is_main) as kept,
        progress(len(entries), "targets", "image", member.shown) as bar,
    ):
        member.wait()  # all have read before one writes
        scores = score_entries(
            lambda x, prompts, level: base(x, prompts, level * 0),
            frames,
            entries,
            "pixels",
            batch_size=batch_size,
            member=member,
            bar=bar,
            name=reward,
            kept=kept,
        )
    return list(np.split(scores, np.cumsum(frames.seeds)[:-1]))


def spread(targets: list[FloatArray], prompts: list[int]) -> float:
    """Standard deviation of the targets within these prompts. ValueError where they do not vary."""
    scale = float(np.sqrt(np.mean([np.var(targets[p]) for p in prompts])))
    if not scale > 0:
        raise ValueError(
            "the base reward's scores of the final images do not vary within any prompt: nothing to"
            " learn"
        )
    return scale
