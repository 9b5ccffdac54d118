"""The settings of a search call as images carry them: plain values that name everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.constants import USE_PEFT_BACKEND

from ttsnap.algorithms.options import name_of
from ttsnap.core.protocols import Algorithm
from ttsnap.files.pictured import digests, own_of
from ttsnap.loop.budget import Budget
from ttsnap.options.model import EMBEDDED, TURBO
from ttsnap.options.sampler import SamplerOptions
from ttsnap.scenes.weights_folder import turbo_path, weights_path
from ttsnap.version import __version__

PLAIN = (bool, int, float, str)


def settings_of(
    pipe: Any, asked: str | Algorithm | Mapping[str, object], sampler: SamplerOptions, call: Mapping[str, object],
    budget: Budget, prompts: Sequence[str],
) -> dict[str, object]:  # fmt: skip
    """As `write_results` takes them, of a pipeline, the algorithm that was asked for, and arguments of its own call.
    prompts: with what the call gives for each of them alone.

    Kernels and algorithms that are objects go by their names; arguments of the call that are not plain are left out.
    """
    named = asked if isinstance(asked, str) else asked.get("name", "") if isinstance(asked, Mapping) else name_of(asked)
    pictures = [digests({**call, **own_of(prompt)}) for prompt in prompts]
    options = {} if isinstance(asked, str) else asked if isinstance(asked, Mapping) else vars(asked)
    return {
        "ttsnap": __version__,
        "model": model_name(pipe),
        "lora": _adapters(pipe),
        "task": pipe.task_of(call),
        "pictures": pictures if any(pictures) else None,
        "sampler": type(pipe.scheduler).__name__,
        "call": {name: value for name, value in call.items() if _is_plain(value)},
        "algorithm": named,
        "options": {name: value for name, value in options.items() if name != "name" and _is_plain(value)},
        "budget": str(budget),
        **sampler.told(),
    }


def model_name(pipe: Any) -> str:
    """By what a pipeline was loaded: "embedded", "scenes-turbo", a folder or a hub id; its class where it was not."""
    where = str(pipe.name_or_path or pipe.stock_class().__name__)
    return {str(weights_path()): EMBEDDED, str(turbo_path()): TURBO}.get(where, where)


def _is_plain(value: object) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


def _adapters(pipe: Any) -> str | None:
    """The names of adapters in force: without them the image cannot be made again. Without peft there are none."""
    names = pipe.get_active_adapters() if USE_PEFT_BACKEND and isinstance(pipe, LoraBaseMixin) else []
    return ", ".join(names) or None
