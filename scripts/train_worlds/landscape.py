"""Pictures of things on grass, sand or snow: light from one side, soft shadows, size by distance.

Things are sprites (sprites/things.png), scaled and tilted a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttsnap.scenes.grammar import RELATIONS, Spec
from ttsnap.things.grammar import BACKGROUNDS, NOUNS

IMAGE_SIZE = 128
THINGS = tuple(NOUNS)
NUM_LABELS = 1 + len(THINGS)
"""Labels of the dense maps: 0 is background, 1 + the place in `THINGS` a thing."""
SIDES = {1: (48, 62), 2: (42, 54), 3: (38, 48), 4: (34, 44), 5: (30, 38), 6: (28, 34)}
"""Longer side of a thing in the middle distance, in pixels, by how many things there are."""
OVERLAP = 1 / 8
"""Most of the smaller of two things that the other may hide, by their boxes."""
TILTS = (-10, -5, 0, 5, 10)
"""Degrees."""

_CELL, _COLUMNS = 112, 6
_SKY_AND_GROUND = {
    "grass": ((0.55, 0.80, 0.95), (0.36, 0.66, 0.30)),
    "sand": ((0.62, 0.82, 0.93), (0.90, 0.79, 0.55)),
    "snow": ((0.66, 0.76, 0.92), (0.93, 0.95, 0.98)),
}
_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + np.float32(0.5)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Where things stand: x of the middle and y of the foot, (N, 2), and longer sides, (N,)."""

    foot: Floats
    side: Floats
    horizon: float

    @property
    def centre(self) -> Floats:
        """(N, 2)."""
        return np.asarray(self.foot - np.stack([0 * self.side, self.side / 2], 1), np.float32)


def layout(spec: Spec, rng: np.random.Generator) -> Layout:
    """A random layout in which things hardly overlap and the relation clearly holds."""
    n = spec.num_objects
    while True:
        horizon = float(rng.uniform(22, 46))
        foot = np.stack([rng.uniform(0, 1, n), rng.uniform(horizon + 8, IMAGE_SIZE - 4, n)], 1)
        depth = (foot[:, 1] - horizon) / (IMAGE_SIZE - horizon)
        side = rng.uniform(*SIDES[n], n) * (0.8 + 0.35 * depth)
        foot[:, 0] = side / 2 + 2 + foot[:, 0] * (IMAGE_SIZE - side - 4)
        found = Layout(foot.astype(np.float32), side.astype(np.float32), horizon)
        if (foot[:, 1] - side >= 2).all() and _apart(found) and _related(spec, found):
            return found


def _apart(found: Layout) -> bool:
    away = np.abs(found.centre[:, None] - found.centre[None])
    reach = (found.side[:, None] + found.side[None]) / 2
    shared = np.clip(reach[..., None] - away, 0, None).prod(-1)
    hidden = shared / np.minimum(found.side[:, None], found.side[None]) ** 2
    np.fill_diagonal(hidden, 0)
    return bool(hidden.max() <= OVERLAP)


def _related(spec: Spec, found: Layout) -> bool:
    if spec.relation is None:
        return True
    which = RELATIONS.index(spec.relation)
    ahead = found.centre[:, 1 if which < 2 else 0] * (1 if which % 2 == 0 else -1)
    first = spec.groups[0].count
    return bool(ahead[:first].max() + 10 < ahead[first:].min())


@cache
def _sheet() -> Image.Image:
    with Image.open(Path(__file__).parent / "sprites" / "things.png") as sheet:
        return sheet.convert("RGBA")


@cache
def sprite(thing: int, side: int, tilt: int) -> tuple[Floats, Floats]:
    """Colour times cover (H, W, 3), and cover (H, W), in [0, 1], of a thing's longer side."""
    x = thing % _COLUMNS * _CELL
    y = thing // _COLUMNS * _CELL
    # "RGBa" holds colour times cover, so that edges take no colour from outside
    cell = _sheet().crop((x, y, x + _CELL, y + _CELL)).convert("RGBa")
    tilted = cell.rotate(tilt, Image.Resampling.BICUBIC)
    small = np.asarray(tilted.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255
    return small[..., :3], small[..., 3]


def draw(
    spec: Spec, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Floats]:
    """An image (3, H, W), its label map (H, W), and its things (N, 4): place in `THINGS`, x and y of
    the centre, longer side; groups in order."""
    where = layout(spec, rng)
    ground = spec.background or BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    light = float(rng.choice((-1.0, 1.0)))
    image = _landscape(ground, where.horizon, light, rng)
    for (x, y), side in zip(where.foot, where.side, strict=True):
        _cast_shadow(image, float(x), float(y), float(side), light)
    labels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    things = [THINGS.index(noun) for noun in spec.objects]
    boxes = np.zeros((len(things), 4), np.float32)
    for i in np.argsort(where.foot[:, 1]):  # what stands nearer hides what is behind
        side = round(float(where.side[i]))
        left = min(max(round(float(where.foot[i, 0]) - side / 2), 0), IMAGE_SIZE - side)
        top = min(max(round(float(where.foot[i, 1])) - side, 0), IMAGE_SIZE - side)
        color, cover = sprite(things[i], side, TILTS[rng.integers(len(TILTS))])
        across = (np.arange(side, dtype=np.float32) - side / 2) / side
        shade = (1 + 0.22 * light * across)[None, :] * (1.06 - 0.14 * (across + 0.5))[:, None]
        part = (slice(top, top + side), slice(left, left + side))
        image[part] = image[part] * (1 - cover[..., None]) + color * shade[..., None]
        labels[part][cover > 0.5] = 1 + things[i]
        boxes[i] = things[i], left + side / 2, top + side / 2, side
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels.transpose(2, 0, 1), labels, boxes


def _landscape(ground: str, horizon: float, light: float, rng: np.random.Generator) -> Floats:
    """Sky and ground (H, W, 3), which is a hill of low slope."""
    sky, earth = (np.array(color, np.float32) for color in _SKY_AND_GROUND[ground])
    swell = rng.uniform(-5, 5) * np.sin(_X / IMAGE_SIZE * np.pi + rng.uniform(0, np.pi))
    edge = horizon + swell
    below = np.clip((_Y - edge) / 3 + 0.5, 0, 1)[..., None]
    near = np.clip((_Y - edge) / (IMAGE_SIZE - horizon), 0, 1)[..., None]
    high = np.clip((edge - _Y) / horizon, 0, 1)[..., None]
    image = (1 - below) * sky * (1.06 - 0.16 * high) + below * earth * (0.84 + 0.24 * near)
    lit = 1 + 0.10 * light * (_X / IMAGE_SIZE - 0.5)
    return np.asarray(image * lit[..., None] * rng.uniform(0.95, 1.04), np.float32)


def _cast_shadow(image: Floats, x: float, y: float, side: float, light: float) -> None:
    """Darken the ground at a thing's foot, on the side away from the light."""
    across = (_X - (x - light * side * 0.22)) / (side * 0.52)
    along = (_Y - (y - side * 0.04)) / (side * 0.15)
    image *= (1 - 0.42 * np.clip(1.2 - np.hypot(across, along) ** 2, 0, 1))[..., None]


def render(
    specs: Sequence[Spec], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[Floats]]:
    """Images (N, 3, H, W), label maps (N, H, W), and the things of each image (see `draw`)."""
    drawn = [draw(spec, rng) for spec in specs]
    images, labels, things = zip(*drawn, strict=True)
    return np.stack(images), np.stack(labels), list(things)
