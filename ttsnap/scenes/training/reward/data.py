"""What the learned reward is trained on: pictures, several captions each, and what the exact checker says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ttsnap.scenes.checker import Objects, detect, judge
from ttsnap.scenes.grammar import COLORS, SHAPES, Group, Spec, caption, is_held_out, parse, sample_spec
from ttsnap.scenes.reader import CELLS, MAX_WORDS, word_ids
from ttsnap.scenes.render import IMAGE_SIZE, render
from ttsnap.scenes.training.reward.negatives import changed
from ttsnap.scenes.training.reward.recipe import RewardData

KINDS = ("single", "count", "count", "pair", "relation", "relation", "relation", "combo", "triple", "quad")
"""Drawn evenly: relations and counts are the hardest to learn."""
_CHANGES = ("color", "count", "shape", "relation", "relation", "background", "swap")


@dataclass(frozen=True)
class Pairs:
    """N pictures with K captions each.

    images (N, 3, 32, 32) uint8; centres (N, 8, 8) uint8, the label (render.NUM_LABELS) of the object whose centre lies
    in a cell; ids (N, K, MAX_WORDS) uint8; soft (N, K) float32, the checker's verdict in [0, 1].
    """

    images: NDArray[np.uint8]
    centres: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    soft: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)


def pairs(images: NDArray[np.uint8], specs: Sequence[Spec], captions: int, rng: np.random.Generator) -> Pairs:
    """Judge pictures (N, 3, 32, 32), made for these specifications, with their own caption and captions - 1 others.

    The others have one or two things changed, or say what is in the picture. None of them is held out.
    """
    objects = detect(images.astype(np.float32) / 255)
    soft, texts = np.zeros((len(images), captions), np.float32), []
    for i, spec in enumerate(specs):
        options = [spec, *(_other(objects, i, spec, rng, first=k == 0) for k in range(captions - 1))]
        soft[i] = [judge(objects, i, option)[0] for option in options]
        texts += [caption(option) for option in options]
    ids = word_ids(texts).numpy().astype(np.uint8).reshape(len(images), captions, MAX_WORDS)
    return Pairs(images, _centres(objects, len(images)), ids, soft)


def rendered(n: int, captions: int, rng: np.random.Generator) -> Pairs:
    """n ground-truth pictures."""
    parts = []
    for start in tqdm(range(0, n, 2000), desc="renders", unit_scale=2000, unit="img"):
        specs = [_draw(rng) for _ in range(min(2000, n - start))]
        parts.append(pairs(np.rint(render(specs, rng) * 255).astype(np.uint8), specs, captions, rng))
    return join(parts)


def recorded(folder: Path, wanted: RewardData, rng: np.random.Generator) -> Pairs:
    """The pictures of a recording (`ttsnap record --images`): the first prompts, estimates from a step on.

    Each is judged by what it shows itself, so a late estimate is one more picture. ValueError for a held-out prompt.
    """
    from ttsnap.recordings.folder import load_recording, read_images

    specs = [parse(prompt) for prompt in load_recording(folder).prompts[: wanted.prompts]]
    held = [caption(spec) for spec in specs if is_held_out(caption(spec))]
    if held:
        raise ValueError(f"{folder} was made with held-out captions ({held[0]!r}); train on others")

    def chunks() -> Iterator[Pairs]:
        images, of = [], []
        for shown in tqdm(read_images(folder), desc="recording", unit="img"):
            if shown.prompt < wanted.prompts and shown.step >= wanted.first_step:
                images.append(shown.pixels.transpose(2, 0, 1))
                of.append(specs[shown.prompt])
            if len(images) == 2000:
                yield pairs(np.stack(images), of, wanted.captions, rng)
                images, of = [], []
        if images:
            yield pairs(np.stack(images), of, wanted.captions, rng)

    return join(list(chunks()))


def join(parts: Sequence[Pairs]) -> Pairs:
    """One after the other."""
    return Pairs(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "centres", "ids", "soft")))


def _draw(rng: np.random.Generator) -> Spec:
    while True:
        spec = sample_spec(rng, KINDS[rng.integers(len(KINDS))])
        if not is_held_out(caption(spec)):
            return spec


def _other(found: Objects, i: int, spec: Spec, rng: np.random.Generator, first: bool) -> Spec:
    """Another caption for picture i: what it shows, or `spec` with one or two things changed.

    The first one of a relation turns that around: relations are learned last, and from such pairs.
    """
    if first and spec.relation is not None:
        other = changed(spec, "relation", rng)
        if other is not None and not is_held_out(caption(other)):
            return other
    if rng.random() < 0.15:
        spec = _shown(found, i) or spec
    for _ in range(20):
        other = changed(spec, _CHANGES[rng.integers(len(_CHANGES))], rng)
        if other is not None and rng.random() < 0.25:
            other = changed(other, _CHANGES[rng.integers(len(_CHANGES))], rng)
        if other is not None and not is_held_out(caption(other)):
            return other
    return _draw(rng)


def _shown(found: Objects, i: int) -> Spec | None:
    """What picture i shows, where a caption of the kinds to train on can say it."""
    low, high = np.searchsorted(found.image, (i, i + 1))
    kinds = zip(found.color[low:high].tolist(), found.overlap[low:high].argmax(1).tolist(), strict=True)
    try:
        spec = Spec(tuple(Group(n, COLORS[c], SHAPES[s]) for (c, s), n in Counter(kinds).items()))
    except ValueError:
        return None
    return spec if spec.kind in KINDS else None


def _centres(found: Objects, n: int) -> NDArray[np.uint8]:
    size = IMAGE_SIZE // CELLS
    out = np.zeros((n, CELLS, CELLS), np.uint8)
    row, column = (np.clip(a / size, 0, CELLS - 1).astype(int) for a in (found.y, found.x))
    out[found.image, row, column] = 1 + found.color * len(SHAPES) + found.overlap.argmax(1)
    return out
