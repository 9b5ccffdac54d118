"""The parts of a pipeline, and copies of their outer objects, over the same weights, that ask.

So nothing that a frame sets shows in the user's pipeline, and no other frame sees it."""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ttsnap.pipelines.calls.stops import Drawn, DrawnBy, LatentsPlace, PartCall
from ttsnap.pipelines.calls.values import Kept
from ttsnap.pipelines.suspended import Ask

# --- What the parts of a pipeline are: which of them ask, denoise, step, guide or read prompts ----
# Pipelines say it nowhere, so that it is seen by what parts have. All such probes stand here.

Parts: TypeAlias = Mapping[str, Any]
"""Parts of a pipeline, by name."""
ENCODE = "encode"
DECODE = "decode"
METHODS = ("__call__", ENCODE, "generate", DECODE)
"""Of parts: those that ask. Language models generate prompts of prompts, as FLUX.3's do."""
MAIN = ("transformer", "unet")
"""What pipelines call the network that denoises, where they have several."""
DEVICE = "_device_of_call"
"""The attribute of a frame's pipeline with its device, to find which walks through all modules."""
UNASKED = "safety_checker"
"""The part that does not ask: finished images are checked where they go to people."""
ENCODES = ("encode_prompt", "encode_image")
"""Methods of pipelines whose results frames of one prompt share."""
LATENTS = re.compile(r"prepare_(\w+_)?latents")
"""What methods of pipelines are called that may draw first latents."""


def modules_of(parts: Parts) -> dict[str, nn.Module]:
    """The parts that ask, by name."""
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    found.pop(UNASKED, None)
    return found


def schedulers_of(parts: Parts) -> dict[str, Any]:
    """The schedulers, by name."""
    return {name: part for name, part in parts.items() if _is_scheduler(part)}


def guiders_of(parts: Parts) -> dict[str, Any]:
    """The guiders of a modular pipeline, by name."""
    return {name: part for name, part in parts.items() if is_guider(part)}


def tokenizers_of(parts: Parts) -> dict[str, Any]:
    """The parts that read prompts before encoders do, by name."""
    kinds = PreTrainedTokenizerBase | ProcessorMixin
    return {name: part for name, part in parts.items() if isinstance(part, kinds)}


def pipelines_in(pipe: Any) -> list[str]:
    """The names of pipelines inside a pipeline."""
    return [name for name, part in vars(pipe).items() if isinstance(part, DiffusionPipeline)]


@functools.cache
def drawing_methods(kind: type[Any]) -> list[str]:
    """The methods of a class of pipelines that may draw first latents."""
    return [name for name in dir(kind) if LATENTS.fullmatch(name)]


@functools.cache
def encoding_methods(kind: type[Any]) -> list[str]:
    """The methods of a class of pipelines that encode for all frames of a prompt."""
    return [name for name in ENCODES if hasattr(kind, name)]


def _is_scheduler(part: Any) -> bool:
    return hasattr(part, "step") and hasattr(part, "set_timesteps")


def is_guider(part: Any) -> bool:
    """Whether a part is a guider, which keeps the step of a call, and perhaps earlier results."""
    return hasattr(part, "set_state") and hasattr(part, "prepare_inputs")


def denoisers_of(parts: Parts) -> frozenset[str]:
    """The names of parts that may denoise: any networks but language models and decoders."""
    return frozenset(
        name
        for name, part in modules_of(parts).items()
        if not (hasattr(part, DECODE) or isinstance(uncompiled(part), PreTrainedModel))
    )


def main_first(networks: Iterable[str]) -> tuple[str, ...]:
    """Names of networks, that of the one first which others, as ControlNets, lead."""
    return tuple(sorted(networks, key=lambda name: (name not in MAIN, name)))


def uncompiled(part: Any) -> Any:
    """A part without the wrapper of torch.compile, which has the methods of its class."""
    return getattr(part, "_orig_mod", part)


def forget_own_methods(part: nn.Module) -> None:
    """Take out methods that were set on a copy of a part, as a compiled decode of that."""
    for method in METHODS:
        vars(part).pop(method, None)


def has_hooks(part: nn.Module) -> bool:
    """Whether there are hooks in a part that look at its results."""
    return any(inside._forward_hooks for inside in part.modules())


def drops_values(part: nn.Module) -> bool:
    """Whether a part has dropout in training mode. Encoders of transformers have some unseen."""
    training = [inside for inside in part.modules() if inside.training]
    return any(
        isinstance(inside, PreTrainedModel) or (isinstance(inside, nn.Dropout) and inside.p > 0)
        for inside in training
    )


# --- What a stock call changes in parts that frames share, and puts back at its end ---------------
# Other frames are under way then. Perturbed-attention guidance puts processors of its own into a
# network. SDXL widens its VAE to decode. The rehearsal finds the first, which is then held while
# there are frames; where it finds the second, calls end one after the other.


class Processor(NamedTuple):
    """The attention processor of a module."""

    module: Any
    processor: Any

    def hold(self) -> None:
        """Put it back, where another call has taken it out."""
        if self.module.processor is not self.processor:
            self.module.processor = self.processor


def processors(parts: Mapping[str, nn.Module]) -> dict[str, list[Processor]]:
    """Those of each part."""
    found: dict[str, list[Processor]] = {name: [] for name in parts}
    for name, part in parts.items():
        for module in part.modules():
            if hasattr(module, "processor"):
                found[name].append(Processor(module, module.processor))
    return found


def changed(
    before: Mapping[str, list[Processor]],
    after: Mapping[str, list[Processor]],
) -> dict[str, list[Processor]]:
    """Those of parts in which any differs."""
    return {name: now for name, now in after.items() if _differ(before[name], now)}


def _differ(before: list[Processor], now: list[Processor]) -> bool:
    pairs = zip(before, now, strict=True)
    return any(one.processor is not other.processor for one, other in pairs)


def dtypes(parts: Mapping[str, nn.Module]) -> dict[str, torch.dtype]:
    """The dtype of each part's first weight."""
    first = {name: next(part.parameters(), None) for name, part in parts.items()}
    return {name: weight.dtype for name, weight in first.items() if weight is not None}


@contextmanager
def dtypes_kept(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Parts have the dtypes that they had, whether what changes them puts them back or not."""
    before = dtypes(parts)
    try:
        yield
    finally:
        for name, dtype in dtypes(parts).items():
            if dtype is not before[name]:
                parts[name].to(before[name])


# --- Copies of the outer objects of a pipeline's parts, over the same weights, which ask ----------
# So nothing that a frame sets shows in the user's pipeline, and no other frame sees it.

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
    if hasattr(own, "bn") and not hasattr(part, "bn"):
        _decode_as_denoised(twin, own)
    return twin


def _decode_as_denoised(twin: Any, own: Any) -> None:
    """Let a preview VAE, which decodes what networks denoise, have statistics that change nothing.

    own: the VAE of FLUX.2, by whose statistics (C,) the stock call scales latents back.
    """
    mean = own.bn.running_mean
    variance = own.bn.running_var
    vars(twin)["bn"] = SimpleNamespace(
        running_mean=torch.zeros_like(mean), running_var=torch.ones_like(variance)
    )
    vars(twin)["_internal_dict"] = FrozenDict({**twin.config, "batch_norm_eps": 0.0})


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
        by = DrawnBy(method.__name__, calls[method.__name__])
        made = method(*args, **kwargs)
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
