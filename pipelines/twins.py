"""Twins of pipelines: other objects over the same weights."""

from __future__ import annotations

import copy
from typing import Any

_OWN = ("_all_hooks", "_internal_dict", "_progress_bar_config")
"""What diffusers changes in place on a pipeline object; a twin gets its own."""


def copied(pipe: Any, cls: type) -> Any:
    """The same pipeline under another class of the same parts. Hooks, settings and quantised weights stay."""
    twin = copy.copy(pipe)
    twin.__class__ = cls
    for name in _OWN:
        if name in vars(pipe):
            vars(twin)[name] = copy.copy(vars(pipe)[name])
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin


def rebuilt(pipe: Any, cls: Any, changes: dict[str, Any]) -> Any:
    """A `cls` made of the parts of `pipe`, some of them or of its settings changed.

    Unlike diffusers' from_pipe it casts nothing and keeps what was set on the object (hooks, progress bar). Raises
    ValueError for changes that `cls` does not know and for parts that neither has.
    """
    parts, settings = cls._get_signature_keys(cls)
    unknown = sorted(set(changes) - {*parts, *settings})
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it is made of {', '.join([*parts, *settings])}")
    config = {name.removeprefix("_"): value for name, value in pipe.config.items()}
    given = {name: config[name] for name in settings if name in config}
    given |= {name: part for name, part in pipe.components.items() if name in parts} | changes
    missing = sorted(set(parts) - set(given) - set(cls._optional_components))
    if missing:
        raise ValueError(f"{cls.__name__} needs {', '.join(missing)}, which {type(pipe).__name__} does not have")
    if "scheduler" not in changes:
        given["scheduler"] = copy.deepcopy(given["scheduler"])
    twin = cls(**given)
    twin.register_to_config(**{k: v for k, v in pipe.config.items() if k == "_name_or_path"})
    for name in set(vars(pipe)) - set(pipe.components) - set(vars(twin)):
        vars(twin)[name] = copy.copy(vars(pipe)[name]) if name in _OWN else vars(pipe)[name]
    return twin
