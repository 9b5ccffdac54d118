"""Training data: rendered scenes with their label maps and captions, made once and kept as plain .npy files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ttsnap.scenes.grammar import Spec, caption, is_held_out, sample_spec
from ttsnap.scenes.render import IMAGE_SIZE, NUM_LABELS, render

_CHUNK = 2000


def training_specs(n: int, rng: np.random.Generator) -> list[Spec]:
    """`n` random specifications whose captions are not held out."""
    specs: list[Spec] = []
    while len(specs) < n:
        spec = sample_spec(rng)
        if not is_held_out(caption(spec)):
            specs.append(spec)
    return specs


def pool_labels(maps: NDArray[np.uint8], cell: int) -> NDArray[np.uint8]:
    """Label maps (N, H, W) coarsened to cells: a cell takes its most common object if that fills a quarter of it."""
    n, h, w = maps.shape
    cells = maps.reshape(n, h // cell, cell, w // cell, cell).transpose(0, 1, 3, 2, 4)
    cells = cells.reshape(-1, cell * cell)
    counts = np.zeros((len(cells), NUM_LABELS), np.uint8)
    rows = np.arange(len(cells))
    for i in range(cell * cell):
        counts[rows, cells[:, i]] += 1
    best = counts[:, 1:].argmax(1) + 1
    out = np.where(counts[rows, best] * 4 >= cell * cell, best, 0)
    return out.reshape(n, h // cell, w // cell).astype(np.uint8)


def make_data(folder: Path, n: int, seed: int, cell: int) -> None:
    """Write images.npy (N, 3, 32, 32) uint8, labels.npy (N, 32 / cell, 32 / cell) uint8 and captions.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = np.empty((n, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    labels = np.empty((n, IMAGE_SIZE // cell, IMAGE_SIZE // cell), np.uint8)
    captions: list[str] = []
    for start in tqdm(range(0, n, _CHUNK), desc="data", unit="chunk"):
        stop = min(start + _CHUNK, n)
        specs = training_specs(stop - start, rng)
        pictures, maps = render(specs, rng, labels=True)
        images[start:stop] = np.rint(pictures * 255)
        labels[start:stop] = pool_labels(maps, cell)
        captions += map(caption, specs)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
