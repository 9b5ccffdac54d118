"""The parameters of calls that hand arguments on to those of their bases."""

from __future__ import annotations

import inspect
from typing import Any


def call_parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class's `__call__` and, where it takes **kwargs, of that of its base, to
    which it may hand them on."""
    found = dict[str, inspect.Parameter]()
    for base in kind.__mro__:
        if "__call__" in vars(base):
            own: Any = inspect.signature(vars(base)["__call__"]).parameters
            found = {**found, **own, **found}
            if "kwargs" not in own:
                break
    found.pop("args", None)
    return dict(sorted(found.items(), key=lambda named: named[1].kind))
