"""The search twin of any pipeline class, whose searches suspend its stock call."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from ttsnap.extras import install
from ttsnap.pipelines import twin_class
from ttsnap.pipelines.arguments import call_parameters
from ttsnap.pipelines.calls import modular
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.output import FramesOutput, ImagesOutput, SoundOutput

NEEDS = ("generator", "output_type")
"""Arguments that a stock call must take."""


class SearchModularMixin(SearchMixin):
    """First base of the search twin of a modular pipeline.

    A search takes the inputs of its blocks and the settings of its guiders.
    It returns images or frames, as classic pipelines do, in place of the state of the blocks.
    """

    def stock_call(self) -> Callable[..., Any]:
        return modular.called

    def stock_arguments(self) -> Mapping[str, Any]:
        empty = inspect.Parameter.empty
        named = [each for each in modular.inputs_of(self) if each.name is not None]
        own = {each.name: empty if each.required else each.default for each in named}
        return {**dict.fromkeys(modular.settings(self)), **own}

    def needs_picture(self) -> bool:
        blocks: Any = self.blocks  # type: ignore[attr-defined]
        ways = getattr(blocks, "_workflow_map", None) or {}
        return super().needs_picture() or (
            bool(ways) and all("image" in given for given in ways.values())
        )

    @property
    def name_or_path(self) -> str | None:
        """The folder or hub id that it was loaded from."""
        where = self._pretrained_model_name_or_path  # type: ignore[attr-defined]
        return None if where is None else str(where)

    def maybe_free_model_hooks(self) -> None:
        """Nothing: the ComponentsManager offloads modular pipelines."""


def search_twin(stock: Any) -> Any:
    """The search twin of a pipeline class of diffusers.

    ValueError for one whose call no search can suspend, and for a missing package.
    """
    twin = _search_class(stock)
    _check_installed(stock)
    return twin


@functools.cache
def _search_class(stock: Any) -> Any:
    if modular.is_modular(stock):
        return twin_class(stock, SearchModularMixin, output_class=_modular_output(stock))
    known = issubclass(stock, DiffusionPipeline)
    parameters = call_parameters(stock) if known else {}
    if missing := [name for name in NEEDS if name not in parameters]:
        raise ValueError(
            f"search cannot use {stock.__name__}: it is no pipeline of diffusers whose call takes "
            f"{' and '.join(missing)}"
        )
    return twin_class(stock, SearchMixin)


def _check_installed(stock: Any) -> None:
    """ValueError where a class cleans prompts by a package that is missing.

    diffusers imports that package where it is there. Where not, it fails with a NameError in the
    middle of a call.
    """
    if not all(module.is_ftfy_available() for module in _cleaning(stock)):
        raise ValueError(
            f"{stock.__name__} cleans prompts by ftfy, which is missing: {install('video')}"
        )


@functools.cache
def _cleaning(stock: Any) -> list[Any]:
    """The modules beside a class that ask for the package by which prompts are cleaned."""
    folder = stock.__module__.rpartition(".")[0] + "."
    beside = [module for name, module in list(sys.modules.items()) if name.startswith(folder)]
    return [module for module in beside if "is_ftfy_available" in vars(module)]


def _modular_output(stock: Any) -> type[Any]:
    made = {each.name for each in stock().blocks.intermediate_outputs}
    if modular.SOUND in made:
        return SoundOutput
    return FramesOutput if "videos" in made else ImagesOutput
