"""Accuracy of a model folder on held-out captions, through the stock `StableDiffusion3Pipeline`.

``python -m ttsnap.scenes.training.evaluate [FOLDER] --steps 20 --guidance 4 --per-kind 32``
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttsnap.scenes.checker import check
from ttsnap.scenes.grammar import KINDS, caption, is_held_out, parse, sample_spec


def prompts_of_kind(kind: str, n: int, seed: int, held_out: bool = True) -> list[str]:
    """`n` captions of one kind, distinct as far as the kind has enough, then repeated in turn."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for _ in range(400 * n):
        text = caption(sample_spec(rng, kind))
        if is_held_out(text) == held_out:
            found[text] = None
        if len(found) == n:
            break
    texts = list(found)
    return [texts[i % len(texts)] for i in range(n)]


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    max_sequence_length: int = 1,
    seed: int = 0,
    batch: int = 64,
) -> NDArray[np.float32]:
    """Images (N, 3, 32, 32) in [0, 1] from a stock pipeline; image i has its own generator, seeded seed + i."""
    import torch

    parts = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        images = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=max_sequence_length,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        ).images
        parts.append(np.asarray(images, np.float32).transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def accuracy(
    images: NDArray[np.float32], prompts: Sequence[str], kinds: Sequence[str]
) -> dict[str, tuple[float, float, float, float, int]]:
    """Strict mean, its standard error, soft mean, its standard error and the count, for each kind."""
    soft, strict = check(images, [parse(p) for p in prompts])
    rows = {}
    for kind in dict.fromkeys(kinds):
        rows[kind] = _row(strict, soft, np.array([k == kind for k in kinds]))
    rows["hard"] = _row(strict, soft, np.array([k != "single" for k in kinds]))
    return rows


def _row(
    strict: NDArray[np.bool_], soft: NDArray[np.float32], where: NDArray[np.bool_]
) -> tuple[float, float, float, float, int]:
    n = int(where.sum())
    if n == 0:
        return (math.nan, math.nan, math.nan, math.nan, 0)
    share, mean = float(strict[where].mean()), float(soft[where].mean())
    return share, math.sqrt(share * (1 - share) / n), mean, float(soft[where].std()) / math.sqrt(n), n


def table(rows: dict[str, tuple[float, float, float, float, int]]) -> str:
    """A small Markdown table of `accuracy`."""
    lines = ["| kind | strict | soft | n |", "|---|---|---|---|"]
    for kind, (a, da, b, db, n) in rows.items():
        lines.append(f"| {kind} | {a:.3f} ± {da:.3f} | {b:.3f} ± {db:.3f} | {n} |")
    return "\n".join(lines)


def save_grid(images: NDArray[np.float32], columns: int, path: Path, scale: int = 3) -> None:
    """Write images (N, 3, H, W) as one PNG."""
    from PIL import Image

    n, _, h, w = images.shape
    rows = n // columns
    grid = images[: rows * columns].reshape(rows, columns, 3, h, w).transpose(0, 3, 1, 4, 2)
    pixels = np.rint(np.clip(grid.reshape(rows * h, columns * w, 3), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).resize((columns * w * scale, rows * h * scale), Image.Resampling.NEAREST).save(path)


def evaluate(
    pipe: Any,
    *,
    per_kind: int,
    steps: int,
    guidance: float,
    max_sequence_length: int = 1,
    seed: int = 0,
    held_out: bool = True,
    grid: Path | None = None,
) -> dict[str, tuple[float, float, float, float, int]]:
    """Generate `per_kind` captions of each kind and check them; optionally save a grid, one row per kind."""
    prompts, kinds = [], []
    for kind in KINDS:
        prompts += prompts_of_kind(kind, per_kind, seed + 1, held_out)
        kinds += [kind] * per_kind
    images = generate(pipe, prompts, steps=steps, guidance=guidance, max_sequence_length=max_sequence_length, seed=seed)
    if grid is not None:
        columns = min(per_kind, 12)
        shown = np.concatenate([images[i * per_kind : i * per_kind + columns] for i in range(len(KINDS))])
        save_grid(shown, columns, grid)
    return accuracy(images, prompts, kinds)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ttsnap.scenes.training.evaluate", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="diffusers folder (default: the packaged weights)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--per-kind", type=int, default=32)
    parser.add_argument("--max-sequence-length", type=int, default=1, help="zero tokens of the stock call (1 to 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained-captions", action="store_true", help="captions seen in training, not held-out ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grid", type=Path, help="PNG to write, one row per kind")
    args = parser.parse_args(argv)

    import torch
    from diffusers import DiffusionPipeline

    from ttsnap.scenes.model import weights_path

    torch.set_num_threads(args.threads)
    pipe = DiffusionPipeline.from_pretrained(args.folder or weights_path())
    pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    rows = evaluate(
        pipe,
        per_kind=args.per_kind,
        steps=args.steps,
        guidance=args.guidance,
        max_sequence_length=args.max_sequence_length,
        seed=args.seed,
        held_out=not args.trained_captions,
        grid=args.grid,
    )
    print(table(rows))
    print(f"{args.steps} steps, guidance {args.guidance}, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
