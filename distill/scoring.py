"""Scores of many recorded estimates: in batches, spread over the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Never, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from ttsnap.distill.data import Frame, Frames

from ttsnap.core.arrays import FloatArray

if TYPE_CHECKING:  # it takes a second to import
    from accelerate import Accelerator

Bar: TypeAlias = "tqdm[Never]"
"""A progress bar that is moved by hand."""
Score = Callable[[Tensor, list[str], Tensor], Any]
"""(x (N, ...), N prompts, levels (N,)) -> N scores."""


@torch.no_grad()
def score_entries(
    score: Score, frames: Frames, entries: Sequence[Frame], space: str, *, batch_size: int,
    accelerator: Accelerator | None = None, bar: Bar | None = None,
    keep: Callable[[int, FloatArray], None] | None = None,
) -> FloatArray:  # fmt: skip
    """(N,) float64 in the order of `entries`. With several processes, each scores its share and all get everything.

    keep(first, scores) is called in order with what is done, round by round. nan stays nan.
    """
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    done = np.zeros(len(entries))
    for first in range(0, len(entries), batch_size * world):
        mine = entries[first + rank * batch_size : first + (rank + 1) * batch_size]
        scores = torch.full((batch_size,), float("nan"), dtype=torch.float64)
        if mine:
            scores[: len(mine)] = _one_batch(score, frames, mine, space)
        if accelerator is not None and world > 1:
            scores = accelerator.gather(scores.float().to(accelerator.device)).double().cpu()
        round_scores = scores[: len(entries) - first].numpy()
        done[first : first + len(round_scores)] = round_scores
        if keep is not None:
            keep(first, round_scores)
        if bar is not None:
            bar.update(len(round_scores))
    return done


def _one_batch(score: Score, frames: Frames, entries: Sequence[Frame], space: str) -> Tensor:
    """Scores (N,) float64 on the CPU of the N recorded estimates. ValueError where the reward gives another shape."""
    x = frames.load(entries, space)
    prompts = [frames.prompts[entry.prompt] for entry in entries]
    level = torch.tensor([frames.levels[entry.step] for entry in entries], dtype=torch.float32)
    scores = torch.as_tensor(score(x, prompts, level)).double().cpu()
    if scores.shape != (len(entries),):
        raise ValueError(f"the reward gave scores of shape {tuple(scores.shape)} for {len(entries)} images")
    return scores


def progress(total: int, text: str, unit: str, shown: bool) -> Bar:
    """A progress bar of `total` units, with the time left; it prints nothing unless `shown`."""
    return tqdm(total=total, desc=text, unit=unit, disable=not shown, dynamic_ncols=True)
