"""Pictures of many sizes that a model brings to one, so that one engine serves them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from ttsnap.files.pictured import Blank
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.request.request import EngineSpec

MOST_SIZES = 256
"""Specs whose representatives are kept."""


class Representatives:
    """Specs whose engines serve others as well, which differ in the sizes of pictures alone: the model brings these
    pictures to one size."""

    def __init__(self, pipe: SearchMixin) -> None:
        self._pipe = pipe
        self._known: dict[EngineSpec, EngineSpec] = {}
        self._first: dict[Hashable, EngineSpec] = {}

    def of(self, spec: EngineSpec) -> EngineSpec:
        """The first spec that serves this one; itself where the model cannot do it."""
        sizeless = replace(spec, call={name: _sizeless(value) for name, value in spec.call.items()})
        if spec == sizeless:
            return spec
        if spec not in self._known:
            if len(self._known) == MOST_SIZES:
                self._known.clear()
                self._first.clear()
            try:
                denoiser = self._pipe.sampling_denoiser(replace(spec.sampler, draft=None), **spec.call)
            except (RuntimeError, TypeError, ValueError):  # no engine can be made either, which says why
                return spec
            shapes = denoiser.layout, denoiser.text_length
            self._known[spec] = self._first.setdefault((sizeless, shapes), spec)
        return self._known[spec]


def _sizeless(value: Any) -> Any:
    """A blank picture, or several, without a size."""
    if isinstance(value, tuple):
        return tuple(map(_sizeless, value))
    return replace(value, size=(0, 0)) if isinstance(value, Blank) else value
