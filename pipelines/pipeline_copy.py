"""Twins of pipelines: other objects over the same weights."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

from diffusers import ModelMixin
from torch import nn

_OWN = ("_all_hooks", "_internal_dict", "_progress_bar_config")
"""What diffusers changes in place on a pipeline object; a twin gets its own."""


def copied(pipe: Any, cls: type) -> Any:
    """The same pipeline under another class of the same parts. Hooks, settings and quantised
    weights stay."""
    twin = copy.copy(pipe)
    twin.__class__ = cls
    for name in _OWN:
        if name in vars(pipe):
            vars(twin)[name] = copy.copy(vars(pipe)[name])
    # A step that was set on an object may hold that.
    if hasattr(pipe, "scheduler") and "step" not in getattr(pipe.scheduler, "__dict__", ()):
        twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin


def shared_copy(net: nn.Module) -> nn.Module:
    """A copy over the same parameters and buffers, with modules, adapters and settings of its own.

    It is not compiled. Hooks that move or cast weights (offload) are the network's, as the weights
    are.
    """
    net = getattr(net, "_orig_mod", net)  # torch.compile(module)
    kept: list[Any] = [*net.parameters(), *net.buffers()]
    kept += [part._hf_hook for part in net.modules() if "_hf_hook" in vars(part)]
    kept += [part._diffusers_hook for part in net.modules() if registered(part)]
    memo: dict[int, object] = {id(each): each for each in kept}  # which deepcopy then shares
    twin = copy.deepcopy(net, memo)
    for part, own in zip(net.modules(), twin.modules(), strict=True):
        if registered(part):  # whose `forward` is bound to the network's module
            own.forward = functools.partial(_under_hooks, part, own)
    return twin


def _under_hooks(part: nn.Module, own: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a copy of a module under the hooks that diffusers put on the module."""
    hooks = registered(part)
    for hook in reversed(hooks):
        args, kwargs = hook.pre_forward(part, *args, **kwargs)
    out = type(own).forward(own, *args, **kwargs)
    for hook in hooks:
        out = hook.post_forward(part, out)
    return out


def registered(part: nn.Module) -> list[Any]:
    """The hooks that diffusers put on a module, the innermost first."""
    # Transformers that cache by context have a registry that is empty.
    registry: Any = getattr(part, "_diffusers_hook", None)
    return [] if registry is None else list(registry.hooks.values())


def hooked(pipe: Any) -> bool:
    """Whether the pipeline's networks have hooks, which loading a LoRA removes and adds again."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    parts = [part for network in networks for part in network.modules()]
    return any(registered(part) or "_hf_hook" in vars(part) for part in parts)


def rebuilt(pipe: Any, cls: Any, changes: dict[str, Any]) -> Any:
    """A `cls` made of the parts of `pipe`, some of them or of its settings changed.

    Unlike diffusers' from_pipe it casts nothing and keeps what was set on the object (hooks,
    progress bar). As there, networks must be of the very classes that `cls` names: those of other
    pipelines bear the same names. Raises ValueError for changes that `cls` does not know and for
    parts that neither has.
    """
    parts, settings = cls._get_signature_keys(cls)
    unknown = sorted(set(changes) - {*parts, *settings})
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no {', '.join(unknown)}; it is made of"
            f" {', '.join([*parts, *settings])}"
        )
    config = {name.removeprefix("_"): value for name, value in pipe.config.items()}
    given = {name: config[name] for name in settings if name in config}
    types = cls._get_signature_types()
    theirs = {name: part for name, part in pipe.components.items() if name in parts}
    others = {
        n: type(p)
        for n, p in theirs.items()
        if isinstance(p, ModelMixin) and type(p) not in types[n]
    }
    given |= {name: part for name, part in theirs.items() if name not in others} | changes
    takes = inspect.signature(cls.__init__).parameters
    missing = sorted(
        name
        for name in parts
        if name not in given and takes[name].default is inspect.Parameter.empty
    )
    if missing:
        wrong = "".join(f"; its {n} is {others[n].__name__}" for n in missing if n in others)
        raise ValueError(
            f"{cls.__name__} needs {', '.join(missing)}, which {type(pipe).__name__} does not"
            f" have{wrong}"
        )
    if "scheduler" not in changes:
        given["scheduler"] = copy.deepcopy(given["scheduler"])
    twin = cls(**given)
    twin.register_to_config(**{k: v for k, v in pipe.config.items() if k == "_name_or_path"})
    for name in set(vars(pipe)) - set(pipe.components) - set(vars(twin)):
        vars(twin)[name] = copy.copy(vars(pipe)[name]) if name in _OWN else vars(pipe)[name]
    return twin
