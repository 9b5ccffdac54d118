"""The search twin of any pipeline class, whose searches suspend its stock call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from diffusers import DiffusionPipeline

from ttsnap.core.prompt import Prompt
from ttsnap.pipelines import twin_class
from ttsnap.pipelines.calls.denoiser import CallsDenoiser
from ttsnap.pipelines.mixin import SearchMixin

NEEDS = ("generator", "output_type")
"""Arguments that a stock call must take."""
NOT_TAKEN = {
    "self",
    "prompt",
    "generator",
    "output_type",
    "return_dict",
    "latents",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "callback",
    "callback_steps",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "denoising_end",
}
"""Arguments of stock calls that a search does not take: seeds make latents, and listeners hear of steps."""


class SearchCallsMixin(SearchMixin):
    """First base of the search twin of a pipeline that no family knows, before its stock class."""

    denoiser_class: ClassVar[Any] = CallsDenoiser

    def call_arguments(self) -> Collection[str]:
        stock: Any = self.stock_class()
        parameters = inspect.signature(stock.__call__).parameters.values()
        plain = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        return {name for name in plain - NOT_TAKEN if not name.endswith("prompt_embeds")}

    def split_prompt_inputs(
        self, prompts: Sequence[Prompt], call: Mapping[str, Any]
    ) -> tuple[list[Prompt], dict[str, Any]]:
        listed = {name: value for name, value in call.items() if "prompt" in name and isinstance(value, list | tuple)}
        own = [{name: values[i] for name, values in listed.items()} for i in range(len(prompts))]
        each = zip(prompts, own, strict=True)
        split = [replace(prompt, inputs={**prompt.inputs, **more}) for prompt, more in each]
        return split, {**call, **dict.fromkeys(listed, "")}


@functools.cache
def calls_search_class(stock: Any) -> Any:
    """The search twin of a pipeline class of diffusers. ValueError for one whose call no search can suspend."""
    parameters = inspect.signature(stock.__call__).parameters if issubclass(stock, DiffusionPipeline) else {}
    if missing := [name for name in NEEDS if name not in parameters]:
        raise ValueError(f"search cannot use {stock.__name__}: it is no pipeline of diffusers whose call takes "
                         f"{' and '.join(missing)}")  # fmt: skip
    return twin_class(stock, SearchCallsMixin)
