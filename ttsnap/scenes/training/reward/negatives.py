"""Captions that are nearly right: a specification with one thing changed (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ttsnap.scenes.grammar import BACKGROUNDS, COLORS, KINDS, MAX_COUNT, RELATIONS, SHAPES, Group, Spec

CHANGES = ("color", "count", "shape", "relation")
"""What may be changed; `changed` takes "background" and "swap" as well."""


def changed(spec: Spec, what: str, rng: np.random.Generator) -> Spec | None:
    """`spec` with one colour, shape, count, relation or background changed, or two objects' colours swapped.

    None where the specification has no such thing (a relation, a background, two colours) or the change would leave
    the kinds to train on (a quad takes no other count). ValueError for an unknown change.
    """
    g = int(rng.integers(len(spec.groups)))
    group = spec.groups[g]
    if what == "color":
        return _with(spec, g, replace(group, color=_other(COLORS, group.color, rng)))
    if what == "shape":
        return _with(spec, g, replace(group, shape=_other(SHAPES, group.shape, rng)))
    if what == "count":
        options = [n for n in range(1, MAX_COUNT + 1) if n != group.count]
        made = [_with(spec, g, replace(group, count=n)) for n in options] if spec.relation is None else []
        return _one([m for m in made if m is not None], rng)
    if what == "relation":
        if spec.relation is None:
            return None
        # Half of them the exact opposite, which shares every object and the axis.
        opposite = RELATIONS[RELATIONS.index(spec.relation) ^ 1]
        relation = opposite if rng.random() < 0.5 else _other(RELATIONS, spec.relation, rng)
        return replace(spec, relation=relation)
    if what == "background":
        if spec.background is None:
            return None
        return replace(spec, background=_other(BACKGROUNDS, spec.background, rng))
    if what == "swap":
        h = int(rng.integers(len(spec.groups)))
        other = spec.groups[h]
        if other.color == group.color:
            return None
        first = _with(spec, g, replace(group, color=other.color), h, replace(other, color=group.color))
        return None if first is None or set(first.groups) == set(spec.groups) else first
    raise ValueError(f"unknown change {what!r}; known: {', '.join((*CHANGES, 'background', 'swap'))}")


def _with(spec: Spec, g: int, group: Group, h: int = -1, other: Group | None = None) -> Spec | None:
    groups = list(spec.groups)
    groups[g] = group
    if other is not None:
        groups[h] = other
    try:
        made = replace(spec, groups=tuple(groups))
    except ValueError:  # the same object twice, or too many: no sentence of the language
        return None
    return made if made.kind in KINDS else None  # the other kinds stay unseen


def _other(values: Sequence[str], value: str, rng: np.random.Generator) -> str:
    options = [v for v in values if v != value]
    return options[int(rng.integers(len(options)))]


def _one(options: list[Spec], rng: np.random.Generator) -> Spec | None:
    return options[int(rng.integers(len(options)))] if options else None
