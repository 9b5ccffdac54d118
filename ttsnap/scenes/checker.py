"""The exact checker: finds the objects in a picture, and compares them with the picture's caption.

A pixel has the colour of the nearest hue, and a coverage: its chroma divided by that colour's,
which undoes the anti-aliasing against a grey ground. Connected pixels of one colour are an object,
whose shape is that of the template with the best overlap. Objects are then matched with those of
the caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .grammar import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Spec
from .render import GRAY_LEVELS, IMAGE_SIZE, RGB, signed_distance

MIN_CHROMA = 0.16
MIN_COVER = 0.45
MIN_AREA = 8
MIN_OVERLAP = 0.72
_PATCH = 20
_SHARPNESS = 20.0
_CHUNK = 1024

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Objects:
    """The M objects of N images, ordered by image."""

    image: NDArray[np.int64]
    """Index of the image, (M,)."""
    color: NDArray[np.int64]
    """Index into `COLORS`, (M,)."""
    overlap: Floats
    """Intersection over union with the best template of each shape, (M, 4)."""
    x: Floats
    """Centre from the left, in pixels, (M,)."""
    y: Floats
    """Centre from the top, in pixels, (M,)."""
    background: Floats
    """Mean grey level outside the objects, (N,)."""


def check(images: NDArray[np.floating], specs: Sequence[Spec]) -> tuple[Floats, NDArray[np.bool_]]:
    """How well each image shows its specification.

    Args:
        images: shape (N, 3, 32, 32), values in [0, 1] (clipped where outside).
        specs: N specifications.

    Returns:
        soft: shape (N,), float32 in [0, 1]; partial credit for each object, the relation and the
            background.
        strict: shape (N,), bool; everything right and nothing extra.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"expected images of shape (N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {images.shape}"
        )
    if len(images) != len(specs):
        raise ValueError(f"got {len(images)} images but {len(specs)} specs")
    if not np.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values")
    soft = np.zeros(len(images), np.float32)
    strict = np.zeros(len(images), bool)
    for start in range(0, len(images), _CHUNK):
        objects = detect(images[start : start + _CHUNK])
        for i in range(len(objects.background)):
            soft[start + i], strict[start + i] = judge(objects, i, specs[start + i])
    return soft, strict


def judge(found: Objects, image: int, spec: Spec) -> tuple[float, bool]:
    """The soft and strict verdict, as in `check`, on one image of those given to `detect`."""
    low, high = np.searchsorted(found.image, (image, image + 1))
    return _judge(found, slice(int(low), int(high)), float(found.background[image]), spec)


def _hue_and_chroma(images: Floats) -> tuple[Floats, Floats]:
    """Hue in sixths of the circle [0, 6) and chroma, both (N, H, W), of images (N, 3, H, W)."""
    r = images[:, 0]
    g = images[:, 1]
    b = images[:, 2]
    top = np.maximum(np.maximum(r, g), b)
    chroma = top - np.minimum(np.minimum(r, g), b)
    safe = np.maximum(chroma, np.float32(1e-6))
    hue = np.where(
        top == r, (g - b) / safe, np.where(top == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    return np.asarray(hue % 6, np.float32), chroma


_HUES, _CHROMAS = (a.ravel() for a in _hue_and_chroma(RGB[:, :, None, None]))


@cache
def _color_table(bins: int = 720) -> NDArray[np.int8]:
    """The nearest colour of each hue."""
    hue = (np.arange(bins, dtype=np.float32) + np.float32(0.5)) * np.float32(6 / bins)
    gap = np.abs(hue[:, None] - _HUES)
    return np.asarray(np.minimum(gap, 6 - gap).argmin(1), np.int8)


@cache
def _templates() -> tuple[Floats, Floats]:
    """Binary templates (T, P * P), shape by shape, centred by bounding box, and their areas
    (T,)."""
    ys, xs = np.mgrid[0:_PATCH, 0:_PATCH].astype(np.float32) + np.float32(0.5)
    masks = []
    for shape in range(len(SHAPES)):
        for r in np.arange(3.2, 7.6, 0.25):
            for oy, ox in product((-0.25, 0.0, 0.25, 0.5), repeat=2):
                # the triangle's box is not centred on its origin
                low = 0.125 * r if shape == 2 else 0.0
                d = signed_distance(shape, xs - (_PATCH / 2 + ox), ys - (_PATCH / 2 + oy + low), r)
                masks.append((d < 0.05).ravel())
    bank = np.array(masks, np.float32)
    return bank, bank.sum(1)


def detect(images: NDArray[np.floating]) -> Objects:
    """Find the objects in images (N, 3, 32, 32)."""
    x = np.clip(images, 0, 1).astype(np.float32)
    hue, chroma = _hue_and_chroma(x)
    table = _color_table()
    color = table[np.minimum((hue * (len(table) / 6)).astype(np.int32), len(table) - 1)]
    inside = (chroma > MIN_CHROMA) & (chroma > MIN_COVER * _CHROMAS[color])

    plane = np.zeros((3, 3, 3), bool)
    plane[1] = True
    labels = np.zeros(inside.shape, np.int32)
    total = 0
    for k in range(len(COLORS)):
        mask = inside & (color == k)
        part, count = ndimage.label(mask, plane)
        labels += np.where(mask, part + total, 0)
        total += count

    area = np.bincount(labels.ravel(), minlength=total + 1)
    keep = np.nonzero(area >= MIN_AREA)[0]
    keep = keep[keep > 0]
    where = np.nonzero(labels)
    ids = labels[where]
    lo = np.full((total + 1, 2), IMAGE_SIZE, np.int64)
    hi = np.zeros((total + 1, 2), np.int64)
    for axis in (0, 1):
        np.minimum.at(lo[:, axis], ids, where[axis + 1])
        np.maximum.at(hi[:, axis], ids, where[axis + 1] + 1)
    safe = np.maximum(area, 1)
    cy = np.bincount(ids, where[1] + 0.5, minlength=total + 1) / safe
    cx = np.bincount(ids, where[2] + 0.5, minlength=total + 1) / safe
    image_of = np.zeros(total + 1, np.int64)
    image_of[ids] = where[0]
    color_of = np.zeros(total + 1, np.int64)
    color_of[ids] = color[where]
    keep = keep[np.argsort(image_of[keep], kind="stable")]

    ground = chroma < 0.1
    count = ground.sum((1, 2))
    level = np.where(ground, x.mean(1), 0).sum((1, 2))
    background = np.where(count > 0, level / np.maximum(count, 1), np.float32(0.5)).astype(
        np.float32
    )
    overlap = _overlaps(labels, keep, image_of[keep], lo[keep], hi[keep], area[keep])
    return Objects(
        image_of[keep],
        color_of[keep],
        overlap,
        cx[keep].astype(np.float32),
        cy[keep].astype(np.float32),
        background,
    )


def _overlaps(
    labels: NDArray[np.int32],
    ids: NDArray[np.int64],
    image: NDArray[np.int64],
    lo: NDArray[np.int64],
    hi: NDArray[np.int64],
    area: NDArray[np.int64],
) -> Floats:
    """Best intersection over union of each object with the templates of each shape, (M, 4)."""
    if not len(ids):
        return np.zeros((0, len(SHAPES)), np.float32)
    half = _PATCH // 2
    padded = np.pad(labels, ((0, 0), (half, half), (half, half)))
    corner = (lo + hi) // 2  # of the patch, in padded coordinates
    steps = np.arange(_PATCH)
    rows = corner[:, 0, None, None] + steps[:, None]
    cols = corner[:, 1, None, None] + steps
    masks = (
        (padded[image[:, None, None], rows, cols] == ids[:, None, None])
        .reshape(len(ids), -1)
        .astype(np.float32)
    )
    bank, areas = _templates()
    both = masks @ bank.T
    iou = both / (area[:, None] + areas - both)
    return np.asarray(iou.reshape(len(ids), len(SHAPES), -1).max(2), np.float32)


def _judge(found: Objects, rows: slice, level: float, spec: Spec) -> tuple[float, bool]:
    """Soft and strict verdict on one image."""
    color = found.color[rows]
    overlap = found.overlap[rows]
    wanted = [(COLORS.index(c), SHAPES.index(s)) for c, s in map(str.split, spec.objects)]
    best = overlap.max(1, initial=0.0)
    likely = np.exp(_SHARPNESS * (overlap - best[:, None]))
    likely /= likely.sum(1, keepdims=True)
    solid = np.minimum(1.0, best / 0.9)

    pairs = []  # (credit, wanted, found)
    for i, (c, s) in enumerate(wanted):
        for j in range(len(color)):
            shape_credit = float(likely[j, s] * solid[j])
            pairs.append((0.3 + 0.7 * shape_credit if color[j] == c else 0.3 * shape_credit, i, j))
    pairs.sort(key=lambda p: -p[0])
    match: dict[int, int] = {}
    credit = 0.0
    for value, i, j in pairs:
        if i not in match and j not in match.values():
            match[i] = j
            credit += value
    extra = len(color) - len(match)
    soft = credit / len(wanted) * len(wanted) / (len(wanted) + 0.5 * extra)
    right = {
        i: color[j] == wanted[i][0]
        and int(overlap[j].argmax()) == wanted[i][1]
        and best[j] >= MIN_OVERLAP
        for i, j in match.items()
    }
    strict = extra == 0 and len(match) == len(wanted) and all(right.values())

    if spec.relation is not None:
        held, holds = _relation(found, rows, match, spec.relation, spec.groups[0].count)
        strict = strict and holds
        soft *= 0.5 + 0.5 * held
    if spec.background is not None:
        off = abs(level - float(GRAY_LEVELS[BACKGROUNDS.index(spec.background)]))
        soft *= 0.8 + 0.2 * np.exp(-((off / 0.2) ** 2))
        strict = strict and off < 0.2
    return float(min(max(soft, 0.0), 1.0)), bool(strict)


def _relation(
    found: Objects, rows: slice, match: dict[int, int], relation: str, first: int
) -> tuple[float, bool]:
    """How well, and whether, the caption's first `first` objects have the relation to its other
    objects.

    The centre of the first group must lie mainly in that direction from the other group's, and each
    object of the first beyond each of the other.
    """
    places = np.stack([found.x, found.y], -1)[rows]
    ours, theirs = (
        places[[j for i, j in match.items() if (i < first) == mine]] for mine in (True, False)
    )
    if not len(ours) or not len(theirs):
        return 0.0, False
    axis = 1 if relation in RELATIONS[:2] else 0
    sign = 1 if relation in RELATIONS[::2] else -1
    apart = sign * (theirs.mean(0) - ours.mean(0))
    along = float(apart[axis])
    across = abs(float(apart[1 - axis]))
    nearest = float((sign * theirs[:, axis]).min() - (sign * ours[:, axis]).max())  # of any two
    held = 1 / (1 + np.exp(-min(along, along - 0.8 * across, nearest) / 2))
    return float(held), nearest > 2 and across < along
