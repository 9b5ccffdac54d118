"""Data of a training: made once, kept on disk, and in rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ttsnap.files.writing import write_whole
from ttsnap.scenes.grammar import SCENES, Grammar, Spec, is_held_out

D = TypeVar("D", bound=Any)


def kept(
    path: Path, made_by: Mapping[str, Any], make: Callable[..., Mapping[str, Any]], *given: Any
) -> dict[str, Any]:
    """What the file holds, by name; where there is none, what `make(*given)` gives, written whole
    or not at all.

    made_by: what it depends on, plain values. ValueError for a file that something else made.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {"made_by": made_by, **make(*given)}
        write_whole(path, lambda file: torch.save(made, file))
    found: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
    before = found.pop("made_by")
    if before != made_by:
        raise ValueError(f"{path} was made with {before}, not {made_by}; choose another --out")
    return found


def join(parts: Sequence[D]) -> D:
    """Rows of dataclasses of tensors and tuples, one after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    joined = (
        torch.cat(c) if isinstance(c[0], Tensor) else tuple(x for part in c for x in part)
        for c in columns
    )
    whole: D = type(parts[0])(*joined)
    return whole


def training_specs(
    n: int,
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    grammar: Grammar = SCENES,
) -> list[Spec]:
    """`n` random specifications whose captions are not held out. kinds: drawn evenly."""
    specs: list[Spec] = []
    while len(specs) < n:
        kind = None if kinds is None else kinds[int(rng.integers(len(kinds)))]
        spec = grammar.sample_spec(rng, kind)
        if not is_held_out(grammar.caption(spec)):
            specs.append(spec)
    return specs
