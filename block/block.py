"""A block for diffusers' modular pipelines that searches: it runs a model's own blocks for many
seeds, drops the poor ones early, and finishes the best."""

from __future__ import annotations

import copy
from typing import Any

from diffusers import ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam

from ttsnap.options.every import DECLARED
from ttsnap.pipelines import upgrade

MADE = {"images": "images", "videos": "frames", "audio": "audio"}
"""What blocks make, and its name in what a search returns."""


class SearchBlock(ModularPipelineBlocks):
    """Takes what a model's blocks take and, by their names, the arguments of a search.

    blocks: the model's. Left out, they are those of the model that `init_pipeline` is given.
    """

    _requirements = {"ttsnap": ">=0.2.0.dev0"}  # noqa: RUF012, as diffusers declares it

    def __init__(self, blocks: Any = None) -> None:
        super().__init__()
        self.searched = ModularPipelineBlocks() if blocks is None else blocks

    @property
    def model_name(self) -> str | None:
        """The model's kind, by which diffusers finds the class of a pipeline."""
        name: str | None = self.searched.model_name
        return name

    @property
    def description(self) -> str:
        return "Runs a model's blocks for many seeds, drops the poor ones early, finishes the best."

    @property
    def expected_components(self) -> list[Any]:
        return list(self.searched.expected_components)

    @property
    def expected_configs(self) -> list[Any]:
        return list(self.searched.expected_configs)

    @property
    def inputs(self) -> list[Any]:
        own = [
            InputParam(option.name, default=option.default, description=option.documented)
            for option in DECLARED.values()
        ]
        return [*self.searched.inputs, *own]

    @property
    def intermediate_outputs(self) -> list[Any]:
        made = [each for each in self.searched.intermediate_outputs if each.name in MADE]
        found = OutputParam("results", description="what was found: a Result for each prompt")
        return [*made, found]

    def init_pipeline(
        self, pretrained_model_name_or_path: Any = None, **options: Any
    ) -> ModularPipeline:
        """The pipeline of a model, by its folder or hub id, with this block in place of its own."""
        if self.searched.inputs or pretrained_model_name_or_path is None:
            return super().init_pipeline(pretrained_model_name_or_path, **options)
        model = ModularPipeline.from_pretrained(pretrained_model_name_or_path, **options)
        block = type(self)(model.blocks)
        return type(model)(
            block, pretrained_model_name_or_path=pretrained_model_name_or_path, **options
        )

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        model = copy.copy(components)
        model._blocks = self.searched
        values = {each.name: state.get(each.name) for each in self.inputs if each.name}
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("search") is None:
            raise ValueError("this block searches: name an algorithm, as search='seed-pruning'")
        found = upgrade(model)(**given)
        state.set("results", found.search)
        for name in self.intermediate_output_names:
            if name in MADE:
                state.set(name, getattr(found, MADE[name]))
        return components, state
