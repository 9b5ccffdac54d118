"""The search twins of modular pipelines."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ttsnap.core.prompt import Prompt
from ttsnap.files.pictured import blanks
from ttsnap.pipelines import twin_class
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.modular import guiders
from ttsnap.pipelines.modular.denoiser import ModularDenoiser
from ttsnap.pipelines.modular.streams import ONE
from ttsnap.pipelines.modular.workflows import (
    TEXT_TO_IMAGE,
    check_installed,
    check_version,
    listed_for_prompts,
    workflow_for,
    workflows_of,
)
from ttsnap.pipelines.output import FramesOutput, ImagesOutput, SoundOutput

NOT_TAKEN = {
    "latents",
    "audio_latents",
    "generator",
    "output_type",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "padding_mask_crop",
    "masked_image_latents",
    "ip_adapter_image",
    "image_embeds",
    "denoising_start",
    "denoising_end",
    "prompt_embeds_mask",
    "negative_prompt_embeds_mask",
}
"""Inputs of blocks that a search does not take: seeds make latents, and images are never cropped to their mask."""


class SearchModularMixin(SearchMixin):
    """First base of a modular search pipeline, before its stock class. Without `search` the call is the stock one.

    A search takes the inputs of the workflow's blocks and the settings of guiders. It returns images or frames, as
    classic pipelines do, in place of the state of the blocks.
    """

    denoiser_class: ClassVar[Any] = ModularDenoiser
    classic: str | None = None
    """The class of the classic pipeline whose calls it makes, where it makes such."""

    def call_arguments(self) -> Collection[str]:
        inputs = self.blocks.input_names  # type: ignore[attr-defined]
        unread = {name for workflow in workflows_of(self.stock_class().__name__) for name in workflow.unread}
        return {*guiders.settings(self), *(name for name in inputs if name is not None)} - NOT_TAKEN - unread

    def split_prompt_inputs(
        self, prompts: Sequence[Prompt], call: Mapping[str, Any]
    ) -> tuple[list[Prompt], dict[str, Any]]:
        listed = listed_for_prompts(workflow_for(self.stock_class().__name__, call), call)
        for name, values in listed.items():
            if len(values) != len(prompts):
                raise ValueError(f"{name} has {len(values)} entries, but there are {len(prompts)} prompts; give one "
                                 "for all, or one for each")  # fmt: skip
        own = [{name: values[i] for name, values in listed.items()} for i in range(len(prompts))]
        with_own = [replace(prompt, inputs={**prompt.inputs, **own[i]}) for i, prompt in enumerate(prompts)]
        negative = {"negative_prompt": ""} if "negative_prompt" in listed else {}
        return with_own, {**call, **blanks(with_own[0].inputs), **negative}

    def task_of(self, call: Mapping[str, object]) -> str | None:
        task = workflow_for(self.stock_class().__name__, call).task
        return None if task == TEXT_TO_IMAGE else task

    def frames_every(self) -> int | None:
        name = workflows_of(self.stock_class().__name__)[0].frames_every
        return None if name is None else int(getattr(self, name))

    def boundary(self) -> float | None:
        found: float | None = self.config.get("boundary_ratio")  # type: ignore[attr-defined]
        return found

    @property
    def name_or_path(self) -> str | None:
        """The folder or hub id that it was loaded from."""
        where = self._pretrained_model_name_or_path  # type: ignore[attr-defined]
        return None if where is None else str(where)

    def maybe_free_model_hooks(self) -> None:
        """Nothing: the ComponentsManager offloads modular pipelines."""


@functools.cache
def modular_search_class(stock: Any) -> Any:
    """The search twin of a ModularPipeline class. ValueError for a class without a workflow that search can run, for
    an untested version of diffusers, and for a missing package."""
    check_version()
    check_installed(stock.__name__)
    first = workflows_of(stock.__name__)[0]
    output = FramesOutput if first.latents is ONE else SoundOutput
    made = ImagesOutput if first.frames_every is None else output
    return twin_class(stock, SearchModularMixin, output_class=made)
