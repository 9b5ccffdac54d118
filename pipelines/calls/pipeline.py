"""The search twin of any pipeline class, whose searches suspend its stock call."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.extras import install
from ttsnap.files.pictured import blanks
from ttsnap.options.call import NOT_TAKEN
from ttsnap.pipelines import search_class, twin_class
from ttsnap.pipelines.arguments import call_parameters
from ttsnap.pipelines.calls import guiders, loops
from ttsnap.pipelines.calls.denoiser import CallsDenoiser
from ttsnap.pipelines.calls.opening import takes_one_each
from ttsnap.pipelines.calls.parts import DEVICE, denoisers_of, main_first
from ttsnap.pipelines.calls.pictures import main_of, pictures_for
from ttsnap.pipelines.calls.tasks import TEXT_TO_IMAGE, class_for, task_of
from ttsnap.pipelines.calls.values import tensors_in
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.output import FramesOutput, ImagesOutput, SoundOutput, joined
from ttsnap.pipelines.run import SearchOutcome

NEEDS = ("generator", "output_type")
"""Arguments that a stock call must take."""
LATENT_FRAME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""What pipelines call the number of frames that one latent frame stands for."""


class SearchCallsMixin(SearchMixin):
    """First base of the search twin of a pipeline that no family knows, before its stock class."""

    denoiser_class: ClassVar[Any] = CallsDenoiser
    suspends: ClassVar[bool] = True
    task: str | None = None
    """What it was loaded for, where that was said: it then makes images of text, too."""

    def call_arguments(self) -> Collection[str]:
        return self.stock_arguments().keys() - NOT_TAKEN

    @property
    def _execution_device(self) -> torch.device:
        """As the stock class finds it, but in frames, for which it is known."""
        stock: Any = super()
        found: torch.device = vars(self).get(DEVICE) or stock._execution_device
        return found

    def denoising_network(self) -> str:
        parts: Any = self
        return main_first(denoisers_of(parts.components))[0]

    def split_prompt_inputs(
        self, prompts: Sequence[Prompt], call: Mapping[str, Any]
    ) -> tuple[list[Prompt], dict[str, Any]]:
        named = [each for each in call.items() if "prompt" in each[0]]
        listed: dict[str, Any] = {
            name: each for name, each in named if isinstance(each, list | tuple | Tensor)
        }
        embeds = {name: each for name, each in listed.items() if tensors_in(each)}
        several = pictures_for(call, len(prompts)) if len(prompts) > 1 else {}
        if several and takes_one_each(self, {**call, **several}):
            listed |= several
        split = []
        for i, prompt in enumerate(prompts):
            own = {name: values[i] for name, values in listed.items()}
            own |= {name: values[i : i + 1] for name, values in embeds.items()}
            split.append(replace(prompt, inputs={**prompt.inputs, **own}))
        texts = {name: "" for name in listed if "prompt" in name}
        rows = {name: values[:1] for name, values in embeds.items()}
        return split, {**call, **blanks(split[0].inputs), **texts, **rows}

    def returned(
        self, found: SearchOutcome, prompts: Sequence[Prompt], form: str
    ) -> tuple[Any, dict[str, Any]]:
        denoiser = found.denoiser
        flagged = form != "latent" and any(found.flags or ())  # in frames no safety checker looks
        if flagged or not found.latents or not denoiser.returns_more:
            return super().returned(found, prompts, form)
        denoiser.encode(prompts)
        counts = torch.tensor([len(result.images) for result in found.results])
        jobs = torch.arange(len(counts)).repeat_interleave(counts)
        seeds = [image.seed for result in found.results for image in result.images]
        cond = denoiser.conditions(jobs, seeds)
        made = [
            denoiser.returned(latents[None], at, form)
            for latents, at in zip(found.latents, cond, strict=True)
        ]
        pipe: Any = self
        pipe.maybe_free_model_hooks()
        names = vars(made[0]).keys()
        more = {name: joined([getattr(each, name) for each in made]) for name in names}
        return joined(list(map(main_of, made))), {**more, "nsfw_content_detected": found.flags}

    def denoiser(self, **call: Any) -> Any:
        twin = self._from_text(call)
        if twin is None:
            return super().denoiser(**call)
        takes = twin.call_arguments()
        return twin.denoiser(**{name: value for name, value in call.items() if name in takes})

    def _from_text(self, call: Mapping[str, Any]) -> Any | None:
        """The search twin for images of text over the same parts.

        That is where a call lacks the picture that its own class redraws; None where it does not,
        or diffusers has no such class.
        """
        if (
            self.task is None
            or "image" not in self.stock_arguments()
            or call.get("image") is not None
        ):
            return None
        kind = class_for(self.stock_class(), TEXT_TO_IMAGE)
        return None if kind is self.stock_class() else search_class(kind).from_pipe(self)

    def task_of(self, call: Mapping[str, object]) -> str | None:
        return task_of(self.stock_arguments(), self.components, call)  # type: ignore[attr-defined]

    def needs_picture(self) -> bool:
        return self.stock_arguments().get("image") is inspect.Parameter.empty

    def frames_every(self) -> int | None:
        if not (self.makes_videos() or "num_frames" in self.stock_arguments()):
            return None
        found = [getattr(self, name) for name in LATENT_FRAME if hasattr(self, name)]
        return int(found[0]) if found else 1

    def boundary(self) -> float | None:
        found: float | None = self.config.get("boundary_ratio")  # type: ignore[attr-defined]
        return found


class SearchModularMixin(SearchCallsMixin):
    """The same of a modular pipeline.

    A search takes the inputs of its blocks and the settings of its guiders.
    It returns images or frames, as classic pipelines do, in place of the state of the blocks.
    """

    def stock_call(self) -> Callable[..., Any]:
        return loops.called

    def stock_arguments(self) -> Mapping[str, Any]:
        empty = inspect.Parameter.empty
        named = [each for each in loops.inputs_of(self) if each.name is not None]
        own = {each.name: empty if each.required else each.default for each in named}
        return {**dict.fromkeys(guiders.settings(self)), **own}

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


def calls_search_class(stock: Any) -> Any:
    """The search twin of a pipeline class of diffusers.

    ValueError for one whose call no search can suspend, and for a missing package.
    """
    twin = _search_class(stock)
    _check_installed(stock)
    return twin


@functools.cache
def _search_class(stock: Any) -> Any:
    if loops.is_modular(stock):
        return twin_class(stock, SearchModularMixin, output_class=_modular_output(stock))
    known = issubclass(stock, DiffusionPipeline)
    parameters = call_parameters(stock) if known else {}
    if missing := [name for name in NEEDS if name not in parameters]:
        raise ValueError(
            f"search cannot use {stock.__name__}: it is no pipeline of diffusers whose call takes "
            f"{' and '.join(missing)}"
        )
    return twin_class(stock, SearchCallsMixin)


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
    if loops.SOUND in made:
        return SoundOutput
    return FramesOutput if "videos" in made else ImagesOutput
