"""Accuracy of a base model on captions, held out or not, through the stock
`StableDiffusion3Pipeline`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from numpy.typing import NDArray
from PIL import Image

from train_worlds.recipes import Call
from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.files.writing import markdown
from ttsnap.scenes import weights_path
from ttsnap.scenes.checker import check
from ttsnap.scenes.grammar import KINDS, caption, is_held_out, parse, sample_spec

_COLUMNS = 12
"""Most pictures of a kind in a grid."""


class Accuracy(NamedTuple):
    """Of `pictures`: the share that is strictly right, the mean soft verdict, and their standard
    errors."""

    strict: float
    strict_error: float
    soft: float
    soft_error: float
    pictures: int


def load(folder: Path | None = None) -> Any:
    """The stock pipeline of a folder, or of the packaged weights."""
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(folder or weights_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts_of_kind(kind: str, n: int, seed: int, held_out: bool = True) -> list[str]:
    """`n` captions of one kind, distinct as far as the kind has enough, then repeated in turn."""
    rng = np.random.default_rng(seed)
    distinct: dict[str, None] = {}
    for _ in range(400 * n):
        text = caption(sample_spec(rng, kind))
        if is_held_out(text) == held_out:
            distinct[text] = None
        if len(distinct) == n:
            break
    texts = list(distinct)
    return [texts[i % len(texts)] for i in range(n)]


def generate(
    pipe: Any, prompts: Sequence[str], call: Call, *, seed: int = 0, batch: int = 64
) -> NDArray[np.float32]:
    """Images (N, 3, 32, 32) in [0, 1] from a stock pipeline; image i has its own generator, seeded
    seed + i."""
    parts = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images = pipe(part, generator=generators, output_type="np", **asdict(call)).images
        parts.append(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def accuracy(
    images: NDArray[np.float32], prompts: Sequence[str], kinds: Sequence[str]
) -> dict[str, Accuracy]:
    """For each kind of caption, and for all but single objects together ("hard")."""
    soft, strict = check(images, [parse(p) for p in prompts])
    given = np.array(kinds)
    rows = {kind: _row(strict, soft, given == kind) for kind in dict.fromkeys(kinds)}
    return {**rows, "hard": _row(strict, soft, given != "single")}


def _row(strict: BoolArray, soft: FloatArray, where: BoolArray) -> Accuracy:
    n = int(where.sum())
    if n == 0:
        return Accuracy(math.nan, math.nan, math.nan, math.nan, 0)
    share, mean = float(strict[where].mean()), float(soft[where].mean())
    return Accuracy(
        share, math.sqrt(share * (1 - share) / n), mean, float(soft[where].std()) / math.sqrt(n), n
    )


def accuracy_table(rows: dict[str, Accuracy]) -> str:
    """Markdown, a line for each kind."""
    cells = (
        (kind, f"{strict:.3f} ± {strict_error:.3f}", f"{soft:.3f} ± {soft_error:.3f}", n)
        for kind, (strict, strict_error, soft, soft_error, n) in rows.items()
    )
    return markdown(("kind", "strict", "soft", "n"), cells)


def save_grid(images: NDArray[np.float32], columns: int, path: Path, scale: int = 3) -> None:
    """Write images (N, 3, H, W) as one PNG."""
    n, _, h, w = images.shape
    rows = n // columns
    grid = images[: rows * columns].reshape(rows, columns, 3, h, w).transpose(0, 3, 1, 4, 2)
    pixels = np.rint(np.clip(grid.reshape(rows * h, columns * w, 3), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).resize(
        (columns * w * scale, rows * h * scale), Image.Resampling.NEAREST
    ).save(path)


def evaluate(
    pipe: Any,
    call: Call,
    per_kind: int,
    *,
    seed: int = 0,
    held_out: bool = True,
    grid: Path | None = None,
) -> dict[str, Accuracy]:
    """Generate `per_kind` captions of each kind and check them; optionally save a grid, one row per
    kind."""
    kinds = [kind for kind in KINDS for _ in range(per_kind)]
    prompts = [
        text for kind in KINDS for text in prompts_of_kind(kind, per_kind, seed + 1, held_out)
    ]
    images = generate(pipe, prompts, call, seed=seed)
    if grid is not None:
        columns = min(per_kind, _COLUMNS)
        shown = np.concatenate(
            [images[i * per_kind : i * per_kind + columns] for i in range(len(KINDS))]
        )
        save_grid(shown, columns, grid)
    return accuracy(images, prompts, kinds)
