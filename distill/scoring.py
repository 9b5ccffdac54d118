"""Scores of many recorded estimates, in batches, spread over the processes; and targets, which a file keeps.

A target is the base reward's score of a trajectory's final image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward
from ttsnap.distill.data import Frame, Frames
from ttsnap.distill.processes import ALONE, Member
from ttsnap.files.settings import Json
from ttsnap.files.writing import write_whole
from ttsnap.recordings.folder import packed, unpacked
from ttsnap.recordings.header import differences

TARGETS = "targets.safetensors"
SAVED_EVERY = 1024
"""Targets that a killed run may lose."""
Bar: TypeAlias = "tqdm[Never]"
"""A progress bar without an iterable."""
Score = Callable[[Tensor, list[str], Tensor], Any]
"""(x (N, ...), N prompts, levels (N,)) -> N scores."""


@torch.no_grad()
def score_entries(
    score: Score, frames: Frames, entries: Sequence[Frame], space: str, *, batch_size: int, member: Member = ALONE,
    bar: Bar | None = None, keep: Callable[[FloatArray], None] = lambda scores: None,
) -> FloatArray:  # fmt: skip
    """Scores (N,) float64 of N entries, nan included. Each process scores its share, and all get all scores.

    keep: called in order with the scores of each round.
    """
    done = np.zeros(len(entries))
    for first in range(0, len(entries), batch_size * member.count):
        mine = entries[first + member.rank * batch_size : first + (member.rank + 1) * batch_size]
        scores = torch.full((batch_size,), float("nan"), dtype=torch.float64)
        if mine:
            scores[: len(mine)] = _one_batch(score, frames, mine, space)
        round_scores = member.gather(scores)[: len(entries) - first].numpy()
        done[first : first + len(round_scores)] = round_scores
        keep(round_scores)
        if bar is not None:
            bar.update(len(round_scores))
    return done


def _one_batch(score: Score, frames: Frames, entries: Sequence[Frame], space: str) -> Tensor:
    """Scores (N,) float64 on the CPU. ValueError for scores of another shape."""
    x = frames.load(entries, space)
    prompts = [frames.prompts[entry.prompt] for entry in entries]
    level = torch.tensor([frames.levels[entry.step] for entry in entries], dtype=torch.float32)
    scores = torch.as_tensor(score(x, prompts, level)).double().cpu()
    if scores.shape != (len(entries),):
        raise ValueError(f"the reward gave scores of shape {tuple(scores.shape)} for {len(entries)} images")
    return scores


def progress(total: int, text: str, unit: str, shown: bool) -> Bar:
    """A progress bar of `total` units; it prints nothing unless `shown`."""
    return tqdm(total=total, desc=text, unit=unit, disable=not shown, dynamic_ncols=True)


def final_scores(
    frames: Frames, base: Reward, reward: str, out: Path, *, batch_size: int, member: Member = ALONE
) -> list[FloatArray]:  # fmt: skip
    """Per prompt, (S,) float64: base(image, prompt) of each seed's finished image, as stored.

    out/targets.safetensors keeps the scores so far, so that an interrupted run resumes. reward: what names the base.
    ValueError for targets of another base or other data, and for a score that is nan or infinite.
    """
    entries = [Frame(p, s, frames.last) for p, n in enumerate(frames.seeds) for s in range(n)]
    frames.require("pixels", [frames.last])
    about: dict[str, Json] = {"reward": reward, "data": frames.identity, "entries": len(entries)}
    path = out / TARGETS
    kept, scores = _read(path, about, len(entries)), np.zeros(len(entries))
    first = done = saved = len(kept)
    scores[:first] = kept
    member.wait()  # all have read before one writes

    def save() -> None:
        nonlocal saved
        if member.is_main and done > saved:
            write_whole(path, lambda file: file.write(packed(scores[:done], "targets", about)))
            saved = done

    def keep(part: FloatArray) -> None:
        nonlocal done
        if len(bad := np.flatnonzero(~np.isfinite(part))):
            image = frames.named(entries[done + bad[0]])
            raise ValueError(
                f"the reward {reward!r} gave {part[bad[0]]} for the final image of {image}; a target must be a number: "
                "mend the reward, or record without that prompt"
            )
        scores[done : done + len(part)] = part
        done += len(part)
        if done >= saved + SAVED_EVERY:
            save()

    try:
        with progress(len(entries), "targets", "image", member.shown) as shown:
            shown.update(first)
            score_entries(
                lambda x, prompts, level: base(x, prompts, level * 0), frames, entries[first:], "pixels",
                batch_size=batch_size, member=member, bar=shown, keep=keep,
            )  # fmt: skip
    finally:
        save()
    return list(np.split(scores, np.cumsum(frames.seeds)[:-1]))


def _read(path: Path, about: Mapping[str, Json], most: int) -> FloatArray:
    """The targets that a file keeps. ValueError where it is damaged, and for another reward or other data."""
    if not path.exists():
        return np.empty(0)
    try:
        scores, there = unpacked(path, "targets", "file of targets")
        if scores.ndim != 1 or len(scores) > most or not np.isfinite(scores).all():
            raise ValueError(f"{path} is damaged: it should hold at most {most} finite numbers")
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the targets are computed again") from None
    if mismatches := differences(there, dict(about)):
        raise ValueError(f"{path} holds targets of other data: {'; '.join(mismatches)}; choose another folder")
    return scores


def spread(targets: list[FloatArray], prompts: list[int]) -> float:
    """Standard deviation of the targets within these prompts. ValueError where they do not vary."""
    scale = float(np.sqrt(np.mean([np.var(targets[p]) for p in prompts])))
    if not scale > 0:
        raise ValueError("the base reward's scores of the final images do not vary within any prompt: nothing to learn")
    return scale
