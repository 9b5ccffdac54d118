"""What people set on the parts of a pipeline, and packages for them, as step caches do.

A search calls parts for many candidates by turns, and has steps and calls of its own. What was set
would be mixed up between candidates, or dropped, so that it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ttsnap.pipelines.pipeline_copy import registered

KNOWN = ("accelerate.", "diffusers.", "torch.", "transformers.", "ttsnap.")
"""Packages whose own methods, and those that they set, a search calls as they are."""
METHODS = {"__call__", "forward", "step", "set_timesteps", "scale_model_input", "add_noise"}
"""Of pipeline classes, modules and schedulers."""


def refuse_patches(parts: Mapping[str, Any]) -> None:
    """ValueError for parts with a method that something else than KNOWN has set, and for modules
    that reuse results of earlier steps."""
    for name, part in parts.items():
        inside = part.named_modules() if isinstance(part, nn.Module) else [("", part)]
        for place, each in inside:
            for patch in _patches(each):
                raise ValueError(
                    f"{name} has {f'{place}.{patch}'.lstrip('.')}: a search goes by what was there"
                    " before, and what this keeps would be mixed up between candidates; take it"
                    f" out (caches by {name}.disable_cache()), or define it in a subclass"
                )


def _patches(part: Any) -> Iterator[str]:
    """What was set on a part or on its class, and by what."""
    if getattr(part, "is_cache_enabled", False):
        yield "forward by enable_cache"
    for hook in registered(part):
        if getattr(hook, "_is_stateful", False):
            yield f"forward by {type(hook).__name__}"
    kind: Any = type(part)
    own = kind.__module__.partition(".")[0]
    for owner in (part, kind) if kind.__module__.startswith(KNOWN) else (part,):
        for method in METHODS & getattr(owner, "__dict__", {}).keys():
            for maker in _makers(vars(owner)[method]):
                if not f"{maker}.".startswith((*KNOWN, f"{own}.")):
                    yield f"{method} by {maker}"


def _makers(function: Any) -> Iterator[str]:
    """The modules of code that a function is of, and what it wraps, whose names it may bear."""
    while callable(function):  # data may have such a name, too, as a number in Mochi's VAE
        plain = getattr(function, "func", function)  # of functools.partial
        plain = getattr(plain, "__func__", plain)
        code = getattr(plain, "__globals__", vars(type(plain)))
        yield str(code.get("__name__", code.get("__module__")))
        function = getattr(function, "__wrapped__", None)
