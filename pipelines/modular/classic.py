"""Searches with classic pipelines, run over modular pipelines of the same parts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import diffusers

from ttsnap.pipelines import twin_class
from ttsnap.pipelines.memory.flops import Memo
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.modular import guiders
from ttsnap.pipelines.modular.denoiser import ModularDenoiser
from ttsnap.pipelines.modular.pipeline import modular_search_class
from ttsnap.pipelines.modular.workflows import check_installed, workflows_of
from ttsnap.pipelines.output import TYPES
from ttsnap.pipelines.pipeline_copy import copied
from ttsnap.pipelines.quiet import quiet

MODULAR: dict[str, str] = {
    **dict.fromkeys(
        (
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
        ),
        "StableDiffusionXLModularPipeline",
    ),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "StableDiffusion3ModularPipeline"),
    **dict.fromkeys(("FluxPipeline", "FluxImg2ImgPipeline"), "FluxModularPipeline"),
    "FluxKontextPipeline": "FluxKontextModularPipeline",
    "Flux2Pipeline": "Flux2ModularPipeline",
    "Flux2KleinPipeline": "Flux2KleinModularPipeline",
    **dict.fromkeys(
        (
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
        ),
        "QwenImageModularPipeline",
    ),
    "QwenImageEditPipeline": "QwenImageEditModularPipeline",
    "QwenImageEditPlusPipeline": "QwenImageEditPlusModularPipeline",
    **dict.fromkeys(("ZImagePipeline", "ZImageImg2ImgPipeline"), "ZImageModularPipeline"),
    "WanPipeline": "WanModularPipeline",
    "WanImageToVideoPipeline": "WanImage2VideoModularPipeline",
    **dict.fromkeys(("LTXPipeline", "LTXImageToVideoPipeline"), "LTXModularPipeline"),
    **dict.fromkeys(("LTX2Pipeline", "LTX2ImageToVideoPipeline"), "LTX2ModularPipeline"),
}
"""The modular pipeline class with the workflows of a classic class."""
EXPERTS = {
    "WanModularPipeline": "Wan22ModularPipeline",
    "WanImage2VideoModularPipeline": "Wan22Image2VideoModularPipeline",
}
"""The modular pipeline class in place of another where a boundary divides the steps between two networks."""
SET = ("_all_hooks", "_search_buckets", "_search_memo", "model_options", "preview_vae")
"""Attributes of pipeline objects that users or searches set."""
PROCESSORS = "diffusers.modular_pipelines.modular_pipeline_utils"
"""The logger that warns of processors of pictures that a classic pipeline made."""


def tasks_of(classic: str) -> tuple[str, ...]:
    """The tasks of a classic class's modular pipeline; none where it has no such pipeline."""
    if classic not in MODULAR:
        return ()
    return tuple(dict.fromkeys(each.task for each in workflows_of(MODULAR[classic]) if each.why_not is None))


def check_task(classic: str, task: str | None) -> None:
    """ValueError where no modular pipeline does this task with the parts of a classic one, or a package is missing."""
    check_installed(MODULAR.get(classic, ""))
    tasks = tasks_of(classic)
    if tasks and (task is None or task in tasks):
        return
    can = f"it can be used for {', '.join(tasks)}; " if tasks else ""
    able = [name for name in MODULAR if task is None or task in tasks_of(name)]
    raise ValueError(f"no modular pipeline does {task or 'anything'} with the parts of a {classic}; {can}there are "
                     f"{', '.join(able)} for {task or 'that'}")  # fmt: skip


def modular(pipe: Any, task: str | None = None) -> Any:
    """The modular search pipeline over the parts of a classic pipeline, which stays as it is.

    task: what it must be able to do. ValueError where no modular pipeline does it.
    """
    name = _stock_name(pipe)
    check_task(name, task)
    if pipe.config.get("expand_timesteps"):
        raise ValueError(f"search does not support this {name}: it denoises the frame that is given at a time of its "
                         "own (expand_timesteps, as Wan 2.2 TI2V does), and modular blocks do not; take Wan 2.1, or "
                         "2.2 A14B")  # fmt: skip
    with quiet(guiders.EXPERIMENTAL):
        made = getattr(diffusers, _modular_class(pipe))()
    # Also processors of pictures, which are no components of a classic pipeline.
    parts = {part: getattr(pipe, part) for part in made.components if hasattr(pipe, part)}
    parts = {part: value for part, value in parts.items() if value is not None}
    settings = made.config.keys() - made.components.keys()
    config = {name: pipe.config[name] for name in settings if pipe.config.get(name) is not None}
    with quiet(PROCESSORS):
        made.update_components(**parts, **config)
    made._pretrained_model_name_or_path = pipe.name_or_path or None
    vars(made).update({name: value for name, value in vars(pipe).items() if name in SET})
    kind: Any = type(made)
    return copied(made, modular_search_class(kind))


def _modular_class(pipe: Any) -> str:
    """The class for its settings: FLUX.2 klein is distilled or a guided base model, Wan has one network or two."""
    name = MODULAR[_stock_name(pipe)]
    if pipe.config.get("boundary_ratio") is not None:
        return EXPERTS[name]
    base = name == "Flux2KleinModularPipeline" and not pipe.config.get("is_distilled", False)
    return "Flux2KleinBaseModularPipeline" if base else name


def _stock_name(pipe: Any) -> str:
    return (pipe.stock_class() if isinstance(pipe, SearchMixin) else type(pipe)).__name__


class SearchClassicMixin(SearchMixin):
    """First base of the search twin of a classic pipeline, before its stock class, whose searches run over blocks.

    Without `search=` the call is the stock one. With it, the arguments of that call and its defaults are translated for
    a modular pipeline of the present parts. Each search makes that anew.
    """

    denoiser_class = ModularDenoiser

    def resolve_pipeline(self, call: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        pipe: Any = self
        vars(pipe).setdefault("_search_memo", Memo())
        made = modular(self)
        made.classic = self.stock_class().__name__
        return made, translated(self.stock_class(), made, call)

    def call_arguments(self) -> Collection[str]:
        stock: Any = self.stock_class()
        return honoured(stock, _modular_class(self))

    def task_of(self, call: Mapping[str, object]) -> str | None:
        made, translation = self.resolve_pipeline(call)
        task: str | None = made.task_of(translation)
        return task

    def frames_every(self) -> int | None:
        every: int | None = modular(self).frames_every()
        return every

    def denoiser(self, **call: Any) -> Any:
        made, translation = self.resolve_pipeline(call)
        return made.denoiser(**translation)


@functools.cache
def classic_search_class(stock: Any) -> Any:
    """The search twin of a classic class in MODULAR. ValueError for a version of diffusers that was not tested."""
    modular_search_class(getattr(diffusers, MODULAR[stock.__name__]))
    tokens = MODULAR[stock.__name__] == "LTX2ModularPipeline"  # latents of video and sound are one row
    kinds = tuple(kind for kind in TYPES if kind != "latent" or not tokens)
    return twin_class(stock, SearchClassicMixin, output_types=kinds)


RENAMED = {
    "StableDiffusionXLControlNetPipeline": {"image": "control_image"},
    "Flux2Pipeline": {"attention_kwargs": "joint_attention_kwargs"},
}
"""Names of arguments that differ in blocks, by the classic class."""
SHARED_BY_SOUND = ("guidance_scale", "guidance_rescale", "stg_scale", "modality_scale")
"""Settings of a video that hold for its sound, where that has none of its own."""


@functools.cache
def honoured(stock: Any, modular_class: str) -> frozenset[str]:
    """The arguments of a classic class's call that a search over this modular class honours."""
    with quiet(guiders.EXPERIMENTAL):
        made = modular_search_class(getattr(diffusers, modular_class))()
    known, renamed = inspect.signature(stock.__call__).parameters, RENAMED.get(stock.__name__, {})
    inputs = made.call_arguments()
    takes = {name for name in known if renamed.get(name, name) in inputs}
    if stock.__name__.startswith("LTX"):  # they set sigmas themselves, and refuse times beside these
        takes -= {"timesteps"}
    if "true_cfg_scale" in known and "guidance_scale" in guiders.settings(made):
        takes = takes - {"guidance_scale"} | {"true_cfg_scale"}
    return frozenset(takes)


def translated(stock: Any, made: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which a modular pipeline makes what a call of the classic class makes."""
    known, renamed = inspect.signature(stock.__call__).parameters, RENAMED.get(stock.__name__, {})
    takes = honoured(stock, type(made).stock_class().__name__)
    given = {renamed.get(name, name): value for name, value in call.items() if value is not None}
    guided = guiders.settings(made)
    reads = {"true_cfg_scale", *guided, *made.blocks.get_execution_blocks(**given, prompt="").input_names}
    defaults = {renamed.get(name, name): known[name].default for name in takes}
    given = {n: v for n, v in defaults.items() if n in reads and v not in (None, inspect.Parameter.empty)} | given
    if stock.__name__ == "StableDiffusion3Img2ImgPipeline":  # its blocks would guide by the prompt itself
        given.setdefault("negative_prompt", "")
    if "true_cfg_scale" in takes:
        scale = given.pop("true_cfg_scale")
        given["guidance_scale"] = scale if "negative_prompt" in given else 1.0
    for name in SHARED_BY_SOUND:
        if f"audio_{name}" in takes:
            given[f"audio_{name}"] = given.get(f"audio_{name}") or given[name]
    perturbed = max(given.get("stg_scale", 0.0), given.get("audio_stg_scale", 0.0)) > 0
    if perturbed and not given.get("spatio_temporal_guidance_blocks"):
        raise ValueError("spatio_temporal_guidance_blocks= must name the blocks that are perturbed; give stg_scale=0 "
                         "and audio_stg_scale=0 to perturb none")  # fmt: skip
    none = float(not workflows_of(type(made).stock_class().__name__)[0].scale_from_zero)
    scales = [name for name in guided if name.startswith(("guidance_scale", "audio_guidance_scale")) and name in given]
    if scales and all(given[name] <= none for name in scales if name != "guidance_scale_2"):
        given |= dict.fromkeys(scales, none)
    return given
