"""What the parts of a pipeline are: which of them ask, denoise, step, guide or read prompts.

Pipelines say it nowhere, so that it is seen by what parts have. All such probes stand here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

Parts: TypeAlias = Mapping[str, Any]
"""Parts of a pipeline, by name."""
ENCODE, DECODE = "encode", "decode"
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
