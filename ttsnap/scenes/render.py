"""Ground-truth pictures of specifications: anti-aliased shapes on a plain background (numpy
only)."""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from .grammar import BACKGROUNDS, COLORS, MAX_TRAINED_OBJECTS, RELATIONS, SHAPES, Spec

IMAGE_SIZE = 32
RGB = np.array(
    [(225, 30, 35), (30, 180, 50), (35, 75, 225), (245, 232, 40), (150, 30, 200), (250, 130, 20)],
    np.float32,
) / np.float32(255)
"""Colours in the order of `COLORS`."""
GRAY_LEVELS = np.array([0.95, 0.5, 0.06], np.float32)
"""Grey levels in the order of `BACKGROUNDS`."""
NUM_LABELS = 1 + len(COLORS) * len(SHAPES)
"""Labels of the dense maps: 0 is background, 1 + color * len(SHAPES) + shape an object."""

_MARGIN = 0.75
_GAP = 1.5
_RADII = {1: (4.8, 6.4), 2: (4.8, 6.4), 3: (4.4, 5.4), 4: (4.2, 5.0), 5: (3.7, 4.2), 6: (3.5, 3.9)}

Floats = NDArray[np.float32]


def signed_distance(shape: int, dx: Floats, dy: Floats, r: float | Floats) -> Floats:
    """Approximate signed distance to shape number `shape` of radius `r`, negative inside; y points
    down."""
    ax = np.abs(dx)
    ay = np.abs(dy)
    if shape == 0:
        d = np.hypot(dx, dy) - 0.95 * r
    elif shape == 1:
        d = np.maximum(ax, ay) - 0.82 * r
    elif shape == 2:
        d = np.maximum(dy - 0.75 * r, (ax * 1.75 - (dy + r) * 0.95) / 1.991)
    else:
        d = np.minimum(
            np.maximum(ax - 0.32 * r, ay - 0.97 * r), np.maximum(ax - 0.97 * r, ay - 0.32 * r)
        )
    return np.asarray(d, np.float32)


def place(
    counts: NDArray[np.int64],
    relations: NDArray[np.int64],
    first: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Centres (N, K, 2) and radii (N, K) of objects by rejection: inside the frame, separate, and
    in their relation.

    K is the number of objects of the fullest image, at least 4.

    Args:
        counts: objects of each image, (N,).
        relations: indices into `RELATIONS`, or -1, (N,).
        first: objects of the first group, (N,), which a relation joins with all others.
        rng: source of the layout.
    """
    slots = max(MAX_TRAINED_OBJECTS, int(counts.max(initial=0)))
    lo, hi = (
        np.array([_RADII[n][end] for n in sorted(_RADII)], np.float32)[counts - 1] for end in (0, 1)
    )
    centres = np.zeros((len(counts), slots, 2), np.float32)
    radii = np.zeros((len(counts), slots), np.float32)
    todo = np.arange(len(counts))
    j, i = np.triu_indices(slots, 1)  # of each pair, the earlier and the later object
    while len(todo):
        m = len(todo)
        r = lo[todo, None] + rng.random((m, slots), np.float32) * (hi - lo)[todo, None]
        room = IMAGE_SIZE - 2 * (r + _MARGIN)
        p = (r + _MARGIN)[..., None] + rng.random((m, slots, 2), np.float32) * room[..., None]
        d = p[:, i] - p[:, j]
        reach = r[:, i] + r[:, j]
        apart = np.hypot(d[..., 0], d[..., 1]) > 1.08 * reach + _GAP
        apart |= np.abs(d).max(-1) > reach + _GAP
        ok = np.asarray((apart | (i >= counts[todo, None])).all(1))
        related = np.nonzero(ok & (relations[todo] >= 0))[0]
        if len(related):
            at = todo[related]
            ok[related] = _in_relation(p[related], r[related], counts[at], relations[at], first[at])
        centres[todo[ok]], radii[todo[ok]] = p[ok], r[ok]
        todo = todo[~ok]
    return centres, radii


def _in_relation(
    p: Floats,
    r: Floats,
    counts: NDArray[np.int64],
    relations: NDArray[np.int64],
    first: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the relation clearly holds, (N,): between each object of the first group and each
    other, and the centres.

    p: centres (N, K, 2); r: radii (N, K); the rest as in `place`.
    """
    slot = np.arange(p.shape[1])
    # (N, K)
    ours = slot < first[:, None]
    theirs = (slot >= first[:, None]) & (slot < counts[:, None])
    axis = np.where(relations < 2, 1, 0)
    sign = np.where(relations % 2 == 0, 1, -1)
    ahead = np.take_along_axis(p, axis[:, None, None], 2)[..., 0] * sign[:, None]  # (N, K)
    side = ahead[:, None, :] - ahead[:, :, None]  # from i of the first group to j of the other
    clear = (side > r[:, :, None] + 1) | ~(ours[:, :, None] & theirs[:, None, :])
    d = _mean(p, theirs) - _mean(p, ours)
    rows = np.arange(len(p))
    across = np.abs(d[rows, 1 - axis])
    along = d[rows, axis] * sign
    return np.asarray(clear.all((1, 2)) & (across < 0.7 * along))


def _mean(p: Floats, which: NDArray[np.bool_]) -> Floats:
    """Mean (N, 2) of the places (N, K, 2) that the mask (N, K) chooses."""
    return np.asarray((p * which[..., None]).sum(1) / which.sum(1, keepdims=True), np.float32)


@overload
def render(
    specs: Sequence[Spec], rng: np.random.Generator, *, labels: Literal[False] = False
) -> Floats: ...
@overload
def render(
    specs: Sequence[Spec], rng: np.random.Generator, *, labels: Literal[True]
) -> tuple[Floats, NDArray[np.uint8]]: ...
def render(
    specs: Sequence[Spec], rng: np.random.Generator, *, labels: bool = False
) -> Floats | tuple[Floats, NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) in [0, 1]; with `labels`, also the dense label maps (N, 32, 32) (see
    `NUM_LABELS`)."""
    n = len(specs)
    counts = np.array([s.num_objects for s in specs], np.int64)
    relations = np.array(
        [-1 if s.relation is None else RELATIONS.index(s.relation) for s in specs], np.int64
    )
    first = np.array([s.groups[0].count for s in specs], np.int64)
    ground = rng.integers(len(BACKGROUNDS), size=n)
    for i, spec in enumerate(specs):
        if spec.background is not None:
            ground[i] = BACKGROUNDS.index(spec.background)
    centres, radii = place(counts, relations, first, rng)
    slots = radii.shape[1]
    what = np.full((n, slots), -1)
    for i, spec in enumerate(specs):
        for k, (color_name, shape_name) in enumerate(map(str.split, spec.objects)):
            what[i, k] = COLORS.index(color_name) * len(SHAPES) + SHAPES.index(shape_name)

    ys, xs = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + np.float32(0.5)
    images = np.broadcast_to(
        GRAY_LEVELS[ground][:, None, None, None], (n, 3, IMAGE_SIZE, IMAGE_SIZE)
    ).copy()
    maps = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for k in range(slots):
        for shape in range(len(SHAPES)):
            rows = np.nonzero((what[:, k] >= 0) & (what[:, k] % len(SHAPES) == shape))[0]
            if not len(rows):
                continue
            dx = xs - centres[rows, k, 0][:, None, None]
            dy = ys - centres[rows, k, 1][:, None, None]
            cover = np.clip(
                0.5 - signed_distance(shape, dx, dy, radii[rows, k][:, None, None]), 0, 1
            )
            color = RGB[what[rows, k] // len(SHAPES)][:, :, None, None]
            images[rows] += cover[:, None] * (color - images[rows])
            maps[rows] = np.where(
                cover > 0.5, (1 + what[rows, k]).astype(np.uint8)[:, None, None], maps[rows]
            )
    return (images, maps) if labels else images
