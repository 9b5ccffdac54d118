"""Copies of the outer objects of a pipeline's parts, over the same weights, which ask.

So nothing that a frame sets shows in the user's pipeline, and no other frame sees it.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ttsnap.pipelines.calls.kept import Kept
from ttsnap.pipelines.calls.parts import METHODS, forget_own_methods, uncompiled
from ttsnap.pipelines.calls.places import LatentsPlace
from ttsnap.pipelines.calls.questions import Drawn, DrawnBy, PartCall
from ttsnap.pipelines.suspended import Ask

ENCODING = threading.RLock()
"""Held while prompts are encoded: fast tokenizers are set, by each call, to how it pads and
cuts."""
ASKS = "_asks"
"""The attribute of a part by which it asks."""


def asking(name: str, own: nn.Module, part: nn.Module, ask: Ask) -> Any:
    """A copy of a part, whose METHODS ask.

    own: the pipeline's part of this name, whose methods it has as well.
    """

    def asks(method: str, args: Any, kwargs: Any) -> Any:
        return ask(PartCall(name, method, args, kwargs))

    kind: Any = type(part)
    own_kind: Any = type(uncompiled(own))
    twin = _copied(part, _asking_class(kind, own_kind))
    forget_own_methods(twin)
    vars(twin)[ASKS] = asks
    return twin


@functools.cache
def _asking_class(kind: Any, own: Any) -> Any:
    """A class of parts whose METHODS ask. Classes of models are slow to make."""

    def asks(method: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return vars(self)[ASKS](method, args, kwargs)

        home = kind if hasattr(kind, method) else own
        return functools.wraps(getattr(home, method))(call)

    found = [method for method in METHODS if hasattr(kind, method) or hasattr(own, method)]
    return _class_like(kind, {method: asks(method) for method in found})


def locked(tokenizer: Any) -> Any:
    """A copy of a tokenizer, which works while no other thread's does.

    Each call sets it to how it pads and cuts.
    """
    kind: Any = type(tokenizer)
    return _copied(tokenizer, _locked_class(kind))


@functools.cache
def _locked_class(kind: Any) -> Any:
    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ENCODING:
            return kind.__call__(self, *args, **kwargs)

    return _class_like(kind, {"__call__": call})


def keeping(kept: Kept, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a pipeline, whose results are kept for equal arguments."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return kept.of(method.__name__, args, kwargs, method)

    return call


def drawing(
    places: Sequence[LatentsPlace] | None,
    method: Callable[..., Any],
    ask: Ask,
) -> Callable[..., Any]:
    """A method of a pipeline that draws latents, which asks what the call is to begin with.

    places: of the call's first latents; None in a rehearsal, which is shown all that is drawn.
    """
    calls = Counter[str]()

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[method.__name__] += 1
        by, made = DrawnBy(method.__name__, calls[method.__name__]), method(*args, **kwargs)
        if places is None:
            return ask(Drawn(by, made))
        for field, place in enumerate(places):
            if place.by == by:
                made = place.put(ask(Drawn(by, place.latents(made), field)), made)
        return made

    return call


def _class_like(kind: Any, methods: dict[str, Any]) -> Any:
    """A class of the same name and place, with other methods."""
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **methods})


def _copied(part: Any, kind: Any) -> Any:
    """A copy of the outer object of a part, over the same inside, of this class."""
    twin = object.__new__(kind)
    vars(twin).update(vars(part))
    return twin
