"""Captions that are nearly right, and how often a reward prefers a picture's own caption to one of
them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from train_worlds.evaluate import prompts_of_kind
from train_worlds.stored import training_specs
from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward
from ttsnap.files.writing import markdown
from ttsnap.recordings.folder import load_recording, read_images
from ttsnap.scenes.checker import Objects, check
from ttsnap.scenes.grammar import (
    BACKGROUNDS,
    COLORS,
    HARD_KINDS,
    KINDS,
    MAX_COUNT,
    RELATIONS,
    SHAPES,
    Group,
    Spec,
    caption,
    is_held_out,
    parse,
)
from ttsnap.scenes.render import render

CHANGES = ("color", "count", "shape", "relation")
"""What may be changed; `changed` takes "background" and "swap" as well."""
TRAINED = (
    "single",
    "count",
    "count",
    "pair",
    "relation",
    "relation",
    "relation",
    "combo",
    "triple",
    "quad",
)
"""Drawn evenly: relations and counts are the hardest to learn."""
_DRAWN = ("color", "count", "shape", "relation", "relation", "background", "swap")


def changed(spec: Spec, what: str, rng: np.random.Generator) -> Spec | None:
    """`spec` with one colour, shape, count, relation or background changed, or two objects' colours
    swapped.

    None where the specification has no such thing (a relation, a background, two colours) or the
    change would leave the kinds to train on (a quad takes no other count). ValueError for an
    unknown change.
    """
    g = int(rng.integers(len(spec.groups)))
    group = spec.groups[g]
    color, shape = group.noun.split()
    if what == "color":
        return _with(spec, {g: replace(group, noun=f"{_other(COLORS, color, rng)} {shape}")})
    if what == "shape":
        return _with(spec, {g: replace(group, noun=f"{color} {_other(SHAPES, shape, rng)}")})
    if what == "count":
        counts = [n for n in range(1, MAX_COUNT + 1) if n != group.count and spec.relation is None]
        options = [
            made for n in counts if (made := _with(spec, {g: replace(group, count=n)})) is not None
        ]
        return options[int(rng.integers(len(options)))] if options else None
    if what == "relation":
        if spec.relation is None:
            return None
        # Half of them the exact opposite, which shares every object and the axis.
        opposite = RELATIONS[RELATIONS.index(spec.relation) ^ 1]
        return replace(
            spec, relation=opposite if rng.random() < 0.5 else _other(RELATIONS, spec.relation, rng)
        )
    if what == "background":
        if spec.background is None:
            return None
        return replace(spec, background=_other(BACKGROUNDS, spec.background, rng))
    if what == "swap":
        h = int(rng.integers(len(spec.groups)))
        other = spec.groups[h]
        other_color, other_shape = other.noun.split()
        if other_color == color:
            return None
        swapped = {
            g: replace(group, noun=f"{other_color} {shape}"),
            h: replace(other, noun=f"{color} {other_shape}"),
        }
        made = _with(spec, swapped)
        return None if made is None or set(made.groups) == set(spec.groups) else made
    raise ValueError(
        f"unknown change {what!r}; known: {', '.join((*CHANGES, 'background', 'swap'))}"
    )


def _with(spec: Spec, groups: dict[int, Group]) -> Spec | None:
    """Other groups in these places; None where that is no sentence to train on."""
    try:
        made = replace(
            spec, groups=tuple(groups.get(i, group) for i, group in enumerate(spec.groups))
        )
    except ValueError:  # the same object twice, or too many: no sentence of the language
        return None
    return made if made.kind in KINDS else None  # the other kinds stay unseen


def _other(values: Sequence[str], value: str, rng: np.random.Generator) -> str:
    options = [v for v in values if v != value]
    return options[int(rng.integers(len(options)))]


def other_caption(
    found: Objects, i: int, spec: Spec, rng: np.random.Generator, first: bool
) -> Spec:
    """Another caption for picture i: what it shows, or `spec` with one or two things changed.

    The first one of a relation turns that around: relations are learned last, and from such pairs.
    """
    if first and spec.relation is not None:
        other = changed(spec, "relation", rng)
        if other is not None and not is_held_out(caption(other)):
            return other
    if rng.random() < 0.15:
        spec = shown(found, i) or spec
    for _ in range(20):
        other = changed(spec, _DRAWN[rng.integers(len(_DRAWN))], rng)
        if other is not None and rng.random() < 0.25:
            other = changed(other, _DRAWN[rng.integers(len(_DRAWN))], rng)
        if other is not None and not is_held_out(caption(other)):
            return other
    return training_specs(1, rng, TRAINED)[0]


def shown(found: Objects, i: int) -> Spec | None:
    """What picture i shows, where a caption of the kinds to train on can say it."""
    low, high = np.searchsorted(found.image, (i, i + 1))
    kinds = zip(
        found.color[low:high].tolist(), found.overlap[low:high].argmax(1).tolist(), strict=True
    )
    try:
        spec = Spec(
            tuple(Group(n, f"{COLORS[c]} {SHAPES[s]}") for (c, s), n in Counter(kinds).items())
        )
    except ValueError:
        return None
    return spec if spec.kind in TRAINED else None


def hard_negatives(
    reward: Reward, images: FloatArray, specs: Sequence[Spec], seed: int = 0
) -> dict[str, tuple[float, int]]:
    """For each of CHANGES: the share of the pictures (N, 3, 32, 32) that prefer their own caption,
    and of how many.

    A picture counts for a change that its caption can undergo; the changed caption is a false one
    by construction, and is left out where the picture happens to satisfy it as well. The share of
    no picture is nan.
    """
    rng, out = np.random.default_rng(seed), {}
    own = _scores(reward, images, specs)
    for what in CHANGES:
        others = [
            (i, other)
            for i, spec in enumerate(specs)
            if (other := changed(spec, what, rng)) is not None
        ]
        rows, wrong = [i for i, _ in others], [other for _, other in others]
        false = ~check(images[rows], wrong)[1] if rows else np.zeros(0, bool)
        right = own[rows] > _scores(reward, images[rows], wrong) if rows else false
        out[what] = float(right[false].mean()) if false.any() else math.nan, int(false.sum())
    return out


def _scores(reward: Reward, images: FloatArray, specs: Sequence[Spec]) -> NDArray[np.float64]:
    pixels = torch.from_numpy(np.asarray(images, np.float32))
    return np.asarray(
        reward(pixels, [caption(spec) for spec in specs], torch.zeros(len(specs))), float
    )


def recorded_right(folder: Path, most: int) -> tuple[NDArray[np.float32], list[Spec]]:
    """Up to `most` finished pictures of a recording that are strictly right, and their
    specifications."""
    recording = load_recording(folder)
    finished = [shown for shown in read_images(folder) if shown.step == recording.grid.steps]
    images = np.stack(
        [shown.pixels.transpose(2, 0, 1).astype(np.float32) / 255 for shown in finished]
    )
    specs = [parse(recording.prompts[shown.prompt]) for shown in finished]
    right = np.flatnonzero(check(images, specs)[1])
    right = np.random.default_rng(0).permutation(right)[:most]
    return np.asarray(images[right], np.float32), [specs[i] for i in right]


def evaluate(reward: Reward, pictures: int, recording: Path | None, seed: int = 0) -> str:
    """Markdown: of renders of held-out captions, and of a recording's right pictures; up to
    `pictures` of each."""
    each = max(1, pictures // len(HARD_KINDS))
    specs = [parse(text) for kind in HARD_KINDS for text in prompts_of_kind(kind, each, seed)]
    sets = {"renders of held-out captions": (render(specs, np.random.default_rng(seed)), specs)}
    if recording is not None:
        sets["generated, right"] = recorded_right(recording, pictures)
    rows = [
        [
            name,
            *(f"{share:.3f} ({n})" for share, n in hard_negatives(reward, *shown, seed).values()),
        ]
        for name, shown in sets.items()
    ]
    return markdown(("pictures", *CHANGES), rows)
